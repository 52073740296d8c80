//! Real servers on free ports of loopback, each killed by its own id when the
//! test that started it ends, however it ends.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use tierd::error::{Classify, ErrorKind};
use tierd::store::{ClusterName, Environment, Store, StoreError, WriterId};

/// Longest wait for a server to start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The bucket or container that every server has.
const BUCKET: &str = "conformance";

/// A service account of Google's that signs nothing.
const NOBODY: &str =
    r#"{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}"#;

/// The folder of the installed programs; `None`, with a line, when there is none.
pub fn peers(what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TIERD_PEERS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: run tests/peers/install.sh and set TIERD_PEERS to use {what}");
    }
    folder
}

/// A process, and how to start it again.
struct Program {
    command: Command,
    child: Child,
}

/// A store's server, and how to reach it.
pub struct Server {
    scheme: &'static str,
    pub environment: Vec<(String, String)>,
    children: Vec<Program>,
    folder: tempfile::TempDir,
}

impl Server {
    /// SeaweedFS's S3 server, which checks signatures.
    pub fn seaweedfs(peers: &Path) -> Self {
        let (key, secret) = (random(), random());
        let folder = tempfile::tempdir().unwrap();
        let (weed, port) = weed(peers, folder.path(), Some((&key, &secret)));
        let environment = [
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ];
        Self::started("s3", environment, vec![weed], folder)
    }

    /// Our front of SeaweedFS that speaks Google Cloud Storage's protocol.
    pub fn gcs(peers: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (weed, backend) = weed(peers, folder.path(), None);
        let [port] = free_ports();
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/gcs_shim.py");
        let mut python = Command::new(peers.join("bin/python"));
        python.arg(shim).args([port, backend].map(|port| port.to_string()));
        let shim = start(python);
        let environment = [
            ("GOOGLE_BASE_URL", format!("http://127.0.0.1:{port}")),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", NOBODY.to_owned()),
            ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
        ];
        Self::started("gs", environment, vec![weed, shim], folder)
    }

    /// Azure's own emulator, which checks signatures.
    pub fn azurite(peers: &Path) -> Self {
        use base64::Engine;
        let account = "tierd";
        let key = base64::engine::general_purpose::STANDARD.encode(random());
        let folder = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let program = peers.join("node/node_modules/.bin/azurite-blob");
        let mut azurite = Command::new(program);
        azurite
            .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(folder.path())
            .env("AZURITE_ACCOUNTS", format!("{account}:{key}"));
        let azurite = start(azurite);
        let environment = [
            ("AZURE_STORAGE_ACCOUNT_NAME", account.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", key),
            ("AZURE_STORAGE_ENDPOINT", format!("http://127.0.0.1:{port}/{account}")),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ];
        let guard = Self::made("az", environment, vec![azurite], folder);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/azure_container.py");
        let mut create = Command::new(peers.join("bin/python"));
        create.arg(script).args([&port.to_string(), BUCKET]).envs(guard.environment.clone());
        until("azurite makes a container", || {
            let made = create.output().unwrap();
            if made.status.success() {
                return Ok(());
            }
            Err(String::from_utf8_lossy(&made.stderr).into_owned())
        });
        // It writes to its disk every five seconds, and has nothing from before when killed.
        let known = guard.folder.path().join("__azurite_db_blob__.json");
        until("azurite remembers the container", || {
            let known = std::fs::read_to_string(&known).unwrap_or_default();
            known.contains(BUCKET).then_some(()).ok_or(known)
        });
        guard.ready();
        guard
    }

    /// An S3 server that ignores create-only.
    pub fn s3rver(peers: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let mut server = Command::new(peers.join("node/node_modules/.bin/s3rver"));
        server
            .args(["--silent", "-a", "127.0.0.1", "-p", &port.to_string()])
            .args(["--configure-bucket", BUCKET, "-d"])
            .arg(folder.path());
        let server = start(server);
        let environment = [
            ("AWS_ACCESS_KEY_ID", "S3RVER".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "S3RVER".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ];
        Self::started("s3", environment, vec![server], folder)
    }

    fn made<const N: usize>(
        scheme: &'static str,
        environment: [(&str, String); N],
        children: Vec<Program>,
        folder: tempfile::TempDir,
    ) -> Self {
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { scheme, environment, children, folder }
    }

    fn started<const N: usize>(
        scheme: &'static str,
        environment: [(&str, String); N],
        children: Vec<Program>,
        folder: tempfile::TempDir,
    ) -> Self {
        let server = Self::made(scheme, environment, children, folder);
        server.ready();
        server
    }

    /// Waits until the server takes a create, rightly or not.
    fn ready(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = self.open("ready");
        let (cluster, writer) = names();
        until("the server takes a write", || {
            match runtime.block_on(store.probe(&cluster, &writer, rand::rng().random())) {
                Ok(()) | Err(StoreError::NotCreateOnly { .. }) => Ok(()),
                Err(error) if error.kind() == ErrorKind::Corrupt => panic!("{error}"),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    /// The URL of a folder of the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("{}://{BUCKET}/{prefix}", self.scheme)
    }

    /// A store on a folder of the bucket.
    pub fn open(&self, prefix: &str) -> Store {
        self.open_with(&self.url(prefix), &[])
    }

    /// A store with some variables changed.
    pub fn open_with(&self, url: &str, changed: &[(&str, &str)]) -> Store {
        let changed = changed.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let environment: Environment = self.environment.iter().cloned().chain(changed).collect();
        Store::open_in(url, &environment).unwrap()
    }

    /// Sends a signal to the store's own process.
    pub fn signal(&self, name: &str) {
        let id = self.children[0].child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// SIGKILL to the store's own process.
    pub fn crash(&mut self) {
        self.children[0].child.kill().unwrap();
        self.children[0].child.wait().unwrap();
    }

    /// Starts the store's own process again, on the data that it left.
    pub fn revive(&mut self) {
        let Program { command, child } = &mut self.children[0];
        *child = command.spawn().unwrap();
        self.ready();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for Program { child, .. } in &mut self.children {
            // It may have ended by itself; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The cluster and writer of all tests.
pub fn names() -> (ClusterName, WriterId) {
    (ClusterName::new("default").unwrap(), WriterId::new("conformance").unwrap())
}

/// SeaweedFS as one process, and its S3 port. Without a key it takes anybody.
fn weed(peers: &Path, folder: &Path, key: Option<(&str, &str)>) -> (Program, u16) {
    const PORTS: [&str; 12] = [
        "s3.port",
        "s3.port.grpc",
        "s3.port.iceberg",
        "s3.port.lance",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "admin.port",
        "admin.port.grpc",
    ];
    let ports = free_ports::<12>();
    let mut weed = Command::new(peers.join("bin/weed"));
    weed.args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
        .arg("-s3.autoCreateBucket=false")
        .arg(format!("-bucket={BUCKET}"))
        .arg(format!("-dir={}", folder.display()))
        .args(PORTS.iter().zip(ports).map(|(flag, port)| format!("-{flag}={port}")))
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .current_dir(folder);
    if let Some((id, secret)) = key {
        weed.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    }
    (start(weed), ports[0])
}

fn start(mut command: Command) -> Program {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Program { command, child }
}

/// Ports that nobody listens on now, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|socket| socket.local_addr().unwrap().port())
}

fn random() -> String {
    let number: u128 = rand::rng().random();
    format!("{number:032x}")
}

/// Tries until it works; a server cannot be asked to tell when it is ready.
fn until(what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(why) = attempt() {
        assert!(start.elapsed() < START_TIMEOUT, "{what}: {why}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
