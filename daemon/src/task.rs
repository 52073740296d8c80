//! Owns work that goes on for the life of the process: named tasks and the order
//! in which they stop, the rhythm of a loop, and how long to leave alone what fails.
//!
//! Does not own what the work is. Loops elsewhere are steps driven from here, so
//! that their tests need no sleeping.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::error::ErrorKind;

/// Least time between two rounds of a loop, however often it is woken.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Part of an interval by which each round comes earlier or later, so that many
/// daemons started together do not ask the store together.
const JITTER: f64 = 0.1;
/// Wait after the first failure; doubled after each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait after a failure that may pass by itself.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long what will not pass by itself is left alone. Somebody has to act, and
/// need not restart the daemon afterwards.
pub const QUARANTINE: Duration = Duration::from_secs(600);

/// Where jitter comes from: numbers from 0 to 1.
pub type Jitter = Arc<dyn Fn() -> f64 + Send + Sync>;

/// The rhythm of a loop: an interval with jitter, and being woken before its end.
pub struct Ticker {
    every: Duration,
    jitter: Jitter,
    wake: Arc<Notify>,
    sleep: Pin<Box<Sleep>>,
    last: Option<Instant>,
}

impl std::fmt::Debug for Ticker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticker").field("every", &self.every).finish_non_exhaustive()
    }
}

impl Ticker {
    /// Ticks at once, then about `every`, and soon after `wake` is notified.
    #[must_use]
    pub fn new(every: Duration, jitter: Jitter, wake: Arc<Notify>) -> Self {
        Self { every, jitter, wake, sleep: Box::pin(sleep(Duration::ZERO)), last: None }
    }

    /// Waits for the next round. May be dropped and called again: nothing is lost.
    pub async fn tick(&mut self) {
        tokio::select! {
            () = &mut self.sleep => {}
            () = self.wake.notified() => {
                // Woken too early: the end of the pause is the next round then.
                if let Some(last) = self.last {
                    self.sleep.as_mut().reset(last + PAUSE_MIN);
                    (&mut self.sleep).await;
                }
            }
        }
        let now = Instant::now();
        let factor = 1.0 + JITTER * (2.0 * (self.jitter)() - 1.0);
        self.sleep.as_mut().reset(now + self.every.mul_f64(factor));
        self.last = Some(now);
    }
}

/// How fast work may go: so many bytes a second, all users of one pace together.
#[derive(Debug, Default)]
pub struct Pace {
    per_second: Option<u64>,
    /// When the next bytes may go.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most `bytes` a second; at least one.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        Self { per_second: Some(bytes.max(1)), ..Self::default() }
    }

    /// As fast as it goes.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// Bytes a second, where there is a limit.
    #[must_use]
    pub fn per_second(&self) -> Option<u64> {
        self.per_second
    }

    /// Waits until `bytes` may be moved.
    pub async fn take(&self, bytes: u64) {
        if let Some(from) = self.reserve(bytes, Instant::now()) {
            tokio::time::sleep_until(from).await;
        }
    }

    /// When `bytes` asked for at `now` may be moved.
    fn reserve(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let time = Duration::from_secs_f64(bytes as f64 / self.per_second? as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let from = next.unwrap_or(now).max(now);
        *next = Some(from + time);
        Some(from)
    }
}

/// How long something that fails is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It may pass by itself: try again after this time.
    Briefly(Duration),
    /// It will not: tell the operator, and look again after this time.
    Quarantined(Duration),
}

impl Leave {
    /// The time.
    #[must_use]
    pub fn time(self) -> Duration {
        match self {
            Self::Briefly(time) | Self::Quarantined(time) => time,
        }
    }
}

impl Backoff {
    /// Takes in a failure. `jitter` is a number from 0 to 1.
    pub fn failed(&mut self, kind: ErrorKind, jitter: f64) -> Leave {
        match kind {
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Internal => {
                Leave::Quarantined(QUARANTINE)
            }
            ErrorKind::Retry | ErrorKind::NotFound | ErrorKind::Fenced | ErrorKind::Exhausted => {
                let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16));
                self.failures += 1;
                // Between half of it and all of it.
                Leave::Briefly(doubled.min(BACKOFF_MAX).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
            }
        }
    }

    /// Forgets the failures.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Any error: tasks of one set have different ones.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Why a set of tasks ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task failed.
    #[error("{name} failed")]
    Failed {
        /// Which.
        name: &'static str,
        /// Why.
        source: AnyError,
    },
    /// A task panicked, which is a defect.
    #[error("{name} died: {why}; this is a defect, please report it")]
    Died {
        /// Which.
        name: &'static str,
        /// What the runtime says.
        why: String,
    },
    /// Tasks were cut off by a second signal.
    #[error("stopped without waiting for {}", .names.join(", "))]
    Skipped {
        /// Which.
        names: Vec<&'static str>,
    },
}

struct Task {
    name: &'static str,
    stop: CancellationToken,
    handle: JoinHandle<Result<(), AnyError>>,
}

impl Task {
    fn outcome(
        &self,
        joined: Result<Result<(), AnyError>, tokio::task::JoinError>,
    ) -> Result<(), TaskError> {
        let name = self.name;
        match joined {
            Ok(ended) => ended.map_err(|source| TaskError::Failed { name, source }),
            Err(died) => Err(TaskError::Died { name, why: died.to_string() }),
        }
    }
}

/// Tasks that live as long as the process. When one ends, or a signal comes, all
/// are stopped, one after the other in the order they were added.
#[derive(Default)]
pub struct TaskSet {
    tasks: Vec<Task>,
}

impl std::fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.tasks.iter().map(|task| task.name).collect();
        f.debug_struct("TaskSet").field("tasks", &names).finish()
    }
}

impl TaskSet {
    /// Starts a task, which has to end soon after its token is cancelled.
    pub fn spawn<F>(&mut self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), AnyError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let handle = tokio::spawn(task(stop.clone()));
        self.tasks.push(Task { name, stop, handle });
    }

    /// Runs until a signal comes or a task ends, then stops all in order. A second
    /// signal cuts off what has not ended. The first failure is the one returned.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub async fn run(
        mut self,
        signal: impl Fn() -> BoxFuture<'static, ()> + Send + Sync,
    ) -> Result<(), TaskError> {
        let mut first = Ok(());
        if self.tasks.is_empty() {
            return first;
        }
        let ended = select_all(self.tasks.iter_mut().map(|task| &mut task.handle));
        tokio::select! {
            (joined, index, _) = ended => {
                first = self.tasks.remove(index).outcome(joined);
            }
            () = signal() => {}
        }
        let skip = signal().shared();
        while !self.tasks.is_empty() {
            let task = &mut self.tasks[0];
            task.stop.cancel();
            let joined = tokio::select! {
                joined = &mut task.handle => joined,
                () = skip.clone() => return first.and(self.cut_off()),
            };
            let ended = self.tasks.remove(0).outcome(joined);
            first = first.and(ended);
        }
        first
    }

    fn cut_off(self) -> Result<(), TaskError> {
        for task in &self.tasks {
            task.handle.abort();
        }
        Err(TaskError::Skipped { names: self.tasks.iter().map(|task| task.name).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn never() -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }

    fn now() -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }

    /// A task that notes its end once it is told to stop.
    fn orderly(set: &mut TaskSet, name: &'static str, log: &Log) {
        let log = Arc::clone(log);
        set.spawn(name, move |stop| async move {
            stop.cancelled().await;
            log.lock().unwrap().push(name);
            Ok(())
        });
    }

    #[tokio::test]
    async fn a_signal_stops_the_tasks_in_order() {
        let (mut set, log) = (TaskSet::default(), Log::default());
        for name in ["first", "second", "third"] {
            orderly(&mut set, name, &log);
        }
        let signals = Mutex::new(vec![never(), now()]);
        set.run(|| signals.lock().unwrap().pop().unwrap()).await.unwrap();
        assert_eq!(*log.lock().unwrap(), ["first", "second", "third"]);
    }

    #[tokio::test]
    async fn the_first_failure_stops_the_others_and_is_told() {
        let (mut set, log) = (TaskSet::default(), Log::default());
        orderly(&mut set, "orderly", &log);
        set.spawn("broken", |_| async { Err("no disk".into()) });
        set.spawn("worse", |stop| async move {
            stop.cancelled().await;
            Err("while stopping".into())
        });
        let error = set.run(never).await.unwrap_err();
        assert_eq!(error.to_string(), "broken failed");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no disk");
        assert_eq!(*log.lock().unwrap(), ["orderly"]);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_off_what_hangs() {
        let mut set = TaskSet::default();
        set.spawn("deaf", |_| never().map(|()| Ok(())));
        let error = set.run(now).await.unwrap_err().to_string();
        assert!(error.contains("deaf"), "{error}");
    }

    #[tokio::test]
    async fn a_panic_is_told_by_name() {
        let mut set = TaskSet::default();
        set.spawn("fragile", |_| async { panic!("as it should") });
        let error = set.run(never).await.unwrap_err().to_string();
        assert!(error.starts_with("fragile died"), "{error}");
    }

    #[test]
    fn waits_double_up_to_a_minute_and_are_spread_over_half_of_it() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..9).map(|_| backoff.failed(ErrorKind::Retry, 1.0).time().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff.failed(ErrorKind::Retry, 0.0).time().as_secs(), 30);
        backoff.succeeded();
        assert_eq!(backoff.failed(ErrorKind::Exhausted, 1.0).time().as_secs(), 1);
    }

    #[test]
    fn what_does_not_pass_by_itself_is_quarantined() {
        for kind in [ErrorKind::Corrupt, ErrorKind::Invalid, ErrorKind::Internal] {
            assert_eq!(Backoff::default().failed(kind, 0.5), Leave::Quarantined(QUARANTINE));
        }
    }

    #[test]
    fn a_pace_lets_so_many_bytes_pass_in_a_second_whoever_takes_them() {
        let (pace, now) = (Pace::of(100), Instant::now());
        let wait = |bytes, at| (pace.reserve(bytes, now + at).unwrap() - now).as_millis();
        let ms = Duration::from_millis;
        assert_eq!(wait(50, ms(0)), 0, "the first goes at once");
        assert_eq!(wait(50, ms(0)), 500);
        assert_eq!(wait(10, ms(100)), 1000);
        assert_eq!(wait(10, ms(5000)), 5000, "what was not used is not saved");
        assert_eq!(wait(10, ms(5000)), 5100);
        assert_eq!(Pace::unlimited().reserve(u64::MAX, now), None);
        assert_eq!((pace.per_second(), Pace::unlimited().per_second()), (Some(100), None));
    }

    #[tokio::test]
    async fn a_loop_ticks_at_once_and_then_when_woken() {
        let wake = Arc::new(Notify::new());
        let hour = Duration::from_secs(3600);
        let mut ticker = Ticker::new(hour, Arc::new(|| 0.5), Arc::clone(&wake));
        ticker.tick().await;
        assert!(ticker.tick().now_or_never().is_none());
        wake.notify_one();
        // A round that was woken and dropped in its pause comes with the next call.
        if ticker.tick().now_or_never().is_none() {
            ticker.tick().await;
        }
        assert!(ticker.tick().now_or_never().is_none());
    }
}
