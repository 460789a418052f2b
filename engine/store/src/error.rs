//! What can go wrong with a run store, sorted by whose fault it is, so that a caller can decide between waiting,
//! giving up its run, and telling the user.
//!
//! No message carries a password: backends describe themselves by host, user and database only, and driver messages are
//! scrubbed before they get here.

use crate::model::RunStatus;

/// The result of every call on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine, the file system, the network or the database server.
    Environment {
        /// Whether the same call may succeed later without anybody repairing anything.
        retryable: bool,
    },
    /// Another writer got there first, or the state does not permit the call.
    Conflict,
    /// The stored data contradicts itself.
    Corrupted,
    /// A newer Rowmill wrote this store.
    NewerVersion,
    /// There is no such run, stage or chunk, or the caller may not see it.
    NotFound,
    /// The caller passed something that no store can keep.
    Input,
    /// A bug of ours.
    Bug,
}

/// Why a call on a store failed.
///
/// A failed call may nevertheless have been executed (its reply was lost). Every call bears being repeated, so the
/// caller repeats it when [`Error::is_retryable`] says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process held the store's lock for longer than the busy timeout.
    #[error(
        "the run store {store} is busy or locked by another process ({message}); wait for it to finish, or raise the \
         store's timeout"
    )]
    Busy {
        /// The store, described without secrets.
        store: String,
        /// What the database said.
        message: String,
    },
    /// The store cannot be reached, or did not answer in time.
    #[error("the run store {store} cannot be reached: {message}")]
    Unavailable {
        /// The store, described without secrets.
        store: String,
        /// What the driver said.
        message: String,
    },
    /// There is no room left to write.
    #[error("the run store {store} is full: {message}; free some space (`rowmill gc` may help) and resume the run")]
    Full {
        /// The store, described without secrets.
        store: String,
        /// What the database said.
        message: String,
    },
    /// The store exists but refuses us: permissions, a read-only file, a wrong password, a missing directory.
    #[error("the run store {store} cannot be used: {message}")]
    Denied {
        /// The store, described without secrets.
        store: String,
        /// What the database said.
        message: String,
    },
    /// The stored bytes are damaged.
    #[error("the run store {store} is corrupted: {message}; restore it from a backup, or point to a new store")]
    Corrupted {
        /// The store, described without secrets.
        store: String,
        /// What was found.
        message: String,
    },
    /// The store was written by a newer Rowmill.
    #[error(
        "the run store {store} has schema version {found}, and this Rowmill knows versions up to {supported}; use the \
         newer Rowmill that wrote it"
    )]
    NewerVersion {
        /// The store, described without secrets.
        store: String,
        /// The version found.
        found: i64,
        /// The newest version that this build can read.
        supported: i64,
    },
    /// There is no such thing, or the caller's scope does not include it.
    #[error("{what} is not in the run store")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The caller's lease was taken over, released or ended: it must stop working on this run at once.
    #[error("{lease} is no longer ours: token {token} was superseded by {current_token}{}", held_by(.owner))]
    Fenced {
        /// Which lease (`run/ID` or `named/NAME`).
        lease: String,
        /// The caller's token.
        token: u64,
        /// The store's token.
        current_token: u64,
        /// Who holds the lease now, if anybody.
        owner: Option<String>,
    },
    /// The run has ended, and the call needs one that has not.
    #[error("run {run} has already ended: {status}")]
    Ended {
        /// The run.
        run: crate::model::RunId,
        /// How it ended.
        status: RunStatus,
    },
    /// What is stored contradicts what the call wants to store.
    #[error("{what}: {message}")]
    Conflict {
        /// The thing in question.
        what: String,
        /// The contradiction.
        message: String,
    },
    /// An argument that no store can keep.
    #[error("{field}: {message}")]
    Invalid {
        /// The argument.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A bug of ours: unreachable from user input.
    #[error("internal error in the run store {store}: {message}")]
    Internal {
        /// The store, described without secrets.
        store: String,
        /// What the driver said.
        message: String,
    },
}

fn held_by(owner: &Option<String>) -> String {
    owner.as_ref().map_or_else(|| " and nobody holds it now".to_owned(), |owner| format!(", held by {owner}"))
}

impl Error {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Busy { .. } | Error::Unavailable { .. } => Fault::Environment { retryable: true },
            Error::Full { .. } | Error::Denied { .. } => Fault::Environment { retryable: false },
            Error::Corrupted { .. } => Fault::Corrupted,
            Error::NewerVersion { .. } => Fault::NewerVersion,
            Error::NotFound { .. } => Fault::NotFound,
            Error::Fenced { .. } | Error::Ended { .. } | Error::Conflict { .. } => Fault::Conflict,
            Error::Invalid { .. } => Fault::Input,
            Error::Internal { .. } => Fault::Bug,
        }
    }

    /// Whether repeating the same call may succeed without anybody repairing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self.fault(), Fault::Environment { retryable: true })
    }

    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Error::Invalid { field, message: message.into() }
    }

    pub(crate) fn conflict(what: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Conflict { what: what.into(), message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_sorted() {
        let busy = Error::Busy { store: "s".into(), message: "m".into() };
        assert!(busy.is_retryable());
        let full = Error::Full { store: "s".into(), message: "m".into() };
        assert_eq!(full.fault(), Fault::Environment { retryable: false });
        let fenced = Error::Fenced { lease: "run/1".into(), token: 1, current_token: 2, owner: None };
        assert_eq!(fenced.fault(), Fault::Conflict);
        assert!(fenced.to_string().contains("nobody holds it"));
    }
}
