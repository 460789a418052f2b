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
                Ok(Ok(answer)) => {
                    self.inner.schedulers.lock().leads(&address);
                    return Ok((address, answer));
                }
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
            // It answers, and may lead later.
            Some(standby) => {
                self.forget(address);
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
        self.forget(address);
        self.inner.schedulers.lock().silent(address);
    }

    /// A scheduler is not the one to ask.
    fn forget(&self, address: &Arc<str>) {
        let mut found = self.inner.found.lock();
        // Somebody may have found another one meanwhile.
        if found.as_ref().is_some_and(|(known, _)| known == address) {
            found.take();
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::StreamExt as _;
    use rowmill_cores::routing::Strategy;
    use rowmill_engine::sources::stores::StoreOptions;
    use rowmill_wire::handshake::{Caller, Handshake, TenantName, Token};
    use rowmill_wire::jobs::{JobsServer, ProgressStream, SubmitRequest, TakesJobs};
    use rowmill_wire::leader::{RoleServer, standby};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// What a scheduler of the tests does.
    #[derive(Clone)]
    enum Does {
        Leads,
        StandsBy(Option<String>),
        Hangs,
    }

    /// A scheduler of the tests, and how often it was asked.
    struct Fake {
        address: String,
        does: Does,
        asked: AtomicUsize,
    }

    impl TakesJobs for Fake {
        fn submit(&self, _: SubmitRequest, _: Caller) -> BoxFuture<'static, Result<ProgressStream, Status>> {
            Box::pin(async { Ok(futures::stream::empty().boxed() as ProgressStream) })
        }

        fn status(&self, _caller: Caller) -> BoxFuture<'static, Result<StatusResponse, Status>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (does, leader) = (self.does.clone(), self.address.clone());
            Box::pin(async move {
                match does {
                    Does::Leads => Ok(StatusResponse { leader, ..StatusResponse::default() }),
                    Does::StandsBy(leader) => Err(standby(leader.as_deref())),
                    Does::Hangs => std::future::pending().await,
                }
            })
        }
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    fn serve(servers: &mut JoinSet<()>, (listener, address): (TcpListener, String), does: Does) -> Arc<Fake> {
        let fake = Arc::new(Fake { address: address.clone(), does: does.clone(), asked: AtomicUsize::new(0) });
        let role = Role { leads: matches!(does, Does::Leads), term: 1, leader: String::new() };
        let serving = tonic::transport::Server::builder()
            .add_service(JobsServer::new(fake.clone()))
            .add_service(RoleServer::new(Arc::new(move || role.clone())))
            .serve_with_incoming(handshake().incoming(listener).unwrap());
        servers.spawn(async move { serving.await.unwrap() });
        fake
    }

    fn handshake() -> Handshake {
        Handshake::new(Token::try_new("a-token-of-the-tests-0123456789").unwrap())
    }

    fn cluster(schedulers: &[&str]) -> Cluster {
        Cluster::try_new(Options {
            schedulers: schedulers.iter().map(|address| (*address).to_owned()).collect(),
            handshake: handshake(),
            queue: String::new(),
            tenant: TenantName::default(),
            partitions: 2,
            stores: StoreOptions::default(),
            patience: Duration::from_secs(60),
            routing: Strategy::default(),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn the_leader_is_found_among_those_that_were_given() {
        let mut servers = JoinSet::new();
        let (first, second, third) = (listen().await, listen().await, listen().await);
        let dead = first.1.clone();
        drop(first.0);
        let leader = serve(&mut servers, third, Does::Leads);
        let standby = serve(&mut servers, second, Does::StandsBy(Some(leader.address.clone())));
        let cluster = cluster(&[&dead, &standby.address, &leader.address]);
        assert_eq!(cluster.status().await.unwrap().leader, leader.address);
        // It is known from then on.
        assert_eq!(cluster.status().await.unwrap().leader, leader.address);
        assert_eq!(standby.asked.load(Ordering::Relaxed), 1);
        let roles = cluster.schedulers().await;
        assert!(roles[0].role.is_err(), "{roles:?}");
        assert_eq!(
            roles.iter().map(|own| own.role.as_ref().is_ok_and(|role| role.leads)).collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[tokio::test]
    async fn one_that_stood_by_is_gone_to_when_it_leads() {
        let cluster = cluster(&["a:1", "b:1", "c:1"]);
        let (first, second): (Arc<str>, Arc<str>) = ("a:1".into(), "b:1".into());
        cluster.unanswered(&first, &standby(Some("b:1")));
        let said = cluster.unanswered(&second, &standby(Some("a:1"))).to_string();
        assert!(said.contains("a:1 leads"), "{said}");
        assert_eq!(cluster.inner.schedulers.lock().order(), ["a:1", "c:1", "b:1"]);
    }

    #[tokio::test]
    async fn nobody_is_led_to_an_address_that_was_not_given() {
        let mut servers = JoinSet::new();
        let thief = serve(&mut servers, listen().await, Does::Leads);
        let standby = serve(&mut servers, listen().await, Does::StandsBy(Some(thief.address.clone())));
        let error = cluster(&[&standby.address]).status().await.unwrap_err();
        assert!(matches!(&error, ConnectError::Silent(why) if why.contains("was not given")), "{error}");
        assert_eq!(thief.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn standbys_that_name_each_other_are_not_followed_for_ever() {
        let mut servers = JoinSet::new();
        let (first, second) = (listen().await, listen().await);
        let (one, other) = (first.1.clone(), second.1.clone());
        let first = serve(&mut servers, first, Does::StandsBy(Some(other.clone())));
        let second = serve(&mut servers, second, Does::StandsBy(Some(one.clone())));
        let cluster = cluster(&[&one, &other]);
        assert!(matches!(cluster.status().await, Err(ConnectError::Silent(_))));
        let asked = first.asked.load(Ordering::Relaxed) + second.asked.load(Ordering::Relaxed);
        assert!((2..=4).contains(&asked), "{asked}");
        // Neither knows who leads.
        let nobody = serve(&mut servers, listen().await, Does::StandsBy(None));
        let error = self::cluster(&[&nobody.address]).status().await.unwrap_err();
        assert!(matches!(&error, ConnectError::Silent(why) if why.contains("none that leads")), "{error}");
    }

    #[tokio::test]
    async fn one_that_is_silent_is_left_once_another_leads() {
        let mut servers = JoinSet::new();
        let asleep = serve(&mut servers, listen().await, Does::Hangs);
        let leader = serve(&mut servers, listen().await, Does::Leads);
        let cluster = cluster(&[&asleep.address, &leader.address]);
        let began = Instant::now();
        assert_eq!(cluster.status().await.unwrap().leader, leader.address);
        assert!(began.elapsed() < SILENCE, "it was waited for as long as one that is alone");
    }
}
