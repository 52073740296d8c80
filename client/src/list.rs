//! Owns the list of archives as it comes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{Stream, StreamExt};

use crate::describe::ArchiveInfo;
use crate::error::ArchiveError;

/// Archives, by topic, partition and first offset. After an error it ends.
pub struct ArchiveList(Pin<Box<dyn Stream<Item = Result<ArchiveInfo, ArchiveError>> + Send>>);

impl ArchiveList {
    pub(crate) fn new(
        items: impl Stream<Item = Result<ArchiveInfo, ArchiveError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(items))
    }

    /// The next archive; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<ArchiveInfo, ArchiveError>> {
        self.0.next().await
    }
}

impl Stream for ArchiveList {
    type Item = Result<ArchiveInfo, ArchiveError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for ArchiveList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveList")
    }
}
