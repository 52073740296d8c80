//! Owns what the calls beside the fetch share: the partition's manifest or why
//! there is none, and a second try where an archive was replaced meanwhile.

use std::future::Future;
use std::sync::Arc;

use super::types::{PartitionState, Status};
use super::{FetchError, Fetcher, RELOADS_MAX, state_of};
use crate::catalog::Snapshot;
use crate::error::Classify;
use crate::record::TopicPartition;

/// What came of a question about one partition.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// Where the partition stood; `None` where no manifest was read.
    pub state: Option<PartitionState>,
    /// The answer, or why there is none.
    pub result: Result<T, Refusal>,
}

/// Why a question about one partition has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is; never [`Status::Ok`].
    pub status: Status,
    /// For people: what, where, what to do.
    pub message: String,
    /// The object that failed, for [`Status::DataLoss`].
    pub object: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), object: None }
    }
}

impl From<FetchError> for Refusal {
    fn from(error: FetchError) -> Self {
        let (status, object) = (error.kind().into(), error.object());
        Self { status, message: error.to_string(), object }
    }
}

/// What `ask` finds in the newest manifest of a partition. An archive that is gone
/// was replaced: then a newer manifest is asked, as often as a fetch would.
pub(super) async fn answered<T, F>(
    fetcher: &Fetcher,
    tp: &TopicPartition,
    incarnation: Option<u32>,
    ask: impl Fn(Arc<Snapshot>) -> F,
) -> Answered<T>
where
    F: Future<Output = Result<Result<T, Refusal>, FetchError>>,
{
    let mut snapshot = match fetcher.snapshot(tp, incarnation).await {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => {
            let message = format!("nothing of {tp} is archived");
            let unknown = Refusal::new(Status::UnknownTopicOrPartition, message);
            return Answered { state: None, result: Err(unknown) };
        }
        Err(error) => return Answered { state: None, result: Err(error.into()) },
    };
    let mut reloads = 0;
    loop {
        let error = match ask(Arc::clone(&snapshot)).await {
            Ok(result) => return Answered { state: Some(state_of(&snapshot)), result },
            Err(error) => error,
        };
        reloads += 1;
        if reloads <= RELOADS_MAX
            && let Some(newer) = fetcher.replaced(&snapshot, &error).await
        {
            snapshot = newer;
            continue;
        }
        return Answered { state: Some(state_of(&snapshot)), result: Err(error.into()) };
    }
}
