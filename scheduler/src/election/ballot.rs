//! The lease in the store that says who leads.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rowmill_cores::election::ElectionOptions;
use rowmill_store::{PostgresOptions, RunStore, SqliteOptions, open_postgres, open_sqlite};

use crate::error::Error;

/// The shortest lease: below it a busy machine would lose its leader again and again.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often a request is made within a lease, at least.
const ASKS: u32 = 4;

/// Why a text names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Neither a path nor the URL of a database that we know.
    #[error("a store is a file, or `postgres://USER@HOST/DATABASE`")]
    Scheme,
    /// A lease that no leader could keep.
    #[error("a leader's lease is at least {} s", SHORTEST.as_secs())]
    Lease,
    /// Nothing to tell clusters apart by.
    #[error("a cluster's name has 1 to 128 characters, none of them a control character")]
    Name,
}

/// Where schedulers keep who leads. Its debug form shows no password.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreAt {
    /// A SQLite file, for schedulers of one machine.
    File(PathBuf),
    /// A PostgreSQL database, by its URL.
    Postgres(String),
}

impl fmt::Debug for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAt::File(path) => f.debug_tuple("File").field(path).finish(),
            StoreAt::Postgres(_) => f.write_str("Postgres(hidden)"),
        }
    }
}

impl StoreAt {
    /// Reads a path or a URL.
    ///
    /// # Errors
    /// It is a URL of something else.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(StoreAt::Postgres(text.to_owned()));
        }
        if text.is_empty() || text.contains("://") {
            return Err(StoreError::Scheme);
        }
        Ok(StoreAt::File(text.into()))
    }
}

/// What the schedulers of a cluster share.
#[derive(Debug, Clone)]
pub struct Election {
    pub(super) store: Arc<dyn RunStore>,
    pub(super) lease_name: String,
    pub(super) lease: Duration,
}

impl Election {
    /// Opens the store, making it where it is not there. `cluster` tells clusters of one store apart; `lease` is how
    /// long a leader leads without renewing, which it does three times as often.
    ///
    /// # Errors
    /// The store cannot be opened; name or lease cannot work ([`StoreError`], as [`Error::Election`]).
    pub async fn open(at: &StoreAt, cluster: &str, lease: Duration) -> Result<Self, Error> {
        if lease < SHORTEST {
            return Err(Error::Election(StoreError::Lease));
        }
        let length = cluster.chars().count();
        if !(1..=128).contains(&length) || cluster.chars().any(char::is_control) {
            return Err(Error::Election(StoreError::Name));
        }
        let store = match at {
            StoreAt::File(path) => open_sqlite(SqliteOptions { readers: 1, ..SqliteOptions::file(path) }).await?,
            StoreAt::Postgres(url) => {
                let options = PostgresOptions {
                    pool_size: 1,
                    max_overflow: 2,
                    statement_timeout: lease,
                    // A request that met a server that restarts is made anew, with what the elector knows then.
                    reconnect_for: Duration::ZERO,
                    ..PostgresOptions::url(url.clone())
                };
                open_postgres(options).await?
            }
        };
        Ok(Self { store, lease_name: format!("scheduler/{cluster}"), lease })
    }

    /// The times that the elector goes by.
    pub(super) fn times(&self) -> ElectionOptions {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        ElectionOptions { ttl_ms: ms(self.lease), answer_ms: ms(self.lease / ASKS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read() {
        assert_eq!(StoreAt::parse("a/b.db"), Ok(StoreAt::File("a/b.db".into())));
        let url = "postgres://u:secret@h/d";
        let at = StoreAt::parse(url).unwrap();
        assert_eq!(at, StoreAt::Postgres(url.to_owned()));
        assert!(!format!("{at:?}").contains("secret"));
        for wrong in ["", "mysql://h/d", "sqlite://a"] {
            assert_eq!(StoreAt::parse(wrong), Err(StoreError::Scheme), "{wrong}");
        }
    }

    #[tokio::test]
    async fn leases_and_names_that_cannot_work_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = StoreAt::File(folder.path().join("schedulers.db"));
        let open = |name: &'static str, lease_ms| {
            let at = at.clone();
            async move { Election::open(&at, name, Duration::from_millis(lease_ms)).await }
        };
        assert!(matches!(open("a", 999).await, Err(Error::Election(StoreError::Lease))));
        for name in ["", "a\nb"] {
            assert!(matches!(open(name, 1_000).await, Err(Error::Election(StoreError::Name))), "{name:?}");
        }
        let election = open("a", 4_000).await.unwrap();
        assert_eq!((election.times().ttl_ms, election.times().answer_ms), (4_000, 1_000));
    }
}
