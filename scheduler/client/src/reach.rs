//! Reaching a cluster: which of its schedulers leads, and asking it.
//!
//! One that stands by names the leader, and the next question goes there. One that is dead, or silent, is followed by the
//! next that was given.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rowmill_wire::jobs::{BEAT, StatusResponse, status};
use rowmill_wire::leader::{Role, Standby, role};
use rowmill_wire::transport;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::options::Options;
use crate::submit::Cluster;

/// Silence after which a scheduler is taken as gone.
const SILENCE: Duration = Duration::from_secs(4 * BEAT.as_secs());
/// Silence after which the other schedulers are asked whether one of them leads by now, and the wait before they are
/// asked again.
const WONDER: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_secs(1);
/// How long one of several schedulers may take to say its role.
const ROLE: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

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

impl ConnectError {
    /// The reason alone.
    pub(crate) fn why(self) -> String {
        let (Self::Silent(why) | Self::Refused(why) | Self::Insecure(why)) = self;
        why
    }
}

/// Why nobody answered.
pub(crate) enum AskError {
    /// The cluster is not to be had.
    Unanswered(ConnectError),
    /// The scheduler does not understand what was asked.
    Unreadable(Status),
}

impl From<ConnectError> for AskError {
    fn from(error: ConnectError) -> Self {
        Self::Unanswered(error)
    }
}

impl From<AskError> for ConnectError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Unanswered(error) => error,
            AskError::Unreadable(status) => ConnectError::Silent(status.message().to_owned()),
        }
    }
}

/// What a scheduler is doing, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerState {
    /// Where it was asked, `host:port`.
    pub address: String,
    /// Its role, or why it does not say it.
    pub role: Result<Role, String>,
}

impl Cluster {
    /// Asks what the cluster is doing, which also shows that it is there and takes us.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn status(&self) -> BoxFuture<'_, Result<StatusResponse, ConnectError>> {
        Box::pin(self.ask_status())
    }

    async fn ask_status(&self) -> Result<StatusResponse, ConnectError> {
        Ok(self.ask(status).await?.1)
    }

    /// Asks each scheduler that was given for its role.
    pub fn schedulers(&self) -> BoxFuture<'_, Vec<SchedulerState>> {
        Box::pin(async move {
            let given = &self.inner.options.schedulers;
            let asked = given.iter().map(|address| async move {
                SchedulerState { address: address.clone(), role: self.ask_role(address).await }
            });
            futures::future::join_all(asked).await
        })
    }

    async fn ask_role(&self, address: &str) -> Result<Role, String> {
        let asked = async {
            let channel = connect(&self.inner.options, address).await.map_err(|error| error.to_string())?;
            role(channel).await.map_err(|status| status.message().to_owned())
        };
        let late = |_| Err(format!("{address} gives no answer in {} s", ROLE.as_secs()));
        tokio::time::timeout(ROLE, asked).await.unwrap_or_else(late)
    }

    /// Whether another scheduler that was given leads by now.
    async fn is_replaced(&self, address: &str) -> bool {
        let others = self.inner.options.schedulers.iter().filter(|other| *other != address);
        let roles = futures::future::join_all(others.map(|other| self.ask_role(other))).await;
        roles.into_iter().flatten().any(|role| role.leads || (!role.leader.is_empty() && role.leader != address))
    }

    /// Has the scheduler that leads answer: one that stands by says who that is, and is asked no more.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<(Arc<str>, T), AskError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut hops = self.inner.options.schedulers.len();
        loop {
            let (address, channel) = self.scheduler().await?;
            let status = match self.patiently(&address, call(channel)).await {
                Ok(Ok(answer)) => return Ok((address, answer)),
                Ok(Err(status)) => status,
                Err(why) => {
                    self.lose(&address);
                    if hops > 1 {
                        hops -= 1;
                        continue;
                    }
                    return Err(ConnectError::Silent(why).into());
                }
            };
            if status.code() == Code::InvalidArgument {
                return Err(AskError::Unreadable(status));
            }
            let others = Standby::read(&status).is_some() || self.inner.options.schedulers.len() > 1;
            let error = self.unanswered(&address, &status);
            // Two that name each other are not followed for ever.
            if hops == 0 || !others || !matches!(error, ConnectError::Silent(_)) {
                return Err(error.into());
            }
            hops -= 1;
        }
    }

    /// The scheduler that was found, or else the first that listens.
    async fn scheduler(&self) -> Result<(Arc<str>, Channel), ConnectError> {
        let known = self.inner.found.lock().clone();
        if let Some(found) = known {
            return Ok(found);
        }
        let mut silent = Vec::new();
        let order = self.inner.schedulers.lock().order();
        for address in order {
            match connect(&self.inner.options, &address).await {
                Ok(channel) => {
                    self.inner.answered.store(true, Ordering::Relaxed);
                    let found = (Arc::<str>::from(address), channel);
                    *self.inner.found.lock() = Some(found.clone());
                    return Ok(found);
                }
                // One that another scheduler named and that shows no certificate of the cluster is none.
                Err(error) if matches!(error, ConnectError::Silent(_)) || !self.is_given(&address) => {
                    self.inner.schedulers.lock().silent(&address);
                    silent.push(error.why());
                }
                Err(refused) => return Err(refused),
            }
        }
        Err(ConnectError::Silent(silent.join("; ")))
    }

    fn is_given(&self, address: &str) -> bool {
        self.inner.options.schedulers.iter().any(|given| given == address)
    }

    /// A scheduler did not do what it was asked, or stopped doing it: what that means, and the next is another.
    pub(crate) fn unanswered(&self, address: &Arc<str>, status: &Status) -> ConnectError {
        match Standby::read(status) {
            Some(standby) => {
                self.lose(address);
                ConnectError::Silent(self.inner.schedulers.lock().stands_by(address, &standby))
            }
            None => {
                self.lose(address);
                judge(status)
            }
        }
    }

    /// A scheduler is gone, or gives no sign of life.
    pub(crate) fn lose(&self, address: &Arc<str>) {
        let mut found = self.inner.found.lock();
        // Somebody may have found another one meanwhile.
        if found.as_ref().is_some_and(|(known, _)| known == address) {
            found.take();
        }
        self.inner.schedulers.lock().silent(address);
    }

    /// Waits for what a scheduler says. Why it is not waited for any more, when it is silent for too long; where there are
    /// others, that is when one of them leads instead.
    pub(crate) async fn patiently<T>(&self, address: &str, said: impl Future<Output = T>) -> Result<T, String> {
        let several = self.inner.options.schedulers.len() > 1;
        let (began, mut patience) = (Instant::now(), if several { WONDER } else { SILENCE });
        tokio::pin!(said);
        loop {
            if let Ok(said) = tokio::time::timeout(patience, &mut said).await {
                return Ok(said);
            }
            if several && self.is_replaced(address).await {
                return Err(format!("nothing was heard from {address}, and another scheduler leads"));
            }
            match SILENCE.checked_sub(began.elapsed()) {
                Some(left) if !left.is_zero() => patience = left.min(AGAIN),
                _ => return Err(format!("nothing was heard from {address} for {} s", SILENCE.as_secs())),
            }
        }
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
