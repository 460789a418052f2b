//! The settings of a database connection, as the configuration holds them. Secrets are references.

use rowmill_step::SecretRef;
use serde::{Deserialize, Serialize};

/// A database connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConnection {
    /// `postgres://user@host:5432/database`, `mysql://user@host/database` (MariaDB too) or `sqlite:///path/to/file`.
    /// Holds no password.
    pub url: String,
    /// The password.
    #[serde(default)]
    pub password: Option<SecretRef>,
    /// Connections that are kept.
    #[serde(default = "pool_size")]
    pub pool_size: u32,
    /// Connections beyond those, opened under load and closed when they are given back.
    #[serde(default = "max_overflow")]
    pub max_overflow: u32,
    /// How long a query waits for a connection.
    #[serde(default = "pool_timeout_ms")]
    pub pool_timeout_ms: u64,
    /// How old a connection may become.
    #[serde(default = "pool_recycle_ms")]
    pub pool_recycle_ms: Option<u64>,
    /// How long a query may take; the database ends it. `null` leaves it to the database.
    #[serde(default = "statement_timeout_ms")]
    pub statement_timeout_ms: Option<u64>,
    /// TLS options; SQLite has none.
    #[serde(default)]
    pub tls: DatabaseTls,
}

/// TLS options. Without any, hosts other than this machine must show a certificate that is trusted and theirs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseTls {
    /// A PEM file with the certificates to trust.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// Turns the check of the other side's certificate off. Whoever stands in between then reads everything.
    #[serde(default)]
    pub danger_accept_any_certificate: bool,
    /// Turns TLS off. Everything goes over the network in the clear.
    #[serde(default)]
    pub danger_plain_text: bool,
}

fn pool_size() -> u32 {
    5
}

fn max_overflow() -> u32 {
    10
}

fn pool_timeout_ms() -> u64 {
    30_000
}

#[expect(clippy::unnecessary_wraps, reason = "the setting can be null")]
fn pool_recycle_ms() -> Option<u64> {
    Some(1_800_000)
}

#[expect(clippy::unnecessary_wraps, reason = "the setting can be null")]
fn statement_timeout_ms() -> Option<u64> {
    Some(60_000)
}
