// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long things took, for the life of the process.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper ends of the buckets in microseconds, each included. Beyond the last one there is one bucket more.
const BOUNDS: [u64; 16] = [
    20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000,
    1_000_000, 5_000_000, 10_000_000,
];

/// Counts durations by buckets.
#[derive(Debug)]
pub struct Histogram {
    /// Of each bucket alone.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::new(0)),
            nanoseconds: AtomicU64::new(0),
        }
    }
}

/// What a histogram has counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// For each bound, in seconds: how many took no longer. Ascending.
    pub up_to: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// How many seconds they took together.
    pub seconds: f64,
}

impl Histogram {
    /// One more, which took this long.
    pub fn observe(&self, took: Duration) {
        let microseconds = took.as_micros();
        let bucket = BOUNDS.partition_point(|&bound| u128::from(bound) < microseconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        // 584 years are enough.
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The counts.
    pub fn distribution(&self) -> Distribution {
        let mut count = 0;
        let mut up_to = Vec::new();
        for (bound, bucket) in BOUNDS.iter().zip(&self.counts) {
            count += bucket.load(Ordering::Relaxed);
            up_to.push((*bound as f64 / 1e6, count));
        }
        count += self.counts[BOUNDS.len()].load(Ordering::Relaxed);
        Distribution {
            up_to,
            count,
            seconds: self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_from_its_bucket_on() {
        let histogram = Histogram::default();
        for microseconds in [20, 21, 1_000, 60_000_000] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let Distribution {
            up_to,
            count,
            seconds,
        } = histogram.distribution();
        assert_eq!(up_to[0], (0.000_02, 1));
        assert_eq!(up_to[1], (0.000_05, 2));
        assert_eq!(up_to[4], (0.000_5, 2));
        assert_eq!(up_to[5], (0.001, 3));
        assert_eq!(up_to.last(), Some(&(10.0, 3)));
        assert_eq!(count, 4);
        assert!((seconds - 60.001_041).abs() < 1e-6);
    }

    #[test]
    fn bounds_ascend() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
