//! Connecting: our own clients through [`Handshake::connect`], Ballista's through [`Handshake::override_fn`].

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::extension::EndpointOverrideFn;
use hyper_util::rt::TokioIo;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::TransportError;
use crate::handshake::Handshake;

/// How often a silent connection of Ballista's is asked whether it lives, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error("`{0}` is no address")]
    Address(String),
    /// Bytes may not travel as they are to there.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Somebody listens there with whom no TLS can be agreed on: certificates are wrong on one of the sides. Trying again
    /// does not help.
    #[error("no TLS with {address}: {why}")]
    Untrusted {
        /// Whom.
        address: String,
        /// What rustls or the other side says.
        why: String,
    },
    /// Nobody answers; somebody may later.
    #[error("{address} does not answer: {why}")]
    Silent {
        /// Who.
        address: String,
        /// What the system says.
        why: String,
    },
}

impl Handshake {
    /// Connects to `HOST:PORT`; `set` may set the connection's times and sizes.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        &self,
        address: &str,
        set: impl FnOnce(Endpoint) -> Endpoint + Send,
    ) -> Result<Channel, ConnectError> {
        let wrong = |_| ConnectError::Address(address.to_owned());
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(wrong)?;
        let endpoint = self.sign(set(endpoint)).map_err(wrong)?;
        let host = endpoint.uri().host().unwrap_or_default().to_owned();
        self.transport.check_host(&host)?;
        let connected = match self.transport.as_tls() {
            None => endpoint.connect().await,
            Some(tls) => {
                let tls = Arc::clone(tls);
                let connector = tower::service_fn(move |uri: Uri| {
                    let tls = Arc::clone(&tls);
                    async move {
                        let (host, port) = place(&uri)?;
                        Ok::<_, io::Error>(TokioIo::new(tls.open(host, port).await?))
                    }
                });
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| {
            let address = address.to_owned();
            match tls_error(&error) {
                Some(why) => ConnectError::Untrusted { address, why: why.to_string() },
                None => ConnectError::Silent { address, why: causes(&error) },
            }
        })
    }

    /// What Ballista's configuration takes, so that connections that Ballista makes carry the handshake and travel as
    /// ours do.
    pub fn override_fn(&self) -> EndpointOverrideFn {
        let own = self.clone();
        Arc::new(move |endpoint| own.redirect(endpoint))
    }

    fn redirect(&self, endpoint: Endpoint) -> Result<Endpoint, Box<dyn Error + Send + Sync>> {
        let (host, port) = place(endpoint.uri())?;
        self.transport.check_host(host)?;
        let Some(tls) = self.transport.as_tls() else { return Ok(self.sign(endpoint)?) };
        let socket = tls.forwards()?.to(tls, host, port)?;
        let mut own = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        // Where Ballista bounds connecting it bounds each call by the same time.
        if let Some(limit) = endpoint.get_connect_timeout() {
            own = own.connect_timeout(limit).timeout(limit);
        }
        Ok(self.sign(own)?)
    }
}

/// Host and port of an endpoint.
fn place(uri: &Uri) -> io::Result<(&str, u16)> {
    let found = uri.host().zip(uri.port_u16());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("`{uri}` names no host and port")))
}

/// What rustls has to say about an error, if it was rustls.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a tokio_rustls::rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of such an error is that of what it holds, which is thereby left out.
        if let Some(held) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = tls_error(held)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error and what it came from, in one line.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}
