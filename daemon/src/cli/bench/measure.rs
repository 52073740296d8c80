//! Owns times of things done many times, and how figures read.

use std::time::Duration;

use crate::cli::output;
use crate::clock::Clock;

/// Which build these figures are of: a development build is slower.
pub(super) const BUILD: &str = if cfg!(debug_assertions) { "development" } else { "release" };

/// Times of one thing done many times.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that the share `of` (0 to 1) of all stay within; zero of none.
    pub(super) fn quantile(&self, of: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (of * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(super) fn median(&self) -> Duration {
        self.quantile(0.5)
    }
}

/// How long `work` takes.
pub(super) async fn timed<T>(clock: &dyn Clock, work: impl Future<Output = T>) -> (T, Duration) {
    let begun = clock.monotonic();
    let done = work.await;
    (done, clock.monotonic() - begun)
}

/// Milliseconds, to a microsecond.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// How often `part` goes into `whole`.
pub(super) fn ratio(whole: Duration, part: Duration) -> f64 {
    whole.as_secs_f64() / part.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The pace of a model store, for people.
pub(super) fn pace_of(latency_ms: f64, bandwidth: u64) -> String {
    let each = if bandwidth == 0 { "\u{221e}".to_owned() } else { output::bytes(bandwidth) };
    format!("a request takes {} ms and 1 s for each {each}", number(latency_ms))
}

/// A time for people.
pub(super) fn time(time: Duration) -> String {
    match time {
        long if long >= Duration::from_secs(10) => format!("{:.1} s", long.as_secs_f64()),
        time => format!("{} ms", number(ms(time))),
    }
}

/// A number with as many digits as mean something.
pub(super) fn number(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 || v == v.trunc() => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.99), Duration::ZERO);
        (1..=100).rev().for_each(|ms| times.push(Duration::from_millis(ms)));
        assert_eq!(times.median(), Duration::from_millis(50));
        assert_eq!(times.quantile(0.99), Duration::from_millis(99));
        assert_eq!(times.quantile(1.0), Duration::from_millis(100));
        assert_eq!(times.quantile(0.0), Duration::from_millis(1));
    }

    #[test]
    fn figures_show_what_means_something() {
        let shown = [1234.5, 3.0, 12.345, 4.567, 0.00423].map(number);
        assert_eq!(shown, ["1234", "3", "12.3", "4.57", "0.0042"]);
        assert_eq!(time(Duration::from_micros(4_567)), "4.57 ms");
        assert_eq!(time(Duration::from_millis(12_345)), "12.3 s");
        assert_eq!(ratio(Duration::from_secs(3), Duration::from_secs(2)), 1.5);
    }
}
