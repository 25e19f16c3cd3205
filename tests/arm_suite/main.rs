// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of a guest in an SMMUv3 that nests: an `edu` function copies through the table of the guest and that of the host.
//!
//! It runs as root on Arm, in a kernel that nests on QEMU's SMMUv3: `qemu-scripts/test guest -k ArmNesting` compiles it
//! across and boots that. Elsewhere every test of it fails and says so.
//!
//! `kernel`: the objects of iommufd that nesting needs. `table`: the driver's side of a table, in memory that stands for the
//! guest's. `walks`: what the SMMU makes of our entries, descriptors and commands. `host`: the iommufd host, with all that.

#[path = "../common/mod.rs"]
mod common;
#[path = "../host_suite/edu.rs"]
#[allow(dead_code, reason = "the host suite uses more of it")]
mod edu;
mod host;
mod kernel;
mod table;
mod walks;
