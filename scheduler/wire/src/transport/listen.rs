//! Listening: connections for tonic's server, TLS agreed on where it is configured.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::TransportError;
use super::tls::AGREE;
use crate::handshake::Handshake;

/// Connections that may be agreeing on TLS at a time; others wait with the kernel.
const MOST_AGREEING: usize = 256;

impl Handshake {
    /// Takes connections for `serve_with_incoming`.
    ///
    /// # Errors
    /// Others than this machine can reach the listener, and bytes would travel as they are; TLS is configured without a
    /// certificate.
    pub fn incoming(&self, listener: TcpListener) -> Result<Incoming, TransportError> {
        let address = listener.local_addr()?;
        self.transport.check_host(&address.ip().to_string())?;
        let acceptor = match self.transport.as_tls() {
            Some(tls) => Some(tls.acceptor().ok_or(TransportError::NoCertificate)?),
            None => None,
        };
        Ok(Incoming { listener, acceptor, agreeing: JoinSet::new() })
    }
}

/// The connections that come in.
pub struct Incoming {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    agreeing: JoinSet<Option<Connection>>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("listener", &self.listener).field("tls", &self.acceptor.is_some()).finish()
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let own = &mut *self;
        while own.agreeing.len() < MOST_AGREEING {
            let stream = match own.listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, _))) => stream,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => break,
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("a connection is gone already: {error}");
                continue;
            }
            match &own.acceptor {
                None => return Poll::Ready(Some(Ok(Connection::Plain(stream)))),
                // Beside the others: one that is slow keeps nobody waiting.
                Some(acceptor) => drop(own.agreeing.spawn(agree(acceptor.clone(), stream))),
            }
        }
        loop {
            match own.agreeing.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => {
                    // More may have become possible while the set was full.
                    cx.waker().wake_by_ref();
                    return Poll::Ready(Some(Ok(connection)));
                }
                Poll::Ready(Some(_)) => {
                    if own.agreeing.len() + 1 == MOST_AGREEING {
                        cx.waker().wake_by_ref();
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

async fn agree(acceptor: TlsAcceptor, stream: TcpStream) -> Option<Connection> {
    let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |address| address.to_string());
    match tokio::time::timeout(AGREE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Connection::Tls(Box::new(stream))),
        // Ballista and the watch look whether an executor listens, and say nothing.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Ok(Err(error)) => {
            tracing::info!(peer, "no TLS could be agreed on: {error}");
            None
        }
        Err(_) => {
            tracing::info!(peer, "no TLS was agreed on in {} s", AGREE.as_secs());
            None
        }
    }
}

/// One connection.
#[derive(Debug)]
pub enum Connection {
    /// Bytes as they are.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self {
            Connection::Plain(stream) => stream.connect_info(),
            Connection::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Connection::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Connection::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Connection::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Plain(stream) => stream.is_write_vectored(),
            Connection::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
