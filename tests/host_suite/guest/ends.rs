// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset, disconnect and SIGTERM while groups are outstanding, and endpoints that come and go.

use super::*;
use crate::common::wait_until;
use crate::kernel;
use serde_json::json;

/// Two groups: one at the guest, one that waits for a buffer.
fn with_groups() -> (Program, Guest, Event) {
    let (program, mut guest) = with_page_requests(&["--page-response-timeout", "0"], 1);
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    program.page_request(ENDPOINT, kernel::READ, IOVA + 4096);
    program.wait_for_counter("page_request_groups", 2);
    let event = guest.page_request();
    (program, guest, event)
}

/// Page requests work as if nothing had been.
fn works_anew(program: &Program, guest: &mut Guest) {
    guest.post_events(2, EVENT_LEN, true);
    attach(guest, 1, ENDPOINT, ATTACH_PAGE_REQUEST);
    program.page_request(ENDPOINT, kernel::WRITE, IOVA + MIB);
    let event = guest.page_request();
    assert_eq!(event.address.get(), IOVA + MIB, "the first that comes");
    assert_eq!(map(guest, 1, IOVA + MIB, 4096, GPA), OK);
    assert_eq!(respond(guest, ENDPOINT, &event, SUCCESS), OK);
    assert!(program.reaches(ENDPOINT, guest, IOVA + MIB, 4096, GPA));
}

#[test]
fn a_device_reset_answers_what_is_outstanding__i12() {
    let (program, mut guest, event) = with_groups();
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    guest.stop();
    guest.start_anew();
    // The first look at the ring tells a reset from a resume.
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), NOENT);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, MIB, GPA));
    assert!(
        program.reaches(ENDPOINT, &guest, GPA, MIB, GPA),
        "in bypass"
    );
    works_anew(&program, &mut guest);
}

#[test]
fn a_pause_keeps_what_is_outstanding() {
    let (program, mut guest, event) = with_groups();
    let bases = guest.stop();
    program.page_request(ENDPOINT, kernel::READ, IOVA + 2 * 4096);
    guest.start(bases);
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
    guest.post_events(2, EVENT_LEN, true);
    for index in [1, 2] {
        let event = guest.page_request();
        assert_eq!(event.address.get(), IOVA + index * 4096);
        assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
    }
}

#[test]
fn a_front_end_that_goes_leaves_nothing_to_the_next() {
    let (program, mut guest, _) = with_groups();
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    let table = program.kernel.page_table(program.device(ENDPOINT));
    // The memory of the guest, still known to this test.
    let memory = guest.ram.map.clone();
    let address = guest.ram.user_address(GPA) as *const u8;
    drop(guest);
    wait_until("the disconnect", || {
        program.control("status", json!({}))["connected"] == false
    });
    let bypass = program.kernel.page_table(program.device(ENDPOINT));
    assert_ne!(bypass, table);
    assert!(program.kernel.maps_none(bypass, GPA, MIB, address));
    drop(memory);
    let mut guest = program.guest();
    works_anew(&program, &mut guest);
}

#[test]
fn sigterm_answers_everything_and_leaves_nothing_in_the_context() {
    let (mut program, mut guest, _) = with_groups();
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    let status = program.terminate();
    assert!(status.success(), "{status}");
    // Mock devices end with the program; so their groups are answered, or the kernel could not let go of them.
    assert!(program.kernel.is_clean());
}

#[test]
fn a_group_unread_at_detach_never_reaches_the_guest() {
    let (program, mut guest, event) = with_groups();
    assert_eq!(guest.request(&requests::detach(1, ENDPOINT)), OK);
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), NOENT);
    works_anew(&program, &mut guest);
}

#[test]
fn an_endpoint_is_added_and_removed_while_the_guest_runs() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    guest.post_events(2, EVENT_LEN, false);
    let device = program.kernel.mock_device();
    let arguments = json!({ "endpoint": 0x38, "mock": device.stdev, "dev-id": device.dev });
    program.control("endpoint-add", arguments);
    attach(&mut guest, 1, 0x38, ATTACH_PAGE_REQUEST);
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    let table = program.kernel.page_table(device);
    let address = guest.ram.user_address(GPA) as *const u8;
    assert!(program.kernel.maps(table, IOVA, MIB, address));
    program
        .kernel
        .page_request(device, 0, 1, kernel::READ, IOVA + MIB);
    let event = guest.page_request();
    program.control("endpoint-remove", json!({ "endpoint": 0x38 }));
    assert_eq!(respond(&mut guest, 0x38, &event, SUCCESS), NOENT);
    assert_eq!(guest.request(&requests::attach(1, 0x38, 0)), NOENT);
}
