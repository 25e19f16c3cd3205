// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes in any ring, and in memory. `cargo +nightly fuzz run ring fuzz/corpus/ring fuzz/seeds/ring`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_iommu::fuzzing::ring;

fuzz_target!(|input: &[u8]| ring::ring(input));
