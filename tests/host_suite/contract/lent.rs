// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bypass of a device that another process shares: that process's own page table of guest memory.

use super::*;
use crate::injection::FailNth;
use crate::kernel::{APERTURE_FIRST, DIRTY_TRACKING};
use vhost_device_iommu::host::Owner;

/// `IOMMU_HWPT_ALLOC_PASID`
const FOR_PASIDS: u32 = 8;

/// Where the monitor has guest memory, all of it.
const GPA: u64 = APERTURE_FIRST;

/// A virtual machine monitor beside the host: it has mapped guest memory in an address space of its own.
struct Lent {
    bench: Bench,
    device: MockDevice,
}

impl Lent {
    /// With one device.
    fn new() -> Self {
        let bench = Bench::new();
        let region = bench.ram.region(GPA, 0, 4 * MIB);
        bench.kernel.map_file(bench.kernel.nursery, &region);
        let device = bench.kernel.mock_device();
        Self { bench, device }
    }

    /// A page table of the monitor's.
    fn table(&self, flags: u32) -> u32 {
        let kernel = &self.bench.kernel;
        kernel.new_page_table(self.device.dev, kernel.nursery, flags)
    }

    /// As QEMU has it when it shares its device: a page table that it made, and the device in it.
    fn of_monitor_with_table() -> (Self, u32) {
        let lent = Self::new();
        let table = lent.table(0);
        lent.bench.kernel.attach(lent.device, table);
        lent.share(1, lent.device);
        (lent, table)
    }

    /// Shares a device, as an endpoint.
    fn share(&self, id: u32, device: MockDevice) {
        let source = EndpointSource::LentMock {
            stdev_id: device.stdev,
        };
        let added = self
            .bench
            .host
            .add_endpoint(EndpointId(id), source, Some(device.dev));
        added.unwrap();
        let devices = &self.bench.devices;
        devices.borrow_mut().insert(EndpointId(id), device);
    }

    fn bypass(&self) {
        self.bench.attach(1, Attachment::Bypass).unwrap();
    }

    /// The page table of the device.
    fn now(&self) -> u32 {
        self.bench.kernel.page_table(self.device)
    }

    /// Whether it reaches all of guest memory.
    fn reaches_all(&self) -> bool {
        self.bench.reaches(self.device, GPA, 4 * MIB, 0)
    }
}

#[test]
fn bypass_is_the_page_table_that_the_monitor_made() {
    let (lent, table) = Lent::of_monitor_with_table();
    let owner = lent.bench.host.properties(EndpointId(1)).unwrap().owner;
    assert_eq!(owner, Owner::FrontEnd { maps_memory: true });
    assert_ne!(lent.now(), table, "it is blocked first");
    lent.bypass();
    assert_eq!(lent.now(), table);
    assert!(lent.reaches_all());
    let domain = lent.bench.domain(1);
    lent.bench.attach(1, unwanted(&domain)).unwrap();
    assert_ne!(lent.now(), table);
    lent.bypass();
    assert_eq!(lent.now(), table);
    // What the monitor takes away is gone.
    let kernel = &lent.bench.kernel;
    kernel.unmap(kernel.nursery, GPA, 4 * MIB);
    assert!(lent.bench.reaches_none(lent.device, GPA, 4 * MIB, 0));

    lent.bench.host.remove_endpoint(EndpointId(1));
    let Bench { host, kernel, .. } = lent.bench;
    drop(host);
    kernel.destroy(table);
    assert!(kernel.is_clean());
}

#[test]
fn devices_of_one_monitor_share_its_page_table() {
    let (lent, table) = Lent::of_monitor_with_table();
    let other = lent.bench.kernel.mock_device();
    lent.bench.kernel.attach(other, table);
    lent.share(2, other);
    for id in [1, 2] {
        lent.bench.attach(id, Attachment::Bypass).unwrap();
    }
    assert_eq!(lent.now(), table);
    assert_eq!(lent.bench.kernel.page_table(other), table);
}

#[test]
fn of_several_page_tables_one_that_fits_is_taken() {
    let lent = Lent::new();
    let unfit = lent.table(DIRTY_TRACKING);
    let fit = lent.table(0);
    // The only device from now on, in neither.
    lent.bench.kernel.end(lent.device);
    let device = lent.bench.kernel.mock_device_without_dirty_tracking();
    let lent = Lent { device, ..lent };
    lent.share(1, device);
    lent.bypass();
    assert_eq!(lent.now(), fit);
    assert!(lent.reaches_all());
    assert_ne!(unfit, fit);
}

#[test]
fn where_no_page_table_fits_the_kernel_makes_one_of_the_monitors_mappings() {
    let lent = Lent::new();
    let unfit = lent.table(DIRTY_TRACKING);
    lent.bench.kernel.end(lent.device);
    let device = lent.bench.kernel.mock_device_without_dirty_tracking();
    let lent = Lent { device, ..lent };
    lent.share(1, device);
    for _ in 0..2 {
        lent.bypass();
        assert_ne!(lent.now(), unfit);
        assert!(lent.reaches_all());
        lent.bench.attach(1, Attachment::Blocked).unwrap();
        assert!(lent.bench.reaches_none(device, GPA, 4 * MIB, 0));
    }
}

#[test]
fn a_page_table_of_the_hosts_is_never_taken_for_the_monitors() {
    let (lent, table) = Lent::of_monitor_with_table();
    let kernel = &lent.bench.kernel;
    let other = lent.bench.endpoint(2);
    let domain = lent.bench.domain(1);
    // The device is blocked, so the monitor can let go of its page table. The next object has its number, as none below
    // is free.
    while let filler = kernel.address_space()
        && filler < table
    {}
    kernel.destroy(table);
    lent.bench.attach(2, unwanted(&domain)).unwrap();
    assert_eq!(kernel.page_table(other), table);
    lent.bypass();
    assert_ne!(lent.now(), table);
    assert!(lent.reaches_all());
}

#[test]
fn of_several_address_spaces_no_page_table_is_taken() {
    let lent = Lent::new();
    let table = lent.table(0);
    lent.bench.kernel.attach(lent.device, table);
    lent.bench.kernel.address_space();
    lent.share(1, lent.device);
    let owner = lent.bench.host.properties(EndpointId(1)).unwrap().owner;
    assert_eq!(owner, Owner::FrontEnd { maps_memory: false });
    lent.bypass();
    assert_ne!(lent.now(), table);
    assert!(lent.bench.reaches_none(lent.device, GPA, 4 * MIB, 0));
}

#[test]
fn a_pasid_takes_the_device_to_a_page_table_that_is_fit_for_it() {
    let (lent, table) = Lent::of_monitor_with_table();
    let region = lent.bench.ram.region(GPA, 0, 4 * MIB);
    lent.bench.update_memory(&[], &[region]).unwrap();
    let domain = lent.bench.domain(1);
    lent.bypass();
    assert_eq!(lent.now(), table);
    let attach = |to| lent.bench.host.attach(with_pasid(1, 5), to);
    attach(unwanted(&domain)).unwrap();
    assert_ne!(lent.now(), table);
    assert!(lent.reaches_all());
    // While it is attached, bypass stays one of ours.
    lent.bench.attach(1, unwanted(&domain)).unwrap();
    lent.bypass();
    assert_ne!(lent.now(), table);
    assert!(lent.reaches_all());

    attach(Attachment::Blocked).unwrap();
    lent.bench.attach(1, Attachment::Blocked).unwrap();
    lent.bypass();
    assert_eq!(lent.now(), table);
}

#[test]
fn a_device_comes_back_to_a_page_table_for_pasids() {
    let lent = Lent::new();
    let table = lent.table(FOR_PASIDS);
    lent.bench.kernel.attach(lent.device, table);
    lent.share(1, lent.device);
    lent.bypass();
    assert_eq!(lent.now(), table);
}

#[test]
fn the_monitor_goes_on_to_track_what_devices_write() {
    let lent = Lent::new();
    let table = lent.table(DIRTY_TRACKING);
    lent.bench.kernel.attach(lent.device, table);
    assert!(!lent.bench.kernel.tracks_writes(table, GPA));
    lent.bench.kernel.track_writes(table);
    lent.share(1, lent.device);
    lent.bypass();
    assert_eq!(lent.now(), table);
    assert!(lent.bench.kernel.tracks_writes(table, GPA));
}

#[test]
fn a_move_into_bypass_that_fails_anywhere_leaves_the_old_attachment() {
    let fail = FailNth::of_this_thread();
    let mut failures = 0;
    for nth in 1.. {
        let (lent, _) = Lent::of_monitor_with_table();
        let region = lent.bench.ram.region(GPA, 0, 4 * MIB);
        lent.bench.update_memory(&[], &[region]).unwrap();
        let domain = lent.bench.domain(1);
        lent.bench.attach(1, unwanted(&domain)).unwrap();
        lent.bench.map(&domain, IOVA, MIB, GPA).unwrap();
        let (result, injected) = fail.during(nth, || lent.bench.attach(1, Attachment::Bypass));
        if let Err(error) = result {
            assert!(injected == Some(true), "without a failure: {error}");
            failures += 1;
            assert!(lent.bench.reaches(lent.device, IOVA, MIB, 0), "step {nth}");
            lent.bypass();
        }
        assert!(lent.reaches_all(), "after step {nth}");
        if injected != Some(true) {
            break;
        }
    }
    assert!(failures > 0, "no step can fail");
}
