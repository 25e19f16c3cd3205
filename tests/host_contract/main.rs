// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host, held to the `Host` contract: the same cases as the iommufd host in `host_suite`.
#![expect(
    non_snake_case,
    reason = "the ids of normative points end the names of their tests"
)]

mod cases;
mod soft;
mod tables;

cases::held_to_the_contract!(crate::soft::SoftBench);
