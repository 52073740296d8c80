//! No file can be opened any more: connections of others take every handle that the
//! process may have.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use tierd_proto::v1::Status;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_tests::beside::Beside;
use tierd_tests::process::Served;
use tierd_tests::reads::{Answer, connect, request};

use super::{broker_starts, expect_whole, live, segment, stop, tens, until, until_whole};
use crate::TIERD;

/// Handles that the process may have beyond those it has when nothing is asked of it:
/// building an archive takes a few dozen.
const HANDLES: usize = 64;
/// Connections that nobody needs, on each of its two ports.
const CONNECTIONS: usize = 100;
/// How long they stay.
const NONE_LEFT: Duration = Duration::from_secs(3);

fn handles(daemon: &Served) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count()
}

/// Table: F18 I6 I12 I13 | connections that take every handle that the process may have
#[test]
fn a_process_without_a_handle_left_goes_on_when_it_has_some_again() {
    let bench = Beside::new(TIERD).unwrap();
    let before = segment(&bench, "before", 0, &tens(300));
    broker_starts(&bench);
    let daemon = live(&bench);
    until_whole(&daemon, "before", &before);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut client = ArchiveClient::new(runtime.block_on(connect(&daemon)).unwrap());
    let mut reads = || {
        let answer = async {
            let mut stream = client.fetch_archived(request("before", 0)).await?.into_inner();
            let mut answer = Answer::default();
            answer.take_all(&mut stream).await?;
            anyhow::Ok(answer)
        };
        runtime.block_on(answer).unwrap()
    };
    assert_eq!(reads().wire, before);

    let most = handles(&daemon) + HANDLES;
    let limit = ["--pid", &daemon.id().to_string(), &format!("--nofile={most}")];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    let ports = [&daemon.address, &daemon.http].into_iter();
    let idle = ports.flat_map(|at| (0..CONNECTIONS).map(move |_| TcpStream::connect(at).unwrap()));
    let idle: Vec<_> = idle.collect();
    until("no handle is left", || handles(&daemon) >= most);
    let late = segment(&bench, "late", 0, &tens(30));
    broker_starts(&bench);
    // Who is connected is served from memory; who comes, waits.
    let (begun, mut whole, mut refused) = (Instant::now(), 0, 0);
    while begun.elapsed() < NONE_LEFT {
        let answer = reads();
        let trailer = &answer.trailers[0];
        assert!(before.starts_with(&answer.wire), "these bytes nobody wrote");
        let all = answer.wire.len() == before.len();
        assert_eq!(all, trailer.status() == Status::Ok, "{trailer:?}");
        *if all { &mut whole } else { &mut refused } += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("without a handle {whole} reads of {} KiB, {refused} refused", before.len() >> 10);
    assert!(whole > 0, "nothing was read");
    drop(idle);
    until_whole(&daemon, "late", &late);
    expect_whole(&daemon, "before", &before);
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
    stop(daemon);
    let _ = bench.tierd.run(&["verify", "--deep"]).ok();
}
