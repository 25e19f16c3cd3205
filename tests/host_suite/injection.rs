// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps of the kernel that fail on purpose: `Documentation/fault-injection/fault-injection.rst` of Linux, `fail-nth`.
//!
//! A number n in the `fail-nth` of a thread makes the n-th step from then on fail that can: an allocation of memory, or
//! a step of iommufd that has a failure of its own. The kernel counts down, so 0 says that the failure has happened.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Once;

/// Which failures there are, and that none is in the kernel's log with a call trace, where bugs are looked for.
const SETTINGS: [(&str, &str); 7] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_page_alloc/verbose", "0"),
    ("fail_iommufd/verbose", "0"),
];

/// Makes a step of a thread's system calls fail.
pub struct FailNth(File);

impl FailNth {
    /// In the calling thread.
    pub fn of_this_thread() -> Self {
        let path = "/proc/thread-self/fail-nth";
        Self::at(path).unwrap_or_else(|error| panic!("{path} (CONFIG_FAULT_INJECTION): {error}"))
    }

    /// In a thread of another process; `None` when it has ended.
    pub fn of(process: u32, thread: u32) -> Option<Self> {
        Self::at(&format!("/proc/{process}/task/{thread}/fail-nth")).ok()
    }

    fn at(path: &str) -> io::Result<Self> {
        prepare();
        File::options().read(true).write(true).open(path).map(Self)
    }

    /// Runs `operation` with the `nth` step failing. With its result, whether it came that far; `None` when the thread
    /// has ended meanwhile.
    pub fn during<T>(&self, nth: usize, operation: impl FnOnce() -> T) -> (T, Option<bool>) {
        // A thread that has ended does nothing any more.
        let _ = self.0.write_at(nth.to_string().as_bytes(), 0);
        let result = operation();
        let mut left = [0; 16];
        let happened = self.0.read_at(&mut left, 0).ok();
        let happened = happened.map(|length| left[..length].starts_with(b"0"));
        let _ = self.0.write_at(b"0", 0);
        (result, happened)
    }
}

fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (name, value) in SETTINGS {
            let path = format!("/sys/kernel/debug/{name}");
            fs::write(&path, value).unwrap_or_else(|error| {
                panic!("{path} (CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC): {error}")
            });
        }
    });
}
