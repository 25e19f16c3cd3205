// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `host` suite: real iommufd with only the hardware replaced.
//!
//! It runs as root inside a kernel built with CONFIG_IOMMUFD_TEST (`qemu-scripts/test host` boots one). Elsewhere
//! every test of it fails and says so: a suite that passes without having run would be worth nothing.
//!
//! `kernel`: the kernel's test interface. `contract`: the iommufd host on its own, held to the cases that
//! every host is held to (`tests/host_contract`), and more.
//! `program`: the program as a child process. `guest`: the whole path from a guest to the kernel and back. `check`: the
//! subcommand, on a device of VFIO. `allocations`: the program while the host's memory is short.
#![expect(
    non_snake_case,
    reason = "the ids of normative points end the names of their tests"
)]

mod allocations;
#[path = "../host_contract/cases/mod.rs"]
mod cases;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod edu;
mod guest;
mod in_memory;
mod injection;
mod kernel;
mod program;
