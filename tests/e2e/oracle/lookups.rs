//! What a broker asks beside fetches: offsets by time and by leader epoch, and aborted
//! transactions by themselves; compared with a log that looks at every record.

use rand::RngExt;
use tierd::fetch::{EpochEnd, Isolation, OffsetQuery};
use tierd::record::OffsetRange;

use super::Bench;

/// Kafka's special timestamps.
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;
/// Times asked for, of each isolation.
const TIMES: usize = 12;
/// Ranges whose aborted transactions are asked for.
const RANGES: usize = 10;

impl Bench {
    /// Compares what ListOffsets and OffsetForLeaderEpoch find.
    pub(super) async fn look_up(&mut self) {
        for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
            for _ in 0..TIMES {
                let random = &mut self.random;
                // Around the times that records have, before all and after all.
                let around =
                    self.log.wal[random.random_range(0..self.log.wal.len())].records[0].time;
                let timestamp = (around + random.random_range(-200..200)).max(0);
                let from = random.random_range(0..=self.log.through);
                let starting_offset = random.random_bool(0.5).then_some(from);
                let bound = random.random_range(0..=self.log.through + 3);
                let upper_bound = random.random_bool(0.5).then_some(bound);
                for timestamp in [timestamp, MAX_TIMESTAMP] {
                    let incarnation = self.incarnation;
                    self.time(OffsetQuery {
                        tp: self.tp.clone(),
                        incarnation,
                        timestamp,
                        starting_offset,
                        upper_bound,
                        isolation,
                        leader_epoch: None,
                    })
                    .await;
                }
            }
        }
        for (timestamp, offset) in [
            (EARLIEST, 0),
            (LATEST_TIERED, self.log.through - 1),
            (EARLIEST_PENDING_UPLOAD, self.log.through),
        ] {
            let query = OffsetQuery {
                tp: self.tp.clone(),
                incarnation: self.incarnation,
                timestamp,
                starting_offset: None,
                upper_bound: None,
                isolation: Isolation::ReadUncommitted,
                leader_epoch: None,
            };
            let found = self.rooms.fetcher.offsets(&[query]).await.pop().unwrap();
            let found = found.result.unwrap().unwrap();
            assert_eq!((found.offset, found.timestamp), (offset, -1), "timestamp {timestamp}");
        }
        // Where epochs go back along the log, because it was written out of order, no
        // broker could say where one ends.
        if self.log.epochs_ascend() {
            for epoch in -1..=self.log.greatest_epoch() + 2 {
                self.epoch(epoch).await;
            }
        }
    }

    /// Asks for the aborted transactions of ranges, which may begin or end anywhere.
    pub(super) async fn list_aborted(&mut self) {
        let through = self.log.through;
        for _ in 0..RANGES {
            let base = self.random.random_range(0..through);
            let last = self.random.random_range(base..through + 3);
            let range = OffsetRange::new(base, last).unwrap();
            let found = self.rooms.fetcher.aborted(&self.tp, self.incarnation, range).await;
            self.check_list(&found.result.unwrap(), range, base..=last);
        }
    }

    async fn time(&self, query: OffsetQuery) {
        let log = &self.log;
        let mut bound = query.upper_bound.unwrap_or(log.through).min(log.through);
        if query.isolation == Isolation::ReadCommitted && query.upper_bound.is_none() {
            bound = log.last_stable_offset();
        }
        let from = query.starting_offset.unwrap_or(0);
        let expected = match query.timestamp {
            MAX_TIMESTAMP => log.greatest_time(from, bound),
            wanted => log.first_from(from, bound, wanted),
        };
        let found = self.rooms.fetcher.offsets(std::slice::from_ref(&query)).await.pop().unwrap();
        let found = found.result.unwrap();
        let found = found.map(|found| (found.offset, found.timestamp, found.leader_epoch));
        assert_eq!(found, expected, "{query:?}");
    }

    async fn epoch(&self, epoch: i32) {
        let found = self
            .rooms
            .fetcher
            .epoch_end(&self.tp, self.incarnation, None, epoch)
            .await
            .result
            .unwrap();
        let (leader_epoch, end_offset) = self.log.epoch_end(epoch);
        assert_eq!(found, EpochEnd { leader_epoch, end_offset }, "epoch {epoch}");
    }
}
