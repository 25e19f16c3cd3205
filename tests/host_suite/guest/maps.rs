// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP and UNMAP, down to what the hardware's table maps.

use super::*;
use crate::common::GuestOptions;
use crate::common::ram::{self, region_of};
use crate::kernel::{APERTURE_FIRST, APERTURE_LAST};
use vhost::vhost_user::VhostUserFrontend;

fn in_a_domain() -> (Program, Guest) {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach(&mut guest, 1, ENDPOINT, 0);
    (program, guest)
}

#[test]
fn the_config_space_tells_what_the_hardware_can() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    let config = guest.config();
    let field = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    assert_eq!(field(0), !0xfff);
    assert_eq!((field(8), field(16)), (APERTURE_FIRST, APERTURE_LAST));
}

#[test]
fn a_mapping_reaches_the_hardware_and_leaves_it() {
    let (program, mut guest) = in_a_domain();
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, GPA));
    assert_eq!(unmap(&mut guest, 1, IOVA, MIB), OK);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, MIB, GPA));
}

#[test]
fn a_batch_of_maps_and_unmaps_happens_in_order() {
    let (program, mut guest) = in_a_domain();
    let page = |index: u64| (IOVA + index * 4096, IOVA + index * 4096 + 4095);
    let mut batch: Vec<_> = (0..8)
        .map(|index| {
            let (first, last) = page(index);
            requests::map(1, first, last, GPA + index * 4096, READ | WRITE)
        })
        .collect();
    // Consecutive UNMAPs are one call for the kernel; the MAP between them must not be part of it.
    for index in [1, 2] {
        let (first, last) = page(index);
        batch.push(requests::unmap(1, first, last));
    }
    let (first, last) = page(2);
    batch.push(requests::map(1, first, last, GPA + MIB, READ));
    for index in [3, 4] {
        let (first, last) = page(index);
        batch.push(requests::unmap(1, first, last));
    }
    assert_eq!(guest.batch(&batch), vec![OK; batch.len()]);
    for index in [0, 5, 6, 7] {
        assert!(program.reaches(ENDPOINT, &guest, page(index).0, 4096, GPA + index * 4096));
    }
    for index in [1, 2, 3, 4] {
        assert!(program.reaches_none(ENDPOINT, &guest, page(index).0, 4096, GPA + index * 4096));
    }
    assert!(program.reaches(ENDPOINT, &guest, page(2).0, 4096, GPA + MIB));
}

#[test]
fn an_overlapping_map_changes_nothing__m41() {
    let (program, mut guest) = in_a_domain();
    assert_eq!(map(&mut guest, 1, IOVA, 8192, GPA), OK);
    assert_eq!(map(&mut guest, 1, IOVA + 4096, 8192, GPA + MIB), INVAL);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 8192, GPA));
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA + 4096, 8192, GPA + MIB));
}

#[test]
fn an_unmap_that_would_split_removes_nothing__u51() {
    let (program, mut guest) = in_a_domain();
    assert_eq!(map(&mut guest, 1, IOVA, 4096, GPA), OK);
    assert_eq!(map(&mut guest, 1, IOVA + 4096, 8192, GPA + 4096), OK);
    assert_eq!(unmap(&mut guest, 1, IOVA, 8192), RANGE);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 3 * 4096, GPA));
    assert_eq!(unmap(&mut guest, 1, IOVA, 3 * 4096), OK);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, 3 * 4096, GPA));
}

#[test]
fn a_map_of_everything_maps_what_is_memory() {
    let program = Program::start(&[]);
    let mut guest = program.guest_with(&GuestOptions {
        ram: vec![(0, 24 * MIB), (0x800_0000, 4 * MIB)],
        ..Default::default()
    });
    attach(&mut guest, 1, ENDPOINT, 0);
    // What Linux does where it has no bypass domains: identity over the whole aperture.
    let length = APERTURE_LAST + 1 - APERTURE_FIRST;
    assert_eq!(
        map(&mut guest, 1, APERTURE_FIRST, length, APERTURE_FIRST),
        OK
    );
    assert!(program.reaches(ENDPOINT, &guest, 16 * MIB, 8 * MIB, 16 * MIB));
    assert!(program.reaches(ENDPOINT, &guest, 0x800_0000, 4 * MIB, 0x800_0000));

    // Memory plugged in later is there when the front-end has its acknowledgement.
    let info = guest.ram.insert(ram::region(0x1000_0000, 2 * MIB));
    guest.frontend.add_mem_region(&info).unwrap();
    assert!(program.reaches(ENDPOINT, &guest, 0x1000_0000, 2 * MIB, 0x1000_0000));

    // And memory unplugged is gone by then.
    let hwpt = program.kernel.page_table(program.device(ENDPOINT));
    for gpa in [0x1000_0000, 0x800_0000] {
        let address = guest.ram.user_address(gpa) as *const u8;
        let (info, region) = guest.ram.remove(gpa);
        guest.frontend.remove_mem_region(&info).unwrap();
        assert!(program.kernel.maps_none(hwpt, gpa, 2 * MIB, address));
        drop(region);
    }
    assert!(program.reaches(ENDPOINT, &guest, 16 * MIB, 8 * MIB, 16 * MIB));
    assert_eq!(unmap(&mut guest, 1, APERTURE_FIRST, length), OK);
    assert!(program.reaches_none(ENDPOINT, &guest, 16 * MIB, 8 * MIB, 16 * MIB));
}

#[test]
fn a_mapping_over_several_memory_regions_is_one_for_the_guest() {
    let program = Program::start(&[]);
    let mut guest = program.guest_with(&GuestOptions {
        ram: vec![(0x1_0000, 32 * MIB), (0x800_0000, MIB), (0x810_0000, MIB)],
        ..Default::default()
    });
    attach(&mut guest, 1, ENDPOINT, 0);
    assert_eq!(map(&mut guest, 1, IOVA, 2 * MIB, 0x800_0000), OK);
    for offset in [0, MIB] {
        assert!(program.reaches(ENDPOINT, &guest, IOVA + offset, MIB, 0x800_0000 + offset));
    }
    assert_eq!(unmap(&mut guest, 1, IOVA, MIB), RANGE);
    assert_eq!(unmap(&mut guest, 1, IOVA, 2 * MIB), OK);
    for offset in [0, MIB] {
        assert!(program.reaches_none(ENDPOINT, &guest, IOVA + offset, MIB, 0x800_0000 + offset));
    }
}

#[test]
fn a_new_memory_table_moves_mappings_to_the_new_memory() {
    let program = Program::start(&[]);
    let mut guest = program.guest_with(&GuestOptions {
        ram: vec![(0x1_0000, 32 * MIB), (0x800_0000, MIB)],
        ..Default::default()
    });
    attach(&mut guest, 1, ENDPOINT, 0);
    assert_eq!(map(&mut guest, 1, IOVA, MIB, 0x800_0000), OK);
    let old = guest.ram.user_address(0x800_0000) as *const u8;
    let (_, region) = guest.ram.remove(0x800_0000);
    // The same place and size, another part of another file.
    guest
        .ram
        .insert(region_of(ram::memfd(4 * MIB), 2 * MIB, 0x800_0000, MIB));
    guest.send_memory();
    let hwpt = program.kernel.page_table(program.device(ENDPOINT));
    assert!(program.kernel.maps_none(hwpt, IOVA, MIB, old));
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, 0x800_0000));
    drop(region);
}

#[test]
fn a_map_that_the_kernel_refuses_is_range_and_leaves_nothing() {
    let program = Program::start(&[]);
    let mut guest = program.guest_with(&GuestOptions {
        ram: vec![(0x1_0000, 32 * MIB), (0x800_0000, MIB), (0x810_0000, MIB)],
        ..Default::default()
    });
    let before = program.kernel.address_spaces();
    attach(&mut guest, 1, ENDPOINT, 0);
    let after = program.kernel.address_spaces();
    let domain = after.iter().find(|id| !before.contains(id)).unwrap();
    // A hole that came after the endpoint was probed, in the second half of the mapping.
    program.kernel.reserve(*domain, IOVA + MIB + 0x8000, 4096);
    assert_eq!(map(&mut guest, 1, IOVA, 2 * MIB, 0x800_0000), RANGE);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, MIB, 0x800_0000));
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA + MIB, MIB, 0x810_0000));
    assert_eq!(map(&mut guest, 1, IOVA, MIB, 0x800_0000), OK);
    assert_eq!(program.counter("host_errors"), 1);
}
