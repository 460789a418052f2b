//! A real PostgreSQL server for the tests: started on a temporary directory and a free port, stopped and swept when the
//! test process ends, however it ends.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

pub(crate) struct Server {
    pub(crate) port: u16,
    data: String,
    bin: PathBuf,
    as_root: bool,
}

pub(crate) const PASSWORD: &str = "canary-s3cret";

impl Server {
    pub(crate) fn url(&self) -> String {
        format!("postgres://rowmill:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// A schema as SQL that any client can run.
    pub(crate) fn dump(&self, schema: &str) -> String {
        let out = Command::new(self.bin.join("pg_dump"))
            .args(["--inserts", "--no-owner", "--no-privileges", "--schema", schema, "--dbname", &self.url()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        // Lines that begin with a backslash are for psql.
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().filter(|line| !line.starts_with('\\')).flat_map(|line| [line, "\n"]).collect()
    }

    /// Restarts the server at once, as a crash would.
    pub(crate) fn restart(&self) {
        let pg_ctl = self.bin.join("pg_ctl");
        let log = format!("{}/log", self.data);
        let args = ["restart", "-w", "-m", "immediate", "-D", &self.data, "-l", &log];
        let mut command = if self.as_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(pg_ctl);
            command
        } else {
            Command::new(pg_ctl)
        };
        let status = command.args(args).current_dir("/tmp").stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
    }
}

fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    // Debian's own folders first, the newest version before the others.
    found.sort();
    found.reverse();
    found.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    found.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("pg_ctl").exists())
}

/// The server that the tests of this process share, or `None` (with a line that says why) where PostgreSQL is not
/// installed and CI does not promise it.
pub(crate) fn shared() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref()
}

/// A server of a test's own.
pub(crate) fn start() -> Option<Server> {
    let Some(bin) = binaries() else {
        assert!(std::env::var_os("REQUIRE_DATABASES").is_none(), "PostgreSQL is promised, and initdb was not found");
        eprintln!("ignored: PostgreSQL's initdb was not found (Debian: apt-get install postgresql)");
        return None;
    };
    let as_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let data = format!("/tmp/rowmill-pg-{}-{port}", std::process::id());
    // The shell is told when this process dies, and takes the server and its files with it.
    let script = format!(
        r#"
set -e
nap=$$
cd /tmp
printf '%s' '{PASSWORD}' > {data}.pw
{bin}/initdb -D {data} -U rowmill -A scram-sha-256 --pwfile={data}.pw --no-sync -E UTF8 --locale=C.UTF-8 >/dev/null
rm {data}.pw
stop() {{ set +e; {bin}/pg_ctl stop -m immediate -D {data} >/dev/null 2>&1; rm -rf {data}; trap - EXIT; [ $nap = $$ ] || kill $nap; exit 0; }}
trap stop TERM INT HUP EXIT
{bin}/pg_ctl start -w -D {data} -l {data}/log -o "-p {port} -k {data} -c listen_addresses=127.0.0.1 -c max_connections=60" >/dev/null
echo ready
while :; do sleep 3600 >/dev/null 2>&1 & nap=$!; wait $nap; done
"#,
        bin = bin.display()
    );
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=TERM");
    if as_root {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/tmp");
    let (told, ready) = std::sync::mpsc::channel();
    // The death signal follows the thread that started the shell, so that thread must last as long as the process.
    std::thread::spawn(move || {
        let mut child = command.spawn().expect("setpriv starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        told.send(line).unwrap();
        child.wait().unwrap();
    });
    assert_eq!(ready.recv().unwrap().trim(), "ready", "the PostgreSQL server did not start");
    Some(Server { port, data, bin, as_root })
}
