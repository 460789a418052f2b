//! Joined rows that stay on the device: an aggregate over a join, or a join that probes with another join's rows, takes
//! them there, chunk by chunk of the innermost probe side, and they never come to the host.
//!
//! ```text
//! chunk ─▶ device: keys and the columns that are asked for ─▶ join ─▶ (join ─▶) aggregate ─▶ states
//!   └─▶ where anything of that fails, or does not pay: the chunk joined as ever, its rows on the host
//! ```
//! Only columns of fixed width can stay there. Whoever asks for others gets its rows as from any other plan.
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::device::Device;
use rowmill_gpu::ops::gather::{gather_source, sort_source};
use rowmill_gpu::ops::join::Join;

use super::Chunk;
use super::join::{Built, Execution, GpuJoinExec, Query};
use crate::decide::{Decision, Operator};
use crate::pipeline::passed_through;

/// The join whose rows `plan` gives, and which of its columns: what stands between only moves or leaves out columns.
fn join_below(plan: &Arc<dyn ExecutionPlan>) -> Option<(&GpuJoinExec, Vec<usize>)> {
    if let Some(join) = plan.downcast_ref::<GpuJoinExec>() {
        return Some((join, (0..plan.schema().fields().len()).collect()));
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let (join, below) = join_below(projection.input())?;
        let column = |expr: &Arc<dyn PhysicalExpr>| {
            expr.downcast_ref::<Column>().and_then(|column| below.get(column.index()).copied())
        };
        let columns = projection.expr().iter().map(|projected| column(&projected.expr));
        return Some((join, columns.collect::<Option<Vec<_>>>()?));
    }
    join_below(passed_through(plan)?)
}

/// A join that moves the columns that are asked for.
struct Wide {
    kernel: Join,
    /// Columns of each side that go to the device: those of the keys first.
    probe: Vec<usize>,
    build: Vec<usize>,
    /// The columns that were asked for among those that the kernel gives.
    output: Vec<usize>,
    schema: SchemaRef,
}

impl Wide {
    /// A kernel that gives columns `wanted` of the join's output, which are those of `schema`; `None` where one of them
    /// has no fixed width.
    fn plan(query: &Query, wanted: &[usize], schema: SchemaRef) -> Option<Self> {
        let (mut probe, mut build) = (query.probe.columns.clone(), query.build.columns.clone());
        let mut places = Vec::with_capacity(wanted.len());
        for output in wanted {
            let (of_probe, at) = query.origin(*output)?;
            let side = if of_probe { &mut probe } else { &mut build };
            let place = side.iter().position(|known| *known == at).unwrap_or_else(|| {
                side.push(at);
                side.len() - 1
            });
            places.push((of_probe, place));
        }
        let output = places.into_iter().map(|(of_probe, place)| if of_probe { place } else { probe.len() + place });
        let output = output.collect();
        let narrow = |schema: &Schema, columns: &[usize]| schema.project(columns).ok().map(Arc::new);
        let (left, right) = (narrow(&query.probe.schema, &probe)?, narrow(&query.build.schema, &build)?);
        let kernel = Join::try_new(left, right, query.on.clone(), query.kind).ok()?;
        Some(Self { kernel, probe, build, output, schema })
    }
}

/// The build side of one execution, on the host and, once it was asked for, on the device.
struct Build {
    rows: RecordBatch,
    on_device: Mutex<Option<DeviceBatch>>,
    _held: Chunk,
}

/// What one chunk of the innermost probe side becomes.
pub(crate) enum Part {
    /// Rows on the host, with the columns that the plan gives.
    Host(SendableRecordBatchStream),
    /// Rows that are joined when they are asked for.
    Device(Joined),
}

/// The rows that probe: of the host, or of another join.
#[derive(Clone)]
enum Probe {
    Host(RecordBatch),
    Joined(Box<Joined>),
}

/// One chunk of a join that is still to be done.
#[derive(Clone)]
pub(crate) struct Joined {
    join: Arc<Execution>,
    wide: Arc<Wide>,
    build: Arc<Build>,
    probe: Probe,
    /// The columns of the join that the plan above it gives.
    columns: Arc<Vec<usize>>,
    schema: SchemaRef,
    /// What the joins would take on the CPU, where the table says so.
    cpu_ms: Option<f64>,
}

impl Joined {
    /// The rows on the host that everything begins with: who has no room for them all takes a part.
    pub(crate) fn rows(&self) -> &RecordBatch {
        match &self.probe {
            Probe::Host(rows) => rows,
            Probe::Joined(inner) => inner.rows(),
        }
    }

    /// The same over a part of [`Joined::rows`].
    pub(crate) fn over(&self, rows: &RecordBatch) -> Self {
        let probe = match &self.probe {
            Probe::Host(_) => Probe::Host(rows.clone()),
            Probe::Joined(inner) => Probe::Joined(Box::new(inner.over(rows))),
        };
        Self { probe, ..self.clone() }
    }

    /// A decision about work over the joined rows, as one about that work and the joins.
    pub(crate) fn with_joins(&self, decision: Decision) -> Decision {
        let cpu_ms = self.cpu_ms.zip(decision.cpu_ms).map(|(joins, work)| joins + work);
        Decision { cpu_ms, ..decision }
    }

    /// Joins, and leaves the rows on the device.
    pub(crate) fn on_device(&self, device: &Arc<Device>) -> rowmill_gpu::Result<DeviceBatch> {
        let probe = match &self.probe {
            Probe::Host(rows) => DeviceBatch::upload_columns(device, rows, &self.wide.probe)?,
            Probe::Joined(inner) => inner.on_device(device)?,
        };
        let mut build = self.build.on_device.lock();
        if build.is_none() {
            *build = Some(DeviceBatch::upload_columns(device, &self.build.rows, &self.wide.build)?);
        }
        let Some(build) = build.as_ref() else {
            return Err(rowmill_gpu::Error::Invalid("a join without its build side".into()));
        };
        let joined = self.wide.kernel.run(device, &probe, build)?;
        let columns = self.wide.output.iter().map(|at| Arc::clone(&joined.columns()[*at])).collect();
        DeviceBatch::try_new(Arc::clone(&self.wide.schema), columns, joined.rows())
    }

    /// Takes notice that the device joined these rows, and that so many came out.
    pub(crate) fn done(&self, joined: usize) {
        self.join.counts.output_rows.add(joined);
        let mut innermost = self;
        while let Probe::Joined(inner) = &innermost.probe {
            innermost = inner;
        }
        innermost.join.counts.gpu_rows.add(self.rows().num_rows());
    }

    /// The joined rows on the host, as the plan gives them.
    pub(crate) fn on_host(&self) -> BoxFuture<'_, Result<SendableRecordBatchStream>> {
        async move {
            let mut chunk = Chunk::new("GpuJoinExec", Arc::clone(&self.join.query.probe.schema), &self.join.context);
            match &self.probe {
                Probe::Host(rows) => {
                    chunk.push(rows.clone());
                }
                Probe::Joined(inner) => {
                    let mut rows = inner.on_host().await?;
                    while let Some(batch) = rows.next().await {
                        chunk.push(batch?);
                    }
                }
            }
            let batch_rows = self.join.context.session_config().batch_size().max(1);
            let rows = self.join.rows(&mut chunk, &self.build.rows, batch_rows).await?;
            Ok(projected(rows, Arc::clone(&self.columns), &self.schema))
        }
        .boxed()
    }
}

/// Some columns of a stream.
fn projected(
    rows: SendableRecordBatchStream,
    columns: Arc<Vec<usize>>,
    schema: &SchemaRef,
) -> SendableRecordBatchStream {
    let to = Arc::clone(schema);
    let rows = rows.map(move |batch| {
        let batch = batch?.project(&columns)?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&to), batch.columns().to_vec(), &options)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows))
}

/// Where the probe side comes from, once the build side was read.
enum Source {
    /// Nothing was read yet.
    Unread,
    /// Rows of the host.
    Rows(SendableRecordBatchStream),
    /// Another join's; and its rows on the host that are being read.
    Feed(Box<Feed>, Option<SendableRecordBatchStream>),
    /// Everything was given.
    Done,
}

/// A join that hands its rows over on the device.
pub(crate) struct Feed {
    join: Arc<Execution>,
    wide: Arc<Wide>,
    columns: Arc<Vec<usize>>,
    schema: SchemaRef,
    /// The join that probes with its rows, if that is one.
    inner: Option<Box<Feed>>,
    build: Option<Arc<Build>>,
    source: Source,
    chunk: Option<Chunk>,
}

impl Feed {
    /// Whether the rows of `plan` can be had on the device.
    pub(crate) fn is_possible(plan: &Arc<dyn ExecutionPlan>) -> bool {
        let all: Vec<usize> = (0..plan.schema().fields().len()).collect();
        let Some((join, columns)) = join_below(plan) else { return false };
        Self::wide(join, plan, &columns, &all).is_some()
    }

    /// The rows of `plan`, where they come from a join on the device. `used`: its columns that are wanted there, in this
    /// order.
    pub(crate) fn try_new(plan: &Arc<dyn ExecutionPlan>, used: &[usize], context: &Arc<TaskContext>) -> Option<Self> {
        let (join, columns) = join_below(plan)?;
        let wide = Arc::new(Self::wide(join, plan, &columns, used)?);
        let inner = Self::try_new(join.probe(), &wide.probe, context).map(Box::new);
        Some(Self {
            join: Arc::new(join.execution(context)),
            wide,
            columns: Arc::new(columns),
            schema: plan.schema(),
            inner,
            build: None,
            source: Source::Unread,
            chunk: None,
        })
    }

    fn wide(join: &GpuJoinExec, plan: &Arc<dyn ExecutionPlan>, columns: &[usize], used: &[usize]) -> Option<Wide> {
        let schema = Arc::new(plan.schema().project(used).ok()?);
        let wanted = used.iter().map(|at| columns.get(*at).copied()).collect::<Option<Vec<_>>>()?;
        Wide::plan(join.query(), &wanted, schema)
    }

    /// What the next chunk becomes; `None` after the last. The one before is given up.
    ///
    /// # Errors
    /// Those of the plans below.
    pub(crate) fn next(&mut self) -> BoxFuture<'_, Result<Option<Part>>> {
        async move {
            if let Source::Unread = self.source
                && let Some(all) = self.start().await?
            {
                return Ok(Some(Part::Host(all)));
            }
            let Some(build) = self.build.clone() else { return Ok(None) };
            let launch_bytes = self.join.gpu.options().launch_bytes;
            let probe_schema = Arc::clone(&self.join.query.probe.schema);
            let mut chunk =
                self.chunk.take().unwrap_or_else(|| Chunk::new("GpuJoinExec", probe_schema, &self.join.context));
            chunk.clear();
            loop {
                let rows = match &mut self.source {
                    Source::Rows(rows) | Source::Feed(_, Some(rows)) => rows,
                    Source::Feed(inner, None) => match inner.next().await? {
                        Some(Part::Host(rows)) => {
                            self.source = match std::mem::replace(&mut self.source, Source::Done) {
                                Source::Feed(inner, _) => Source::Feed(inner, Some(rows)),
                                other => other,
                            };
                            continue;
                        }
                        Some(Part::Device(inner)) => {
                            let probe = Probe::Joined(Box::new(inner));
                            return self.part(build, probe, chunk).await.map(Some);
                        }
                        None => {
                            self.source = Source::Done;
                            continue;
                        }
                    },
                    Source::Unread | Source::Done => {
                        if chunk.is_empty() {
                            return Ok(None);
                        }
                        break;
                    }
                };
                match rows.next().await {
                    Some(batch) => {
                        if !chunk.push(batch?) || chunk.bytes >= launch_bytes {
                            break;
                        }
                    }
                    None => match &mut self.source {
                        // What was read comes before what the other join gives next.
                        Source::Feed(_, rows) => {
                            *rows = None;
                            if !chunk.is_empty() {
                                break;
                            }
                        }
                        source => *source = Source::Done,
                    },
                }
            }
            let probe = Probe::Host(chunk.concat()?);
            self.part(build, probe, chunk).await.map(Some)
        }
        .boxed()
    }

    /// Reads the build side. Where memory has no room for it, everything comes from the twin.
    async fn start(&mut self) -> Result<Option<SendableRecordBatchStream>> {
        self.source = Source::Done;
        match self.join.build().await? {
            Built::Whole(rows, held) => {
                self.build = Some(Arc::new(Build { rows, on_device: Mutex::new(None), _held: held }));
                self.source = match self.inner.take() {
                    Some(inner) => Source::Feed(inner, None),
                    None => Source::Rows(self.join.probe.execute(0, Arc::clone(&self.join.context))?),
                };
                Ok(None)
            }
            Built::TooLarge(build) => {
                let twin = self.join.query.twin(Arc::clone(&self.join.probe), build)?;
                let rows = twin.execute(0, Arc::clone(&self.join.context))?;
                Ok(Some(projected(rows, Arc::clone(&self.columns), &self.schema)))
            }
        }
    }

    /// A chunk as what it becomes: whether the device pays is decided by the rows that probe.
    async fn part(&mut self, build: Arc<Build>, probe: Probe, mut chunk: Chunk) -> Result<Part> {
        let mut joined = Joined {
            join: Arc::clone(&self.join),
            wide: Arc::clone(&self.wide),
            build: Arc::clone(&build),
            probe,
            columns: Arc::clone(&self.columns),
            schema: Arc::clone(&self.schema),
            cpu_ms: None,
        };
        let resident = matches!(joined.probe, Probe::Joined(_));
        let kernels = || self.wide.kernel.sources().into_iter().chain([sort_source(), gather_source()]).collect();
        let (rows, bytes) = (joined.rows().num_rows(), super::bytes_of(joined.rows()));
        let decision = self.join.gpu.decide_now(Operator::Join, rows, bytes, resident, kernels);
        if !decision.offload {
            if resident {
                let rows = joined.on_host().await?;
                self.chunk = Some(chunk);
                return Ok(Part::Host(rows));
            }
            let batch_rows = self.join.context.session_config().batch_size().max(1);
            let rows = self.join.rows(&mut chunk, &build.rows, batch_rows).await?;
            self.chunk = Some(chunk);
            return Ok(Part::Host(projected(rows, Arc::clone(&self.columns), &self.schema)));
        }
        joined.cpu_ms = match &joined.probe {
            Probe::Host(_) => decision.cpu_ms,
            Probe::Joined(inner) => decision.cpu_ms.zip(inner.cpu_ms).map(|(own, inner)| own + inner),
        };
        self.chunk = Some(chunk);
        Ok(Part::Device(joined))
    }
}
