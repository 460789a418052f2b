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
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rowmill_engine::elsewhere::{Attempts, Elsewhere, Part, Reported, Sent};
use rowmill_engine::places::Place;
use rowmill_spec::{Diagnostic, Fault};
use rowmill_step::StepExecutor;
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::files::ResultFile;
use rowmill_wire::jobs::{
    BEAT, Event, Finished, Ran, Refused, RefusedFor, Setting, StatusResponse, SubmitRequest, Waiting, status, submit,
};
use rowmill_wire::name::ExecutorName;
use rowmill_wire::transport;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::calls;
use crate::exec::Placed;
use crate::failure;
use crate::options::Options;
use crate::place::place;
use crate::result::{JobResult, Kept, Piece, as_planned};
use crate::stores::Stores;

/// Silence after which a scheduler is taken as gone.
const SILENCE: Duration = Duration::from_secs(4 * BEAT.as_secs());
/// How long connecting may take, and one piece of a result to come.
const CONNECT: Duration = Duration::from_secs(5);
const PIECE: Duration = Duration::from_secs(30);
/// The wait before a part is submitted again, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often a part is submitted again that the cluster took and lost.
const MOST_LOSSES: u32 = 10;
/// After so many losses for one reason it is taken to come again each time.
const MOST_EQUAL_LOSSES: u32 = 4;
/// How long a scheduler that was never heard of is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long a part may wait before it is asked and told what for.
const TELL_WAIT: Duration = Duration::from_secs(4);

/// Why a cluster is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers; somebody may later.
    #[error("no scheduler answers: {0}")]
    Silent(String),
    /// It answers and refuses: the token, the certificate or the build is not what it should be.
    #[error("the cluster refuses this process: {0}")]
    Refused(String),
    /// The token would travel in plain text.
    #[error("nothing was sent: {0}")]
    Insecure(String),
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    channel: Mutex<Option<Channel>>,
    /// Whether a scheduler ever answered.
    answered: AtomicBool,
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
        vec![Arc::new(NotInSubqueryRewrite::new())]
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
        let (channel, answered, finished) = (Mutex::new(None), AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { inner: Arc::new(Inner { options, channel, answered, finished, context }) })
    }

    /// How many jobs the cluster has run to their end for this connection and its clones.
    pub fn finished_jobs(&self) -> u64 {
        self.inner.finished.load(Ordering::Relaxed)
    }

    /// What decodes plans here as executors will.
    pub(crate) fn context(&self) -> Arc<TaskContext> {
        Arc::clone(&self.inner.context)
    }

    /// Asks what the cluster is doing, which also shows that it is there and takes us.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn status(&self) -> BoxFuture<'_, Result<StatusResponse, ConnectError>> {
        Box::pin(self.ask_status())
    }

    async fn ask_status(&self) -> Result<StatusResponse, ConnectError> {
        let channel = self.channel().await?;
        match tokio::time::timeout(SILENCE, status(channel)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                self.forget();
                Err(judge(&status))
            }
            Err(_) => {
                self.forget();
                Err(ConnectError::Silent("it took the question and gives no answer".to_owned()))
            }
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) async fn channel(&self) -> Result<Channel, ConnectError> {
        let known = self.inner.channel.lock().clone();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let mut silent = Vec::new();
        for address in &self.inner.options.schedulers {
            match connect(&self.inner.options, address).await {
                Ok(channel) => {
                    self.inner.answered.store(true, Ordering::Relaxed);
                    *self.inner.channel.lock() = Some(channel.clone());
                    return Ok(channel);
                }
                Err(ConnectError::Silent(why)) => silent.push(why),
                Err(refused) => return Err(refused),
            }
        }
        Err(ConnectError::Silent(silent.join("; ")))
    }

    pub(crate) fn forget(&self) {
        self.inner.channel.lock().take();
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
                Ended::Silent(why) => {
                    self.forget();
                    why
                }
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
            wait = (wait * 2).min(LONGEST_WAIT);
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
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(ConnectError::Silent(why)) => return Err(Ended::Silent(why)),
            Err(ConnectError::Refused(why)) => return Err(refused(why)),
            Err(ConnectError::Insecure(why)) => return Err(Ended::Failed(insecure(&why))),
        };
        let pairs = context.session_config().to_key_value_pairs();
        let settings =
            pairs.into_iter().filter_map(|pair| Some(Setting { key: pair.key, value: pair.value? })).collect();
        let request = SubmitRequest {
            name: placed.name.clone(),
            plan: placed.bytes.clone(),
            settings,
            class: placed.class.clone(),
            slots: 1,
            queue: self.inner.options.queue.clone(),
            organisation: self.inner.options.tenant.organisation.to_string(),
            team: self.inner.options.tenant.team.to_string(),
        };
        let mut progress = match tokio::time::timeout(SILENCE, submit(channel, request)).await {
            Ok(Ok(progress)) => progress,
            Ok(Err(status)) if status.code() == Code::InvalidArgument => return Err(unreadable(&status)),
            Ok(Err(status)) => {
                return Err(match judge(&status) {
                    ConnectError::Refused(why) => refused(why),
                    ConnectError::Silent(why) | ConnectError::Insecure(why) => Ended::Silent(why),
                });
            }
            Err(_) => return Err(Ended::Silent("it took the plan and gives no answer".to_owned())),
        };
        let (mut job, submitted, mut asked, mut queued) = (String::new(), Instant::now(), false, false);
        let finished = loop {
            let event = match tokio::time::timeout(SILENCE, progress.message()).await {
                Ok(Ok(Some(event))) => event.event,
                Ok(Ok(None)) => return Err(Ended::Silent("the scheduler stopped".to_owned())),
                Ok(Err(status)) if status.code() == Code::InvalidArgument => return Err(unreadable(&status)),
                Ok(Err(status)) => return Err(Ended::Silent(status.message().to_owned())),
                Err(_) => return Err(Ended::Silent(format!("nothing was heard for {} s", SILENCE.as_secs()))),
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

pub(crate) async fn connect(options: &Options, address: &str) -> Result<Channel, ConnectError> {
    let set = |endpoint: Endpoint| {
        endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(CONNECT).keep_alive_timeout(CONNECT)
    };
    options.handshake.connect(address, set).await.map_err(|error| match error {
        transport::ConnectError::Silent { .. } | transport::ConnectError::Address(_) => {
            ConnectError::Silent(error.to_string())
        }
        transport::ConnectError::Transport(why) => ConnectError::Insecure(why.to_string()),
        transport::ConnectError::Untrusted { .. } => ConnectError::Refused(error.to_string()),
    })
}

fn judge(status: &tonic::Status) -> ConnectError {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
            ConnectError::Refused(status.message().to_owned())
        }
        _ => ConnectError::Silent(status.message().to_owned()),
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
