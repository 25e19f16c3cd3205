// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `top` shows: two looks at the control socket's answers, and what happened in between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

/// The answers of one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When they came.
    pub at: Instant,
    /// `status`
    pub status: Status,
    /// `counters`
    pub counters: BTreeMap<String, u64>,
    /// `waiting`
    pub waiting: Vec<Waiting>,
}

/// What is shown of `status`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Ascending.
    pub endpoints: Vec<Endpoint>,
    /// Ascending.
    pub domains: Vec<Domain>,
    /// Whether a front-end is there.
    pub connected: bool,
    /// Regions.
    pub memory: Vec<Memory>,
}

/// An endpoint.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint {
    /// Its number.
    pub id: u32,
    /// Where it is.
    pub state: String,
    /// In which domain.
    pub domain: Option<u32>,
    /// Its PASID attachments; only how many there are is of interest.
    pub pasids: Vec<serde::de::IgnoredAny>,
}

/// A domain.
#[derive(Clone, Debug, Deserialize)]
pub struct Domain {
    /// Its number.
    pub id: u32,
    /// What it is made of.
    pub kind: String,
    /// Those in it.
    pub endpoints: Vec<u32>,
    /// How many there are.
    pub mappings: u64,
    /// How much they map.
    pub bytes: u64,
}

/// A region of guest memory.
#[derive(Clone, Debug, Deserialize)]
pub struct Memory {
    /// Bytes.
    pub length: u64,
    /// Why it is not reached.
    pub error: Option<String>,
}

/// Page-request groups that wait.
#[derive(Clone, Debug, Deserialize)]
pub struct Waiting {
    /// Whose.
    pub endpoint: u32,
    /// How many.
    pub groups: u64,
    /// Seconds of the oldest one.
    pub oldest_seconds: f64,
}

impl Sample {
    /// Takes three answers apart. An older or a newer program may answer otherwise.
    ///
    /// # Errors
    /// They are not what is expected.
    pub fn new(
        at: Instant,
        status: Value,
        counters: Value,
        waiting: Value,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self {
            at,
            status: serde_json::from_value(status)?,
            counters: serde_json::from_value(counters)?,
            waiting: serde_json::from_value(waiting)?,
        })
    }

    /// A counter; 0 if the program has none of this name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// How often a second it was counted since an earlier sample.
    pub fn rate(&self, since: &Self, name: &str) -> f64 {
        let more = self.counter(name).saturating_sub(since.counter(name));
        let time = self.at.saturating_duration_since(since.at);
        match time {
            Duration::ZERO => 0.0,
            time => more as f64 / time.as_secs_f64(),
        }
    }

    /// Groups of an endpoint that wait, and the age of the oldest.
    pub fn waiting_of(&self, endpoint: u32) -> (u64, f64) {
        let of = self.waiting.iter().find(|w| w.endpoint == endpoint);
        of.map_or((0, 0.0), |w| (w.groups, w.oldest_seconds))
    }
}

/// Answers of a busy guest, `seconds` later than others with half the counts.
#[cfg(test)]
pub(super) fn busy(start: Instant, seconds: u64) -> Sample {
    use serde_json::json;

    let status = json!({
        "endpoints": [
            {"id": 40, "state": "attached", "domain": 1, "pasids": [{"pasid": 1, "domain": 2}], "page_requests": true},
            {"id": 48, "state": "bypass", "domain": null, "pasids": [], "page_requests": false},
        ],
        "domains": [
            {"id": 1, "kind": "paging", "endpoints": [40], "mappings": 3, "bytes": 12288},
            {"id": 2, "kind": "paging", "endpoints": [40], "mappings": 700, "bytes": 2867200},
        ],
        "features": [], "connected": true,
        "memory": [{"gpa": 0, "length": 1u64 << 30}, {"gpa": 1u64 << 32, "length": 4096, "error": "pinned"}],
    });
    let counters =
        json!({"requests": 1000 * seconds, "map": 600 * seconds, "host_errors": 2, "unknown": 1});
    let waiting = json!([{"endpoint": 40, "groups": 12, "oldest_seconds": 0.25}]);
    let at = start + Duration::from_secs(seconds);
    Sample::new(at, status, counters, waiting).expect("answers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        let start = Instant::now();
        let (before, after) = (busy(start, 2), busy(start, 4));
        assert_eq!(after.rate(&before, "requests"), 1000.0);
        assert_eq!(after.rate(&before, "host_errors"), 0.0);
        assert_eq!(after.rate(&before, "none"), 0.0);
        assert_eq!(after.rate(&after, "requests"), 0.0);
        // Another process has taken its place: its counts are lower.
        assert_eq!(before.rate(&after, "requests"), 0.0);
    }
}
