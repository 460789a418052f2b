//! The sections of steps that compute: `gpu` and `model`.

use indexmap::IndexMap;

use super::steps::{from, place};
use super::{Fields, Reading};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::keys;
use crate::model::{GpuStep, Metric, ModelDevice, ModelStep, TopK};
use crate::span::Spanned;
use crate::yaml::Node;

pub(super) fn gpu(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<GpuStep> {
    let fields = reading.fields(&keys::GPU, node, key.span, &format!("`gpu` of {who}"))?;
    let from = from(reading, &fields);
    let top_k = fields.entry("top_k").map(|(key, node)| top_k(reading, key, node, who));
    Some(GpuStep { from: from?, top_k: top_k?? })
}

fn top_k(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<Spanned<TopK>> {
    let fields = reading.fields(&keys::TOP_K, node, key.span, &format!("`top_k` of {who}"))?;
    let column = column(reading, &fields, "column");
    let corpus = fields.get("corpus").and_then(|node| reading.filled_text(node, "`corpus`"));
    let corpus_column = self::column(reading, &fields, "corpus_column");
    let id = self::column(reading, &fields, "id");
    let k = fields.get("k").and_then(|node| reading.count(node, "`k`", 1));
    let metric = fields.get("metric");
    let metric = metric.and_then(|node| reading.word(node, "`metric`", Metric::WORDS, Metric::from_word));
    Some(Spanned::new(TopK { column: column?, corpus: corpus?, corpus_column, id, k: k?, metric }, place(key, node)))
}

fn column(reading: &mut Reading<'_>, fields: &Fields<'_>, key: &str) -> Option<Spanned<String>> {
    fields.get(key).and_then(|node| reading.column_name(node, &format!("`{key}`")))
}

pub(super) fn model(reading: &mut Reading<'_>, key: &Spanned<String>, node: &Node, who: &str) -> Option<ModelStep> {
    let fields = reading.fields(&keys::MODEL, node, key.span, &format!("`model` of {who}"))?;
    let from = from(reading, &fields);
    let file = fields.get("file").and_then(|node| reading.filled_text(node, "`file`"));
    let inputs = fields.entry("inputs").map(|(key, node)| {
        let mut inputs = IndexMap::new();
        for (tensor, value) in reading.mapping(node, "`inputs`").unwrap_or(&[]) {
            let columns = reading.one_or_many(value, |reading, node| reading.column_name(node, "`inputs`"));
            twice(reading, tensor, inputs.insert(tensor.value.clone(), columns).is_some());
        }
        Spanned::new(inputs, place(key, node))
    });
    let output = fields.entry("output").map(|(key, node)| {
        let mut output = IndexMap::new();
        for (name, value) in reading.mapping(node, "`output`").unwrap_or(&[]) {
            if let Some(tensor) = reading.text(value, "`output`") {
                let column = crate::names::normalize(&name.value);
                twice(reading, name, output.insert(column, tensor).is_some());
            }
        }
        Spanned::new(output, place(key, node))
    });
    let device = fields.get("device");
    let device = device.and_then(|node| reading.word(node, "`device`", ModelDevice::WORDS, ModelDevice::from_word));
    Some(ModelStep { from: from?, file: file?, inputs: inputs?, output, device })
}

fn twice(reading: &mut Reading<'_>, name: &Spanned<String>, known: bool) {
    if known {
        let report = Diagnostic::error(codes::DUPLICATE_KEY, format!("`{}` stands twice", name.value));
        reading.report(report.at(name.span, "the second time").help("remove one of the two"));
    }
}
