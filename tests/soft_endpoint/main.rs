// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software PCI function over vfio-user: the test plays QEMU, and the driver in the guest.

#[path = "../common/mod.rs"]
mod common;

mod config;
mod connection;
mod dma;
mod harness;
mod interrupts;
mod program;
