//! Starts real database servers in a directory of their own, on a free port, and stops them at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Place, SCHEMA};

/// A server of the tests' own.
pub(crate) struct Server {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Postgres,
    MariaDb,
}

/// Finds a binary in `PATH` and where distributions put it.
fn find(name: &str) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    places.extend([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")]);
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    places.into_iter().map(|place| place.join(name)).find(|path| path.is_file())
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Servers refuse to run as root, so they are started as an ordinary user where we are root.
fn as_user(user: &str, directory: &Path, program: &Path) -> Command {
    let root = rustix::process::getuid().is_root();
    if !root {
        return Command::new(program);
    }
    let chown = Command::new("chown").args(["-R", user]).arg(directory).status().unwrap();
    assert!(chown.success());
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "--"]).arg(program);
    command
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

impl Server {
    /// PostgreSQL, or why there is none.
    pub(crate) fn postgres() -> Result<Self, String> {
        let (Some(initdb), Some(server)) = (find("initdb"), find("postgres")) else {
            return Err("PostgreSQL's binaries are not installed".to_owned());
        };
        // Next to each other: the server must match the tool that made its files.
        let server = Some(initdb.with_file_name("postgres")).filter(|path| path.is_file()).unwrap_or(server);
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        open(directory.path());
        let data = directory.path().join("data");
        let mut init = as_user("postgres", directory.path(), &initdb);
        init.arg("-D").arg(&data).args(["-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]);
        assert!(quiet(&mut init).status().unwrap().success(), "initdb works");
        let port = free_port();
        let mut command = as_user("postgres", directory.path(), &server);
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-F"]);
        command.arg("-k").arg(directory.path());
        let child = quiet(&mut command).spawn().unwrap();
        let server = Self { child, directory, port, kind: Kind::Postgres };
        server.wait();
        SCHEMA.iter().for_each(|sql| server.run(sql));
        Ok(server)
    }

    /// MariaDB, or why there is none.
    pub(crate) fn mariadb() -> Result<Self, String> {
        let (Some(install), Some(server), Some(_)) = (find("mariadb-install-db"), find("mariadbd"), find("mariadb"))
        else {
            return Err("MariaDB's binaries are not installed".to_owned());
        };
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        open(directory.path());
        let data = format!("--datadir={}", directory.path().join("data").display());
        let mut init = as_user("mysql", directory.path(), &install);
        init.args(["--no-defaults", &data, "--auth-root-authentication-method=normal", "--skip-test-db"]);
        assert!(quiet(&mut init).status().unwrap().success(), "mariadb-install-db works");
        let port = free_port();
        let mut command = as_user("mysql", directory.path(), &server);
        command.args(["--no-defaults", &data, &format!("--port={port}"), "--bind-address=127.0.0.1"]);
        command.arg(format!("--socket={}", directory.path().join("socket").display()));
        command.args(["--innodb-flush-log-at-trx-commit=0", "--character-set-server=utf8mb4"]);
        let child = quiet(&mut command).spawn().unwrap();
        let server = Self { child, directory, port, kind: Kind::MariaDb };
        server.wait();
        server.run_in("mysql", "create database test; create user tester@'%' identified by 'c4nary-password'; grant all on test.* to tester@'%'");
        SCHEMA.iter().for_each(|sql| server.run(sql));
        Ok(server)
    }

    fn wait(&self) {
        let started = Instant::now();
        while !self
            .client("select 1", if self.kind == Kind::Postgres { "postgres" } else { "mysql" })
            .status()
            .unwrap()
            .success()
        {
            assert!(started.elapsed() < Duration::from_secs(60), "the server starts");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn client(&self, sql: &str, database: &str) -> Command {
        let mut command;
        match self.kind {
            Kind::Postgres => {
                command = Command::new(find("psql").expect("psql comes with PostgreSQL"));
                command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "tester", "-d", database]);
                command.args(["-p", &self.port.to_string(), "-c", sql]);
            }
            Kind::MariaDb => {
                command = Command::new(find("mariadb").expect("mariadb comes with MariaDB"));
                command.args(["--no-defaults", "-u", "root"]);
                command.arg(format!("--socket={}", self.directory.path().join("socket").display()));
                command.args(["-D", database, "-e", sql]);
            }
        }
        quiet(&mut command);
        command
    }

    fn run_in(&self, database: &str, sql: &str) {
        assert!(self.client(sql, database).status().unwrap().success(), "{sql}");
    }

    /// Stops the server in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that the server's own user can enter.
fn open(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
}

impl Place for Server {
    fn settings(&self) -> Value {
        match self.kind {
            Kind::Postgres => json!({"url": format!("postgres://tester@127.0.0.1:{}/postgres", self.port)}),
            Kind::MariaDb => {
                let path = self.directory.path().join("password");
                std::fs::write(&path, "c4nary-password").unwrap();
                json!({
                    "url": format!("mysql://tester@127.0.0.1:{}/test", self.port),
                    "password": format!("file:{}", path.display()),
                })
            }
        }
    }

    fn run(&self, sql: &str) {
        self.run_in(if self.kind == Kind::Postgres { "postgres" } else { "test" }, sql);
    }

    fn most(&self) -> usize {
        if self.kind == Kind::Postgres { usize::MAX } else { 500 }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
