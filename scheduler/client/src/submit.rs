//! Having a cluster run a part of a plan: submit, follow, fetch the result, and again where the cluster failed and not
//! the plan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ballista_core::extension::{SessionConfigExt as _, SessionConfigHelperExt as _};
use ballista_core::optimizer::NotInSubqueryRewrite;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::optimizer::OptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt as _;
use parking_lot::Mutex;
use rowmill_engine::elsewhere::{Attempts, Elsewhere, Part, Reported, Sent};
use rowmill_engine::places::Place;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::StepExecutor;
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::files::ResultFile;
use rowmill_wire::jobs::{Event, Finished, Ran, Refused, RefusedFor, Setting, SubmitRequest, Waiting, submit};
use rowmill_wire::leader::Schedulers;
use rowmill_wire::name::ExecutorName;
use tonic::Code;
use tonic::transport::Channel;

use crate::calls;
use crate::exec::Placed;
use crate::failure;
use crate::one_row::OneRowSubqueries;
use crate::options::Options;
use crate::place::place;
use crate::reach::{AskError, ConnectError};
use crate::result::{JobResult, Kept, Piece, as_planned};
use crate::stores::Stores;

/// How long one piece of a result may take to come.
const PIECE: Duration = Duration::from_secs(30);
/// The wait before a part is submitted again, at first and at most; at most where there are several schedulers, one of
/// which takes over soon.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const TAKE_OVER_WAIT: Duration = Duration::from_millis(400);
/// How often a part is submitted again that the cluster took and lost.
const MOST_LOSSES: u32 = 10;
/// After so many losses for one reason it is taken to come again each time.
const MOST_EQUAL_LOSSES: u32 = 4;
/// How long a scheduler that was never heard of is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long a part may wait before it is asked and told what for.
const TELL_WAIT: Duration = Duration::from_secs(4);

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: Options,
    /// The scheduler that was found last, with its address.
    pub(crate) found: Mutex<Option<(Arc<str>, Channel)>>,
    pub(crate) schedulers: Mutex<Schedulers>,
    /// Whether a scheduler ever answered.
    pub(crate) answered: AtomicBool,
    /// Jobs that ran to their end, their results fetched.
    finished: AtomicU64,
    context: Arc<TaskContext>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("schedulers", &self.inner.options.schedulers).finish_non_exhaustive()
    }
}

impl Elsewhere for Cluster {
    fn configure(&self, config: &mut SessionConfig) {
        // What one process shares among the operators of a plan does not reach from stage to stage, and what hangs on
        // who comes first is not the same when a task goes again.
        let before = Arc::clone(config.options());
        let own = std::mem::take(config).upgrade_for_ballista();
        *config = own
            .with_target_partitions(self.inner.options.partitions.max(1))
            .with_round_robin_repartition(false)
            .with_ballista_physical_extension_codec(RowmillCodec::shared());
        let options = config.options_mut();
        options.execution.enable_file_stream_work_stealing = false;
        // Columns are of the types that they have here, and joins are those that were asked for.
        options.execution.parquet.schema_force_view_types = before.execution.parquet.schema_force_view_types;
        options.sql_parser.map_string_types_to_utf8view = before.sql_parser.map_string_types_to_utf8view;
        options.optimizer.prefer_hash_join = before.optimizer.prefer_hash_join;
        // Which side of a join is small enough for every task the scheduler decides. A join that was planned for one task
        // it splits where its kind cannot be run so, and what stands above still reads one partition of it.
        options.optimizer.hash_join_single_partition_threshold = 0;
        options.optimizer.hash_join_single_partition_threshold_rows = 0;
    }

    fn rules(&self) -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
        vec![Arc::new(NotInSubqueryRewrite::new()), Arc::new(OneRowSubqueries)]
    }

    fn place(&self, part: Part<'_>, plan: Arc<dyn ExecutionPlan>) -> Result<Sent> {
        place(self, part, plan)
    }

    fn attempts(&self, step: Attempts<'_>) -> std::result::Result<Arc<dyn StepExecutor>, Diagnostic> {
        calls::attempts(self, &step)
    }
}

/// How one attempt to have a part run ended.
enum Ended {
    /// The cluster is not to be had, or not any more.
    Silent(String),
    /// The cluster took the part and lost it or its result.
    Lost(String),
    /// It would end so every time.
    Failed(DataFusionError),
}

impl Cluster {
    /// A connection with these options; nothing is sent yet.
    ///
    /// # Errors
    /// DataFusion's, when it has no place for temporary files.
    pub fn try_new(options: Options) -> Result<Self> {
        let stores = Arc::new(Stores::new(options.stores.clone()));
        let runtime = RuntimeEnvBuilder::new().with_object_store_registry(stores).build_arc()?;
        let config = SessionConfig::new_with_ballista();
        let context = SessionContext::new_with_config_rt(config, runtime).task_ctx();
        let schedulers = Mutex::new(Schedulers::new(options.schedulers.clone(), options.handshake.transport()));
        let (found, answered, finished) = (Mutex::new(None), AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { inner: Arc::new(Inner { options, found, schedulers, answered, finished, context }) })
    }

    /// How many jobs the cluster has run to their end for this connection and its clones.
    pub fn finished_jobs(&self) -> u64 {
        self.inner.finished.load(Ordering::Relaxed)
    }

    /// What decodes plans here as executors will.
    pub(crate) fn context(&self) -> Arc<TaskContext> {
        Arc::clone(&self.inner.context)
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Has a part run to its end and fetches its result.
    pub(crate) async fn run(
        &self,
        placed: &Placed,
        partitions: usize,
        context: &Arc<TaskContext>,
    ) -> Result<Arc<JobResult>, Arc<DataFusionError>> {
        let mut sign = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut losses = 0;
        let mut last = (String::new(), 0);
        loop {
            let ended = match self.attempt(placed, partitions, context, &mut sign).await {
                Ok(result) => {
                    self.inner.finished.fetch_add(1, Ordering::Relaxed);
                    return Ok(Arc::new(result));
                }
                Err(ended) => ended,
            };
            let why = match ended {
                Ended::Failed(error) => return Err(Arc::new(error)),
                Ended::Silent(why) => why,
                Ended::Lost(why) => {
                    losses += 1;
                    let kind = without_names(&why);
                    last = if last.0 == kind { (kind, last.1 + 1) } else { (kind, 1) };
                    why
                }
            };
            if last.1 >= MOST_EQUAL_LOSSES {
                let message = format!("the cluster failed {} times to run `{}`: {why}", last.1, placed.name);
                return Err(Arc::new(environment("RM0709", message, "the executors' logs say more")));
            }
            // Where nobody ever listened the address is wrong, or nothing was started.
            let answered = self.inner.answered.load(Ordering::Relaxed);
            let patience = self.inner.options.patience;
            let patience = if answered { patience } else { patience.min(FIRST_ANSWER) };
            if sign.elapsed() > patience || losses > MOST_LOSSES {
                let message = match losses > MOST_LOSSES {
                    true => format!("the cluster lost `{}` {losses} times, at last because {why}", placed.name),
                    false => format!("the cluster gave no sign of life for {} s: {why}", patience.as_secs()),
                };
                return Err(Arc::new(environment("RM0709", message, "look at `rowmill cluster status`")));
            }
            tracing::warn!(part = placed.name, "submitting again: {why}");
            tokio::time::sleep(wait).await;
            let several = self.inner.options.schedulers.len() > 1;
            wait = (wait * 2).min(if several { TAKE_OVER_WAIT } else { LONGEST_WAIT });
        }
    }

    async fn attempt(
        &self,
        placed: &Placed,
        partitions: usize,
        context: &Arc<TaskContext>,
        sign: &mut Instant,
    ) -> Result<JobResult, Ended> {
        let refused = |why: String| {
            let help = "the token, the certificates and the build of rowmill must be the cluster's";
            Ended::Failed(environment("RM0708", format!("the cluster refuses this process: {why}"), help))
        };
        let pairs = context.session_config().to_key_value_pairs();
        let settings: Vec<Setting> =
            pairs.into_iter().filter_map(|pair| Some(Setting { key: pair.key, value: pair.value? })).collect();
        let request = || SubmitRequest {
            name: placed.name.clone(),
            plan: placed.bytes.clone(),
            settings: settings.clone(),
            class: placed.demand.class.to_string(),
            memory_bytes: placed.demand.memory_bytes,
            slots: 1,
            queue: self.inner.options.queue.clone(),
            organisation: self.inner.options.tenant.organisation.to_string(),
            team: self.inner.options.tenant.team.to_string(),
        };
        let (address, mut progress) = match self.ask(|channel| submit(channel, request())).await {
            Ok(taken) => taken,
            Err(AskError::Unreadable(status)) => return Err(unreadable(&status)),
            Err(AskError::Unanswered(ConnectError::Silent(why))) => return Err(Ended::Silent(why)),
            Err(AskError::Unanswered(ConnectError::Refused(why))) => return Err(refused(why)),
            Err(AskError::Unanswered(ConnectError::Insecure(why))) => return Err(Ended::Failed(insecure(&why))),
        };
        let gone = |why: String| {
            self.lose(&address);
            Err(Ended::Silent(why))
        };
        let (mut job, submitted, mut asked, mut queued) = (String::new(), Instant::now(), false, false);
        let finished = loop {
            let event = match self.patiently(&address, progress.message()).await {
                Ok(Ok(Some(event))) => event.event,
                Ok(Ok(None)) => return gone("the scheduler stopped".to_owned()),
                Ok(Err(status)) if status.code() == Code::InvalidArgument => return Err(unreadable(&status)),
                Ok(Err(status)) => return Err(Ended::Silent(self.unanswered(&address, &status).why())),
                Err(why) => return gone(why),
            };
            *sign = Instant::now();
            match event {
                Some(Event::Finished(finished)) => break finished,
                Some(Event::Failed(failed)) => return Err(judge_failure(&failed.reason, failed.unplaced)),
                Some(Event::Refused(refused)) => return Err(judge_refusal(&refused)),
                Some(Event::Waiting(waiting)) => {
                    if !queued && submitted.elapsed() > TELL_WAIT {
                        queued = true;
                        let Waiting { queue, waiting, running } = waiting;
                        tracing::warn!(
                            part = placed.name,
                            "waiting in the cluster's queue `{queue}`: {waiting} wait, {running} run"
                        );
                    }
                }
                Some(Event::Accepted(id)) => {
                    tracing::debug!(part = placed.name, id, "accepted");
                    job = id;
                }
                Some(Event::Beat(_)) | None => {
                    if !asked && submitted.elapsed() > TELL_WAIT {
                        asked = true;
                        self.tell_wait(placed, &job).await;
                    }
                }
            }
        };
        // The stream stays open while the result is read: the cluster keeps the result as long.
        let result = self.fetch(&finished, placed.plan.schema(), partitions, context).await?;
        drop(progress);
        for count in &finished.counted {
            if let Some(meter) = placed.meters.get(count.step.as_str()) {
                meter.add_batches(count.rows, count.bytes, count.batches);
            }
        }
        for ran in finished.ran {
            let Ran { executor: process, host, class, tasks, busy_ms } = ran;
            placed.places.add(&placed.stage, Place { process, host, class, tasks, items: 0, busy_ms });
        }
        Ok(result)
    }

    /// Says which class nobody serves that a job waits for.
    async fn tell_wait(&self, placed: &Placed, job: &str) {
        let Ok(status) = self.status().await else { return };
        let Some(job) = status.jobs.iter().find(|other| other.id == job) else { return };
        let names: Vec<ExecutorName> = status.executors.iter().filter_map(|own| own.name.parse().ok()).collect();
        for class in job.waiting_for.iter().filter(|class| !names.iter().any(|name| name.serves(class))) {
            tracing::warn!(part = placed.name, "waiting: the cluster has no executor of class {class}");
        }
    }

    /// Reads all files of a result. Nothing is handed on before everything is here: another attempt may put its rows into
    /// other partitions.
    async fn fetch(
        &self,
        finished: &Finished,
        schema: SchemaRef,
        partitions: usize,
        context: &Arc<TaskContext>,
    ) -> Result<JobResult, Ended> {
        let mut kept: Vec<Kept> = (0..partitions.max(1)).map(|at| Kept::new(&schema, context, at)).collect();
        let most = kept.len();
        for file in &finished.files {
            let file = ResultFile::from(file.clone());
            let lost = |why: String| Ended::Lost(format!("executor {} does not give a result: {why}", file.executor()));
            let late = || lost(format!("nothing came for {} s", PIECE.as_secs()));
            let reading = tokio::time::timeout(PIECE, file.read(&self.inner.options.handshake)).await;
            let mut rows = reading.map_err(|_| late())?.map_err(|error| lost(error.to_string()))?;
            let place = kept.get_mut(file.partition() % most);
            let place = place.ok_or_else(|| lost("it has no place".to_owned()))?;
            // Once there is no memory left, the rest of the file goes to disk.
            let mut spilling = None;
            while let Some(batch) = tokio::time::timeout(PIECE, rows.next()).await.map_err(|_| late())? {
                let batch = batch.map_err(|error| lost(error.to_string()))?;
                let batch = as_planned(batch, &schema).map_err(Ended::Failed)?;
                if spilling.is_none() {
                    if place.keep(&batch) {
                        continue;
                    }
                    let file = place.spill.create_in_progress_file("results of a cluster");
                    spilling = Some(file.map_err(Ended::Failed)?);
                }
                if let Some(file) = &mut spilling {
                    file.append_batch(&batch).map_err(Ended::Failed)?;
                }
            }
            if let Some(mut file) = spilling
                && let Some(file) = file.finish().map_err(Ended::Failed)?
            {
                place.pieces.push(Piece::Spilled(file));
            }
        }
        Ok(JobResult { schema, partitions: kept })
    }
}

/// A reason without what differs from time to time: numbers, and words that hold some.
fn without_names(reason: &str) -> String {
    let words = reason.split_whitespace().filter(|word| !word.chars().any(|c| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// What a job's failure means: what an executor reported, a class that nobody serves, or the cluster's own trouble.
fn judge_failure(reason: &str, unplaced: bool) -> Ended {
    if let Some(reported) = failure::read(reason) {
        return Ended::Failed(reported.into_error());
    }
    if unplaced {
        return Ended::Failed(environment("RM0707", reason.to_owned(), "`rowmill cluster status` shows the executors"));
    }
    Ended::Lost(reason.trim().to_owned())
}

/// A plan that was sent and not understood.
fn unreadable(status: &tonic::Status) -> Ended {
    let message = format!("the cluster cannot read the plan: {}", status.message());
    let report = Diagnostic::error("RM0900", message).fault(Fault::Internal);
    Ended::Failed(Reported { report, out_of_memory: false }.into_error())
}

/// What it means that the cluster did not admit a job.
fn judge_refusal(refused: &Refused) -> Ended {
    let (code, help) = match refused.kind() {
        RefusedFor::Full => ("RM0721", "start it again later, or put it into another queue with --queue"),
        RefusedFor::Late => ("RM0722", "`rowmill cluster status` shows what the cluster does instead"),
        RefusedFor::Never => ("RM0723", "`rowmill cluster status` shows the queues"),
    };
    Ended::Failed(environment(code, refused.reason.clone(), help))
}

fn insecure(why: &str) -> DataFusionError {
    let help = "docs/cluster.md shows how certificates are made";
    environment("RM0720", format!("nothing was sent to the cluster: {why}"), help)
}

fn environment(code: &'static str, message: String, help: &str) -> DataFusionError {
    let report = Diagnostic::error(code, message).fault(Fault::Environment).help(help);
    Reported { report, out_of_memory: false }.into_error()
}
