// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket over a real device and software host; the test plays the driver.

mod commands;
mod connections;
mod daemon;
mod endpoints;
mod metrics;
