//! Owns what is wanted of one topic, in plain values.

use std::time::Duration;

use super::retention::Limits;

/// What is wanted of the partitions of a topic. The default keeps everything, as
/// it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What the newest life of the topic need not keep.
    pub limits: Limits,
    /// How long an older life of the topic's name is kept once a newer one began;
    /// for ever where nothing is said. Its limits hold besides.
    pub old_incarnations: Option<Duration>,
    /// Bytes of log to merge neighbours into; none where they stay as they are.
    pub merge_target: Option<u64>,
}

/// Which part of a policy is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Age of records.
    Time,
    /// Bytes of archives.
    Size,
    /// Offsets before the end.
    Offset,
    /// All that are set.
    Hybrid,
    /// Neighbours become one, whatever the limits.
    Merge,
}

impl Policy {
    /// This policy with only what `strategies` name.
    #[must_use]
    pub fn only(self, strategies: &[Strategy]) -> Self {
        let wanted = |one| strategies.contains(&one) || strategies.contains(&Strategy::Hybrid);
        let limits = Limits {
            time: self.limits.time.filter(|_| wanted(Strategy::Time)),
            bytes: self.limits.bytes.filter(|_| wanted(Strategy::Size)),
            offsets: self.limits.offsets.filter(|_| wanted(Strategy::Offset)),
        };
        let old_incarnations = self.old_incarnations.filter(|_| wanted(Strategy::Time));
        let merge_target = self.merge_target.filter(|_| strategies.contains(&Strategy::Merge));
        Self { limits, old_incarnations, merge_target }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_one_limit_and_hybrid_is_all_of_them() {
        let limits =
            Limits { time: Some(Duration::from_secs(1)), bytes: Some(2), offsets: Some(3) };
        let (old_incarnations, merge_target) = (Some(Duration::ZERO), Some(7));
        let all = Policy { limits, old_incarnations, merge_target };
        assert_eq!(all.only(&[Strategy::Hybrid, Strategy::Merge]), all);
        let limits_only = Policy { merge_target: None, ..all };
        assert_eq!(all.only(&[Strategy::Hybrid]), limits_only);
        assert_eq!(all.only(&[Strategy::Time, Strategy::Size, Strategy::Offset]), limits_only);
        assert_eq!(all.only(&[]), Policy::default());
        let size = all.only(&[Strategy::Size]);
        assert_eq!(size.limits, Limits { bytes: Some(2), ..Limits::default() });
        assert_eq!(size.old_incarnations, None);
    }
}
