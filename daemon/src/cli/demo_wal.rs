//! Owns the WAL that the demo runs on: the data WAL of a Chronik Stream 2.10.4
//! broker over three runs, the last one killed, compiled into the binary so that
//! the demo needs nothing but itself.

use std::io;
use std::path::Path;

/// Path below the WAL directory, and bytes.
type Segment = (&'static str, &'static [u8]);

macro_rules! segment {
    ($path:literal) => {
        ($path, include_bytes!(concat!("../../../tests/fixtures/chronik-2.10.4/wal/", $path)))
    };
}

const SEGMENTS: &[Segment] = &[
    segment!("busy/0/wal_0_0.log"),
    segment!("busy/0/wal_0_1.log"),
    segment!("busy/0/wal_0_2.log"),
    segment!("clicks.日本_1/0/wal_0_0.log"),
    segment!("orders/0/wal_0_0.log"),
    segment!("orders/0/wal_0_1.log"),
    segment!("orders/0/wal_0_2.log"),
    segment!("orders/1/wal_1_0.log"),
    segment!("orders/1/wal_1_1.log"),
    segment!("orders/1/wal_1_2.log"),
    segment!("orders/1/wal_1_3.log"),
    segment!("payments/0/wal_0_0.log"),
    segment!("payments/0/wal_0_1.log"),
    segment!("payments/0/wal_0_2.log"),
];

/// Segments that a partition has at most.
pub(super) const ROUNDS: u32 = 4;

/// Writes segment `round`, counted from 0, of every partition that has one below
/// `root`.
///
/// # Errors
/// What the file system says.
pub(super) fn write(root: &Path, round: u32) -> io::Result<()> {
    let ending = format!("_{round}.log");
    for (path, bytes) in SEGMENTS.iter().filter(|(path, _)| path.ends_with(&ending)) {
        let file = root.join(path);
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, bytes)?;
    }
    Ok(())
}
