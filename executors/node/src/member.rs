//! This executor as a member of its cluster: it joins whichever scheduler leads, says that it is alive, leaves.

use std::sync::Arc;
use std::time::Duration;

use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    ExecutorRegistration, ExecutorStatus, ExecutorStoppedParams, HeartBeatParams, RegisterExecutorParams,
    executor_status,
};
use rowmill_wire::alive::{AliveRequest, say_alive};
use rowmill_wire::leader::{Schedulers, Standby};
use rowmill_wire::transport::ConnectError;
use tonic::transport::Channel;

use crate::disk::Disk;
use crate::error::Error;
use crate::options::Options;
use crate::tasks::{Tasks, connect};
use crate::terms::Followed;
use crate::work_dir::WorkDir;

/// The wait before a scheduler is looked for again, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How long one scheduler of several may take to answer before another is asked.
const ONE_OF_SEVERAL: Duration = Duration::from_secs(3);

/// This process as the scheduler knows it.
pub(crate) struct Member<'a> {
    pub(crate) options: &'a Options,
    pub(crate) metadata: ExecutorRegistration,
    pub(crate) tasks: &'a Arc<Tasks>,
    pub(crate) work_dir: &'a WorkDir,
    pub(crate) disk: Arc<Disk>,
    pub(crate) schedulers: Schedulers,
    pub(crate) followed: Arc<Followed>,
    /// The scheduler that took its last sign of life.
    pub(crate) at: Option<(String, Channel)>,
    pub(crate) draining: bool,
    pub(crate) memory_bytes: u64,
}

impl Member<'_> {
    /// Registers with the first scheduler that takes it, and waits for one where none answers yet: machines start in
    /// any order.
    pub(crate) async fn join_when_there(&mut self) -> Result<(), Error> {
        let mut wait = FIRST_WAIT;
        loop {
            let silent = match self.join().await? {
                None => return Ok(()),
                Some(silent) => silent,
            };
            tracing::warn!("no scheduler answers, trying again: {silent}");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Registers with the first scheduler that takes it; why none answers where none does.
    ///
    /// # Errors
    /// One answers and refuses.
    async fn join(&mut self) -> Result<Option<String>, Error> {
        let (mut silent, mut asked) = (Vec::new(), Vec::new());
        while let Some(address) = self.next(&mut asked) {
            let channel = match self.connect(&address).await {
                Ok(channel) => channel,
                Err(why) => {
                    silent.push(why?);
                    continue;
                }
            };
            let message = RegisterExecutorParams { metadata: Some(self.metadata.clone()) };
            match SchedulerGrpcClient::new(channel.clone()).register_executor(message).await {
                Ok(_) => {
                    self.follow(address, channel);
                    return Ok(None);
                }
                Err(status) if is_refusal(&status) => {
                    return Err(Error::Refused(format!("{address}: {}", status.message())));
                }
                Err(status) => silent.push(self.unanswered(&address, &status)),
            }
        }
        Ok(Some(silent.join("; ")))
    }

    /// The next scheduler to ask that was not asked in this round.
    fn next(&self, asked: &mut Vec<String>) -> Option<String> {
        let next = self.schedulers.order().into_iter().find(|address| !asked.contains(address))?;
        asked.push(next.clone());
        Some(next)
    }

    /// Connects to a scheduler. Otherwise why it does not answer, or why it is not to be asked again.
    async fn connect(&mut self, address: &str) -> Result<Channel, Result<String, Error>> {
        let connected = self.in_time(connect(&self.options.handshake, address)).await;
        let given = self.options.schedulers.iter().any(|given| given == address);
        match connected {
            Some(Ok(channel)) => Ok(channel),
            // One that another scheduler named and that shows no certificate of the cluster is none.
            Some(Err(error)) if given && !matches!(error, ConnectError::Silent { .. }) => {
                Err(Err(Error::Refused(error.to_string())))
            }
            Some(Err(ConnectError::Silent { address, why })) => {
                self.schedulers.silent(&address);
                Err(Ok(format!("{address}: {why}")))
            }
            Some(Err(error)) => {
                self.schedulers.silent(address);
                Err(Ok(error.to_string()))
            }
            None => {
                self.schedulers.silent(address);
                Err(Ok(format!("{address}: no answer in {} s", ONE_OF_SEVERAL.as_secs())))
            }
        }
    }

    /// Waits less long for one scheduler where there are others.
    async fn in_time<T>(&self, asked: impl Future<Output = T>) -> Option<T> {
        match self.schedulers.count() {
            0 | 1 => Some(asked.await),
            _ => tokio::time::timeout(ONE_OF_SEVERAL, asked).await.ok(),
        }
    }

    /// A scheduler did not do what it was asked: the next is another.
    fn unanswered(&mut self, address: &str, status: &tonic::Status) -> String {
        match Standby::read(status) {
            Some(standby) => self.schedulers.stands_by(address, &standby),
            None => {
                self.schedulers.silent(address);
                format!("{address}: {}", status.message())
            }
        }
    }

    /// This scheduler takes signs of life, and reports go to it.
    fn follow(&mut self, address: String, channel: Channel) {
        self.tasks.report_to(channel.clone());
        self.schedulers.leads(&address);
        self.at = Some((address, channel));
    }

    /// Says that it is alive and what it runs; stops what nobody waits for. A scheduler that forgot it takes it anew.
    /// Answers whether somebody will read what it holds, as far as the scheduler can be asked.
    pub(crate) async fn beat(&mut self) -> bool {
        match self.try_beat().await {
            Ok(needed) => needed,
            Err(why) => {
                tracing::warn!("no heartbeat: {why}");
                self.at = None;
                true
            }
        }
    }

    async fn try_beat(&mut self) -> Result<bool, String> {
        let (mut said, mut asked) = (Vec::new(), Vec::new());
        if let Some((address, channel)) = self.at.take() {
            asked.push(address.clone());
            match self.beat_at(address, channel).await {
                Ok(needed) => return Ok(needed),
                Err(why) => said.push(why),
            }
        }
        // Others at once, should there be some.
        while let Some(address) = self.next(&mut asked) {
            match self.connect(&address).await {
                Ok(channel) => match self.beat_at(address, channel).await {
                    Ok(needed) => return Ok(needed),
                    Err(why) => said.push(why),
                },
                Err(why) => said.push(why.unwrap_or_else(|error| error.to_string())),
            }
        }
        Err(said.join("; "))
    }

    /// A sign of life to one scheduler, which is followed if it takes it.
    async fn beat_at(&mut self, address: String, channel: Channel) -> Result<bool, String> {
        // While it drains too: Ballista takes what a terminating executor reports for lost.
        let state = executor_status::Status::Active(String::new());
        let message = HeartBeatParams {
            executor_id: self.metadata.id.clone(),
            metrics: Vec::new(),
            status: Some(ExecutorStatus { status: Some(state) }),
            metadata: Some(self.metadata.clone()),
        };
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || disk.look()).await.map_err(|error| error.to_string())?;
        let closed = self.disk.closed();
        let is_closed = closed.is_some();
        let mut client = SchedulerGrpcClient::new(channel.clone());
        let said = async {
            client.heart_beat_from_executor(message).await?;
            let signs = AliveRequest {
                executor: self.metadata.id.clone(),
                running: self.tasks.open(),
                draining: self.draining,
                held: self.work_dir.jobs(),
                memory_bytes: self.memory_bytes,
                closed: closed.unwrap_or_default(),
            };
            say_alive(channel.clone(), signs).await
        };
        let answer = match self.in_time(said).await {
            Some(Ok(answer)) => answer,
            Some(Err(status)) => return Err(self.unanswered(&address, &status)),
            None => {
                self.schedulers.silent(&address);
                return Err(format!("{address}: no answer in {} s", ONE_OF_SEVERAL.as_secs()));
            }
        };
        if let Err(why) = self.followed.follow(answer.term, self.tasks).await.map(drop) {
            self.schedulers.silent(&address);
            return Err(format!("{address}: {why}"));
        }
        if is_closed {
            self.disk.heard();
        }
        self.tasks.stop(answer.stop).await;
        for job in answer.forget {
            if let Err(error) = WorkDir::remove_job(self.work_dir.shuffle(), &job, &[]) {
                tracing::warn!(job, "what is left of the job could not be removed: {error}");
            }
        }
        self.follow(address, channel);
        Ok(answer.needed)
    }

    /// Tells the scheduler that it goes, so that its work is placed elsewhere at once.
    pub(crate) async fn leave(&mut self) {
        let Some((_, channel)) = self.at.take() else { return };
        let message = ExecutorStoppedParams {
            executor_id: self.metadata.id.clone(),
            reason: "the executor was asked to stop".to_owned(),
        };
        let mut client = SchedulerGrpcClient::new(channel);
        let told = client.executor_stopped(message);
        if let Ok(Err(status)) = tokio::time::timeout(Duration::from_secs(2), told).await {
            tracing::warn!("the scheduler was not told: {}", status.message());
        }
    }
}

/// Whether a scheduler answered and said no; what lies on the way may pass.
fn is_refusal(status: &tonic::Status) -> bool {
    use tonic::Code;
    !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
