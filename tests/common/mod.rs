// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plays the guest, and the front-end it lives in, for tests of the whole program.
//!
//! ```text
//! Guest ── Frontend (crate vhost) ── socket ── the program under test
//!   ├── Ram: regions of guest memory, each a memfd
//!   └── VirtQueue: the driver's side of a virtqueue
//! ```
//!
//! [`Server`] runs the device over the software host on a thread of the test. A test of the binary starts a
//! [`Program`].
#![allow(dead_code, unused_imports, reason = "each test uses a part of this")]

pub mod guest;
pub mod program;
pub mod queue;
pub mod ram;
pub mod requests;
pub mod server;
pub mod watched_host;

pub use guest::{Answer, Guest, GuestOptions};
pub use program::{Program, binary, program_in, program_on};
pub use queue::{Layout, Segment, VirtQueue};
pub use ram::Ram;
pub use server::{Server, ServerOptions};

use std::time::{Duration, Instant};

/// The longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; panics with `what` when it does not in time.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}
