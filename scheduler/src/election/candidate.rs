//! One scheduler of several, from its start to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rowmill_cores::election::{ElectionAction, Elector};
use rowmill_cores::ids::Fence;
use rowmill_cores::journal::Acquired;
use rowmill_store::{Error as StoreFailure, NamedFence, NamedLease, Owner};
use tokio::task::JoinSet;

use super::ballot::Election;
use super::seat::Seat;
use super::standby::Known;
use crate::error::Error;
use crate::options::Options;
use crate::term::{Clocked, Term};

/// How long letting go of the lease may take when the process stops.
const RELEASE: Duration = Duration::from_secs(2);

/// A scheduler that leads when it is elected, and stands by otherwise.
pub struct Candidate {
    options: Options,
    election: Election,
    listener: std::net::TcpListener,
    address: SocketAddr,
    /// Where others reach it.
    reached: String,
    elector: Arc<Clocked>,
    /// A new one for each time that it asks for the lease anew: what an earlier one left in the store is not its own.
    owner: Owner,
    known: Known,
    requests: JoinSet<Answer>,
    /// Whether the store was told of as silent.
    silent: bool,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("reached", &self.reached).field("election", &self.election).finish()
    }
}

/// What the store answered.
enum Answer {
    Acquired { request: u64, lease: Result<NamedLease, StoreFailure> },
    Renewed { request: u64, done: Result<(), StoreFailure> },
    Released,
}

impl Candidate {
    /// Listens; nothing is answered before [`Self::run`].
    ///
    /// # Errors
    /// The address is taken; bytes cannot travel as configured; the host under which others reach it is none.
    pub async fn try_new(options: Options, election: Election) -> Result<Self, Error> {
        let fail = |source| Error::Listen { address: options.listen, source };
        let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        if options.host.parse().is_ok_and(|host: std::net::IpAddr| host.is_unspecified()) {
            return Err(Error::NoHost);
        }
        // Found out now and not in the middle of the first term.
        options.handshake.transport().check_host(&address.ip().to_string())?;
        options.handshake.transport().check_host(&options.host)?;
        let listener = listener.into_std()?;
        let reached = options.reached_at(address.port());
        let elector = Arc::new(Clocked::new(Elector::new(election.times())));
        let (known, requests) = (Arc::new(Mutex::new(None)), JoinSet::new());
        let owner = Owner::new(reached.clone());
        Ok(Self { options, election, listener, address, reached, elector, owner, known, requests, silent: false })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stands by and leads, until `stop` says so; then lets go of the lease.
    ///
    /// # Errors
    /// The port cannot be served.
    pub fn run(self, stop: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(self.run_until(stop))
    }

    async fn run_until(mut self, mut stop: BoxFuture<'static, ()>) -> Result<(), Error> {
        let mut seat = self.stand_by()?;
        let mut leads = None;
        let outcome = loop {
            let actions = self.elector.tell(Elector::tick);
            self.act(actions, &mut seat, &mut leads)?;
            let due = tokio::time::Instant::from_std(self.elector.deadline());
            let answered = tokio::select! {
                () = &mut stop => break Ok(()),
                ended = seat.ended() => break ended,
                Some(answered) = self.requests.join_next() => answered,
                () = tokio::time::sleep_until(due) => continue,
            };
            // A request that panicked is one that was not answered.
            let Ok(answer) = answered else { continue };
            let actions = self.take(answer);
            self.act(actions, &mut seat, &mut leads)?;
        };
        // Nothing is placed any more before another may lead.
        drop(seat);
        self.requests.shutdown().await;
        if let Some(fence) = leads {
            let fence = self.fence(fence);
            match tokio::time::timeout(RELEASE, self.election.store.release_named(&fence)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("the lease could not be given back, and runs out: {error}"),
                Err(_) => tracing::warn!("the lease could not be given back in time, and runs out"),
            }
        }
        self.election.store.close().await;
        outcome
    }

    fn stand_by(&self) -> Result<Seat, Error> {
        Seat::stand_by(&self.listener, self.options.handshake.clone(), self.known.clone())
    }

    fn fence(&self, fence: Fence) -> NamedFence {
        NamedFence { name: self.election.lease_name.clone(), token: fence.0 }
    }

    /// Does what the elector says.
    fn act(&mut self, actions: Vec<ElectionAction>, seat: &mut Seat, leads: &mut Option<Fence>) -> Result<(), Error> {
        for action in actions {
            match action {
                ElectionAction::Acquire { request } => {
                    let (election, owner) = (self.election.clone(), self.owner.clone());
                    self.requests.spawn(async move {
                        let asked = election.store.acquire_named(&election.lease_name, &owner, election.lease);
                        Answer::Acquired { request, lease: in_time(&election, asked).await }
                    });
                }
                ElectionAction::Renew { request, fence } => {
                    let (election, fence) = (self.election.clone(), self.fence(fence));
                    self.requests.spawn(async move {
                        let asked = election.store.renew_named(&fence, election.lease);
                        Answer::Renewed { request, done: in_time(&election, asked).await }
                    });
                }
                ElectionAction::Lead(fence) => {
                    tracing::warn!(term = fence.0, "this scheduler leads now");
                    *leads = Some(fence);
                    *self.known.lock() = Some(self.reached.clone());
                    let term = Term::new(fence, self.elector.clone());
                    *seat = Seat::lead(&self.listener, self.options.clone(), term)?;
                }
                ElectionAction::StepDown(fence) => {
                    tracing::warn!(term = fence.0, "this scheduler does not lead any more");
                    *leads = None;
                    *self.known.lock() = None;
                    *seat = self.stand_by()?;
                    // What was asked for the old term is not wanted any more, whatever the store says.
                    self.requests.abort_all();
                    self.owner = Owner::new(self.reached.clone());
                    let (election, fence) = (self.election.clone(), self.fence(fence));
                    self.requests.spawn(async move {
                        // The store may be the reason: then the lease runs out.
                        let _ = in_time(&election, election.store.release_named(&fence)).await;
                        Answer::Released
                    });
                }
            }
        }
        Ok(())
    }

    /// Hands an answer of the store to the elector.
    fn take(&mut self, answer: Answer) -> Vec<ElectionAction> {
        match answer {
            Answer::Acquired { request, lease: Ok(NamedLease::Granted(fence)) } => {
                self.heard();
                let granted = Acquired::Granted(Fence(fence.token));
                self.elector.tell(|elector, now_ms| elector.acquired(request, granted, now_ms))
            }
            Answer::Acquired { request, lease: Ok(NamedLease::Held { owner, expires_in }) } => {
                self.heard();
                let held = Acquired::Held { remaining_ms: u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX) };
                let actions = self.elector.tell(|elector, now_ms| elector.acquired(request, held, now_ms));
                let mut known = self.known.lock();
                if known.as_deref() != Some(owner.as_str()) {
                    tracing::info!("{owner} leads; this scheduler stands by");
                    *known = Some(owner);
                }
                actions
            }
            Answer::Renewed { request, done: Ok(()) } => {
                self.heard();
                self.elector.tell(|elector, now_ms| elector.renewed(request, true, now_ms))
            }
            // Another leads, or the lease's row is gone: this one does not lead.
            Answer::Renewed { request, done: Err(StoreFailure::Fenced { .. } | StoreFailure::NotFound { .. }) } => {
                self.elector.tell(|elector, now_ms| elector.renewed(request, false, now_ms))
            }
            Answer::Acquired { lease: Err(error), .. } | Answer::Renewed { done: Err(error), .. } => {
                // No answer: it is asked again, and who leads goes on until its lease has run out.
                if !self.silent {
                    self.silent = true;
                    tracing::warn!("the schedulers' store does not answer: {error}");
                }
                Vec::new()
            }
            Answer::Released => Vec::new(),
        }
    }

    fn heard(&mut self) {
        if self.silent {
            self.silent = false;
            tracing::warn!("the schedulers' store answers again");
        }
    }
}

/// An answer within the time after which the elector asks again.
async fn in_time<T>(
    election: &Election,
    asked: impl Future<Output = Result<T, StoreFailure>>,
) -> Result<T, StoreFailure> {
    let limit = Duration::from_millis(election.times().answer_ms);
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let message = format!("no answer in {} ms", limit.as_millis());
        Err(StoreFailure::Unavailable { store: election.store.describe().to_owned(), message })
    })
}
