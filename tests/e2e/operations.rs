//! A daemon as its operator sees it: probes, metrics, logs, the way it stops, and
//! what is shipped to deploy it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tierd_proto::v1::FetchArchivedRequest;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_tests::fixture;
use tierd_tests::process::{Served, Tierd};
use tierd_tests::reads::{Answer, connect, fetch, request};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::TIERD;

/// The largest partition of the fixtures.
const BUSY: &str = "busy";

fn archived() -> (tempfile::TempDir, Tierd) {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    (folder, tierd)
}

/// Bytes and batches of the served log of partition 0 of `topic`.
fn log(topic: &str) -> (usize, usize) {
    let batches = fixture::served(&fixture::batches()[&(topic.to_owned(), 0)]);
    (batches.iter().map(|batch| batch.length).sum(), batches.len())
}

/// How far every series moved that did.
fn moved(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let names: Vec<_> = before.keys().collect();
    assert_eq!(names, after.keys().collect::<Vec<_>>(), "a series came or went");
    let moves = after.iter().map(|(name, value)| (name.clone(), value - before[name]));
    moves.filter(|(_, by)| *by != 0.0).collect()
}

#[track_caller]
fn has(moves: &BTreeMap<String, f64>, expected: &[(&str, f64)]) {
    for (series, by) in expected {
        let found = moves.get(&format!("tierd_{series}")).copied().unwrap_or_default();
        assert_eq!(found, *by, "{series} in {moves:#?}");
    }
}

#[tokio::test]
async fn counters_move_by_exactly_what_a_fetch_did() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    let (bytes, batches) = log(BUSY);
    let start = daemon.metrics();

    let answer = fetch(&daemon, request(BUSY, 0)).await.unwrap();
    assert_eq!(answer.wire.len(), bytes);
    let cold = daemon.metrics();
    let moves = moved(&start, &cold);
    let (bytes, batches) = (bytes as f64, batches as f64);
    let sent = [
        ("fetch_requests_total{outcome=\"answered\"}", 1.0),
        ("fetch_duration_seconds_count", 1.0),
        ("fetch_partitions_total{status=\"ok\"}", 1.0),
        ("fetch_bytes_total", bytes),
        ("fetch_batches_total", batches),
    ];
    has(&moves, &sent);
    let archives = moves["tierd_read_archives_total"];
    let toc_bytes = moves["tierd_read_bytes_total{cache=\"toc\"}"];
    let chunk_bytes = moves["tierd_read_bytes_total{cache=\"chunk\"}"];
    has(
        &moves,
        &[
            ("read_cache_misses_total{cache=\"toc\"}", archives),
            ("read_cache_hits_total{cache=\"toc\"}", 0.0),
            ("store_bytes_total{op=\"get_range\"}", toc_bytes + chunk_bytes),
        ],
    );
    assert!(moves["tierd_read_cache_misses_total{cache=\"chunk\"}"] >= archives, "{moves:#?}");
    assert!(!moves.keys().any(|series| series.contains("failures")), "{moves:#?}");

    // The same again comes out of memory: nothing more is asked of the store than
    // whether there is a newer manifest.
    let _ = fetch(&daemon, request(BUSY, 0)).await.unwrap();
    let warm = daemon.metrics();
    let moves = moved(&cold, &warm);
    has(&moves, &sent);
    has(
        &moves,
        &[
            ("read_cache_hits_total{cache=\"toc\"}", archives),
            ("read_cache_misses_total{cache=\"toc\"}", 0.0),
            ("read_cache_misses_total{cache=\"chunk\"}", 0.0),
            ("store_requests_total{op=\"get_range\"}", 0.0),
        ],
    );

    // What cannot be answered is counted as what it is.
    let mut refused = request("nobody", 0);
    refused.partitions.extend(request(BUSY, 1 << 40).partitions);
    refused.partitions.extend(request(BUSY, -1).partitions);
    let answer = fetch(&daemon, refused).await.unwrap();
    assert_eq!(answer.trailers.len(), 3);
    let nonsense = ArchiveClient::new(connect(&daemon).await.unwrap())
        .fetch_archived(FetchArchivedRequest::default())
        .await;
    assert_eq!(nonsense.unwrap_err().code(), Code::InvalidArgument);
    let moves = moved(&warm, &daemon.metrics());
    has(
        &moves,
        &[
            ("fetch_requests_total{outcome=\"answered\"}", 1.0),
            ("fetch_requests_total{outcome=\"refused\"}", 1.0),
            ("fetch_partitions_total{status=\"unknown_topic_or_partition\"}", 1.0),
            ("fetch_partitions_total{status=\"not_archived_yet\"}", 1.0),
            ("fetch_partitions_total{status=\"invalid_request\"}", 1.0),
            ("fetch_bytes_total", 0.0),
            ("fetch_errors_total{stage=\"store\"}", 0.0),
        ],
    );
}

#[tokio::test]
async fn a_read_that_fails_is_counted_at_the_step_that_failed() {
    let (folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    let before = daemon.metrics();
    let store = folder.path().join("store/default");
    for archive in archives(&store.join(BUSY)) {
        let mut bytes = std::fs::read(&archive).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0);
        std::fs::write(&archive, bytes).unwrap();
    }
    for archive in archives(&store.join("orders")) {
        std::fs::remove_file(archive).unwrap();
    }
    let mut both = request(BUSY, 0);
    both.partitions.extend(request("orders", 0).partitions);
    let answer = fetch(&daemon, both).await.unwrap();
    assert_eq!(answer.trailers.len(), 2);
    let moves = moved(&before, &daemon.metrics());
    has(
        &moves,
        &[
            ("fetch_partitions_total{status=\"data_loss\"}", 2.0),
            ("fetch_errors_total{stage=\"verify\"}", 1.0),
            ("fetch_errors_total{stage=\"store\"}", 1.0),
            ("fetch_requests_total{outcome=\"answered\"}", 1.0),
        ],
    );
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(archives(&path));
        } else if path.extension().is_some_and(|extension| extension == "gz") {
            found.push(path);
        }
    }
    found
}

/// Table: F29 I5 I10 | SIGTERM to the process in the middle of a stream
#[tokio::test]
async fn a_stop_says_so_first_and_then_finishes_the_stream() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    for probe in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(daemon.get(probe).unwrap().0, 200, "{probe}");
    }
    let mut health = HealthClient::new(connect(&daemon).await.unwrap());
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let status = watched.message().await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::Serving);

    // The first frames are taken; the rest does not fit on the connection.
    let mut client = ArchiveClient::new(connect(&daemon).await.unwrap());
    let mut stream = client.fetch_archived(request(BUSY, 0)).await.unwrap().into_inner();
    let mut answer = Answer::default();
    answer.take(stream.message().await.unwrap().unwrap());

    daemon.terminate();
    let status = watched.message().await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::NotServing);
    assert!(watched.message().await.unwrap().is_none(), "a watch would keep the drain waiting");
    assert_eq!(daemon.get("/readyz").unwrap(), (503, "draining\n".to_owned()));
    assert_eq!(daemon.get("/livez").unwrap().0, 200, "a daemon that drains must not be killed");
    assert_eq!(daemon.get("/startupz").unwrap().0, 200);
    // Health turns a moment before the listener closes.
    let mut tries = 0;
    while connect_again(&daemon).await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "new connections are taken");
    }

    while let Some(message) = stream.message().await.unwrap() {
        answer.take(message);
    }
    assert!(answer.ended);
    assert_eq!(answer.wire.len(), log(BUSY).0);
    let http = daemon.http.clone();
    assert_eq!(ended(daemon).await, 0);
    assert!(std::net::TcpStream::connect(http).is_err(), "HTTP outlived the daemon");
}

/// The exit code, once the daemon ended. Meanwhile connections are looked after:
/// the daemon waits for our side to close them.
async fn ended(daemon: Served) -> i32 {
    tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap()
}

async fn connect_again(daemon: &Served) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap();
    endpoint.connect_timeout(Duration::from_secs(5)).connect().await
}

/// Table: F29 I10 | two signals to the process
#[tokio::test]
async fn a_second_signal_waits_for_nobody() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    let mut client = ArchiveClient::new(connect(&daemon).await.unwrap());
    let mut stream = client.fetch_archived(request(BUSY, 0)).await.unwrap().into_inner();
    let mut answer = Answer::default();
    answer.take(stream.message().await.unwrap().unwrap());
    daemon.terminate();
    // The first signal has arrived once readiness says so.
    while daemon.get("/readyz").unwrap().0 == 200 {}
    daemon.terminate();
    assert_eq!(ended(daemon).await, 0);
    let cut = loop {
        match stream.message().await {
            Ok(Some(message)) => answer.take(message),
            ended => break ended.is_err(),
        }
    };
    assert!(cut && !answer.ended, "the stream was finished all the same");
}

#[test]
fn http_refuses_what_it_does_not_serve_and_addresses_that_are_none() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    let (status, body) = daemon.get("/nothing").unwrap();
    assert_eq!((status, body.lines().count()), (404, 1), "{body}");
    for (address, word) in [("nowhere", "nowhere"), (daemon.http.as_str(), "--http")] {
        let ended = tierd.run(&["serve", "--listen", "127.0.0.1:0", "--http", address]);
        assert_eq!(ended.code, 2);
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[test]
fn probes_and_metrics_need_no_store() {
    let (folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    std::fs::remove_dir_all(folder.path().join("store")).unwrap();
    for page in ["/livez", "/readyz", "/startupz", "/metrics"] {
        assert_eq!(daemon.get(page).unwrap().0, 200, "{page}");
    }
}

#[tokio::test]
async fn a_read_logs_a_span_for_each_of_its_steps_and_no_payload() {
    let (_folder, tierd) = archived();
    let mut command = tierd.command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log", "tierd=debug"]);
    command.args(["--log-format", "json"]).stderr(Stdio::piped());
    let mut daemon = Served::start(command);
    let log = BufReader::new(daemon.stderr());
    let lines = std::thread::spawn(move || log.lines().map_while(Result::ok).collect());
    let _ = fetch(&daemon, request("orders", 0)).await.unwrap();
    daemon.terminate();
    assert_eq!(ended(daemon).await, 0);

    let lines: Vec<String> = lines.join().unwrap();
    let mut chains = std::collections::BTreeSet::new();
    for line in &lines {
        let entry: Value = serde_json::from_str(line).unwrap();
        assert!(entry["level"].is_string() && entry["target"].is_string(), "{line}");
        assert!(line.len() < 4096, "a payload is logged: {line}");
        let (Some(span), Some(spans)) = (entry["span"].as_object(), entry["spans"].as_array())
        else {
            continue;
        };
        if entry["fields"]["message"] != "close" {
            continue;
        }
        assert!(entry["fields"]["time.busy"].is_string(), "{line}");
        let mut chain: Vec<&str> = spans.iter().filter_map(|span| span["name"].as_str()).collect();
        chain.push(span["name"].as_str().unwrap());
        chains.insert(chain.join(" > "));
    }
    for chain in [
        "fetch",
        "fetch > partition",
        "fetch > partition > store_request",
        "fetch > partition > toc > store_request",
        "fetch > partition > window > store_request",
    ] {
        assert!(chains.contains(chain), "no {chain:?} in {chains:#?}");
    }
    let partition = lines.iter().find(|line| line.contains("\"name\":\"partition\"")).unwrap();
    assert!(partition.contains("orders") && partition.contains("\"offset\":0"), "{partition}");
}

fn shipped(name: &str) -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy");
    std::fs::read_to_string(deploy.join(name)).unwrap()
}

#[test]
fn the_example_settings_are_read_and_name_every_key() {
    let example = shipped("tierd.example.toml");
    let config: tierd::config::Config = toml::from_str(&example).unwrap();
    // Serialized, a key without a value is null; the example leaves none out.
    let Value::Object(keys) = serde_json::to_value(&config).unwrap() else { panic!("no keys") };
    assert!(keys.len() >= 9, "{keys:?}");
    for (key, value) in keys {
        assert!(!value.is_null(), "deploy/tierd.example.toml does not set {key}");
    }
    config.listen().unwrap();
    config.http().unwrap();
    config.cluster().unwrap();
    config.writer_id().unwrap();
}

#[test]
fn the_manifest_and_the_image_agree_with_the_daemon() {
    let manifest = shipped("kubernetes.yaml");
    let http = tierd::config::HTTP_DEFAULT.rsplit_once(':').unwrap().1;
    assert!(manifest.contains(&format!("containerPort: {http}")), "{manifest}");
    assert!(manifest.contains(&format!("--http=0.0.0.0:{http}")), "{manifest}");
    for probe in ["/startupz", "/livez", "/readyz"] {
        assert!(manifest.contains(&format!("path: {probe}")), "{probe}");
    }
    // A Pod's processes and the image's user are one.
    assert!(manifest.contains("runAsUser: 65532"));
    let image = shipped("Dockerfile");
    assert!(image.contains("USER 65532"), "{image}");
    let toolchain = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let toolchain = std::fs::read_to_string(toolchain.join("rust-toolchain.toml")).unwrap();
    let version = toolchain.split('"').nth(1).unwrap();
    assert!(image.contains(&format!("rust:{version}-")), "the image builds with another Rust");
}
