//! The pool that a process keeps for one connection.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rowmill_step::{Failure, FailureCode, Sent, StepContext};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlSslMode};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{Executor as _, Pool};

use crate::connection::DatabaseConnection;
use crate::query::Dialect;

/// A pool of connections to one database.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    Postgres(PgPool),
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// Prepared statements kept per connection: a step needs one or two.
const STATEMENTS_CACHED: usize = 32;

impl Database {
    /// Builds the pool; nothing is connected yet.
    pub(crate) fn try_new(name: &str, settings: &DatabaseConnection, context: &StepContext) -> Result<Self, Failure> {
        let setup = |message: String| {
            context.failure(FailureCode::Setup, format!("connection `{name}`: {message}")).sent(Sent::Never)
        };
        if settings.pool_size == 0 {
            return Err(setup("`pool_size` is at least 1".to_owned()));
        }
        let (scheme, rest) = settings.url.split_once(':').unwrap_or_default();
        let authority = rest.trim_start_matches('/').split('/').next().unwrap_or_default();
        if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            // Not repeated: it holds a secret.
            return Err(setup("a password does not belong into `url`; use `password`".to_owned()));
        }
        let password = settings.password.as_ref().map(|reference| context.secret(reference)).transpose()?;
        let timeout = settings.statement_timeout_ms;
        let bad = |error: sqlx::Error| setup(format!("`url` is not understood: {error}"));
        match scheme {
            "postgres" | "postgresql" => {
                let mut options = PgConnectOptions::from_str(&settings.url).map_err(bad)?;
                let local = options.get_socket().is_some() || is_local(options.get_host());
                options = options.application_name("rowmill").statement_cache_capacity(STATEMENTS_CACHED);
                options = options.ssl_mode(
                    match (settings.tls.danger_plain_text, settings.tls.danger_accept_any_certificate) {
                        (true, _) => PgSslMode::Disable,
                        (false, true) => PgSslMode::Require,
                        (false, false) if local && settings.tls.ca_file.is_none() => PgSslMode::Prefer,
                        (false, false) => PgSslMode::VerifyFull,
                    },
                );
                if let Some(path) = &settings.tls.ca_file {
                    options = options.ssl_root_cert(path);
                }
                if let Some(password) = password {
                    options = options.password(password.expose());
                }
                if let Some(timeout) = timeout {
                    options = options.options([("statement_timeout", timeout.to_string())]);
                }
                // A lookup reads, whatever functions its query calls.
                options = options.options([("default_transaction_read_only", "on")]);
                warn(name, settings);
                Ok(Self::Postgres(pool(settings, PoolOptions::new(), options)))
            }
            "mysql" | "mariadb" => {
                let url = format!("mysql:{rest}");
                let mut options = MySqlConnectOptions::from_str(&url).map_err(bad)?;
                let local = options.get_socket().is_some() || is_local(options.get_host());
                options = options.statement_cache_capacity(STATEMENTS_CACHED);
                options = options.ssl_mode(
                    match (settings.tls.danger_plain_text, settings.tls.danger_accept_any_certificate) {
                        (true, _) => MySqlSslMode::Disabled,
                        (false, true) => MySqlSslMode::Required,
                        (false, false) if local && settings.tls.ca_file.is_none() => MySqlSslMode::Preferred,
                        (false, false) => MySqlSslMode::VerifyIdentity,
                    },
                );
                if let Some(path) = &settings.tls.ca_file {
                    options = options.ssl_ca(path);
                }
                if let Some(password) = password {
                    options = options.password(password.expose());
                }
                warn(name, settings);
                let builder = PoolOptions::<sqlx::MySql>::new().after_connect(move |connection, _| {
                    Box::pin(async move {
                        connection.execute("SET SESSION TRANSACTION READ ONLY").await?;
                        if let Some(timeout) = timeout {
                            // MariaDB counts in seconds, MySQL in milliseconds; each refuses the other's setting.
                            let seconds = format!("SET SESSION max_statement_time = {}", timeout as f64 / 1000.0);
                            if connection.execute(sqlx::AssertSqlSafe(seconds)).await.is_err() {
                                let millis = format!("SET SESSION max_execution_time = {timeout}");
                                connection.execute(sqlx::AssertSqlSafe(millis)).await?;
                            }
                        }
                        Ok(())
                    })
                });
                Ok(Self::MySql(pool(settings, builder, options)))
            }
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() || path.contains(['?', '\0']) || path == ":memory:" {
                    return Err(setup("`url` is `sqlite:///path/to/file`".to_owned()));
                }
                if !Path::new(path).is_file() {
                    return Err(setup(format!("there is no database file `{path}`")));
                }
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .read_only(true)
                    .create_if_missing(false)
                    .statement_cache_capacity(STATEMENTS_CACHED)
                    .busy_timeout(Duration::from_secs(5))
                    // What a database file says about functions is not trusted.
                    .pragma("trusted_schema", "OFF");
                Ok(Self::Sqlite(pool(settings, PoolOptions::new(), options)))
            }
            other => Err(setup(format!(
                "`url` begins with postgres:, mysql: or sqlite:, not `{}:`",
                other.chars().take(20).collect::<String>()
            ))),
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::MySql(_) => Dialect::MySql,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }
}

/// A pool of `pool_size` connections that grows by `max_overflow` under load.
fn pool<DB: sqlx::Database>(
    settings: &DatabaseConnection,
    builder: PoolOptions<DB>,
    options: <DB::Connection as sqlx::Connection>::Options,
) -> Pool<DB> {
    let this: Arc<OnceLock<Pool<DB>>> = Arc::default();
    let (weak, kept) = (Arc::downgrade(&this), settings.pool_size);
    let pool = builder
        .max_connections(settings.pool_size.saturating_add(settings.max_overflow))
        .min_connections(0)
        .acquire_timeout(Duration::from_millis(settings.pool_timeout_ms.max(1)))
        .max_lifetime(settings.pool_recycle_ms.map(Duration::from_millis))
        .after_release(move |_, _| {
            // Beyond the pool's size a connection is closed when it is given back.
            let keep = weak.upgrade().and_then(|this| this.get().map(Pool::size)).is_none_or(|size| size <= kept);
            Box::pin(std::future::ready(Ok(keep)))
        })
        .connect_lazy_with(options);
    let _ = this.set(pool.clone());
    pool
}

fn warn(name: &str, settings: &DatabaseConnection) {
    if settings.tls.danger_plain_text {
        tracing::warn!(connection = name, "TLS is OFF on this connection");
    } else if settings.tls.danger_accept_any_certificate {
        tracing::warn!(connection = name, "the other side's certificate is NOT checked on this connection");
    }
}

/// Whether a host is this machine, where the network is not in between.
fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.starts_with('/') || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
