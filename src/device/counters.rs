// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happened so far.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[doc = $doc:literal] $name:ident),* $(,)?) => {
        /// Counters that only grow, for the life of the process.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $doc] pub $name: Counter,)*
        }

        impl Counters {
            /// Every counter with its name and its help text, in the order of the documentation.
            pub fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $doc.trim(), self.$name.get())),*]
            }
        }
    };
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, and whether this is an occasion to log it: the 1st, 2nd, 4th, 8th, ... time. What a guest can
    /// cause without end is logged so.
    pub fn increment_and_log(&self) -> bool {
        (self.0.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two()
    }
}

counters! {
    /// Requests taken from the request queue.
    requests,
    /// Requests answered with a status other than OK.
    requests_failed,
    /// Requests returned unwritten: unknown type, no room for a tail, or a broken chain.
    requests_unwritten,
    /// ATTACH requests that succeeded.
    attach,
    /// ATTACH_TABLE requests that succeeded.
    attach_table,
    /// DETACH requests that succeeded.
    detach,
    /// MAP requests that succeeded.
    map,
    /// MAP requests that failed; the Linux driver does not look at their status.
    map_failed,
    /// UNMAP requests that succeeded.
    unmap,
    /// UNMAP requests that failed; the Linux driver does not look at their status.
    unmap_failed,
    /// Calls to the host that UNMAP requests cost; fewer than UNMAPs where consecutive ones were joined.
    unmap_host_calls,
    /// INVALIDATE requests that succeeded.
    invalidate,
    /// INVALIDATE requests that failed; the driver cannot act on their status.
    invalidate_failed,
    /// PROBE requests that succeeded.
    probe,
    /// PAGE_RESPONSE requests that succeeded.
    page_response,
    /// PAGE_RESPONSE requests for a group that is not outstanding.
    page_response_stale,
    /// Host calls that failed.
    host_errors,
    /// Page-request groups that came from the host.
    page_request_groups,
    /// Groups reported to the driver.
    page_request_groups_delivered,
    /// Groups answered SUCCESS.
    page_request_success,
    /// Groups answered INVALID_REQUEST by the driver.
    page_request_invalid,
    /// Groups answered RESPONSE_FAILURE by the driver.
    page_request_failure,
    /// Groups that the driver had not asked for or could not take, answered INVALID_REQUEST.
    page_request_unwanted,
    /// Groups beyond the quota, answered INVALID_REQUEST.
    page_request_over_quota,
    /// Groups that the driver did not answer in time, answered INVALID_REQUEST.
    page_request_timeouts,
    /// Groups withdrawn by DETACH, another ATTACH, reset, disconnect or the removal of their endpoint.
    page_request_withdrawn,
    /// Fault reports given to the driver.
    fault_reports,
    /// Fault reports dropped: too many were waiting, or the driver in whose time they came was gone.
    fault_reports_dropped,
    /// Lines of the kernel's log (--kernel-log) that were overwritten before they were read.
    log_lines_lost,
    /// Device resets.
    resets,
    /// Front-ends that connected.
    connections,
    /// Times that a front-end was reattached.
    reattachments,
    /// Times that the event queue had an unusable buffer.
    event_buffers_bad,
    /// Times that a virtqueue was found corrupt and left alone until its next start.
    rings_broken,
}
