//! Owns one `WatchArchived`: what is known first, then changes, at a bounded rate.

use std::collections::BTreeSet;
use std::time::Duration;

use tierd_proto::v1::{self, WatchArchivedResponse};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;
use crate::catalog::{Following, Watermarks};
use crate::record::TopicPartition;

/// Least time between two tellings: a broker deletes segments, which it fills in
/// minutes, so what comes closer together is told together.
const PACE: Duration = Duration::from_millis(100);
/// Partitions of one message: some 300 KiB with the longest names.
const PARTITIONS_PER_MESSAGE: usize = 1_000;

type Messages = mpsc::Sender<Result<WatchArchivedResponse, Status>>;

/// One caller that follows watermarks.
#[derive(Debug)]
pub(super) struct Watch {
    following: Following,
    /// All, where it is empty.
    wanted: BTreeSet<TopicPartition>,
    closing: CancellationToken,
}

impl Watch {
    pub(super) fn new(
        watermarks: &Watermarks,
        wanted: BTreeSet<TopicPartition>,
        closing: CancellationToken,
    ) -> Self {
        Self { following: watermarks.follow(), wanted, closing }
    }

    /// Tells `messages` until nobody listens or the daemon stops.
    pub(super) async fn run(mut self, messages: Messages) {
        let closing = self.closing.clone();
        tokio::select! {
            () = self.tell(&messages) => {}
            () = messages.closed() => {}
            () = closing.cancelled() => {
                let stopping = Status::unavailable("tierd is stopping; follow again");
                // Nobody listens, or the queue is full: then the stream just ends.
                let _ = messages.try_send(Err(stopping));
            }
        }
    }

    async fn tell(&mut self, messages: &Messages) {
        let mut pace: Interval = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut initial = true;
        loop {
            pace.tick().await;
            for message in self.next_messages(initial) {
                if messages.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            initial = false;
            if !self.following.changed().await {
                return;
            }
        }
    }

    /// What is to be told now. The last message of the first round says that it is.
    fn next_messages(&mut self, initial: bool) -> Vec<WatchArchivedResponse> {
        let mut changes = self.following.changes();
        if !self.wanted.is_empty() {
            changes.retain(|(tp, _)| self.wanted.contains(tp));
        }
        let message = |part: &[_]| {
            let partitions: Vec<v1::Watermark> = part.iter().map(convert::watermark).collect();
            WatchArchivedResponse { partitions, initial_complete: false }
        };
        let mut messages: Vec<_> = changes.chunks(PARTITIONS_PER_MESSAGE).map(message).collect();
        if initial {
            if messages.is_empty() {
                messages.push(WatchArchivedResponse::default());
            }
            if let Some(last) = messages.last_mut() {
                last.initial_complete = true;
            }
        }
        messages
    }
}
