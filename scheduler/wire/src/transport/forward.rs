//! Sockets of this process behind which TLS begins.
//!
//! Ballista makes connections by itself and lets us change the endpoint alone. So the endpoint becomes a Unix socket, one
//! for each executor, that only this user can reach and this process is served at; what comes in there goes on through TLS.
//!
//! ```text
//!   Ballista's client ── unix socket ── this process ══ TLS ══ executor
//! ```

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::tls::Tls;

/// A socket that nobody used for so long is closed: executors come and go.
const IDLE: Duration = Duration::from_secs(600);
/// What is read at once, in bytes. Shuffles are large.
const PIECE: usize = 256 << 10;
/// Threads that encrypt.
const THREADS: usize = 2;

type Sockets = Mutex<HashMap<(String, u16), PathBuf>>;

/// The sockets of this process. They go with it.
pub(crate) struct Forwards {
    folder: PathBuf,
    sockets: Arc<Sockets>,
    made: AtomicU64,
    /// Threads of their own: whoever calls may be a thread that computes.
    threads: Option<Runtime>,
}

impl Forwards {
    pub(super) fn try_new() -> io::Result<Self> {
        // A path to a socket may have no more than 107 bytes, so names are short.
        let folder = std::env::temp_dir().join(format!("rowmill-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("tls")
            .enable_all()
            .build()?;
        Ok(Self { folder, sockets: Arc::default(), made: AtomicU64::new(0), threads: Some(threads) })
    }

    /// The socket that leads to an executor.
    pub(super) fn to(&self, tls: &Arc<Tls>, host: &str, port: u16) -> io::Result<PathBuf> {
        let key = (host.to_owned(), port);
        let mut sockets = self.sockets.lock();
        if let Some(path) = sockets.get(&key) {
            return Ok(path.clone());
        }
        let Some(threads) = &self.threads else { return Err(io::Error::other("this process ends")) };
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(number.to_string());
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let inside = threads.enter();
        let listener = UnixListener::from_std(listener)?;
        drop(inside);
        let target = Target { key: key.clone(), path: path.clone(), sockets: Arc::clone(&self.sockets) };
        // It ends with the runtime.
        drop(threads.spawn(target.serve(Arc::downgrade(tls), listener)));
        sockets.insert(key, path.clone());
        Ok(path)
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::debug!("{} stays: {error}", self.folder.display());
        }
    }
}

struct Target {
    key: (String, u16),
    path: PathBuf,
    sockets: Arc<Sockets>,
}

impl Target {
    async fn serve(self, tls: Weak<Tls>, listener: UnixListener) {
        // They end with this.
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let stream = match tokio::time::timeout(IDLE, listener.accept()).await {
                Ok(Ok((stream, _))) => stream,
                Ok(Err(error)) => {
                    tracing::warn!("a connection within this process failed: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(_) if open.is_empty() => break,
                Err(_) => continue,
            };
            let Some(tls) = tls.upgrade() else { break };
            if !is_own(&stream) {
                tracing::warn!("another process asked to be led to the cluster, and is not");
                continue;
            }
            let (host, port) = self.key.clone();
            open.spawn(async move {
                if let Err(error) = lead(tls, stream, &host, port).await {
                    tracing::debug!(host, port, "a connection of Ballista's ended: {error}");
                }
            });
        }
        self.sockets.lock().remove(&self.key);
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{} stays: {error}", self.path.display());
        }
    }
}

/// Whether the other end is this process: others have a connection with its certificate no more than with its token.
fn is_own(stream: &UnixStream) -> bool {
    let own = i32::try_from(std::process::id()).ok();
    stream.peer_cred().is_ok_and(|peer| peer.pid().is_none_or(|pid| Some(pid) == own))
}

async fn lead(tls: Arc<Tls>, mut own: UnixStream, host: &str, port: u16) -> io::Result<()> {
    let mut other = tls.open(host, port).await.inspect_err(|error| {
        tracing::warn!(host, port, "no TLS with an executor or a scheduler: {error}");
    })?;
    // It is kept by the connection no longer than agreeing takes, so that it can go when its owner does.
    drop(tls);
    copy_bidirectional_with_sizes(&mut own, &mut other, PIECE, PIECE).await?;
    Ok(())
}
