// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any accesses to a software function. `cargo +nightly fuzz run function fuzz/corpus/function fuzz/seeds/function`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_iommu::fuzzing::function;

fuzz_target!(|input: &[u8]| function::function(input));
