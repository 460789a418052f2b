//! The Redis tier against a real server that the tests start. Where it is not installed, they say so and pass, unless
//! `REQUIRE_DATABASES` promises that it is.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rowmill_cache::{CacheTier, Entries, RedisOptions, RedisTier, StoredAt, millis};

use crate::support::{always, at, found, keys_of, rows_of, scope, store};

const PASSWORD: &str = "c4nary-password";

struct Server {
    child: Child,
    port: u16,
    program: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    fn start() -> Option<Self> {
        let places = std::env::var_os("PATH").unwrap_or_default();
        let program =
            std::env::split_paths(&places).map(|place| place.join("redis-server")).find(|path| path.is_file());
        let Some(program) = program else {
            assert!(std::env::var_os("REQUIRE_DATABASES").is_none(), "redis-server is not installed");
            eprintln!("ignored: redis-server is not installed");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = run(&program, port);
        Some(Self { child, port, program })
    }

    fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}/0", self.port)
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.kill();
        self.child = run(&self.program, self.port);
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let cli = self.program.with_file_name("redis-cli");
        let mut command = Command::new(cli);
        command.args(["-p", &self.port.to_string(), "-a", PASSWORD, "--no-auth-warning"]).args(arguments);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    }
}

fn run(program: &PathBuf, port: u16) -> Child {
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--requirepass", PASSWORD]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "the server starts");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

fn options(url: String) -> RedisOptions {
    let (timeout, back_off) = (Duration::from_secs(3), Duration::from_millis(300));
    RedisOptions { timeout, back_off, ..RedisOptions::new(url) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_suite() {
    let Some(server) = Server::start() else { return };
    crate::suite::check(&RedisTier::new(options(server.url())).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_and_two_clients() {
    let Some(server) = Server::start() else { return };
    let ids: Vec<i64> = (0..5000).collect();
    let (a, b) = (RedisTier::new(options(server.url())).unwrap(), RedisTier::new(options(server.url())).unwrap());
    store(&a, 1, &ids, 1).await;
    assert_eq!(found(&b, 1, &ids, always()).await, ids);
    assert_eq!(server.ask(&["DBSIZE"]), "5000");
    // Values of others are left alone.
    server.ask(&["SET", "theirs", "1"]);
    b.clear(None).await.unwrap();
    assert_eq!(server.ask(&["DBSIZE"]), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_forgotten_in_time_and_damaged_ones_are_misses() {
    let Some(server) = Server::start() else { return };
    let tier = RedisTier::new(options(server.url())).unwrap();
    let (keys, rows) = (keys_of(1, &[1]), rows_of(&[1]));
    let ttl = Some(Duration::from_millis(400));
    let stored_at = StoredAt::All(millis(at(1)));
    tier.store(&scope(1), Entries { keys: &keys, rows: &rows, lengths: None, stored_at, ttl }).await.unwrap();
    assert_eq!(found(&tier, 1, &[1], always()).await, [1]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(found(&tier, 1, &[1], always()).await, [0i64; 0]);
    store(&tier, 1, &[2, 3], 1).await;
    let names = server.ask(&["KEYS", "rowmill:*"]);
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names.len(), 2);
    server.ask(&["SETRANGE", names[0], "60", "X"]);
    assert_eq!(found(&tier, 1, &[2, 3], always()).await.len(), 1);
    // One key's value under another key's name.
    server.ask(&["COPY", names[1], names[0], "REPLACE"]);
    assert_eq!(found(&tier, 1, &[2, 3], always()).await.len(), 1);
    server.ask(&["SET", names[1], ""]);
    assert_eq!(found(&tier, 1, &[2, 3], always()).await.len(), 0);
    assert_eq!(tier.stats().await.unreadable, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_misses_and_is_found_again() {
    let Some(mut server) = Server::start() else { return };
    let tier = RedisTier::new(options(server.url())).unwrap();
    store(&tier, 1, &[1], 1).await;
    assert_eq!(found(&tier, 1, &[1], always()).await, [1]);
    server.kill();
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(found(&tier, 1, &[1], always()).await, [0i64; 0]);
        store(&tier, 1, &[2], 1).await;
    }
    assert!(started.elapsed() < Duration::from_secs(20), "it is left alone while it is gone");
    assert!(tier.clear(None).await.is_err());
    server.restart();
    let started = Instant::now();
    while found(&tier, 1, &[3], always()).await != [3] {
        assert!(started.elapsed() < Duration::from_secs(20), "it is tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
        store(&tier, 1, &[3], 1).await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_costs_one_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let options =
        RedisOptions { timeout: Duration::from_millis(200), back_off: Duration::from_secs(60), ..options(url) };
    let tier = RedisTier::new(options).unwrap();
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(found(&tier, 1, &[1], always()).await, [0i64; 0]);
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn wrong_addresses_and_passwords_are_not_shown() {
    for url in [
        format!("http://:{PASSWORD}@x"),
        format!("rediss://:{PASSWORD}@x"),
        PASSWORD.to_owned(),
        format!("redis://:{PASSWORD}@x:port"),
    ] {
        let error = RedisTier::new(options(url)).unwrap_err().to_string();
        assert!(!error.contains(PASSWORD) && error.contains("redis://"), "{error}");
    }
    let options = options(format!("redis://:{PASSWORD}@127.0.0.1:1"));
    let shown = format!("{options:?} {:?}", RedisTier::new(options.clone()).unwrap());
    assert!(!shown.contains(PASSWORD), "{shown}");
}
