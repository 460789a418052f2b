//! Certificates and keys, read from PEM files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::forward::Forwards;
use super::{TransportError, bare};

/// What both sides speak: HTTP/2.
const ALPN: &[u8] = b"h2";
/// How long reaching the other side may take, and agreeing with it.
const REACH: Duration = Duration::from_secs(5);
pub(super) const AGREE: Duration = Duration::from_secs(10);
/// How long the other side's first words are waited for, by which one knows that it took our certificate.
const FIRST_WORDS: Duration = Duration::from_secs(1);

/// Where certificates lie, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who signed the certificates of the cluster and of its clients.
    pub ca: PathBuf,
    /// The certificate of this process, with those between it and the authority.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Whether whoever connects must show a certificate of the authority.
    pub mutual: bool,
}

/// What TLS needs here. Only TLS 1.3 is spoken: both ends are ours.
pub(crate) struct Tls {
    connector: TlsConnector,
    acceptor: Option<TlsAcceptor>,
    forwards: OnceLock<Forwards>,
}

impl Tls {
    pub(super) fn try_new(files: &TlsFiles) -> Result<Self, TransportError> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(roots(&files.ca)?);
        let identity = match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => Some((chain(certificate)?, private_key(key)?)),
            (None, None) => None,
            _ => return Err(TransportError::HalfAnIdentity),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&roots));
        let mut client = match &identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = vec![ALPN.to_vec()];
        let acceptor = match identity {
            Some((chain, key)) => Some(acceptor(provider, roots, files.mutual, chain, key)?),
            None => None,
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(client)), acceptor, forwards: OnceLock::new() })
    }

    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.acceptor.clone()
    }

    /// Connects and agrees on TLS with whoever has a certificate for `host`.
    pub(super) async fn open(&self, host: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
        let host = bare(host);
        let late = |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("{host}:{port} {what}"));
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is no name of a host")))?;
        let stream = tokio::time::timeout(REACH, TcpStream::connect((host, port)))
            .await
            .map_err(|_| late("does not answer"))??;
        stream.set_nodelay(true)?;
        let agreed = tokio::time::timeout(AGREE, self.connector.connect(name, stream)).await;
        let mut stream = agreed.map_err(|_| late("listens and does not speak TLS"))??;
        // In TLS 1.3 the other side judges our certificate after we have agreed. HTTP/2 servers speak first: what comes
        // is their settings, or the alert that says what they miss.
        match tokio::time::timeout(FIRST_WORDS, stream.fill_buf()).await {
            Ok(Ok([])) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side hung up at once")),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(stream),
        }
    }

    /// Sockets of this process behind which TLS begins, for clients that cannot be taught it.
    pub(super) fn forwards(self: &Arc<Self>) -> io::Result<&Forwards> {
        if let Some(forwards) = self.forwards.get() {
            return Ok(forwards);
        }
        let forwards = Forwards::try_new()?;
        Ok(self.forwards.get_or_init(|| forwards))
    }
}

fn acceptor(
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    mutual: bool,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<TlsAcceptor, TransportError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13])?;
    let builder = if mutual {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| tokio_rustls::rustls::Error::General(error.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut server = builder.with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn wrong(path: &Path, reason: impl ToString) -> TransportError {
    TransportError::File { path: path.to_owned(), reason: reason.to_string() }
}

fn roots(path: &Path) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, error))?.collect();
    match all.map_err(|error| wrong(path, error))? {
        none if none.is_empty() => Err(wrong(path, "there is no certificate in it")),
        some => Ok(some),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TransportError> {
    // What is wrong is told and nothing of what is in the file.
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        tokio_rustls::rustls::pki_types::pem::Error::Io(error) => wrong(path, error),
        _ => wrong(path, "there is no private key in it"),
    })
}
