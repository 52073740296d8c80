//! What operators' own tools say: promtool of the page of metrics,
//! kubernetes-validate of the manifest.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tierd_tests::fixture;
use tierd_tests::process::Tierd;

use crate::{TIERD, output, peer};

#[test]
fn promtool_has_nothing_to_say_about_the_page_of_metrics() {
    // A program of the system; the folder says that the peers are installed.
    if peer("promtool").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let daemon = Tierd::new(TIERD, folder.path()).live(&fixture::wal(), &["--offline"]);
    // Every series with a number in it: something is archived.
    for tries in 0.. {
        let now = daemon.metrics();
        let behind = now["tierd_archive_lag_bytes"] > 0.0;
        if now["tierd_committed_archives_total"] >= 5.0 && !behind {
            break;
        }
        assert!(tries < 1000, "{now:#?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (status, page) = daemon.get("/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(page.contains("tierd_partitions_stalled{reason=\"hole\"} 0"), "{page}");
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

#[test]
fn the_manifest_is_valid_for_every_kubernetes_it_names() {
    let Some(validate) = peer("kubernetes-validate") else { return };
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy");
    let manifest = deploy.join("kubernetes.yaml");
    for version in ["1.32", "1.35", "1.37"] {
        let run = |file: &Path| {
            let mut command = Command::new(&validate);
            command.args(["-k", version, "--strict"]).arg(file);
            command
        };
        output(&mut run(&manifest));
        // Strict indeed: a misspelt field is refused.
        let misspelt = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(misspelt.path(), text.replace("readOnly: true", "readOnlyy: true")).unwrap();
        assert!(!run(misspelt.path()).output().unwrap().status.success(), "{version}");
    }
}
