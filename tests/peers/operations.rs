//! What operators' own tools say: promtool of the page of metrics.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::{archived, peer};

#[test]
fn promtool_has_nothing_to_say_about_the_page_of_metrics() {
    // A program of the system; the folder says that the peers are installed.
    if peer("promtool").is_none() {
        return;
    }
    let bench = archived();
    let daemon = bench.tierd.serve(&[]);
    let (status, page) = daemon.get("/metrics").unwrap();
    assert_eq!(status, 200);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let ended = promtool.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
    assert!(ended.status.success());
}
