// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An agent of a function: it makes accesses on a thread, as configuration space permits them. The test registers are
//! one, and each engine of the fault engine is one.
//!
//! * [`thread`]: the thread, which sleeps until there is work, and which a reset stops.
//! * [`dma`]: the accesses. ATS, PRI, PASID and bus mastering are obeyed here and nowhere else.

pub(super) mod dma;
pub(super) mod thread;
