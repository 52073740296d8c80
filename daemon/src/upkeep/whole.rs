//! Owns reading one archive whole, with other decoders than the read path's.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::Stream;
use tokio_util::io::StreamReader;

use crate::archive::{TocPlace, Verified, verify_stream};
use crate::read::ReadError;
use crate::store::{ObjectKey, Store, StoreError};

/// Bytes one request asks for.
const PIECE_BYTES: u64 = 8 << 20;

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
) -> Result<Verified, ReadError> {
    let object = key.to_string();
    let packed_toc = store.get_range(key, place.range()).await?;
    // The decoders see a failed request as a stream that ends: what failed is kept.
    let failed: Arc<OnceLock<StoreError>> = Arc::default();
    let pieces = pieces(store.clone(), key.clone(), length, Arc::clone(&failed));
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

/// The bytes of an object, [`PIECE_BYTES`] at a time; ends at the first failure.
fn pieces(
    store: Store,
    key: ObjectKey,
    length: u64,
    failed: Arc<OnceLock<StoreError>>,
) -> Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>> {
    Box::pin(futures::stream::unfold((0, failed), move |(at, failed)| {
        let (store, key) = (store.clone(), key.clone());
        async move {
            if at >= length {
                return None;
            }
            let to = (at + PIECE_BYTES).min(length);
            match store.get_range(&key, at..to).await {
                Ok(piece) => Some((Ok(piece), (to, failed))),
                Err(error) => {
                    let told = std::io::Error::other(error.to_string());
                    // Only the first failure counts.
                    let _ = failed.set(error);
                    Some((Err(told), (length, failed)))
                }
            }
        }
    }))
}
