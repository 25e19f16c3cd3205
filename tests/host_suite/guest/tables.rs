// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of the guest's driver: ATTACH_TABLE and INVALIDATE down to the kernel, page requests up from there. What the kernel
//! keeps of a mock device's table, `contract/tables.rs` explains.

use super::*;
use crate::common::requests::PASID;
use crate::kernel;
use vhost_device_iommu::spec::Reason;

/// A page that no ring is in: the root of the table.
const ROOT: u64 = GPA + MIB;
const WITH_PASID: u32 = ATTACH_PAGE_REQUEST | PASID;
const DEVERR: u8 = Status::DevErr as u8;

/// Attaches the first endpoint, or one of its PASIDs, to the table of domain 1.
fn attach_table(guest: &mut Guest, flags: u32, pasid: u32) {
    let request = requests::attach_table(1, ENDPOINT, flags, pasid, ROOT);
    assert_eq!(guest.request(&request), OK);
}

/// What the kernel keeps of the table of a PASID of the first endpoint; 0 for none.
fn kept(program: &Program, pasid: u32) -> [bool; 4] {
    let device = program.device(ENDPOINT);
    let hwpt = program.kernel.page_table_of(device, pasid).unwrap();
    let value = (ROOT >> 12) as u32;
    [0, 1, 2, 3].map(|number| program.kernel.keeps(hwpt, number, value))
}

fn invalidate_page(number: u64) -> Vec<u8> {
    requests::invalidate(1, number << 12, (number << 12) + 0xfff)
}

#[test]
fn a_table_is_attached_and_invalidated_in_the_kernel__x103() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach_table(&mut guest, 0, 0);
    attach_table(&mut guest, WITH_PASID, 5);
    assert_eq!([kept(&program, 0), kept(&program, 5)], [[true; 4]; 2]);
    assert_eq!(guest.request(&invalidate_page(2)), OK);
    let rest = [true, true, false, true];
    assert_eq!([kept(&program, 0), kept(&program, 5)], [rest; 2]);
    assert_eq!(guest.request(&requests::invalidate(1, 0, u64::MAX)), OK);
    assert_eq!([kept(&program, 0), kept(&program, 5)], [[false; 4]; 2]);
    // X99: it takes no mappings.
    assert_eq!(map(&mut guest, 1, IOVA, 4096, GPA), INVAL);
    // X87: what ended is gone from the kernel, PASID by PASID.
    assert_eq!(guest.request(&requests::detach_pasid(1, ENDPOINT, 5)), OK);
    let device = program.device(ENDPOINT);
    assert_eq!(program.kernel.page_table_of(device, 5), None);
    attach(&mut guest, 2, ENDPOINT, 0);
    assert_eq!(map(&mut guest, 2, IOVA, 4096, GPA), OK);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 4096, GPA));
    assert_eq!(guest.request(&invalidate_page(1)), NOENT);
}

#[test]
fn invalidates_in_a_row_are_joined_and_fail_together__x104() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach_table(&mut guest, 0, 0);
    let good = [invalidate_page(0), invalidate_page(3)];
    assert_eq!(guest.batch(&good), [OK; 2]);
    assert_eq!(kept(&program, 0), [false, true, true, false]);
    // The kernel refuses the second.
    let bad = [invalidate_page(1), invalidate_page(9), invalidate_page(2)];
    assert_eq!(guest.batch(&bad), [DEVERR; 3]);
    assert_eq!(kept(&program, 0), [false, false, true, false]);
    assert_eq!(program.counter("invalidate"), 2);
    assert_eq!(program.counter("invalidate_failed"), 3);
    assert_eq!(guest.request(&invalidate_page(2)), OK);
    assert_eq!(kept(&program, 0), [false; 4]);
}

#[test]
fn page_requests_of_a_table_reach_the_guest_with_their_pasid() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    guest.post_events(4, EVENT_LEN, false);
    attach_table(&mut guest, ATTACH_PAGE_REQUEST, 0);
    attach_table(&mut guest, WITH_PASID, 5);
    for pasid in [0, 5] {
        program.page_request_with(ENDPOINT, pasid, kernel::WRITE, IOVA);
        let event = guest.page_request();
        assert_eq!(event.pasid.get(), pasid);
        let group = event.group_id.get();
        let pasid = (pasid != 0).then_some(pasid);
        let response = requests::page_response(ENDPOINT, pasid, group, SUCCESS);
        assert_eq!(guest.request(&response), OK);
    }
}

#[test]
fn a_pasid_without_attachment_is_refused_and_reported_though_its_endpoint_has_a_table() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    guest.post_events(2, EVENT_LEN, false);
    attach_table(&mut guest, ATTACH_PAGE_REQUEST, 0);
    program.page_request_with(ENDPOINT, 7, kernel::READ, IOVA);
    let report = guest.fault();
    assert_eq!(report.reason, Reason::Domain as u8);
    // Draft 1 has the PASID where the specification has reserved bits.
    assert_eq!(report.reserved1.get(), 7);
    assert_eq!(report.address.get(), IOVA);
    assert_eq!(program.counter("page_request_unwanted"), 1);
}

#[test]
fn a_table_ends_with_its_driver_and_nothing_of_it_stays__x87() {
    let mut program = Program::start(&[]);
    let guest = {
        let mut guest = program.guest();
        attach_table(&mut guest, 0, 0);
        attach_table(&mut guest, WITH_PASID, 5);
        guest
    };
    let device = program.device(ENDPOINT);
    let nested = program.kernel.page_table(device);
    drop(guest);
    let mut next = program.guest();
    attach(&mut next, 1, OTHER, 0);
    assert_ne!(program.kernel.page_table(device), nested);
    assert_eq!(program.kernel.page_table_of(device, 5), None);
    drop(next);
    assert!(program.terminate().success());
}
