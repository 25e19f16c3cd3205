// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Endpoints, and their moves between domains, bypass and blocked.

use super::*;
use vhost_device_iommu::spec::Status;

pub fn a_new_endpoint_is_blocked_and_an_unknown_one_is_refused<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    assert!(bench.host().has_endpoint(EndpointId(1)));
    let properties = bench.host().properties(EndpointId(1)).unwrap();
    assert!(properties.page_requests);
    assert_eq!(properties.pasid_width, 20);
    assert!(bench.is_out_of_reach(plain(1), 16 * MIB, RAM, 0));
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(!bench.host().has_endpoint(EndpointId(9)));
    assert!(bench.host().properties(EndpointId(9)).is_none());
    let error = bench.attach(9, Attachment::Bypass).unwrap_err();
    assert_eq!(error.status(), Status::NoEnt);
}

pub fn an_endpoint_that_moves_leaves_everything_behind<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let (first, second) = (bench.domain(1), bench.domain(2));
    bench.attach(1, unwanted(&first)).unwrap();
    bench.map(&first, IOVA, MIB, 16 * MIB).unwrap();
    // Mapping needs no endpoint in the domain.
    bench.map(&second, IOVA, MIB, 24 * MIB).unwrap();
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
    bench.attach(1, unwanted(&second)).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
    assert!(bench.is_reached(plain(1), IOVA, MIB, 8 * MIB));
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 8 * MIB));
    bench.attach(1, Attachment::Bypass).unwrap();
    assert!(bench.is_reached(plain(1), 16 * MIB, RAM, 0));
    bench.attach(1, unwanted(&first)).unwrap();
    assert!(bench.is_out_of_reach(plain(1), 16 * MIB, MIB, 0));
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
}

pub fn endpoints_of_a_domain_see_the_same<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    bench.add_endpoint(2);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    bench.attach(2, unwanted(&domain)).unwrap();
    bench.map(&domain, IOVA + MIB, MIB, 20 * MIB).unwrap();
    for endpoint in [1, 2] {
        assert!(bench.is_reached(plain(endpoint), IOVA, MIB, 0));
        assert!(bench.is_reached(plain(endpoint), IOVA + MIB, MIB, 4 * MIB));
    }
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
    assert!(bench.is_reached(plain(2), IOVA, MIB, 0));
}

pub fn a_domain_made_again_under_its_number_is_empty__d39<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    bench.attach(1, Attachment::Blocked).unwrap();
    bench.host().destroy_domain(domain.id);
    let again = bench.domain(1);
    bench.attach(1, unwanted(&again)).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
    bench.map(&again, IOVA, MIB, 20 * MIB).unwrap();
    assert!(bench.is_reached(plain(1), IOVA, MIB, 4 * MIB));
}

pub fn a_pasid_has_an_address_space_of_its_own<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let (plain_domain, pasid_domain) = (bench.domain(1), bench.domain(2));
    let pasid = with_pasid(1, 5);
    bench.attach(1, unwanted(&plain_domain)).unwrap();
    bench.host().attach(pasid, unwanted(&pasid_domain)).unwrap();
    bench.map(&plain_domain, IOVA, MIB, 16 * MIB).unwrap();
    bench.map(&pasid_domain, IOVA, MIB, 20 * MIB).unwrap();
    assert!(bench.is_reached(pasid, IOVA, MIB, 4 * MIB));
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
    // Each moves without the other.
    bench.attach(1, Attachment::Bypass).unwrap();
    assert!(bench.is_reached(pasid, IOVA, MIB, 4 * MIB));
    bench.host().attach(pasid, unwanted(&plain_domain)).unwrap();
    assert!(bench.is_reached(pasid, IOVA, MIB, 0));
    // A PASID that is blocked reaches nothing, whatever its endpoint does.
    for _ in 0..2 {
        bench.host().attach(pasid, Attachment::Blocked).unwrap();
        assert!(bench.is_out_of_reach(pasid, IOVA, MIB, 0));
        assert!(bench.is_out_of_reach(pasid, 16 * MIB, MIB, 0));
    }
    assert!(bench.is_reached(plain(1), 16 * MIB, MIB, 0));
}

pub fn an_endpoint_that_is_removed_can_be_added_again<B: Bench>() {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, reported(&domain)).unwrap();
    let pasid = with_pasid(1, 7);
    bench.host().attach(pasid, reported(&domain)).unwrap();
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    for _ in 0..2 {
        bench.host().remove_endpoint(EndpointId(1));
        assert!(!bench.host().has_endpoint(EndpointId(1)));
        assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
    }
    bench.add_endpoint(1);
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
    assert!(bench.is_out_of_reach(pasid, IOVA, MIB, 0));
    bench.attach(1, reported(&domain)).unwrap();
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
}
