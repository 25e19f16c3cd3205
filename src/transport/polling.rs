// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long to watch a ring before sleeping: learned from whether it would have paid.
//!
//! A driver that waits for its requests sends the next one microseconds after the answer, and a wake-up costs more
//! than serving it. A driver that is idle gets nothing from being watched.

use std::time::{Duration, Instant};

/// Where a window begins to grow from.
const FIRST_STEP: Duration = Duration::from_micros(10);

/// The window, and what it learns from.
#[derive(Debug)]
pub(crate) struct Polling {
    most: Duration,
    window: Duration,
    /// When the last request was done.
    idle_since: Option<Instant>,
}

impl Polling {
    /// Never watches for longer than `most`; zero: never.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            window: most,
            idle_since: None,
        }
    }

    /// How long to watch now.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// There is nothing more to do.
    pub fn idle(&mut self, now: Instant) {
        self.idle_since = Some(now);
    }

    /// Requests came while the ring was watched.
    pub fn paid(&mut self) {
        self.grow();
    }

    /// Requests came while the worker slept: would watching for longer have met them?
    pub fn woken(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        if now.saturating_duration_since(since) <= self.most {
            self.grow();
        } else {
            self.window /= 2;
            if self.window < FIRST_STEP {
                self.window = Duration::ZERO;
            }
        }
    }

    fn grow(&mut self) {
        self.window = (self.window * 2).max(FIRST_STEP).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(200);

    #[test]
    fn a_window_that_does_not_pay_closes_and_one_that_would_opens() {
        let mut polling = Polling::new(MOST);
        let mut now = Instant::now();
        assert_eq!(polling.window(), MOST);
        for _ in 0..10 {
            polling.idle(now);
            now += Duration::from_millis(10);
            polling.woken(now);
        }
        assert_eq!(polling.window(), Duration::ZERO);
        for _ in 0..10 {
            polling.idle(now);
            now += Duration::from_micros(50);
            polling.woken(now);
        }
        assert_eq!(polling.window(), MOST);
    }

    #[test]
    fn polling_turned_off_stays_off() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.paid();
        polling.paid();
        assert_eq!(polling.window(), Duration::ZERO);
    }
}
