// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ATTACH, DETACH and bypass, down to what the hardware's table maps.

use super::*;
use crate::common::requests::{ATTACH_BYPASS, PASID};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

#[test]
fn an_endpoint_is_in_bypass_until_it_is_attached__b25() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    for endpoint in [ENDPOINT, OTHER] {
        assert!(program.reaches(endpoint, &guest, GPA, 8 * MIB, GPA));
    }
    attach(&mut guest, 1, ENDPOINT, 0);
    assert!(program.reaches_none(ENDPOINT, &guest, GPA, 8 * MIB, GPA));
    assert!(program.reaches(OTHER, &guest, GPA, 8 * MIB, GPA));
    assert_eq!(guest.request(&requests::detach(1, ENDPOINT)), OK);
    assert!(program.reaches(ENDPOINT, &guest, GPA, 8 * MIB, GPA));
}

#[test]
fn without_boot_bypass_an_endpoint_reaches_nothing__r23() {
    let program = Program::start(&["--boot-bypass", "off"]);
    let mut guest = program.guest();
    assert!(program.reaches_none(ENDPOINT, &guest, GPA, MIB, GPA));
    attach(&mut guest, 1, ENDPOINT, ATTACH_BYPASS);
    assert!(program.reaches(ENDPOINT, &guest, GPA, 8 * MIB, GPA));
    assert_eq!(guest.request(&requests::detach(1, ENDPOINT)), OK);
    assert!(program.reaches_none(ENDPOINT, &guest, GPA, MIB, GPA));
}

#[test]
fn the_bypass_field_moves_unattached_endpoints_at_once() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach(&mut guest, 1, OTHER, 0);
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    for (value, bypass) in [(0, false), (1, true)] {
        let mut config = guest.config();
        config[36] = value;
        guest
            .frontend
            .set_config(0, VhostUserConfigFlags::WRITABLE, &config)
            .unwrap();
        assert_eq!(program.reaches(ENDPOINT, &guest, GPA, MIB, GPA), bypass);
        assert!(program.reaches(OTHER, &guest, IOVA, MIB, GPA));
    }
}

#[test]
fn attaching_elsewhere_moves_the_endpoint__a31() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach(&mut guest, 1, ENDPOINT, 0);
    attach(&mut guest, 2, OTHER, 0);
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    assert_eq!(map(&mut guest, 2, IOVA, MIB, GPA + MIB), OK);
    attach(&mut guest, 2, ENDPOINT, 0);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, MIB, GPA));
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, GPA + MIB));
    // Domain 1 has lost its last endpoint.
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), NOENT);
    attach(&mut guest, 1, ENDPOINT, 0);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, MIB, GPA));
}

#[test]
fn two_endpoints_of_a_domain_see_the_same_and_leave_alone__a29() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach(&mut guest, 1, ENDPOINT, 0);
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    attach(&mut guest, 1, OTHER, 0);
    assert_eq!(map(&mut guest, 1, IOVA + MIB, MIB, GPA + MIB), OK);
    for endpoint in [ENDPOINT, OTHER] {
        assert!(program.reaches(endpoint, &guest, IOVA, 2 * MIB, GPA));
    }
    assert_eq!(guest.request(&requests::detach(1, ENDPOINT)), OK);
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, 2 * MIB, GPA));
    assert!(program.reaches(OTHER, &guest, IOVA, 2 * MIB, GPA));
}

#[test]
fn an_endpoint_and_its_pasid_are_in_two_domains() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    attach(&mut guest, 1, ENDPOINT, 0);
    assert_eq!(
        guest.request(&requests::attach_pasid(2, ENDPOINT, PASID, 9)),
        OK
    );
    assert_eq!(map(&mut guest, 1, IOVA, MIB, GPA), OK);
    assert_eq!(map(&mut guest, 2, IOVA, MIB, GPA + MIB), OK);
    let (kernel, device) = (&program.kernel, program.device(ENDPOINT));
    let table = kernel.page_table_of(device, 9).unwrap();
    let address = guest.ram.user_address(GPA + MIB) as *const u8;
    assert!(kernel.maps(table, IOVA, MIB, address));
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, GPA));
    assert_eq!(guest.request(&requests::detach_pasid(2, ENDPOINT, 9)), OK);
    assert_eq!(kernel.page_table_of(device, 9), None);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, GPA));
    assert_eq!(
        guest.request(&requests::attach_pasid(2, ENDPOINT, PASID, 1 << 20)),
        INVAL
    );
}
