//! From the text of a `gpu` step to its executor.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rowmill_gpu::ops::top_k::Metric;
use rowmill_spec::{Diagnostic, Step, StepKind};
use rowmill_step::{Fill, StepExecutor, StepFactory, batch_target, fill_with, refused, wrong_kind};

use crate::step::{DeviceFor, TopKOptions, TopKStep};

/// The most rows for one item.
const MAX_K: u64 = 1 << 20;

/// Makes executors of `gpu` steps.
pub struct GpuFactory {
    device: DeviceFor,
}

impl GpuFactory {
    /// A factory whose steps ask `device` where to search.
    pub fn new(device: DeviceFor) -> Self {
        Self { device }
    }

    /// A factory whose steps search on the CPU.
    pub fn on_cpu() -> Self {
        Self::new(Arc::new(|_, _| None))
    }
}

impl fmt::Debug for GpuFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GpuFactory")
    }
}

impl StepFactory for GpuFactory {
    fn kind(&self) -> &'static str {
        "gpu"
    }

    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        self.build_in(step, fill, Path::new(""))
    }

    fn build_in(&self, step: &Step, fill: Fill<'_>, base: &Path) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Gpu(gpu) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let top_k = &gpu.top_k.value;
        let corpus = fill_with(&top_k.corpus, fill, |value| Ok(value.to_owned())).map_err(|report| vec![report])?;
        if corpus.trim().is_empty() {
            return Err(vec![refused(step, "corpus", "is empty; give the path of a file", gpu.place("corpus"))]);
        }
        if top_k.k.value > MAX_K {
            return Err(vec![refused(step, "k", &format!("is at most {MAX_K}"), gpu.place("k"))]);
        }
        if let Some(effects) = &step.items.effects
            && effects.value != rowmill_spec::Effects::Pure
        {
            return Err(vec![refused(step, "effects", "a search has none; remove it", effects.span)]);
        }
        let options = TopKOptions {
            column: top_k.column.value.clone(),
            corpus: base.join(corpus),
            corpus_column: top_k.corpus_column.as_ref().unwrap_or(&top_k.column).value.clone(),
            id: top_k.id.as_ref().map(|id| id.value.clone()),
            k: usize::try_from(top_k.k.value).unwrap_or(usize::MAX),
            metric: match top_k.metric.as_ref().map(|metric| metric.value) {
                None | Some(rowmill_spec::Metric::Cosine) => Metric::Cosine,
                Some(rowmill_spec::Metric::Dot) => Metric::Dot,
                Some(rowmill_spec::Metric::L2) => Metric::L2,
            },
            target: batch_target(step, TopKStep::TARGET),
        };
        Ok(Arc::new(TopKStep::new(options, Arc::clone(&self.device))))
    }
}
