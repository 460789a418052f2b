//! A scratch folder and the command in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The command's path.
pub(crate) const ROWMILL: &str = env!("CARGO_BIN_EXE_rowmill");

/// The checkout.
pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A folder that goes away.
pub(crate) struct Scratch {
    folder: TempDir,
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answer {
    /// Asserts success.
    #[track_caller]
    pub(crate) fn ok(self) -> Answer {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// Asserts a failure with this exit code whose report holds all of `parts`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Answer {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part) || self.out.contains(part), "no {part:?} in:\n{}{}", self.out, self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// The rows of a CSV answer, without the header.
    pub(crate) fn rows(&self) -> Vec<&str> {
        self.out.lines().skip(1).collect()
    }
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The command, in this folder, with nothing of the user's configuration.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(ROWMILL);
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path());
        command
    }

    #[track_caller]
    pub(crate) fn rowmill(&self, arguments: &[&str]) -> Answer {
        self.command().args(arguments).output().unwrap().into()
    }

    /// Runs `flow.yaml` with this text.
    #[track_caller]
    pub(crate) fn run(&self, text: &str) -> Answer {
        self.write("flow.yaml", text);
        self.rowmill(&["run", "flow.yaml"])
    }

    /// Asks over files of this folder.
    #[track_caller]
    pub(crate) fn sql(&self, query: &str) -> Answer {
        self.rowmill(&["sql", query, "--format", "csv"]).ok()
    }

    /// Names in a folder, hidden ones too, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}
