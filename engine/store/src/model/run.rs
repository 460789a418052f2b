//! Runs: what was submitted, what became of it, who may see it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::model::OutcomeCounts;

/// The identity of a run: a UUID of version 7.
///
/// Its embedded time is the submitter's; nothing in the store is ordered or judged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A new identity.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        RunId(Uuid::now_v7())
    }

    /// The run with this UUID.
    pub fn from_uuid(uuid: Uuid) -> Self {
        RunId(uuid)
    }

    /// The UUID.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(RunId)
    }
}

/// A name that is not one of an enumeration's.
#[derive(Debug, Clone, Error)]
#[error("unknown {kind} `{name}`")]
pub struct UnknownName {
    /// Which enumeration.
    pub kind: &'static str,
    /// The name.
    pub name: String,
}

/// The text forms of an enumeration, once for display, parsing and the database.
macro_rules! named {
    ($type:ident, $kind:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The stable name, as stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = $crate::model::UnknownName;
            fn from_str(name: &str) -> Result<Self, Self::Err> {
                match name {
                    $($name => Ok($type::$variant),)+
                    other => Err($crate::model::UnknownName { kind: $kind, name: other.to_owned() }),
                }
            }
        }
    };
}
pub(crate) use named;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Submitted; nobody has begun.
    Queued,
    /// Somebody has begun. Whether that owner still lives is the lease's affair.
    Running,
    /// Stopped by the environment; to be resumed.
    Stopped,
    /// Every item ended ok, cached or as the workflow declared it.
    Succeeded,
    /// The result is there, and some items failed.
    SucceededWithFailures,
    /// Ended by the workflow or its data.
    Failed,
    /// Ended on request.
    Cancelled,
}

named!(RunStatus, "run status", {
    Queued => "queued",
    Running => "running",
    Stopped => "stopped",
    Succeeded => "succeeded",
    SucceededWithFailures => "succeeded_with_failures",
    Failed => "failed",
    Cancelled => "cancelled",
});

impl RunStatus {
    /// Whether the run has ended for good. A stopped run has not.
    pub fn is_ended(self) -> bool {
        !matches!(self, RunStatus::Queued | RunStatus::Running | RunStatus::Stopped)
    }
}

/// A run to be submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// Made by the submitter, so that a repeated submission is recognised.
    pub id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// The workflow's text as submitted; read back verbatim on resume.
    pub workflow_text: String,
    /// The fingerprint that a resume compares.
    pub workflow_fingerprint: String,
    /// Parameters by name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// The organisation it belongs to; empty where there are none.
    pub organisation: String,
    /// The team; empty where there are none.
    pub team: String,
    /// Free labels, for filters.
    pub labels: BTreeMap<String, String>,
    /// Who submitted it.
    pub actor: String,
    /// A key of the submitter's choosing: a second submission with it gets the first one's run. Scoped by organisation.
    pub submit_key: Option<String>,
    /// Opaque to the store: what must be pinned for the run (its `now()`, its seed).
    pub payload: Vec<u8>,
}

/// What a submission gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The run, which is an older one when the submit key was used before.
    pub run: Run,
    /// Whether it was this submission (or an earlier try of it) that created the run.
    pub created: bool,
}

/// A run as stored, without its workflow's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its identity.
    pub id: RunId,
    /// The workflow's name.
    pub workflow_name: String,
    /// The workflow's fingerprint.
    pub workflow_fingerprint: String,
    /// Parameters by name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Where it stands.
    pub status: RunStatus,
    /// The organisation it belongs to.
    pub organisation: String,
    /// The team.
    pub team: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Who submitted it.
    pub actor: String,
    /// The submitter's idempotency key.
    pub submit_key: Option<String>,
    /// The newest version of its result, from 1 on; published or not.
    pub version: u32,
    /// When it was submitted, by the store's clock, in milliseconds since 1970.
    pub created_ms: i64,
    /// When an owner first began.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// A wish to cancel it.
    pub cancel: Option<crate::model::CancelRequest>,
    /// Outcome counts at the end.
    pub counts: OutcomeCounts,
    /// Why it failed or stopped.
    pub error: Option<String>,
    /// What retention has begun to remove or removed from it.
    pub collected: Vec<Retention>,
    /// The submitter's opaque bytes.
    #[serde(skip)]
    pub payload: Vec<u8>,
}

/// Whose runs a caller may see. Others' are "not found".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Only this organisation's, or everybody's.
    pub organisation: Option<String>,
    /// Only this team's, or every team's.
    pub team: Option<String>,
}

impl Scope {
    /// No limit: for the process that owns the store.
    pub fn all() -> Self {
        Scope::default()
    }

    /// One organisation's runs.
    pub fn organisation(name: impl Into<String>) -> Self {
        Scope { organisation: Some(name.into()), team: None }
    }
}

/// Which runs to list or count. Empty fields match everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFilter {
    /// Whose runs.
    pub scope: Scope,
    /// Any of these states.
    pub statuses: Vec<RunStatus>,
    /// This workflow.
    pub workflow_name: Option<String>,
    /// All of these labels.
    pub labels: BTreeMap<String, String>,
    /// Submitted no longer ago than this, by the store's clock.
    pub younger_than: Option<Duration>,
}

/// How a run ended or stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// An ended status, or `Stopped`.
    pub status: RunStatus,
    /// Why, unless it succeeded. Must not carry secrets.
    pub error: Option<String>,
    /// Outcome counts of the run.
    pub counts: OutcomeCounts,
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelResult {
    /// The owner is told at its next renewal.
    Requested,
    /// The run is cancelled: nobody was working on it, or its owner has obeyed an earlier request.
    Cancelled,
    /// It had ended in another way before.
    AlreadyEnded(RunStatus),
}

/// Classes of data that are kept for different times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// What only a resume needs: the effect log, chunk manifests, spooled chunks.
    Temporary,
    /// Results and ledgers, and with them the journal that refers to them.
    Results,
    /// The run itself and its events.
    Audit,
}

named!(Retention, "retention class", {
    Temporary => "temporary",
    Results => "results",
    Audit => "audit",
});

impl Retention {
    /// The bit of this class, and of every class that must have gone before it.
    pub(crate) fn bits(self) -> i64 {
        match self {
            Retention::Temporary => 1,
            Retention::Results => 3,
            Retention::Audit => 7,
        }
    }

    /// The classes in a set of bits.
    pub(crate) fn from_bits(bits: i64) -> Vec<Retention> {
        Retention::ALL.iter().copied().filter(|class| bits & class.bits() == class.bits()).collect()
    }
}
