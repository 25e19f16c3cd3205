// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `host` suite: real iommufd with only the hardware replaced.
//!
//! It runs as root inside a kernel built with CONFIG_IOMMUFD_TEST (`qemu-scripts/test host` boots one). Elsewhere
//! every test of it fails and says so: a suite that passes without having run would be worth nothing.
//!
//! `kernel`: the kernel's test interface. `contract`: the iommufd host on its own, held to the `Host` contract.
#![expect(
    non_snake_case,
    reason = "the ids of normative points end the names of their tests"
)]

mod contract;
mod kernel;
mod ram;
