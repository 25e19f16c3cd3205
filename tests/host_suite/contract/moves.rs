// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Endpoints, and their moves between domains, bypass and blocked.

use super::*;
use crate::kernel::{APERTURE_FIRST, APERTURE_LAST};
use vhost_device_iommu::spec::Status;

#[test]
fn an_endpoint_says_what_it_can_do() {
    let bench = Bench::new();
    bench.endpoint(1);
    assert!(!bench.host.has_endpoint(EndpointId(2)));
    let properties = bench.host.properties(EndpointId(1)).unwrap();
    assert!(properties.page_requests);
    assert_eq!(properties.pasid_width, 20);
    assert_eq!(properties.reserved, []);
    let limits = bench.host.limits();
    assert_eq!(limits.page_size_mask, !0xfff);
    let aperture = IovaRange::new(APERTURE_FIRST, APERTURE_LAST).unwrap();
    assert_eq!(limits.input_range, aperture);
}

#[test]
fn endpoints_in_bypass_share_one_page_table() {
    let bench = Bench::with_memory();
    let (first, second) = (bench.endpoint(1), bench.endpoint(2));
    bench.attach(1, Attachment::Bypass).unwrap();
    bench.attach(2, Attachment::Bypass).unwrap();
    assert_eq!(
        bench.kernel.page_table(first),
        bench.kernel.page_table(second)
    );
    assert!(bench.reaches(second, 16 * MIB, 16 * MIB, 0));
}

#[test]
fn endpoints_of_a_domain_share_one_page_table() {
    let bench = Bench::with_memory();
    let (first, second) = (bench.endpoint(1), bench.endpoint(2));
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.attach(2, unwanted(&domain)).unwrap();
    let table = bench.kernel.page_table(first);
    assert_eq!(bench.kernel.page_table(second), table);
    // A PASID is in the same one, and leaves it without the others.
    bench
        .host
        .attach(with_pasid(1, 5), unwanted(&domain))
        .unwrap();
    assert_eq!(bench.page_table(with_pasid(1, 5)), Some(table));
    bench
        .host
        .attach(with_pasid(1, 5), Attachment::Blocked)
        .unwrap();
    assert_eq!(bench.page_table(with_pasid(1, 5)), None);
    assert_eq!(bench.kernel.page_table(first), table);
}

#[test]
fn an_attachment_that_fails_leaves_the_old_one_in_force() {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let (first, second) = (bench.domain(1), bench.domain(2));
    bench.attach(1, unwanted(&first)).unwrap();
    bench.map(&first, IOVA, MIB, 16 * MIB).unwrap();
    // Below the aperture, which an address space without endpoints does not know of.
    bench.map(&second, MIB, MIB, 16 * MIB).unwrap();
    let error = bench.attach(1, unwanted(&second)).unwrap_err();
    assert_eq!(error.status(), Status::Unsupp, "{error}");
    assert!(bench.reaches(device, IOVA, MIB, 0));
    assert!(bench.attach(9, unwanted(&first)).is_err());
}

#[test]
fn the_same_device_is_not_two_endpoints() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let source = || EndpointSource::Mock {
        stdev_id: device.stdev,
    };
    let twice = bench
        .host
        .add_endpoint(EndpointId(2), source(), Some(device.dev));
    assert!(twice.is_err());
    assert!(
        bench
            .host
            .add_endpoint(EndpointId(1), source(), Some(99))
            .is_err()
    );
    assert!(
        bench
            .host
            .add_endpoint(EndpointId(3), source(), None)
            .is_err()
    );
}

#[test]
fn a_host_that_goes_leaves_nothing_in_a_shared_context() {
    let bench = Bench::with_memory();
    for id in 1..4 {
        bench.endpoint(id);
    }
    let domain = bench.domain(1);
    bench.attach(1, reported(&domain)).unwrap();
    bench.attach(2, Attachment::Bypass).unwrap();
    bench
        .host
        .attach(with_pasid(3, 3), unwanted(&domain))
        .unwrap();
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    let Bench { host, kernel, .. } = bench;
    drop(host);
    assert!(kernel.is_clean());
}
