//! Owns reading one archive whole, with other decoders than the read path's, as fast as
//! its pace allows.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::Stream;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use crate::archive::{TocPlace, Verified, verify_stream};
use crate::read::ReadError;
use crate::store::{ObjectKey, Store, StoreError};
use crate::task::Pace;

/// Bytes one request asks for at most.
const PIECE_BYTES: u64 = 8 << 20;
/// Bytes one request asks for at least, however slow: below it requests cost more than
/// bytes.
const PIECE_BYTES_MIN: u64 = 256 << 10;

/// Reads the archive `key` of `length` bytes from end to end, in pieces, with foreign
/// decoders; `place` is where its table of contents lies.
///
/// # Errors
/// When the store fails, or the bytes are not those of an archive.
pub(super) async fn read_whole(
    store: &Store,
    key: &ObjectKey,
    length: u64,
    place: TocPlace,
    pace: &Arc<Pace>,
) -> Result<Verified, ReadError> {
    let object = key.to_string();
    let packed_toc = store.get_range(key, place.range()).await?;
    // The decoders see a failed request as a stream that ends: what failed is kept.
    let failed: Arc<OnceLock<StoreError>> = Arc::default();
    // The thread that verifies ends soon after nobody waits for it any more.
    let left = CancellationToken::new();
    let _guard = left.clone().drop_guard();
    let reading = Reading {
        store: store.clone(),
        key: key.clone(),
        length,
        pace: Arc::clone(pace),
        failed: Arc::clone(&failed),
        left,
    };
    let pieces = reading.pieces();
    let read = move || verify_stream(StreamReader::new(pieces), length, &packed_toc, &place);
    let verified = tokio::task::spawn_blocking(read)
        .await
        .map_err(|died| ReadError::Worker { object: object.clone(), why: died.to_string() })?;
    match (Arc::into_inner(failed).and_then(OnceLock::into_inner), verified) {
        (Some(error), _) => Err(error.into()),
        (None, Ok(verified)) => Ok(verified),
        (None, Err(source)) => Err(ReadError::Archive { object, source }),
    }
}

/// An object that is read.
struct Reading {
    store: Store,
    key: ObjectKey,
    length: u64,
    pace: Arc<Pace>,
    failed: Arc<OnceLock<StoreError>>,
    left: CancellationToken,
}

impl Reading {
    /// The bytes of the object, a piece at a time; ends at the first failure.
    fn pieces(self) -> Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>> {
        Box::pin(futures::stream::unfold((0, self), |(at, this)| async move {
            if at >= this.length {
                return None;
            }
            let to = (at + piece(&this.pace)).min(this.length);
            tokio::select! {
                () = this.left.cancelled() => {
                    return Some((Err(std::io::Error::other("nobody waits")), (this.length, this)));
                }
                () = this.pace.take(to - at) => {}
            }
            match this.store.get_range(&this.key, at..to).await {
                Ok(piece) => Some((Ok(piece), (to, this))),
                Err(error) => {
                    let told = std::io::Error::other(error.to_string());
                    // Only the first failure counts.
                    let _ = this.failed.set(error);
                    Some((Err(told), (this.length, this)))
                }
            }
        }))
    }
}

/// Bytes one request asks for: what a second allows, within reason.
fn piece(pace: &Pace) -> u64 {
    pace.per_second().unwrap_or(PIECE_BYTES).clamp(PIECE_BYTES_MIN, PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_what_a_second_allows_within_reason() {
        let pieces = [1, 1 << 20, 1 << 30].map(|bytes| piece(&Pace::of(bytes)));
        assert_eq!(pieces, [256 << 10, 1 << 20, 8 << 20]);
        assert_eq!(piece(&Pace::unlimited()), 8 << 20);
    }
}
