// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The endpoints of this process: how one is described, which host it comes to, what QEMU calls it.
//!
//! `spec` (the description, as options and the control socket give it), `host` (the host, whichever it is), `names`
//! (which endpoint is which device of QEMU).
#![forbid(unsafe_code)]

pub mod host;
mod names;
mod spec;

pub use names::{Deleted, Names};
pub use spec::{Backing, EndpointSpec, EndpointSpecError, VfioDevice};
