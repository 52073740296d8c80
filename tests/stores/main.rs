//! One suite over every kind of store, on real servers: SeaweedFS speaks S3,
//! azurite is Azure's emulator, a front of our own speaks Google Cloud Storage.
//! `TIERD_PEERS` names the folder where `tests/peers/install.sh` put them; without
//! it every test says so.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a failed test should panic")]
#![allow(clippy::disallowed_methods, reason = "real servers keep real time")]

mod crash;
mod job;
mod outage;
mod servers;
mod sidecar;
mod suite;

use tierd::error::{Classify, ErrorKind};
use tierd::store::{ObjectKey, PART_BYTES, Store, StoreError};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;

use servers::{Server, names, peers};

/// The daemon's binary, as built with these tests.
const TIERD: &str = env!("CARGO_BIN_EXE_tierd-under-test");

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

/// The suite and the main job on a server.
fn conforms(server: &Server) {
    block_on(async {
        suite::conforms(|folder| server.open(folder)).await;
        job::works(&server.url("job/日本"), &server.environment).await;
    });
}

#[test]
fn memory_conforms() {
    block_on(suite::conforms(|_| Store::open("memory:").unwrap()));
}

#[test]
fn a_directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("file://{}/{}", folder.path().display(), name.replace('%', ""));
    block_on(async {
        suite::conforms(|name| Store::open_or_create(&url(name)).unwrap()).await;
        job::works(&url("job"), &[]).await;
    });
}

#[test]
fn seaweedfs_conforms() {
    let Some(peers) = peers("SeaweedFS") else { return };
    conforms(&Server::seaweedfs(&peers));
}

/// Table: F5 I9 | an upload to a real server, given up in the middle
#[test]
fn gc_drops_the_upload_in_parts_that_a_killed_writer_left_in_a_bucket() {
    let Some(peers) = peers("SeaweedFS") else { return };
    let server = Server::seaweedfs(&peers);
    let store = server.open("left");
    let object = block_on(suite::an_upload_is_left_half_way(&store));
    let left = || block_on(store.unfinished("default")).unwrap().expect("S3 tells");
    let [upload] = &left()[..] else { panic!("{:?}", left()) };
    assert!(upload.name.starts_with(&format!("{object}#")), "{upload:?}");
    assert!(upload.length >= PART_BYTES && upload.length % PART_BYTES == 0, "{upload:?}");
    // One in another folder is not ours.
    let other = server.open("beside");
    let _ = block_on(suite::an_upload_is_left_half_way(&other));
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path()).on_store(&server.url("left"), &server.environment);
    let named = |args: &[&str]| tierd.run(args).ok().text().contains(&object);
    // It is young, then the run is dry, then it goes, then there is nothing to go.
    for (args, told, stay) in [
        (&["gc", "--confirm"][..], true, 1),
        (&["gc", "--grace", "0s"], true, 1),
        (&["gc", "--grace", "0s", "--confirm"], true, 0),
        (&["gc", "--grace", "0s", "--confirm"], false, 0),
    ] {
        assert_eq!((named(args), left().len()), (told, stay), "{args:?}");
    }
    let beside = block_on(other.unfinished("default")).unwrap();
    assert_eq!(beside.map(|found| found.len()), Some(1));
}

#[test]
fn azurite_conforms() {
    let Some(peers) = peers("azurite") else { return };
    conforms(&Server::azurite(&peers));
}

#[test]
fn google_cloud_storage_conforms() {
    let Some(peers) = peers("the Google Cloud Storage front") else { return };
    conforms(&Server::gcs(&peers));
}

/// Table: F27 I8 | a real server that overwrites
#[test]
fn a_store_that_ignores_create_only_is_refused_for_writing() {
    let Some(peers) = peers("s3rver") else { return };
    let server = Server::s3rver(&peers);
    let store = server.open("refused");
    let (cluster, writer) = names();
    let error = block_on(store.probe(&cluster, &writer, [1; 16])).unwrap_err();
    assert!(matches!(error, StoreError::NotCreateOnly { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let folder = tempfile::tempdir().unwrap();
    let url = server.url("refused");
    let tierd = Tierd::new(TIERD, folder.path()).on_store(&url, &server.environment);
    let ended = tierd.archive(&fixture::wal());
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    let clear = format!("the store {url} overwrites objects it was asked to only create");
    assert!(ended.stderr.contains(&clear), "{}", ended.stderr);
    let held = block_on(futures::TryStreamExt::try_collect::<Vec<_>>(store.list(""))).unwrap();
    assert_eq!(held, [], "nothing was written");
}

/// One line each, without the credential, and not asked again.
fn complains(store: &Store, secrets: &[&str], words: &[&str]) {
    let key = ObjectKey::Incarnation {
        cluster: names().0,
        topic: tierd::record::TopicName::new("orders").unwrap(),
        number: 0,
    };
    let listing = || block_on(futures::TryStreamExt::try_collect::<Vec<_>>(store.list("default")));
    for error in [
        block_on(store.put(&key, bytes::Bytes::from_static(b"x"))).unwrap_err(),
        block_on(store.create(&key, bytes::Bytes::from_static(b"x"))).unwrap_err(),
        block_on(store.get(&key, 9)).unwrap_err(),
        listing().unwrap_err(),
    ] {
        let line = format!("{error} {error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
        assert!(!line.contains('\n') && error.to_string().len() < 400, "{line}");
    }
    assert_eq!(store.requests().total(), 4, "repeated what cannot do better");
}

#[test]
fn wrong_credentials_and_missing_buckets_are_told_in_one_line() {
    let Some(peers) = peers("SeaweedFS and azurite") else { return };
    let server = Server::seaweedfs(&peers);
    let (url, id) = (server.url("x"), server.environment[0].1.as_str());
    let wrong = [("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")];
    complains(&server.open_with(&url, &wrong), &["hunter2", id], &["403", "SignatureDoesNotMatch"]);
    let missing = server.open_with("s3://not-there/x", &[]);
    complains(&missing, &[id], &["s3://not-there/x", "does not exist"]);

    let server = Server::azurite(&peers);
    let (url, key) = (server.url("x"), server.environment[1].1.as_str());
    let wrong = [("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMmh1bnRlcjI=")];
    complains(&server.open_with(&url, &wrong), &["aHVudGVy", key], &["403"]);
    let missing = server.open_with("az://not-there/x", &[]);
    complains(&missing, &[key], &["az://not-there/x", "does not exist"]);
}
