//! Owns which transactions are open at the end of the rebuilt log: what each archive
//! says of its own batches, put together in the order of offsets.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::{Rebuild, RebuildError};
use crate::archive::{OpenTransaction, Toc};
use crate::catalog::{ArchiveEntry, Remains, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::read::ReadStats;

/// Tables of contents asked for at a time.
const TOCS_AT_ONCE: usize = 8;

impl Rebuild {
    /// The transactions open behind `entries`. What the catalog says of them is taken
    /// where only archives behind its end came to it.
    pub(super) async fn open_after(
        &self,
        remains: &Remains,
        entries: &[ArchiveEntry],
        unknown: &mut Vec<String>,
    ) -> Result<Vec<OpenTransaction>, RebuildError> {
        let newest = remains.newest.as_deref();
        let through = newest.map_or(0, Snapshot::archived_through);
        let is_new = |entry: &&ArchiveEntry| !remains.entries.contains(entry);
        let tiling = entries.iter().filter(|entry| entry.tile().is_some());
        let appends =
            tiling.clone().filter(is_new).all(|entry| entry.summary.range.base() >= through);
        let (mut open, wanted): (BTreeMap<i64, i64>, Vec<_>) = match newest {
            Some(newest) if remains.knows_open && appends => {
                let known = newest.open_transactions().iter();
                let known = known.map(|open| (open.producer_id, open.first_offset)).collect();
                (known, tiling.filter(is_new).collect())
            }
            _ => (BTreeMap::new(), tiling.collect()),
        };
        let mut wanted: Vec<_> =
            wanted.into_iter().filter(|entry| entry.summary.transactions > 0).collect();
        wanted.sort_by_key(|entry| entry.summary.range.base());
        let stats = ReadStats::default();
        let reads = wanted.into_iter().map(|entry| {
            let stats = &stats;
            async move { (entry, self.reader.toc(entry, stats).await) }
        });
        let mut tocs = futures::stream::iter(reads.collect::<Vec<_>>()).buffered(TOCS_AT_ONCE);
        while let Some((entry, toc)) = tocs.next().await {
            match toc {
                Ok(toc) => pass(&mut open, &toc),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                    unknown.push(format!("which transactions {} ends or begins", entry.key()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let open = open.into_iter();
        let one = |(producer_id, first_offset)| OpenTransaction { producer_id, first_offset };
        Ok(open.map(one).collect())
    }
}

/// What is open behind an archive, where `open` was before it.
fn pass(open: &mut BTreeMap<i64, i64>, toc: &Toc) {
    for ended in &toc.ended {
        open.remove(&ended.producer_id);
    }
    for began in &toc.open {
        open.entry(began.producer_id).or_insert(began.first_offset);
    }
}
