// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time that a thread has run: what else the machine does at that time does not count.

/// Nanoseconds that this thread has run since it began.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to a plain value of this frame.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every kernel has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
