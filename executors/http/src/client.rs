//! The client that a process keeps for one connection: pool, TLS, proxy, credentials, and the address rules.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Identity, Proxy, Url};
use rowmill_step::{Failure, FailureCode, Secret, Sent, StepContext};

use crate::address::{Network, Refusal, check};
use crate::connection::{Auth, HttpConnection, HttpVersion};

/// A connection, ready for requests.
#[derive(Debug)]
pub(crate) struct HttpClient {
    pub(crate) client: reqwest::Client,
    /// The base address; its path ends without `/`.
    pub(crate) base: Url,
    /// The base address as text, ready to be continued with a path.
    pub(crate) base_text: String,
    /// Headers of every request, credentials included and marked as sensitive.
    pub(crate) headers: HeaderMap,
    pub(crate) timeout: Duration,
    pub(crate) max_response_bytes: usize,
    pub(crate) max_redirects: u32,
}

/// An address that may not be called; found again in the client's error by its type.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ForbiddenAddress(String);

impl HttpClient {
    /// Builds the client of the connection `name`.
    pub(crate) fn try_new(name: &str, settings: &HttpConnection, context: &StepContext) -> Result<Self, Failure> {
        let setup = |message: String| {
            context.failure(FailureCode::Setup, format!("connection `{name}`: {message}")).sent(Sent::Never)
        };
        let base = parse_base(&settings.base_url).map_err(setup)?;
        let mut named = Vec::new();
        for network in &settings.private_networks {
            named.push(Network::parse(network).map_err(|e| setup(format!("`private_networks`: {e}")))?);
        }
        // The connection names its host, so a private literal there and `localhost` are named by it.
        match base.host() {
            Some(url::Host::Ipv4(v4)) => named.extend(Network::parse(&v4.to_string())),
            Some(url::Host::Ipv6(v6)) => named.extend(Network::parse(&v6.to_string())),
            _ => {}
        }
        if let Some(address) = literal(&base) {
            check(address, &named).map_err(|refusal| setup(refused(&address.to_string(), address, refusal)))?;
        }
        let headers = headers(settings, context).map_err(|failure| match failure {
            HeaderError::Text(text) => setup(text),
            HeaderError::Failure(failure) => failure,
        })?;
        let mut resolver = Resolver { named, localhost: None, proxy: None };
        if base.host_str() == Some("localhost") {
            resolver.localhost = Some(());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("rowmill/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_millis(settings.connect_timeout_ms.max(1)))
            .pool_max_idle_per_host(settings.pool_max_idle)
            .pool_idle_timeout(Duration::from_millis(settings.pool_idle_timeout_ms))
            .http1_max_headers(128)
            .http2_max_header_list_size(64 << 10)
            .tls_danger_accept_invalid_certs(settings.tls.danger_accept_any_certificate);
        if settings.tls.danger_accept_any_certificate {
            tracing::warn!(connection = name, "the other side's certificate is NOT checked on this connection");
        }
        builder = match settings.http_version {
            HttpVersion::Auto => builder,
            HttpVersion::Http1 => builder.http1_only(),
            HttpVersion::Http2 => builder.http2_prior_knowledge(),
        };
        if let Some(path) = &settings.tls.ca_file {
            let pem =
                std::fs::read(path).map_err(|e| setup(format!("`ca_file` `{path}` cannot be read: {}", e.kind())))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| setup(format!("`ca_file` `{path}` holds no PEM certificates")))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(reference) = &settings.tls.client_certificate {
            let pem = context.secret(reference)?;
            let identity = Identity::from_pem(pem.expose().as_bytes())
                .map_err(|_| setup("`client_certificate` is not a PEM certificate with its key".to_owned()))?;
            builder = builder.identity(identity);
        }
        if let Some(address) = &settings.proxy {
            let url = parse_base(address).map_err(|e| setup(format!("`proxy`: {e}")))?;
            resolver.proxy = url.host_str().map(str::to_owned);
            let mut proxy = Proxy::all(url).map_err(|_| setup("`proxy` is not a proxy's address".to_owned()))?;
            if let Some(reference) = &settings.proxy_auth {
                let secret = context.secret(reference)?;
                let (user, password) = secret
                    .expose()
                    .split_once(':')
                    .ok_or_else(|| setup("`proxy_auth` is not `user:password`".to_owned()))?;
                context.redactor.plant(&Secret::new(password));
                proxy = proxy.basic_auth(user, password);
            }
            builder = builder.proxy(proxy);
        }
        let client = builder
            .dns_resolver(Arc::new(resolver))
            .build()
            .map_err(|error| setup(format!("the client cannot be built: {}", chain(&error))))?;
        let base_text = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            client,
            base,
            base_text,
            headers,
            timeout: Duration::from_millis(settings.request_timeout_ms.max(1)),
            max_response_bytes: usize::try_from(settings.max_response_bytes).unwrap_or(usize::MAX),
            max_redirects: settings.max_redirects,
        })
    }
}

/// An error and its causes on one line; without the URL, whose query may hold anything.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn parse_base(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("`base_url` is not an address: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("`base_url` begins with http:// or https:// and a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated: it holds a secret.
        return Err("credentials do not belong into an address; use `auth`".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("`base_url` holds no query and no fragment".to_owned());
    }
    // The URL standard reads 2130706433, 0x7f.1 and 0177.0.0.1 as addresses. A person who means an address writes it.
    if let Some(url::Host::Ipv4(v4)) = url.host() {
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        if host != v4.to_string() {
            return Err(format!("`{host}` is the address {v4} in disguise; write the address itself"));
        }
    }
    Ok(url)
}

/// The address that a URL's host is, if it is one.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        url::Host::Ipv4(v4) => Some(IpAddr::V4(v4)),
        url::Host::Ipv6(v6) => Some(IpAddr::V6(v6)),
        url::Host::Domain(_) => None,
    }
}

fn refused(host: &str, address: IpAddr, refusal: Refusal) -> String {
    match refusal {
        Refusal::Never => {
            format!("`{host}` is {address}, a link-local, metadata or special address that is never called")
        }
        Refusal::Private => {
            format!(
                "`{host}` is the private address {address}; name it in the connection's `private_networks` to allow it"
            )
        }
    }
}

enum HeaderError {
    Text(String),
    Failure(Failure),
}

fn headers(settings: &HttpConnection, context: &StepContext) -> Result<HeaderMap, HeaderError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| HeaderError::Text(format!("`{}` is not a header's name", name.escape_debug())))?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| HeaderError::Text(format!("header `{name}` holds a character that headers cannot hold")))?;
        headers.insert(header, value);
    }
    let Some(auth) = &settings.auth else { return Ok(headers) };
    let secret = |reference| context.secret(reference).map_err(HeaderError::Failure);
    let (header, value) = match auth {
        Auth::Bearer { token } => (AUTHORIZATION, format!("Bearer {}", secret(token)?.expose())),
        Auth::Basic { user, password } => {
            let pair = format!("{user}:{}", secret(password)?.expose());
            let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
            context.redactor.plant(&Secret::new(&encoded));
            (AUTHORIZATION, format!("Basic {encoded}"))
        }
        Auth::Header { name, prefix, value } => {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| HeaderError::Text(format!("`{}` is not a header's name", name.escape_debug())))?;
            (header, format!("{prefix}{}", secret(value)?.expose()))
        }
    };
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| HeaderError::Text("the secret of `auth` holds a character that headers cannot hold".to_owned()))?;
    value.set_sensitive(true);
    headers.insert(header, value);
    Ok(headers)
}

/// Resolves names and refuses those that lead where nobody may go. It runs for every new connection.
#[derive(Debug)]
struct Resolver {
    named: Vec<Network>,
    /// The connection's host is `localhost`, which therefore may be a loopback address.
    localhost: Option<()>,
    /// The proxy's name: it is named by the connection, so it may be private.
    proxy: Option<String>,
}

impl Resolver {
    fn check(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), ForbiddenAddress> {
        for address in addresses.iter().map(SocketAddr::ip) {
            let named_by_name = self.proxy.as_deref() == Some(name)
                || (self.localhost.is_some() && name == "localhost" && address.is_loopback());
            match check(address, &self.named) {
                Ok(()) => {}
                Err(Refusal::Private) if named_by_name => {}
                // One bad address spoils the name: the next connection might take that one.
                Err(refusal) => return Err(ForbiddenAddress(refused(name, address, refusal))),
            }
        }
        Ok(())
    }
}

/// Shared with the client, which wants to own its resolver.
impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = Self { named: self.named.clone(), localhost: self.localhost, proxy: self.proxy.clone() };
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            this.check(name.as_str(), &addresses)?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(options: serde_json::Value) -> Result<HttpClient, Failure> {
        let settings: HttpConnection = serde_json::from_value(options).unwrap();
        HttpClient::try_new("api", &settings, &StepContext::new("run", "step", "tenant"))
    }

    #[test]
    fn addresses_in_disguise_and_metadata_are_refused_when_read() {
        for base_url in [
            "http://169.254.169.254/latest",
            "http://[::ffff:169.254.169.254]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200",
            "http://2852039166/",
            "http://0xA9FEA9FE/",
            "http://0251.0376.0251.0376/",
            "http://2130706433/",
            "http://127.1/",
            "http://0x7f.0.0.1/",
            "ftp://example.com",
            "http://user:hunter2@example.com",
            "http://example.com/?a=b",
            "nonsense",
        ] {
            let failure =
                build(serde_json::json!({"base_url": base_url, "private_networks": ["0.0.0.0/0"]})).unwrap_err();
            assert_eq!(failure.code(), FailureCode::Setup, "{base_url}");
            assert!(
                failure.message().contains("connection `api`") && !failure.message().contains("hunter2"),
                "{failure}"
            );
        }
        assert!(build(serde_json::json!({"base_url": "http://127.0.0.1:8080/v1/"})).is_ok(), "named by the connection");
    }

    #[test]
    fn names_that_resolve_to_forbidden_addresses_are_refused_at_connect() {
        let resolver = |named: &[&str], localhost| Resolver {
            named: named.iter().map(|n| Network::parse(n).unwrap()).collect(),
            localhost,
            proxy: Some("proxy.local".to_owned()),
        };
        let at = |text: &str| vec!["8.8.8.8:0".parse().unwrap(), SocketAddr::new(text.parse().unwrap(), 0)];
        let none = resolver(&[], None);
        assert!(none.check("x", &at("1.1.1.1")).is_ok());
        assert!(none.check("x", &at("169.254.169.254")).is_err());
        assert!(none.check("x", &at("10.0.0.1")).is_err());
        assert!(none.check("localhost", &at("127.0.0.1")).is_err(), "not the connection's host");
        assert!(none.check("proxy.local", &at("10.0.0.1")).is_ok());
        assert!(none.check("proxy.local", &at("169.254.169.254")).is_err());
        assert!(resolver(&["10.0.0.0/8"], None).check("x", &at("10.0.0.1")).is_ok());
        assert!(resolver(&[], Some(())).check("localhost", &at("127.0.0.1")).is_ok());
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = serde_json::from_value::<HttpConnection>(serde_json::json!({"base_url": "http://x", "timeout": 1}));
        assert!(error.unwrap_err().to_string().contains("timeout"));
    }
}
