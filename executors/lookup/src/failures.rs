//! What a database's error means and how far the query came.

use rowmill_step::{Failure, FailureCode, Sent, StepContext};
use sqlx::error::ErrorKind;

/// Turns an error of the driver into a failure.
pub(crate) fn failure(context: &StepContext, error: &sqlx::Error) -> Failure {
    let say = |code, text: &str| context.failure(code, text);
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default().into_owned();
            let (kind, retryable) = classify(&code, database.message(), database.kind());
            let failure = say(kind, database.message()).retryable(retryable).sent(Sent::Answered);
            if code.is_empty() { failure } else { failure.field("database_code", code, &context.redactor) }
        }
        sqlx::Error::PoolTimedOut => {
            let text = "no connection became free in time; the database may be down, or `pool_size` too small";
            say(FailureCode::Exhausted, text).sent(Sent::Never)
        }
        sqlx::Error::Io(io) => {
            use std::io::ErrorKind as Io;
            let never = matches!(io.kind(), Io::ConnectionRefused | Io::NotFound | Io::AddrNotAvailable);
            let code = if never { FailureCode::Connect } else { FailureCode::Transport };
            say(code, &io.to_string()).sent(if never { Sent::Never } else { Sent::Maybe })
        }
        sqlx::Error::Tls(error) => say(FailureCode::Connect, &error.to_string()).retryable(false).sent(Sent::Never),
        sqlx::Error::Configuration(error) => say(FailureCode::Setup, &error.to_string()).sent(Sent::Never),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            say(FailureCode::Transport, &error.to_string()).sent(Sent::Maybe)
        }
        sqlx::Error::Protocol(text) => say(FailureCode::Transport, text),
        other => say(FailureCode::Decode, &other.to_string()).sent(Sent::Answered),
    }
}

/// The kind of a database's error by its SQLSTATE (or SQLite's code), and whether it usually passes.
fn classify(code: &str, message: &str, kind: ErrorKind) -> (FailureCode, bool) {
    if kind != ErrorKind::Other {
        return (FailureCode::Rejected, false);
    }
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Statement timeouts: PostgreSQL, MariaDB, MySQL, SQLite's interrupt.
        (_, "57014" | "70100" | "9") => (FailureCode::Timeout, true),
        _ if message.contains("max_statement_time") || message.contains("maximum statement execution time") => {
            (FailureCode::Timeout, true)
        }
        // The connection, or a server that goes down or comes up.
        ("08", _) | (_, "57P01" | "57P02" | "57P03") => (FailureCode::Transport, true),
        // Too many of something.
        ("53", _) | (_, "08004") => (FailureCode::Exhausted, true),
        // Deadlocks and serialisation, and SQLite's busy and locked.
        ("40", _) | (_, "5" | "6" | "261" | "262" | "517") => (FailureCode::Rejected, true),
        // Who we are, and what we may.
        ("28" | "3D" | "42", _) => (FailureCode::Setup, false),
        _ => (FailureCode::Rejected, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_by_what_helps() {
        let of = |code| classify(code, "", ErrorKind::Other);
        assert_eq!(of("57014"), (FailureCode::Timeout, true));
        assert_eq!(of("40P01"), (FailureCode::Rejected, true));
        assert_eq!(of("57P01"), (FailureCode::Transport, true));
        assert_eq!(of("53300"), (FailureCode::Exhausted, true));
        assert_eq!(of("28P01"), (FailureCode::Setup, false));
        assert_eq!(of("22012"), (FailureCode::Rejected, false));
        assert_eq!(of("5"), (FailureCode::Rejected, true));
        assert_eq!(of(""), (FailureCode::Rejected, false));
    }
}
