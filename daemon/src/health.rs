//! Owns what a daemon says of itself to those who may stop it: has it started,
//! does it get on, may it be sent work.
//!
//! Does not own how it is asked (`http`, the health service of `grpc`). Nothing
//! here looks at the object store or the broker: an outage of theirs must not
//! restart a daemon that waits for its end, nor take the broker's Pod down.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// Where a daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not all listeners are bound yet.
    Starting,
    /// It serves.
    Serving,
    /// It was told to stop and finishes what it began.
    Draining,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        })
    }
}

/// A loop that has not gone round for longer than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} made no progress for {} s, longer than {} s", silent.as_secs(), limit.as_secs())]
pub struct Stuck {
    /// Which loop.
    pub name: String,
    /// Since when, by the monotonic clock.
    pub silent: Duration,
    /// How long it may be silent.
    pub limit: Duration,
}

/// The health of one daemon. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    phase: AtomicU8,
    loops: Mutex<Vec<Arc<Loop>>>,
}

#[derive(Debug)]
struct Loop {
    name: String,
    limit: Duration,
    /// Monotonic milliseconds.
    touched: AtomicU64,
}

impl Health {
    /// A daemon that starts.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let phase = AtomicU8::new(Phase::Starting as u8);
        Self { inner: Arc::new(Inner { clock, phase, loops: Mutex::default() }) }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.inner.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// All listeners are bound.
    pub fn serves(&self) {
        self.reach(Phase::Serving);
    }

    /// It was told to stop.
    pub fn drains(&self) {
        self.reach(Phase::Draining);
    }

    /// Phases only advance: a late start does not undo a stop.
    fn reach(&self, phase: Phase) {
        self.inner.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Watches a loop: it must touch what is returned at least every `limit`.
    #[must_use]
    pub fn watch(&self, name: impl Into<String>, limit: Duration) -> Progress {
        let touched = AtomicU64::new(self.now());
        let watched = Arc::new(Loop { name: name.into(), limit, touched });
        self.loops().push(Arc::clone(&watched));
        Progress { health: self.clone(), watched }
    }

    /// Whether every loop gets on. One that drains is given its time: its loops
    /// end, and what it finishes is bounded elsewhere.
    ///
    /// # Errors
    /// The loop that has been silent the longest.
    pub fn live(&self) -> Result<(), Stuck> {
        if self.phase() == Phase::Draining {
            return Ok(());
        }
        let now = self.now();
        let stuck =
            self.loops().iter().filter_map(|watched| watched.stuck(now)).max_by_key(|s| s.silent);
        stuck.map_or(Ok(()), Err)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.inner.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    fn loops(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Loop>>> {
        self.inner.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop {
    fn stuck(&self, now: u64) -> Option<Stuck> {
        let touched = self.touched.load(Ordering::Relaxed);
        let silent = Duration::from_millis(now.saturating_sub(touched));
        let (name, limit) = (self.name.clone(), self.limit);
        (silent > limit).then_some(Stuck { name, silent, limit })
    }
}

/// The hand of a watched loop. Dropped without [`Self::ends`], as by a panic, the
/// loop counts as silent from then on.
#[derive(Debug)]
pub struct Progress {
    health: Health,
    watched: Arc<Loop>,
}

impl Progress {
    /// The loop got on.
    pub fn touch(&self) {
        self.watched.touched.store(self.health.now(), Ordering::Relaxed);
    }

    /// The loop ends as it should.
    pub fn ends(self) {
        self.health.loops().retain(|watched| !Arc::ptr_eq(watched, &self.watched));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn health() -> (Health, Arc<ManualClock>) {
        let clock = ManualClock::at(0);
        let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        (Health::new(as_clock), clock)
    }

    #[test]
    fn phases_only_advance() {
        let (health, _) = health();
        assert_eq!(health.phase(), Phase::Starting);
        health.serves();
        assert_eq!(health.phase(), Phase::Serving);
        health.drains();
        health.serves();
        assert_eq!(health.phase(), Phase::Draining);
    }

    #[test]
    fn a_daemon_without_loops_is_live() {
        let (health, clock) = health();
        clock.advance(Duration::from_secs(1_000_000));
        assert_eq!(health.live(), Ok(()));
    }

    #[test]
    fn a_loop_that_is_silent_too_long_is_named() {
        let (health, clock) = health();
        let quick = health.watch("scan", Duration::from_secs(60));
        let slow = health.watch("upload", Duration::from_secs(600));
        clock.advance(Duration::from_secs(60));
        assert_eq!(health.live(), Ok(()));
        clock.advance(Duration::from_secs(1));
        let stuck = health.live().unwrap_err();
        assert_eq!((stuck.name.as_str(), stuck.silent.as_secs()), ("scan", 61));
        assert_eq!(stuck.to_string(), "scan made no progress for 61 s, longer than 60 s");
        quick.touch();
        assert_eq!(health.live(), Ok(()));
        slow.ends();
        clock.advance(Duration::from_secs(50));
        assert_eq!(health.live(), Ok(()));
    }

    #[test]
    fn a_loop_that_died_is_missed_and_one_that_ended_is_not() {
        let (health, clock) = health();
        drop(health.watch("died", Duration::from_secs(1)));
        health.watch("ended", Duration::from_secs(1)).ends();
        clock.advance(Duration::from_secs(5));
        assert_eq!(health.live().unwrap_err().name, "died");
    }

    #[test]
    fn a_daemon_that_drains_is_given_its_time() {
        let (health, clock) = health();
        let _loop = health.watch("scan", Duration::from_secs(1));
        clock.advance(Duration::from_secs(9));
        assert!(health.live().is_err());
        health.drains();
        assert_eq!(health.live(), Ok(()));
    }
}
