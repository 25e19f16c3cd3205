// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any page table that a guest owns. `cargo +nightly fuzz run tables fuzz/corpus/tables fuzz/seeds/tables`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_iommu::fuzzing::tables;

fuzz_target!(|input: &[u8]| tables::tables(input));
