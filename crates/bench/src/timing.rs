//! Medians, percentiles and rates.

use std::time::Duration;

/// The value in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which this share of the others lies; of an even number the upper one.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)]
}

/// So many in a second.
pub(crate) fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Milliseconds.
pub(crate) fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Measurements of two things, made in turn.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pairs {
    /// Adds two neighbours.
    pub(crate) fn push(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// The median of ours.
    pub(crate) fn ours(&self) -> f64 {
        median(&self.ours)
    }

    /// The median of theirs.
    pub(crate) fn theirs(&self) -> f64 {
        median(&self.theirs)
    }

    /// The median of ours divided by theirs.
    pub(crate) fn ratio(&self) -> f64 {
        let pairs = self.ours.iter().zip(&self.theirs);
        median(
            &pairs
                .map(|(ours, theirs)| ours / theirs)
                .collect::<Vec<_>>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), 100.0);
        assert_eq!(median(&values), 51.0);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn a_ratio_is_of_neighbours() {
        let mut pairs = Pairs::default();
        // The machine is half as fast in the second half; each pair says two.
        for speed in [10.0, 10.0, 5.0] {
            pairs.push(2.0 * speed, speed);
        }
        assert_eq!(pairs.ratio(), 2.0);
    }
}
