//! The daemon as a process: commands that end, and servers that are stopped by
//! their own id when the test ends, however it ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

/// A `tierd` binary and the store it works on.
#[derive(Clone, Debug)]
pub struct Tierd {
    binary: PathBuf,
    store: String,
    data: PathBuf,
    environment: Vec<(String, String)>,
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
            environment: Vec::new(),
        }
    }

    /// The same binary and scratch on another store, which `environment` sets up.
    #[must_use]
    pub fn on_store(self, url: &str, environment: &[(String, String)]) -> Self {
        Self { store: url.to_owned(), environment: environment.to_vec(), ..self }
    }

    /// A command with the store set by environment and nothing inherited that
    /// could set more.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            let ours = ["TIERD_", "AWS_", "GOOGLE_", "AZURE_"];
            if ours.iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
                command.env_remove(name);
            }
        }
        command
            .env("TIERD_STORE", &self.store)
            .env("TIERD_DATA_DIR", &self.data)
            .env("TIERD_WRITER_ID", "test")
            // Daemons of tests that run at once must not share a port.
            .env("TIERD_HTTP", "127.0.0.1:0")
            .envs(self.environment.iter().cloned())
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
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(more);
        Served::start(command)
    }

    /// Archives `wal` and serves, on a free port of loopback, until it is stopped.
    #[must_use]
    pub fn live(&self, wal: &Path, more: &[&str]) -> Served {
        let mut command = self.command();
        command.args(["run", "--listen", "127.0.0.1:0", "--wal-dir"]).arg(wal).args(more);
        Served::start(command)
    }
}

/// A serving daemon, killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Where it serves gRPC.
    pub address: String,
    /// Where it serves probes and metrics.
    pub http: String,
}

impl Served {
    /// Starts a daemon and waits until it says where it serves gRPC (on the first
    /// address, if on several) and HTTP.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut served = Self { child, address: String::new(), http: String::new() };
        let mut said = Vec::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(address) = line.strip_prefix("serving gRPC on ") {
                if served.address.is_empty() {
                    served.address = address.to_owned();
                }
            } else if let Some(address) = line.strip_prefix("serving probes and metrics on ") {
                served.http = address.to_owned();
                break;
            }
            said.push(line);
        }
        let told = !served.address.is_empty() && !served.http.is_empty();
        assert!(told, "the daemon said {said:?} instead of its addresses");
        served
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, as a kubelet does.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends the signal of this name, as `STOP`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().expect("a shell is there");
        assert!(sent.success(), "no signal reached the daemon");
    }

    /// Its standard error, where the command piped it; to be taken once.
    ///
    /// # Panics
    /// When it is not there.
    pub fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("stderr was piped and not taken")
    }

    /// Waits for its end; the exit code, -1 when a signal ended it.
    #[must_use]
    pub fn wait(mut self) -> i32 {
        self.child.wait().expect("the daemon is our child").code().unwrap_or(-1)
    }

    /// Status and body of a GET of `path` over HTTP.
    ///
    /// # Errors
    /// When nothing listens, or the answer is none.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        http_get(&self.http, path)
    }

    /// The series of the page of metrics with their values.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, page) = self.get("/metrics").expect("the daemon listens");
        assert_eq!(status, 200, "{page}");
        let series = page.lines().filter(|line| !line.starts_with('#'));
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a series and its value");
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number in {line:?}")))
        };
        series.map(parse).collect()
    }
}

/// Status and body of a GET of `path` over HTTP from `address`.
///
/// # Errors
/// When nothing listens, or the answer is none.
pub fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: tierd\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let none = || std::io::Error::other(format!("no answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(none)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(none)?, body.to_owned()))
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of process `id`, in bytes; `None` once it ended.
#[must_use]
pub fn resident_memory(id: u32) -> Option<u64> {
    memory(id, "VmRSS:")
}

/// Greatest resident memory of process `id` so far, in bytes; `None` once it ended.
#[must_use]
pub fn peak_memory(id: u32) -> Option<u64> {
    memory(id, "VmHWM:")
}

fn memory(id: u32, what: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(what))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
