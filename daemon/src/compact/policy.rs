//! Owns what is wanted of one topic, in plain values.

use std::time::Duration;

use super::retention::Limits;

/// What is wanted of the partitions of a topic. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What the newest life of the topic need not keep.
    pub limits: Limits,
    /// How long an older life of the topic's name is kept once a newer one began;
    /// for ever where nothing is said. Its limits hold besides.
    pub old_incarnations: Option<Duration>,
}

/// Which of a policy's limits are looked at.
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
}

impl Policy {
    /// This policy with only the limits that `strategies` name.
    #[must_use]
    pub fn only(self, strategies: &[Strategy]) -> Self {
        let wanted = |one| strategies.contains(&one) || strategies.contains(&Strategy::Hybrid);
        let limits = Limits {
            time: self.limits.time.filter(|_| wanted(Strategy::Time)),
            bytes: self.limits.bytes.filter(|_| wanted(Strategy::Size)),
            offsets: self.limits.offsets.filter(|_| wanted(Strategy::Offset)),
        };
        let old_incarnations = self.old_incarnations.filter(|_| wanted(Strategy::Time));
        Self { limits, old_incarnations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_one_limit_and_hybrid_is_all_of_them() {
        let limits =
            Limits { time: Some(Duration::from_secs(1)), bytes: Some(2), offsets: Some(3) };
        let all = Policy { limits, old_incarnations: Some(Duration::ZERO) };
        assert_eq!(all.only(&[Strategy::Hybrid]), all);
        assert_eq!(all.only(&[Strategy::Time, Strategy::Size, Strategy::Offset]), all);
        assert_eq!(all.only(&[]), Policy::default());
        let size = all.only(&[Strategy::Size]);
        assert_eq!(size.limits, Limits { bytes: Some(2), ..Limits::default() });
        assert_eq!(size.old_incarnations, None);
    }
}
