//! Says who serves a class, for clients that hand attempts to executors themselves: calls of steps that are not SQL do
//! not go through the scheduler.

use std::time::Duration;

use futures::StreamExt as _;
use rowmill_wire::calls::crew::{Crew, CrewMember, CrewStream, KnowsCrews};
use rowmill_wire::jobs::BEAT;
use rowmill_wire::name::check_class;
use tokio::time::Instant;
use tonic::Status;

use crate::serve::Core;

/// How often it is looked whether executors came or went: they are few, and nothing tells of it.
const LOOK: Duration = Duration::from_millis(250);

/// Knows the executors.
pub(crate) struct Knower {
    core: Core,
    queue_timeout: Duration,
}

impl Knower {
    pub(crate) fn new(core: Core, queue_timeout: Duration) -> Self {
        Self { core, queue_timeout }
    }
}

/// What one listener was told.
struct Told {
    core: Core,
    class: String,
    queue_timeout_ms: u64,
    last: Option<(Crew, Instant)>,
}

impl Told {
    /// What is to be said next: when it changed, or when the listener would wonder.
    async fn next(&mut self) -> Crew {
        loop {
            let crew = self.crew().await;
            match &self.last {
                Some((last, said)) if *last == crew && said.elapsed() < BEAT => tokio::time::sleep(LOOK).await,
                _ => {
                    self.last = Some((crew.clone(), Instant::now()));
                    return crew;
                }
            }
        }
    }

    async fn crew(&self) -> Crew {
        let executors = self.core.executors().await.into_iter();
        let members = executors
            .filter(|executor| !executor.draining && executor.name.serves(&self.class))
            .map(|executor| CrewMember {
                name: executor.name.to_string(),
                address: executor.address,
                slots: executor.slots,
            })
            .collect();
        Crew { members, queue_timeout_ms: self.queue_timeout_ms }
    }
}

impl KnowsCrews for Knower {
    fn watch(&self, class: String) -> Result<CrewStream, Status> {
        check_class(&class).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let queue_timeout_ms = u64::try_from(self.queue_timeout.as_millis()).unwrap_or(u64::MAX);
        let told = Told { core: self.core.clone(), class, queue_timeout_ms, last: None };
        let crews = futures::stream::unfold(told, |mut told| async move {
            let crew = told.next().await;
            Some((Ok(crew), told))
        });
        Ok(crews.boxed())
    }
}
