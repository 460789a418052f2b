//! A small HTTP service for tests: it answers as it is told, and remembers what it was asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A service that answers on a thread of its own for each connection, and remembers what it was asked.
pub(crate) struct Service {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    shown: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// `answer` gives status and body for a request line's path and how often it was asked before.
    pub(crate) fn start(answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let shown: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, credentials, answer) = (Arc::clone(&seen), Arc::clone(&shown), Arc::new(answer));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (log, asked, answer) = (Arc::clone(&log), Arc::clone(&asked), Arc::clone(&answer));
                let credentials = Arc::clone(&credentials);
                std::thread::spawn(move || serve(connection, &log, &credentials, &asked, answer.as_ref()));
            }
        });
        Service { port, seen, shown }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Credentials that were shown.
    pub(crate) fn shown(&self) -> Vec<String> {
        self.shown.lock().unwrap().clone()
    }

    pub(crate) fn configuration(&self, more: &str) -> String {
        format!("connections:\n  api: {{kind: http, base_url: 'http://127.0.0.1:{}'{more}}}\n", self.port)
    }
}

fn serve(
    connection: TcpStream,
    log: &Mutex<Vec<String>>,
    credentials: &Mutex<Vec<String>>,
    asked: &Mutex<HashMap<String, usize>>,
    answer: &(dyn Fn(&str, usize) -> (u16, String) + Send + Sync),
) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut writer = connection;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 {
                return;
            }
            if header.trim().is_empty() {
                break;
            }
            if header.to_lowercase().starts_with("authorization:") {
                credentials.lock().unwrap().push(header.trim().to_owned());
            }
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let before = {
            let mut asked = asked.lock().unwrap();
            let before = asked.entry(path.clone()).or_default();
            *before += 1;
            *before - 1
        };
        log.lock().unwrap().push(format!("{method} {path}"));
        let (status, text) = answer(&path, before);
        let retry = if status == 429 { "Retry-After: 0\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{retry}\r\n", text.len());
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(text.as_bytes())).is_err() {
            return;
        }
    }
}

/// The number that a path ends in.
pub(crate) fn number(path: &str) -> u64 {
    path.rsplit('/').next().unwrap().parse().unwrap()
}
