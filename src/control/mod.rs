// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: JSON objects, in the manner of QMP. An answer is a line.
//!
//! ```text
//! {"execute":"dma-read","arguments":{"endpoint":"00:05.0","iova":4096,"length":16},"id":1}
//! {"return":{"data":"00ff..."},"id":1}
//! ```
//!
//! One thread serves every connection. A command that waits for the guest - an access that raised a page
//! request - is a future: other commands go on, and its answer comes when the guest has answered, with its `id`.
//!
//! Files: `input` (bytes to commands, and the descriptors that come with them), `command` (a command with validated
//! arguments), `execute` (what it does), `lists` (long answers), `route` (the answer of `translate`), `metrics` (the text for Prometheus), `output` (answers),
//! `connection` (one client: commands in, answers out, what waits), `server` (the thread). The client is `cli/ctl.rs`.
#![forbid(unsafe_code)]

pub mod command;
pub mod connection;
pub mod execute;
pub mod input;
mod lists;
pub mod metrics;
pub mod output;
mod route;
pub mod server;

pub use execute::Context;
pub use server::{Control, ControlError};
