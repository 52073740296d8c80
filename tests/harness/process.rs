//! The daemon as a process: commands that end, and servers that are stopped by
//! their own id when the test ends, however it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A `tierd` binary and the store it works on.
#[derive(Clone, Debug)]
pub struct Tierd {
    binary: PathBuf,
    store: String,
    data: PathBuf,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output, raw.
    pub stdout: Vec<u8>,
    /// Standard error as text.
    pub stderr: String,
}

impl Ended {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Panics unless the command ended well.
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Tierd {
    /// The binary at `binary`, on a store and scratch below `folder`.
    #[must_use]
    pub fn new(binary: &str, folder: &Path) -> Self {
        Self {
            binary: PathBuf::from(binary),
            store: format!("file://{}", folder.join("store").display()),
            data: folder.join("data"),
        }
    }

    /// A command with the store set by environment and nothing inherited that
    /// could set more.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIERD_") {
                command.env_remove(name);
            }
        }
        command
            .env("TIERD_STORE", &self.store)
            .env("TIERD_DATA_DIR", &self.data)
            .env("TIERD_WRITER_ID", "test")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Ended {
        self.command().args(args).output().expect("the binary starts").into()
    }

    /// Archives `wal` once, offline.
    #[must_use]
    pub fn archive(&self, wal: &Path) -> Ended {
        let wal = wal.to_str().expect("test paths are UTF-8");
        self.run(&["run", "--once", "--offline", "--wal-dir", wal])
    }

    /// Serves the store on a free port of loopback.
    #[must_use]
    pub fn serve(&self, more: &[&str]) -> Served {
        let mut command = self.command();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(more).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let line = BufReader::new(stdout).lines().next();
        let line = line.and_then(Result::ok).unwrap_or_default();
        let address = line.strip_prefix("serving gRPC on ").map(str::to_owned);
        let served = Served { child, address: address.unwrap_or_default() };
        assert!(!served.address.is_empty(), "the daemon said {line:?} instead of its address");
        served
    }
}

/// A serving daemon, killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Where it serves gRPC.
    pub address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
