// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory that comes and goes.

use vm_memory::GuestMemoryMmap;

use super::fake::Call;
use super::*;
use crate::host::MemoryRegion;
use crate::spec::Gpa;

fn region(gpa: u64) -> MemoryRegion {
    MemoryRegion {
        gpa: Gpa(gpa),
        length: 0x1000,
        user_address: 0,
        file: None,
    }
}

#[test]
fn memory_that_the_host_refuses_is_told_with_the_reason_until_it_goes() {
    let bench = Bench::new();
    let update = |removed: &[MemoryRegion], added: &[MemoryRegion]| {
        let memory = GuestMemoryMmap::new();
        bench.device.update_memory(&memory, removed, added)
    };
    let refused = || {
        let memory = bench.device.status().memory;
        let refused = memory.iter().map(|region| region.error.is_some());
        refused.collect::<Vec<_>>()
    };
    update(&[], &[region(0x4000)]).unwrap();
    bench.host.fail(Some(Call::AddMemory));
    let errors = update(&[], &[region(0x1000), region(0x8000)]).unwrap_err();
    assert_eq!(errors.len(), 2);
    assert_eq!(bench.device.counters().host_errors.get(), 2);
    assert_eq!(refused(), [true, false, true]);
    let why = bench.device.status().memory[0].error.clone();
    assert_eq!(why, Some(errors[0].error.to_string()));
    bench.host.fail(None);
    update(&[region(0x1000)], &[]).unwrap();
    update(&[], &[region(0x1000)]).unwrap();
    assert_eq!(refused(), [false, false, true]);
}
