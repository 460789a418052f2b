//! How a cluster is reached.

use std::time::Duration;

use rowmill_cores::routing::Strategy;
use rowmill_engine::sources::stores::StoreOptions;
use rowmill_wire::handshake::{Handshake, TenantName};

/// The port of a scheduler where nothing else is said.
pub(crate) const DEFAULT_PORT: u16 = 7_780;

/// Options of a connection to a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Schedulers, `host:port`; the one that leads is used, and the first that answers where each is alone.
    pub schedulers: Vec<String>,
    /// Token and build.
    pub handshake: Handshake,
    /// The queue that work is put into; empty for the default one.
    pub queue: String,
    /// Whom it is for.
    pub tenant: TenantName,
    /// Partitions that plans aim at.
    pub partitions: usize,
    /// Settings of object stores, to read plans with; none of them is sent.
    pub stores: StoreOptions,
    /// How long a cluster may give no sign of life, or lose the same part of a plan again and again, before the run
    /// fails.
    pub patience: Duration,
    /// Which executor makes the next attempt of a step that is not SQL.
    pub routing: Strategy,
}

/// Why an address is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of a cluster; it is written rowmill://HOST:PORT, or HOST:PORT")]
pub struct AddressError(String);

/// Reads `rowmill://HOST:PORT`, `HOST:PORT` or `HOST`, or several of them, separated by commas.
///
/// # Errors
/// It is written otherwise.
pub fn parse_address(text: &str) -> Result<Vec<String>, AddressError> {
    let wrong = || AddressError(text.to_owned());
    text.split(',')
        .map(|address| {
            let address = address.trim().strip_prefix("rowmill://").unwrap_or(address.trim()).trim_end_matches('/');
            let url = url::Url::parse(&format!("http://{address}")).map_err(|_| wrong())?;
            let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
            let host = url.host_str().filter(|host| !host.is_empty() && plain).ok_or_else(wrong)?;
            // A port that is left out and one that is HTTP's own look alike to the parser.
            let said = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            Ok(format!("{host}:{}", said.unwrap_or(DEFAULT_PORT)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!(parse_address("rowmill://a:1,b:2"), Ok(vec!["a:1".to_owned(), "b:2".to_owned()]));
        let two = Ok(vec!["a:1".to_owned(), "b:7780".to_owned()]);
        assert_eq!(parse_address("rowmill://a:1, rowmill://b/"), two);
        assert_eq!(parse_address("127.0.0.1:80"), Ok(vec!["127.0.0.1:80".to_owned()]));
        assert_eq!(parse_address("host"), Ok(vec!["host:7780".to_owned()]));
        assert_eq!(parse_address("[::1]:9"), Ok(vec!["[::1]:9".to_owned()]));
        for wrong in ["", "rowmill://", "http://a:1", "a:1/path", "a b:1", "user@a:1", "a:1,", "a:1,,b:1"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }
}
