//! Who may write: leases and their fencing tokens.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{RunId, RunStatus};

/// One incarnation of a process (or of a coordinator in it) that may own runs.
///
/// Make one at start-up and keep it: the identity in it is what lets the store recognise a repeated request of the same
/// owner, and what keeps a restarted process from being taken for the one that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Unique for each incarnation.
    pub id: Uuid,
    /// For others: host name and process id, say, or where a leader is reached. Never a secret.
    pub description: String,
}

impl Owner {
    /// A new incarnation.
    pub fn new(description: impl Into<String>) -> Self {
        Owner { id: Uuid::new_v4(), description: description.into() }
    }

    /// The text that is stored and compared.
    pub(crate) fn to_text(&self) -> String {
        format!("{} {}", self.id, self.description)
    }
}

/// The right to write to a run: its fencing token. A newer token makes every write with this one fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The run.
    pub run: RunId,
    /// Grows with every change of ownership.
    pub token: u64,
}

/// When a run may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireMode {
    /// When nobody holds it, or its holder's lease has expired by the store's clock.
    Free,
    /// Also from a holder whose lease has not expired: for a caller that knows the holder to be dead, or a person who
    /// says so. The old holder's writes are refused from then on.
    Steal,
    /// Like `Free`, and a run that has ended is opened again under the next version of its result (`rowmill retry`).
    Reopen,
}

/// The answer to an attempt to own a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// The run is the caller's until the time to live has passed without a renewal.
    Lease(Lease),
    /// Somebody else holds it.
    Held {
        /// The holder, as it described itself.
        owner: String,
        /// How long its lease lasts if it is not renewed, by the store's clock.
        expires_in: Duration,
    },
    /// The run has ended; [`AcquireMode::Reopen`] would open it again.
    Ended(RunStatus),
}

/// Ownership of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What every write of the owner carries.
    pub fence: Fence,
    /// How long the lease lasts from the moment the store granted it. Renew well before.
    pub ttl: Duration,
    /// The version of the result that is being made.
    pub version: u32,
    /// The run's state before this owner; `Queued` means that nothing was done yet.
    pub status: RunStatus,
    /// The owner before, if it did not let go by itself.
    pub taken_from: Option<String>,
}

/// A wish to cancel, waiting for the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who asked.
    pub actor: String,
    /// Why, if they said.
    pub reason: Option<String>,
    /// When, by the store's clock, in milliseconds since 1970.
    pub at_ms: i64,
}

/// The answer to a renewal. It carries what an owner would otherwise have to poll for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Whether somebody wants the run cancelled.
    pub cancel: Option<CancelRequest>,
}

/// The right to act under a name that is no run: a scheduler's leadership, say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedFence {
    /// The name.
    pub name: String,
    /// Grows with every change of holder.
    pub token: u64,
}

/// The answer to an attempt to hold a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedLease {
    /// The name is the caller's.
    Granted(NamedFence),
    /// Somebody else holds it.
    Held {
        /// The holder, as it described itself.
        owner: String,
        /// How long its lease lasts if it is not renewed, by the store's clock.
        expires_in: Duration,
    },
}
