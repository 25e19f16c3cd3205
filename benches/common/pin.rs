// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which processor a thread runs on. Left alone, the scheduler now and then puts two threads that spin for each other
//! onto one, and what is measured then is its time slice.

/// Where the driver's side runs.
pub const DRIVER: usize = 0;
/// Where the device's side runs.
pub const DEVICE: usize = 1;

/// Keeps the calling thread, and threads that it starts from now on, on one processor.
pub fn to(processor: usize) {
    // SAFETY: the set is a plain value of this frame, and the call only reads it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    assert_eq!(result, 0, "two processors are needed");
}

/// Runs `start` on the device's processor, so that its threads stay there; the caller goes on on the driver's.
pub fn device_side<T>(start: impl FnOnce() -> T) -> T {
    to(DEVICE);
    let started = start();
    to(DRIVER);
    started
}
