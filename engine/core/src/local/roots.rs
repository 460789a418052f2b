//! Executes the plans of sinks and of collected steps, side by side, and seals what they wrote.

use std::sync::Arc;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::UInt64Type;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, ToDFSchema as _};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, collect_partitioned, execute_stream_partitioned};
use futures::StreamExt as _;
use futures::future::{Either, select, try_join_all};
use indexmap::IndexMap;
use rowmill_spec::{Diagnostic, Fault};
use tokio_util::sync::CancellationToken;

use super::Stop;
use super::staging::environment;
use crate::compile::cut_segments::Root;
use crate::compile::{Compiled, Planned, PlannedSink};
use crate::runtime::Engine;
use crate::sinks::{SinkTarget, StagedSink};
use crate::sources::files;

#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Rows written, by sink.
    pub(crate) written: Vec<u64>,
    /// Rows that were asked for, by step.
    pub(super) collected: IndexMap<String, Vec<RecordBatch>>,
}

/// Executes the plans of sinks and of collected steps side by side, and seals what they wrote.
pub(crate) async fn run_roots(
    engine: &Engine,
    compiled: &Compiled,
    planned: &Planned,
    staged: &mut [StagedSink],
    cancel: &CancellationToken,
) -> Result<Done, Stop> {
    let hashing = has_hash_join(planned);
    let (drains, tasks) = {
        let _compute = engine.enter_compute();
        let context = || Arc::new(TaskContext::from(&compiled.state));
        let drain = |plan: &Arc<dyn ExecutionPlan>| SpawnedTask::spawn(drain(Arc::clone(plan), context()));
        let drains: Vec<_> = planned.to_completion.iter().map(drain).collect();
        // Each root runs on a task of its own: consumers of one spool must not wait for each other.
        let collect = |root: &PlannedSink| SpawnedTask::spawn(collect_partitioned(Arc::clone(&root.plan), context()));
        let tasks: Vec<_> = planned.roots.iter().map(collect).collect();
        (drains, tasks)
    };
    let all = async {
        let roots = try_join_all(tasks.into_iter().map(joined));
        let drains = try_join_all(drains.into_iter().map(joined));
        futures::try_join!(roots, drains).map(|(results, _)| results)
    };
    let results = match select(Box::pin(all), Box::pin(cancel.cancelled())).await {
        Either::Left((results, _)) => results.map_err(|error| Stop::Error(error, hashing))?,
        // Dropping the futures aborts every task below them.
        Either::Right(((), _)) => return Err(Stop::Cancelled),
    };
    let written: Vec<Option<u64>> = written_by_sink(compiled, planned, &results);
    for (at, (sink, place)) in compiled.sinks.iter().zip(staged.iter()).enumerate() {
        if sink.is_directory() && written.get(at).copied().flatten() == Some(0) {
            write_empty(compiled, sink, place).await.map_err(|error| Stop::Error(error, false))?;
        }
    }
    for place in staged.iter_mut() {
        place.seal().await.map_err(|error| Stop::Report(Box::new(environment(error.to_string()))))?;
    }
    if let Some(file) = files::changed(&compiled.files, engine.runtime()).await {
        return Err(Stop::Report(Box::new(source_changed(&file))));
    }
    if cancel.is_cancelled() {
        return Err(Stop::Cancelled);
    }
    let mut done = Done { written: vec![0; compiled.sinks.len()], ..Done::default() };
    for (root, partitions) in planned.roots.iter().zip(results) {
        let batches: Vec<RecordBatch> = partitions.into_iter().flatten().collect();
        match &root.root {
            Root::Sink(at) => {
                if let Some(count) = done.written.get_mut(*at) {
                    *count = written_rows(&batches);
                }
            }
            Root::Collect(name) => {
                done.collected.insert(name.clone(), batches);
            }
            Root::Step(_) => {}
        }
    }
    Ok(done)
}

async fn joined<T: 'static>(task: SpawnedTask<Result<T>>) -> Result<T> {
    match task.join().await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(panicked(error)),
        Err(error) => Err(DataFusionError::ExecutionJoin(Box::new(error))),
    }
}

/// Reads a plan to its end for the sake of what its steps do.
async fn drain(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<()> {
    let streams = execute_stream_partitioned(plan, context)?;
    try_join_all(streams.into_iter().map(|mut stream| async move {
        while let Some(batch) = stream.next().await {
            drop(batch?);
        }
        Ok(())
    }))
    .await
    .map(drop)
}

/// Rows that each sink's plan wrote.
fn written_by_sink(compiled: &Compiled, planned: &Planned, results: &[Vec<Vec<RecordBatch>>]) -> Vec<Option<u64>> {
    let mut written = vec![None; compiled.sinks.len()];
    for (root, partitions) in planned.roots.iter().zip(results) {
        if let Root::Sink(at) = root.root
            && let Some(place) = written.get_mut(at)
        {
            *place = Some(partitions.iter().map(|batches| written_rows(batches)).sum());
        }
    }
    written
}

/// An empty result still has a schema: a directory gets one file without rows.
async fn write_empty(compiled: &Compiled, sink: &SinkTarget, staged: &StagedSink) -> Result<()> {
    let Some(schema) = compiled.schema_of(&sink.from) else { return Ok(()) };
    let kept: Vec<usize> = (0..schema.fields().len())
        .filter(|at| !sink.partition_by.iter().any(|column| column == schema.field(*at).name()))
        .collect();
    let schema = Arc::new(schema.project(&kept)?).to_dfschema_ref()?;
    let rows = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema });
    let plan = sink.copy_empty(rows, staged)?;
    let plan = compiled.state.create_physical_plan(&plan).await?;
    collect_partitioned(plan, Arc::new(TaskContext::from(&compiled.state))).await?;
    Ok(())
}

fn panicked(error: tokio::task::JoinError) -> DataFusionError {
    let panic = error.into_panic();
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    DataFusionError::Internal(format!("an operator panicked: {text}"))
}

fn has_hash_join(planned: &Planned) -> bool {
    fn walk(plan: &Arc<dyn ExecutionPlan>) -> bool {
        // What runs elsewhere may hold one.
        matches!(plan.name(), "HashJoinExec" | "NestedLoopJoinExec" | "ClusterExec")
            || plan.children().into_iter().any(walk)
    }
    planned.roots.iter().any(|root| walk(&root.plan)) || planned.apart.iter().any(|(_, plan)| walk(plan))
}

/// A write plan answers with one row: how many it wrote.
fn written_rows(batches: &[RecordBatch]) -> u64 {
    batches
        .iter()
        .filter_map(|batch| batch.column(0).as_primitive_opt::<UInt64Type>())
        .flat_map(|counts| counts.iter().flatten())
        .sum()
}

pub(super) fn source_changed(file: &str) -> Diagnostic {
    Diagnostic::error("RM0604", format!("{file}; the result would mix two versions, so it was not published"))
        .fault(Fault::Data)
        .help("run it again when nobody writes to its sources")
}
