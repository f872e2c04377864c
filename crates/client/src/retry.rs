//! How long and how often an upload or a download tries again.

use std::time::Duration;

/// Bounds of the tries of an upload or a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Most failures in a row without anything having got through in between.
    pub failures: u32,
    /// Upper bound of the first wait; it doubles with each further failure.
    pub first_wait: Duration,
    /// Upper bound of every wait.
    pub longest_wait: Duration,
    /// How long the server may stay silent while an answer is due.
    pub silence: Duration,
    /// How long the whole may take, waits included.
    pub deadline: Duration,
}

impl Default for Retry {
    /// Outlasts a restart of the server: 12 failures, waits of up to 200 ms doubling to 15 s, 2
    /// minutes of silence, an hour in all.
    fn default() -> Self {
        Self {
            failures: 12,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(15),
            silence: Duration::from_secs(120),
            deadline: Duration::from_secs(3600),
        }
    }
}

impl Retry {
    /// The wait after the given number of failures in a row, counted from 1: anything up to the
    /// bound ("full jitter", so that clients of a restarted server do not come back in step), but
    /// not less than what the server asked for.
    pub fn wait(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let bound = self
            .first_wait
            .saturating_mul(1 << doublings)
            .min(self.longest_wait);
        let jittered = bound.mul_f64(rand::random::<f64>());
        jittered.max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_honour_the_server() {
        let retry = Retry::default();
        for _ in 0..100 {
            assert!(retry.wait(1, None) <= Duration::from_millis(200));
            assert!(retry.wait(3, None) <= Duration::from_millis(800));
            assert!(retry.wait(u32::MAX, None) <= Duration::from_secs(15));
            let asked = Duration::from_secs(20);
            assert_eq!(retry.wait(1, Some(asked)), asked);
        }
    }
}
