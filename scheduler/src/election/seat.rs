//! What serves the port of a candidate, in a runtime of its own that ends with it.

use std::net::TcpListener;

use rowmill_wire::handshake::Handshake;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::standby::{self, Known};
use crate::error::Error;
use crate::options::Options;
use crate::serve::Scheduler;
use crate::term::Term;

/// Whoever serves the port now. Dropping it ends every task and connection that it had.
pub(super) struct Seat {
    serving: Option<JoinHandle<Result<Option<Scheduler>, Error>>>,
    scheduler: Option<Scheduler>,
    runtime: Option<Runtime>,
}

/// The listener once more: each runtime listens by itself, one after the other.
fn listen(listener: &TcpListener) -> Result<TcpListener, Error> {
    let own = listener.try_clone()?;
    own.set_nonblocking(true)?;
    Ok(own)
}

impl Seat {
    /// A scheduler that stands by.
    pub(super) fn stand_by(listener: &TcpListener, handshake: Handshake, known: Known) -> Result<Self, Error> {
        let own = listen(listener)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("standby").enable_all().build()?;
        let serving = runtime.spawn(async move {
            standby::serve(handshake, tokio::net::TcpListener::from_std(own)?, known).await?;
            Ok::<Option<Scheduler>, Error>(None)
        });
        Ok(Self { serving: Some(serving), scheduler: None, runtime: Some(runtime) })
    }

    /// A scheduler that leads for one term.
    pub(super) fn lead(listener: &TcpListener, options: Options, term: Term) -> Result<Self, Error> {
        let own = listen(listener)?;
        let runtime = Builder::new_multi_thread().thread_name("leader").enable_all().build()?;
        let serving = runtime.spawn(async move {
            let own = tokio::net::TcpListener::from_std(own)?;
            Scheduler::serve(options, own, term).await.map(Some)
        });
        Ok(Self { serving: Some(serving), scheduler: None, runtime: Some(runtime) })
    }

    /// Waits until it does not serve any more: never, as long as nothing goes wrong.
    ///
    /// # Errors
    /// A scheduler did not start, or its server stopped.
    pub(super) async fn ended(&mut self) -> Result<(), Error> {
        let stopped = |why: String| Error::System(std::io::Error::other(why));
        if let Some(serving) = &mut self.serving {
            let served = serving.await;
            self.serving = None;
            match served {
                Ok(Ok(Some(scheduler))) => self.scheduler = Some(scheduler),
                Ok(Ok(None)) => return Err(stopped("the server that answers for a standby stopped".to_owned())),
                Ok(Err(error)) => return Err(error),
                Err(error) => return Err(stopped(error.to_string())),
            }
        }
        std::future::pending().await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
        self.scheduler.take();
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: a plan that is being made is given up at its next step.
            runtime.shutdown_background();
        }
    }
}
