// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of VFIO behind an emulated IOMMU: real accesses to memory.

use super::*;
use crate::edu::{self, Edu};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vhost_device_iommu::host::Owner;
use vhost_device_iommu::host::iommufd::SetupError;
use vhost_device_iommu::spec::ResvMemSubtype;

/// There is one device.
static TURN: Mutex<()> = Mutex::new(());

/// Low addresses, which every device can put on the bus.
const SOURCE: u64 = 0x80_0000;
const TARGET: u64 = 0xa0_0000;

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As endpoint 1; its id in the context is found out.
fn add_shared(bench: &Bench, device: &Edu) {
    let source = EndpointSource::VfioFd(device.descriptor());
    bench
        .host
        .add_endpoint(EndpointId(1), source, None)
        .unwrap();
}

fn fill(bench: &Bench, offset: u64, value: u8) {
    bench.ram.write(offset, &[value; 4096]);
}

fn page(bench: &Bench, offset: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    bench.ram.read(offset, &mut page);
    page
}

#[test]
fn a_shared_device_reads_and_writes_through_the_mappings_of_its_domain() {
    let _turn = turn();
    let bench = Bench::with_memory();
    let device = Edu::open(&bench.kernel);
    add_shared(&bench, &device);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench
        .map_with(&domain, SOURCE, 4096, 16 * MIB, MapFlags::READ)
        .unwrap();
    bench
        .map_with(&domain, TARGET, 4096, 17 * MIB, MapFlags::WRITE)
        .unwrap();

    fill(&bench, 0, 0x5a);
    device.read(SOURCE, 4096);
    device.write(TARGET, 4096);
    assert_eq!(page(&bench, MIB), [0x5a; 4096]);

    // After UNMAP the memory is out of reach.
    bench.unmap(&domain, TARGET, 4096).unwrap();
    fill(&bench, MIB, 0x11);
    device.write(TARGET, 4096);
    assert_eq!(page(&bench, MIB), [0x11; 4096]);

    // In another domain the same address is other memory.
    let other = bench.domain(2);
    bench.map(&other, TARGET, 4096, 18 * MIB).unwrap();
    bench.attach(1, unwanted(&other)).unwrap();
    device.write(TARGET, 4096);
    assert_eq!(page(&bench, 2 * MIB), [0x5a; 4096]);

    bench.attach(1, Attachment::Blocked).unwrap();
    fill(&bench, 2 * MIB, 0x22);
    device.write(TARGET, 4096);
    assert_eq!(page(&bench, 2 * MIB), [0x22; 4096]);
    bench.host.remove_endpoint(EndpointId(1));
}

#[test]
fn bypass_of_a_shared_device_is_the_mapping_of_who_shares_it() {
    let _turn = turn();
    let bench = Bench::new();
    let device = Edu::open(&bench.kernel);
    // As a virtual machine monitor does: memory is mapped before the host is told of it.
    let monitors = bench.kernel.nursery;
    let region = bench.ram.region(16 * MIB, 0, MIB);
    bench.kernel.map_file(monitors, &region);
    device.attach(monitors);
    add_shared(&bench, &device);
    let owner = bench.host.properties(EndpointId(1)).unwrap().owner;
    assert_eq!(owner, Owner::FrontEnd { maps_memory: true });

    fill(&bench, 0, 0x5a);
    bench.attach(1, Attachment::Bypass).unwrap();
    device.read(16 * MIB, 4096);
    device.write(16 * MIB + 0x4000, 4096);
    assert_eq!(page(&bench, 0x4000), [0x5a; 4096]);

    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    device.write(16 * MIB + 0x8000, 4096);
    assert_eq!(page(&bench, 0x8000), [0; 4096]);
    bench.attach(1, Attachment::Bypass).unwrap();
    device.write(16 * MIB + 0x8000, 4096);
    assert_eq!(page(&bench, 0x8000), [0x5a; 4096]);

    // What the monitor takes away is gone.
    bench.kernel.unmap(monitors, region.gpa.0, region.length);
    device.write(16 * MIB, 4096);
    assert_eq!(page(&bench, 0), [0x5a; 4096]);
    fill(&bench, 0, 0x11);
    device.write(16 * MIB, 4096);
    assert_eq!(page(&bench, 0), [0x11; 4096]);
    bench.host.remove_endpoint(EndpointId(1));
}

#[test]
fn a_shared_device_comes_back_to_the_page_table_of_who_shares_it() {
    let _turn = turn();
    let bench = Bench::new();
    let device = Edu::open(&bench.kernel);
    let monitors = bench.kernel.nursery;
    bench
        .kernel
        .map_file(monitors, &bench.ram.region(16 * MIB, 0, MIB));
    // As QEMU does it.
    let table = bench.kernel.new_page_table(device.dev, monitors, 0);
    device.attach(table);
    add_shared(&bench, &device);

    fill(&bench, 0, 0x5a);
    bench.attach(1, Attachment::Bypass).unwrap();
    device.read(16 * MIB, 4096);
    device.write(16 * MIB + 0x4000, 4096);
    assert_eq!(page(&bench, 0x4000), [0x5a; 4096]);
    let in_use = bench.kernel.try_destroy(table).unwrap_err();
    assert_eq!(in_use.raw_os_error(), Some(libc::EBUSY), "{in_use}");
    bench.host.remove_endpoint(EndpointId(1));
    bench.kernel.try_destroy(table).unwrap();
}

#[test]
fn bypass_leaves_holes_out_and_maps_the_rest() {
    const DOORBELLS: u64 = 0xfee0_0000;
    let _turn = turn();
    let bench = Bench::new();
    // With two address spaces that are not the host's, neither is taken for the front-end's mapping of guest memory.
    bench.kernel.address_space();
    // Guest memory on both sides of the hole, and over it; and some that a mock device reaches too.
    let around = bench.ram.region(DOORBELLS - 4 * MIB, 0, 8 * MIB);
    let low = bench.ram.region(16 * MIB, 8 * MIB, MIB);
    bench.update_memory(&[], &[around, low]).unwrap();
    let device = Edu::open(&bench.kernel);
    add_shared(&bench, &device);
    let mock = bench.endpoint(2);
    for endpoint in [1, 2] {
        bench.attach(endpoint, Attachment::Bypass).unwrap();
    }
    assert!(bench.reaches(mock, 16 * MIB, MIB, 8 * MIB));
    fill(&bench, 3 * MIB, 0x5a);
    device.read(DOORBELLS - MIB, 4096);
    device.write(DOORBELLS + MIB, 4096);
    assert_eq!(page(&bench, 5 * MIB), [0x5a; 4096]);
    device.write(16 * MIB, 4096);
    assert_eq!(page(&bench, 8 * MIB), [0x5a; 4096]);
    bench.host.remove_endpoint(EndpointId(1));
}

#[test]
fn a_file_of_a_device_without_an_iommu_is_refused_before_it_is_opened() {
    let _turn = turn();
    let bench = Bench::new();
    let directory = tempfile::tempdir().unwrap();
    // As Linux 7.3 names it. Under another name the same device is served.
    let path = directory.path().join("noiommu-vfio0");
    std::os::unix::fs::symlink(edu::path(), &path).unwrap();
    let add = |path| {
        let source = EndpointSource::VfioPath(path);
        bench.host.add_endpoint(EndpointId(1), source, None)
    };
    let refused = add(path.clone()).unwrap_err();
    assert!(matches!(refused, SetupError::NoIommu(_)), "{refused}");
    assert!(
        refused.to_string().contains("no IOMMU is in front of it"),
        "{refused}"
    );
    let renamed = directory.path().join("vfio0");
    std::fs::rename(path, &renamed).unwrap();
    add(renamed).unwrap();
    bench.host.remove_endpoint(EndpointId(1));
}

#[test]
fn a_device_of_its_own_says_what_it_can_do_and_is_let_go() {
    let _turn = turn();
    for _ in 0..2 {
        let bench = Bench::with_memory();
        let source = EndpointSource::VfioPath(edu::path());
        bench
            .host
            .add_endpoint(EndpointId(1), source, None)
            .unwrap();
        let properties = bench.host.properties(EndpointId(1)).unwrap();
        // It has no page request interface.
        assert!(!properties.page_requests);
        let doorbells = properties
            .reserved
            .iter()
            .find(|region| region.subtype == ResvMemSubtype::Msi)
            .unwrap_or_else(|| panic!("{properties:?}"));
        assert_eq!(doorbells.range, range(0xfee0_0000, 0x10_0000));
        let domain = bench.domain(1);
        bench.attach(1, unwanted(&domain)).unwrap();
        bench.map(&domain, SOURCE, MIB, 16 * MIB).unwrap();
        let Bench { host, kernel, .. } = bench;
        drop(host);
        assert!(kernel.is_clean());
    }
}
