//! Migrations: ordered files, applied in one transaction under a lock, so that two processes that open a new store at
//! the same moment do not both create it.

use crate::error::{Error, Result};
use crate::sql::Tx;

/// A step from one schema version to the next.
pub(crate) struct Migration {
    /// The version that this step leads to.
    pub(crate) version: i64,
    /// The statements of SQLite.
    pub(crate) sqlite: &'static str,
    /// The statements of PostgreSQL.
    pub(crate) postgres: &'static str,
}

/// Every migration in order. To add one: add its two files and its line here, and commit a store of the version before
/// to `testdata/` (`cargo test -p rowmill-store write_testdata -- --ignored`, before the change).
pub(crate) const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    sqlite: include_str!("../../migrations/sqlite/0001_initial.sql"),
    postgres: include_str!("../../migrations/postgres/0001_initial.sql"),
}];

/// The schema version that this build writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// Refuses a store that a newer Rowmill wrote.
pub(crate) fn check_version(found: i64, store: &str) -> Result<()> {
    if found > SCHEMA_VERSION {
        return Err(Error::NewerVersion { store: store.to_owned(), found, supported: SCHEMA_VERSION });
    }
    if found < 0 {
        return Err(Error::Corrupted { store: store.to_owned(), message: format!("its schema version is {found}") });
    }
    Ok(())
}

/// Applies what is missing. The backend holds its lock, tells the version and writes the new one in this transaction.
pub(crate) async fn apply(tx: &mut impl Tx, from: i64) -> Result<()> {
    check_version(from, tx.store())?;
    let dialect = tx.dialect();
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > from) {
        let script = match dialect {
            crate::sql::Dialect::Sqlite => migration.sqlite,
            crate::sql::Dialect::Postgres => migration.postgres,
        };
        tx.script(script).await?;
        tracing::info!(store = tx.store(), version = migration.version, "migrated the run store");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_ordered_and_every_file_is_listed() {
        let versions: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=MIGRATIONS.len() as i64).collect::<Vec<_>>());
        for folder in ["migrations/sqlite", "migrations/postgres"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            let mut names: Vec<String> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names.len(), MIGRATIONS.len(), "{folder}: {names:?}");
            for (name, version) in names.iter().zip(&versions) {
                assert!(name.starts_with(&format!("{version:04}_")), "{folder}/{name}");
            }
        }
    }
}
