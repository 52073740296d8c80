//! Owns what the broker last said of itself and its partitions. In memory: a broker
//! reports again after either side starts, and what must survive is in manifests.
//!
//! Does not own what follows from it: the indexer archives nothing above the
//! committed end, the fetch fences callers of another epoch, both by asking here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::record::TopicPartition;

/// Partitions remembered: a broker leads some thousands. One costs some hundred bytes.
const PARTITIONS_MAX: usize = 200_000;

/// What the broker is for a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It did not say.
    #[default]
    Unknown,
    /// It leads.
    Leader,
    /// It follows.
    Follower,
}

/// What the broker says of one partition; absent is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The topic's id.
    pub topic_id: Option<[u8; 16]>,
    /// What the broker is for it.
    pub role: Role,
    /// Its leader epoch.
    pub leader_epoch: Option<i32>,
    /// The leader epochs of the log; empty is not said.
    pub lineage: Lineage,
    /// First offset that is not committed.
    pub high_watermark: Option<i64>,
    /// First offset of the earliest transaction without an end, else the high watermark.
    pub last_stable_offset: Option<i64>,
    /// First offset of the log.
    pub log_start: Option<i64>,
    /// First offset that the broker's own disk holds.
    pub local_log_start: Option<i64>,
    /// First offset after the last record.
    pub log_end: Option<i64>,
}

impl Report {
    /// First offset that must not be archived yet: what is not committed may be
    /// truncated, and of an open transaction nobody knows how it ends.
    #[must_use]
    pub fn stable_end(&self) -> Option<i64> {
        match (self.high_watermark, self.last_stable_offset) {
            (Some(high), Some(stable)) => Some(high.min(stable)),
            (high, stable) => high.or(stable),
        }
    }
}

/// The leader epochs of a log with the first offset of each, both ascending (KIP-101).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(Vec<(i32, i64)>);

impl Lineage {
    /// From pairs of an epoch and its first offset.
    #[must_use]
    pub fn new(epochs: Vec<(i32, i64)>) -> Self {
        Self(epochs)
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The leader epoch of `offset`.
    #[must_use]
    pub fn epoch_at(&self, offset: i64) -> Option<i32> {
        let before = self.0.partition_point(|(_, start)| *start <= offset);
        before.checked_sub(1).map(|at| self.0[at].0)
    }

    /// Whether a batch of `epoch` that begins at `base` was truncated: that offset is
    /// of another epoch. Nothing is said of epochs later than all of these, nor of a
    /// batch without one.
    #[must_use]
    pub fn took_back(&self, base: i64, epoch: i32) -> bool {
        let newest = self.0.last().map_or(-1, |(newest, _)| *newest);
        (0..=newest).contains(&epoch) && self.epoch_at(base).is_some_and(|of| of != epoch)
    }
}

/// Why a report is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// A later leader epoch was reported before.
    #[error("leader epoch {reported} of {tp} is older than {known}, which was reported before")]
    Fenced {
        /// The partition.
        tp: TopicPartition,
        /// The epoch of this report.
        reported: i32,
        /// The newest that was reported.
        known: i32,
    },
    /// It contradicts itself.
    #[error("the report of {tp} makes no sense: {why}")]
    Invalid {
        /// The partition.
        tp: TopicPartition,
        /// What contradicts what.
        why: String,
    },
    /// There are too many partitions.
    #[error("{PARTITIONS_MAX} partitions are reported already, {tp} is one too many")]
    Full {
        /// The partition.
        tp: TopicPartition,
    },
}

#[derive(Debug, Default)]
struct State {
    /// Whether this process archives beside a broker.
    taken: bool,
    broker_started_ms: Option<i64>,
    partitions: HashMap<TopicPartition, Report>,
}

/// The broker's reports.
#[derive(Debug, Default)]
pub struct Reports(Mutex<State>);

impl Reports {
    /// Takes reports from now on: this process archives beside a broker.
    pub fn open(&self) {
        self.state().taken = true;
    }

    /// Whether reports are taken.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state().taken
    }

    /// Takes when the broker started, in milliseconds since 1970. A start earlier
    /// than a known one is late news.
    pub fn broker_started(&self, at_ms: i64) {
        let mut state = self.state();
        state.broker_started_ms = state.broker_started_ms.max(Some(at_ms));
    }

    /// When the broker started, in milliseconds since 1970.
    #[must_use]
    pub fn broker_started_ms(&self) -> Option<i64> {
        self.state().broker_started_ms
    }

    /// Takes what is said of `tp`. What a report leaves out stays as it was told
    /// last, unless the topic is another.
    ///
    /// # Errors
    /// When it makes no sense or comes from an older leader. Nothing is taken then.
    pub fn report(&self, tp: &TopicPartition, new: Report) -> Result<(), ReportError> {
        check(&new).map_err(|why| ReportError::Invalid { tp: tp.clone(), why })?;
        let mut state = self.state();
        if state.partitions.len() >= PARTITIONS_MAX && !state.partitions.contains_key(tp) {
            return Err(ReportError::Full { tp: tp.clone() });
        }
        let known = state.partitions.entry(tp.clone()).or_default();
        let other_topic =
            known.topic_id.is_some() && new.topic_id.is_some() && known.topic_id != new.topic_id;
        if other_topic {
            *known = new;
            return Ok(());
        }
        if let (Some(reported), Some(before)) = (new.leader_epoch, known.leader_epoch)
            && reported < before
        {
            return Err(ReportError::Fenced { tp: tp.clone(), reported, known: before });
        }
        *known = Report {
            topic_id: new.topic_id.or(known.topic_id),
            role: if new.role == Role::Unknown { known.role } else { new.role },
            leader_epoch: new.leader_epoch.or(known.leader_epoch),
            lineage: if new.lineage.is_empty() {
                std::mem::take(&mut known.lineage)
            } else {
                new.lineage
            },
            high_watermark: new.high_watermark.or(known.high_watermark),
            last_stable_offset: new.last_stable_offset.or(known.last_stable_offset),
            log_start: new.log_start.or(known.log_start),
            local_log_start: new.local_log_start.or(known.local_log_start),
            log_end: new.log_end.or(known.log_end),
        };
        Ok(())
    }

    /// What was said of `tp`.
    #[must_use]
    pub fn of(&self, tp: &TopicPartition) -> Option<Report> {
        self.state().partitions.get(tp).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(report: &Report) -> Result<(), String> {
    let offsets = [
        ("high watermark", report.high_watermark),
        ("last stable offset", report.last_stable_offset),
        ("log start", report.log_start),
        ("local log start", report.local_log_start),
        ("log end", report.log_end),
    ];
    for (what, offset) in offsets {
        if let Some(offset) = offset.filter(|offset| *offset < 0) {
            return Err(format!("{what} {offset} is negative"));
        }
    }
    if let (Some(stable), Some(high)) = (report.last_stable_offset, report.high_watermark)
        && stable > high
    {
        return Err(format!("last stable offset {stable} lies above high watermark {high}"));
    }
    if let (Some(high), Some(end)) = (report.high_watermark, report.log_end)
        && high > end
    {
        return Err(format!("high watermark {high} lies above log end {end}"));
    }
    if report.leader_epoch.is_some_and(|epoch| epoch < 0) {
        return Err("a negative leader epoch".to_owned());
    }
    if !report.lineage.0.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
        return Err("leader epochs that do not ascend".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicName;

    fn tp() -> TopicPartition {
        TopicPartition::new(TopicName::new("orders").unwrap(), 3).unwrap()
    }

    #[test]
    fn what_a_report_leaves_out_stays() {
        let reports = Reports::default();
        let first = Report { high_watermark: Some(9), leader_epoch: Some(2), ..Report::default() };
        reports.report(&tp(), first).unwrap();
        let second = Report { last_stable_offset: Some(7), ..Report::default() };
        reports.report(&tp(), second).unwrap();
        let known = reports.of(&tp()).unwrap();
        assert_eq!((known.leader_epoch, known.stable_end()), (Some(2), Some(7)));
    }

    #[test]
    fn an_older_leader_is_not_heard_unless_the_topic_is_another() {
        let reports = Reports::default();
        let report = |id: u8, epoch| Report {
            topic_id: Some([id; 16]),
            leader_epoch: Some(epoch),
            high_watermark: Some(100),
            ..Report::default()
        };
        reports.report(&tp(), report(1, 5)).unwrap();
        let error = reports.report(&tp(), report(1, 4)).unwrap_err();
        assert!(matches!(error, ReportError::Fenced { reported: 4, known: 5, .. }), "{error}");
        let born = Report { high_watermark: None, ..report(2, 0) };
        reports.report(&tp(), born).unwrap();
        let known = reports.of(&tp()).unwrap();
        assert_eq!((known.leader_epoch, known.stable_end()), (Some(0), None));
    }

    #[test]
    fn a_report_that_contradicts_itself_changes_nothing() {
        let reports = Reports::default();
        for report in [
            Report { high_watermark: Some(-1), ..Report::default() },
            Report { high_watermark: Some(4), last_stable_offset: Some(5), ..Report::default() },
            Report { lineage: Lineage::new(vec![(2, 0), (1, 9)]), ..Report::default() },
            Report { leader_epoch: Some(-1), ..Report::default() },
        ] {
            let error = reports.report(&tp(), report).unwrap_err();
            assert!(matches!(error, ReportError::Invalid { .. }), "{error}");
        }
        assert!(reports.of(&tp()).is_none());
    }

    #[test]
    fn a_lineage_tells_the_epoch_of_an_offset() {
        let lineage = Lineage::new(vec![(1, 10), (4, 20)]);
        let epochs = [9, 10, 19, 20].map(|offset| lineage.epoch_at(offset));
        assert_eq!(epochs, [None, Some(1), Some(1), Some(4)]);
    }

    #[test]
    fn a_batch_of_an_epoch_that_its_offset_is_not_of_was_taken_back() {
        let lineage = Lineage::new(vec![(1, 10), (4, 20)]);
        let taken = |base, epoch| lineage.took_back(base, epoch);
        assert!(taken(20, 1), "an older leader's suffix");
        assert!(taken(15, 3), "a leader's that the log never took over");
        assert!(taken(15, 4), "epoch 4 begins later");
        assert!(!taken(15, 1) && !taken(20, 4));
        assert!(!taken(25, 5), "a later epoch: the report is behind");
        assert!(!taken(9, 0), "the lineage begins later");
        assert!(!taken(15, -1), "the batch says none");
        assert!(!Lineage::default().took_back(0, 0));
    }

    #[test]
    fn a_broker_that_started_earlier_than_known_is_late_news() {
        let reports = Reports::default();
        for at_ms in [5, 9, 7] {
            reports.broker_started(at_ms);
        }
        assert_eq!(reports.broker_started_ms(), Some(9));
    }
}
