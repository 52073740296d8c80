//! Owns whose turn it is where several daemons archive copies of one partition.
//! Pure: no file, no clock.
//!
//! Nobody holds a lease. Who committed last goes on; every other one stands by, and
//! acts when the same batch has been waiting for [`STANDBY_WAIT`]: the one who
//! committed last is gone, or his WAL lacks it. Whose broker says that it leads acts at
//! once. Should both act, the catalog decides, and the loser stands by in his turn. It
//! saves work and never decides what is right.

use std::time::Duration;

/// How long a standby sees the same backlog before it acts.
pub const STANDBY_WAIT: Duration = Duration::from_secs(60);

/// What tells one batch from another: offsets, length and checksum.
type Batch = (i64, i64, u32, u32);

/// What one daemon has seen of one partition's backlog.
#[derive(Debug)]
pub(super) struct Standby {
    wait: Duration,
    /// The first batch that is not committed, and since when it is known.
    waiting: Option<(Batch, Duration)>,
}

impl Standby {
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, waiting: None }
    }

    /// When this daemon may archive, monotonic: no later than `now`, or a time to
    /// look again at. `others` says whether it is another writer's, who
    /// committed last, `oldest` which batch is the first that is not committed.
    pub(super) fn turn(&mut self, others: bool, oldest: Option<Batch>, now: Duration) -> Duration {
        self.waiting = oldest.filter(|_| others).map(|oldest| match self.waiting {
            Some((known, since)) if known == oldest => (known, since),
            _ => (oldest, now),
        });
        self.waiting.map_or(now, |(_, since)| since.saturating_add(self.wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<Batch> = Some((0, 9, 100, 7));
    const TWO: Option<Batch> = Some((10, 19, 100, 8));

    fn turn(standby: &mut Standby, others: bool, oldest: Option<Batch>, now: u64) -> u64 {
        standby.turn(others, oldest, Duration::from_secs(now)).as_secs()
    }

    #[test]
    fn who_committed_last_never_waits() {
        let mut standby = Standby::new(STANDBY_WAIT);
        assert_eq!(turn(&mut standby, false, ONE, 5), 5);
        assert_eq!(turn(&mut standby, true, ONE, 6), 66, "not counted before");
        assert_eq!(turn(&mut standby, false, ONE, 7), 7);
        assert_eq!(turn(&mut standby, true, ONE, 8), 68, "nor from an earlier wait");
    }

    #[test]
    fn a_standby_waits_from_when_it_first_saw_what_is_now_the_oldest() {
        let mut standby = Standby::new(STANDBY_WAIT);
        assert_eq!(turn(&mut standby, true, ONE, 100), 160);
        assert_eq!(turn(&mut standby, true, ONE, 159), 160);
        assert_eq!(turn(&mut standby, true, ONE, 400), 160, "it may act, and again if it fails");
        assert_eq!(turn(&mut standby, true, TWO, 401), 461, "the other one got on");
        assert_eq!(turn(&mut standby, true, None, 420), 420, "nothing is left to do");
        assert_eq!(turn(&mut standby, true, TWO, 430), 490);
    }
}
