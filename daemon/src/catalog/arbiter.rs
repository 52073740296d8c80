//! Owns deciding who has a name: create-only, and reading back where the answer
//! does not tell.
//!
//! "Exists" may be our own earlier attempt, or a store that answers 409 when it
//! does not know; no answer may be a create that landed. Only the bytes decide,
//! so whatever is created here carries a nonce.

use bytes::Bytes;

use crate::error::{Classify, ErrorKind};
use crate::store::{Create, ObjectKey, Store, StoreError};

use super::error::CatalogError;

/// Times an object is sent whose create told nothing and which then is not there.
/// Should two of them land after all, they are the same bytes.
const CREATES_MAX: u32 = 3;

/// Creates an object of at most `max` bytes if its name is free, and returns the
/// bytes that have the name: equal to `bytes` where it is ours.
pub(super) async fn create(
    store: &Store,
    key: &ObjectKey,
    bytes: &Bytes,
    max: u64,
) -> Result<Bytes, CatalogError> {
    let mut failed = None;
    for _ in 0..CREATES_MAX {
        match store.create(key, bytes.clone()).await {
            Ok(Create::Done) => return Ok(bytes.clone()),
            Ok(Create::Exists) => {}
            Err(error) if error.kind() == ErrorKind::Retry => failed = Some(error),
            Err(error) => return Err(error.into()),
        }
        match store.get(key, max).await {
            Ok(found) => {
                if found == *bytes {
                    store.settle(key).await?;
                }
                return Ok(found);
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(match failed {
        Some(error) => error.into(),
        None => CatalogError::Unsettled { what: key.to_string() },
    })
}
