//! Owns how long a call may take and how often it is tried again. Does not own
//! where it goes on: that is `read`.
//!
//! Pauses double and carry no jitter: the daemon is the broker's sidecar, and
//! one broker's readers are no herd.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::client::ClientOptions;
use crate::counters::Counters;
use crate::error::ArchiveError;

/// Stands for "no deadline" where a duration is too long for the clock: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The moment a call must have ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    pub(crate) fn after(after: Duration) -> Self {
        // Tokio's clock, not the system's: tests can stop it.
        let now = Instant::now();
        Self { at: now.checked_add(after).unwrap_or(now + FOREVER), after }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(crate) fn error(&self) -> ArchiveError {
        ArchiveError::Deadline { after: self.after }
    }

    /// Waits for `work`, at most to the deadline.
    pub(crate) async fn limit<F: Future>(&self, work: F) -> Result<F::Output, ArchiveError> {
        timeout_at(self.at, work).await.map_err(|_| self.error())
    }
}

/// Counts the attempts of one call that failed in a row.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    options: &'a ClientOptions,
    counters: &'a Counters,
    failures: &'a mut u32,
}

impl<'a> Retries<'a> {
    pub(crate) fn new(
        options: &'a ClientOptions,
        counters: &'a Counters,
        failures: &'a mut u32,
    ) -> Self {
        Self { options, counters, failures }
    }

    /// New data came: the next failure is the first.
    pub(crate) fn progress(&mut self) {
        *self.failures = 0;
    }

    /// Waits before another attempt.
    ///
    /// # Errors
    /// Gives `error` back when there is to be none: it is not
    /// [`ArchiveError::Unavailable`] or `Throttled`, it was the last attempt, or the pause would
    /// outlast the deadline.
    pub(crate) async fn pause(
        &mut self,
        error: ArchiveError,
        deadline: Deadline,
    ) -> Result<(), ArchiveError> {
        let retry_after = match &error {
            ArchiveError::Unavailable { retry_after, .. } => *retry_after,
            ArchiveError::Throttled { retry_after, .. } => Some(*retry_after),
            _ => return Err(error),
        };
        if *self.failures >= self.options.retries {
            return Err(error);
        }
        let pause = pause_after(self.options, *self.failures).max(retry_after.unwrap_or_default());
        if pause >= deadline.remaining() {
            return Err(error);
        }
        *self.failures += 1;
        self.counters.retry();
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The pause after `failures` earlier ones.
fn pause_after(options: &ClientOptions, failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures);
    options.backoff.saturating_mul(factor).min(options.backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let options = ClientOptions {
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_millis(300),
            ..ClientOptions::default()
        };
        let pauses: Vec<u128> = (0..5).map(|n| pause_after(&options, n).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 300, 300]);
        assert_eq!(pause_after(&options, u32::MAX), options.backoff_max);
    }

    #[tokio::test]
    async fn a_pause_that_outlasts_the_deadline_is_not_begun() {
        let options = ClientOptions::default();
        let counters = Counters::default();
        let mut failures = 0;
        let mut retries = Retries::new(&options, &counters, &mut failures);
        let error = ArchiveError::Unavailable {
            message: "manifests are loading".into(),
            retry_after: Some(Duration::from_secs(60)),
        };
        let deadline = Deadline::after(Duration::from_secs(5));
        assert_eq!(retries.pause(error.clone(), deadline).await, Err(error));
        assert_eq!(counters.values().retries, 0);
    }

    #[tokio::test]
    async fn a_deadline_longer_than_the_clock_is_none() {
        let deadline = Deadline::after(Duration::MAX);
        assert!(deadline.remaining() > Duration::from_secs(3600));
        assert_eq!(deadline.limit(async { 7 }).await, Ok(7));
    }
}
