//! Owns the table of `tierd fetch --explain`: which archives would be read, by
//! which requests, for how many bytes.

use tierd_client::{ArchiveClient, FetchArgs, ReadPurpose};

use super::output::{Table, bytes};
use crate::daemon::Rooms;
use crate::fetch::{FetchRequest, PartitionRequest, Purpose};

/// One read of an archived object.
struct Read {
    object: String,
    purpose: &'static str,
    offset: u64,
    length: u64,
    cached: bool,
}

/// What a fetch straight from the store would read.
pub(super) async fn from_store(
    rooms: &Rooms,
    request: &PartitionRequest,
) -> anyhow::Result<String> {
    let whole = FetchRequest { partitions: vec![request.clone()], max_bytes: u64::MAX };
    let explained = rooms.fetcher.explain(&whole).await;
    let archives = explained.into_iter().flat_map(|explanation| explanation.archives);
    Ok(render(archives.flat_map(|archive| {
        let object = archive.object;
        archive.reads.into_iter().map(move |read| Read {
            object: object.clone(),
            purpose: match read.purpose {
                Purpose::Toc => "contents",
                Purpose::Data => "data",
            },
            offset: read.place.start,
            length: read.place.end - read.place.start,
            cached: read.cached,
        })
    })))
}

/// What a daemon says it would read.
pub(super) async fn through_daemon(
    client: &ArchiveClient,
    fetch: &FetchArgs,
) -> anyhow::Result<String> {
    let explained = client.explain(fetch).await?;
    explained.result?;
    Ok(render(explained.reads.into_iter().map(|read| Read {
        object: read.object,
        purpose: match read.purpose {
            ReadPurpose::Toc => "contents",
            ReadPurpose::Data => "data",
            _ => "other",
        },
        offset: read.offset,
        length: read.length,
        cached: read.cached,
    })))
}

fn render(reads: impl Iterator<Item = Read>) -> String {
    let mut table = Table::new(&["read", ">from byte", ">bytes", "from", "object"]);
    let (mut requests, mut asked) = (0, 0);
    for read in reads {
        if !read.cached {
            requests += 1;
            asked += read.length;
        }
        table.row(vec![
            read.purpose.to_owned(),
            read.offset.to_string(),
            read.length.to_string(),
            if read.cached { "memory" } else { "store" }.to_owned(),
            read.object,
        ]);
    }
    format!("{}{requests} requests to the store, {}\n", table.render(), bytes(asked))
}
