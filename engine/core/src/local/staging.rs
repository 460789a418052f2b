//! The hidden places of a run's sinks: made before it starts, published when it succeeds, discarded otherwise; and what
//! it means when a disk refuses.

use rowmill_spec::{Diagnostic, Fault, LogicalType};
use uuid::Uuid;

use super::{SinkReport, Stop};
use crate::compile::Compiled;
use crate::runtime::Engine;
use crate::sinks::StagedSink;
use crate::types::logical_type;

pub(crate) async fn stage(engine: &Engine, compiled: &Compiled, id: Uuid) -> Result<Vec<StagedSink>, Stop> {
    let mut staged = Vec::new();
    for sink in &compiled.sinks {
        let store = engine.runtime().object_store(&sink.location.store);
        let place = match store {
            Ok(store) => StagedSink::stage(sink, id, &store).map_err(|error| error.to_string()),
            Err(error) => Err(error.strip_backtrace()),
        };
        match place {
            Ok(place) => staged.push(place),
            Err(message) => {
                discard(staged).await;
                return Err(Stop::Report(Box::new(environment(message))));
            }
        }
    }
    Ok(staged)
}

pub(crate) async fn publish(
    compiled: &Compiled,
    staged: Vec<StagedSink>,
    written: &[u64],
) -> Result<Vec<SinkReport>, Diagnostic> {
    let mut published: Vec<SinkReport> = Vec::new();
    let mut waiting = staged.into_iter();
    for (at, sink) in compiled.sinks.iter().enumerate() {
        let Some(place) = waiting.next() else { break };
        if let Err(error) = place.publish().await {
            discard(waiting.collect()).await;
            let report = environment(error.to_string());
            return Err(match published.is_empty() {
                true => report,
                false => {
                    let names: Vec<&str> = published.iter().map(|sink| sink.name.as_str()).collect();
                    report.help(format!(
                        "already published: {}; the other sinks hold their old version",
                        names.join(", ")
                    ))
                }
            });
        }
        let rows = written.get(at).copied().unwrap_or(0);
        let schema = compiled.schema_of(&sink.from);
        let partitions = sink
            .partition_by
            .iter()
            .map(|column| {
                let kind = schema.as_ref().and_then(|schema| schema.field_with_name(column).ok());
                (column.clone(), kind.and_then(|field| logical_type(field.data_type())).unwrap_or(LogicalType::String))
            })
            .collect();
        published.push(SinkReport {
            name: sink.name.clone(),
            path: sink.path.clone(),
            rows,
            format: sink.format,
            partitions,
        });
    }
    Ok(published)
}

pub(crate) async fn discard(staged: Vec<StagedSink>) {
    for place in staged {
        place.discard().await;
    }
}

pub(super) fn environment(message: String) -> Diagnostic {
    let lower = message.to_lowercase();
    let (code, help) = if lower.contains("permission denied") || lower.contains("read-only") {
        ("RM0703", "check who owns the folder, or write somewhere else")
    } else if lower.contains("no space left") || lower.contains("quota") {
        ("RM0702", "free some space, or write to a larger disk")
    } else {
        ("RM0704", "the run published nothing and can be started again")
    };
    Diagnostic::error(code, message).fault(Fault::Environment).help(help)
}

/// Why a sink's disk refused to take its rows, if it did. Writers of DataFusion say only that they failed; the store
/// knows why.
pub(super) fn refused(engine: &Engine, compiled: &Compiled, staged: &[StagedSink], id: Uuid) -> Option<Diagnostic> {
    let failure = engine.local_files().take_write_failure(&id.to_string())?;
    let place = staged.iter().position(|place| place.holds(&failure.path));
    let sink = place.and_then(|at| Some((staged.get(at)?.sink(), compiled.sinks.get(at)?.path.as_str())));
    let message = match sink {
        Some((sink, path)) => format!("sink `{sink}`: cannot write `{path}`: {}", failure.message),
        None => format!("cannot write `/{}`: {}", failure.path, failure.message),
    };
    Some(environment(message))
}
