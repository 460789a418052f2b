//! The settings of an http connection, as the configuration holds them. Secrets are references.

use std::collections::BTreeMap;

use rowmill_step::SecretRef;
use serde::{Deserialize, Serialize};

/// An http connection: where it goes, as whom, and within which limits. The host is fixed here; columns can only fill
/// in what comes after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConnection {
    /// Scheme, host, port and a path that every request begins with: `https://api.example.com/v1`.
    pub base_url: String,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Who we are.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Private addresses and ranges that the host may have: `127.0.0.1`, `10.0.0.0/8`. A private address written as
    /// the host of `base_url`, and `localhost`, count as named.
    #[serde(default)]
    pub private_networks: Vec<String>,
    /// Time to connect, TLS included.
    #[serde(default = "connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Time for one request from its start to the last byte of the answer.
    #[serde(default = "request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// Connections kept open while idle.
    #[serde(default = "pool_max_idle")]
    pub pool_max_idle: usize,
    /// How long an idle connection is kept.
    #[serde(default = "pool_idle_timeout_ms")]
    pub pool_idle_timeout_ms: u64,
    /// Which version of HTTP is spoken.
    #[serde(default)]
    pub http_version: HttpVersion,
    /// The largest answer, after decompression.
    #[serde(default = "max_response_bytes")]
    pub max_response_bytes: u64,
    /// How many redirects within the same origin a GET or HEAD follows; a redirect elsewhere is never followed.
    #[serde(default)]
    pub max_redirects: u32,
    /// A proxy: `http://proxy.example.com:3128`. It resolves the host itself, so the rules about resolved addresses
    /// hold for the proxy's address and for literals only.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The proxy's credentials, `user:password`.
    #[serde(default)]
    pub proxy_auth: Option<SecretRef>,
    /// TLS options.
    #[serde(default)]
    pub tls: TlsSettings,
}

fn connect_timeout_ms() -> u64 {
    10_000
}

fn request_timeout_ms() -> u64 {
    30_000
}

fn pool_max_idle() -> usize {
    1024
}

fn pool_idle_timeout_ms() -> u64 {
    60_000
}

fn max_response_bytes() -> u64 {
    16 << 20
}

/// Who we are, by a header made from a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// `Authorization: Bearer SECRET`.
    Bearer {
        /// The token.
        token: SecretRef,
    },
    /// `Authorization: Basic ...`.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: SecretRef,
    },
    /// Any header, its value the prefix and the secret.
    Header {
        /// The header's name.
        name: String,
        /// What stands before the secret.
        #[serde(default)]
        prefix: String,
        /// The secret.
        value: SecretRef,
    },
}

/// Which version of HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// What TLS negotiates; HTTP/1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always, without negotiation.
    Http2,
}

/// TLS options.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// A PEM file with certificates to trust; with it, no others are trusted.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// A PEM file with our certificate and its key, for services that ask for one.
    #[serde(default)]
    pub client_certificate: Option<SecretRef>,
    /// Turns the check of the other side's certificate off. Whoever stands in between then reads and changes
    /// everything, secrets included.
    #[serde(default)]
    pub danger_accept_any_certificate: bool,
}
