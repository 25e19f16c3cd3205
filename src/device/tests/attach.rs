// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ATTACH and DETACH.

use zerocopy::IntoBytes;

use super::fake::{Call, FakeHost};
use super::*;
use crate::host::mapping::IovaRange;
use crate::host::{Attachment, EndpointProperties, ReservedRegion};
use crate::spec::ResvMemSubtype;

#[test]
fn attach_creates_the_domain_and_attaches__a33() {
    let bench = Bench::new();
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.host.domains(), [7].into());
    assert!(
        matches!(bench.host.attachment(requester(1)), Attachment::Domain { domain, .. } if domain.0 == 7)
    );
}

#[test]
fn attach_with_reserved_bytes_is_inval__a26_x9() {
    let bench = Bench::new();
    assert_eq!(bench.attach_pasid(7, 1, 0, 1), Status::Inval);
    bench.negotiate_without(Features::PASID);
    assert_eq!(bench.attach_pasid(7, 1, 0, 1), Status::Inval);
    assert_eq!(bench.host.domains(), [].into());
}

#[test]
fn attach_with_an_unknown_flag_is_inval__a27() {
    let bench = Bench::new();
    assert_eq!(bench.attach_with(7, 1, 1 << 3), Status::Inval);
    assert_eq!(bench.attach_with(7, 1, 1 << 31), Status::Inval);
}

#[test]
fn a_flag_without_its_feature_is_unknown__a27_x10() {
    let bench = Bench::new();
    for (flag, feature) in [
        (BYPASS, Features::BYPASS_CONFIG),
        (PAGE_REQUEST, Features::PAGE_REQUEST),
        (PASID, Features::PASID),
    ] {
        bench.negotiate_without(feature);
        assert_eq!(bench.attach_with(7, 1, flag), Status::Inval, "{feature:?}");
        bench.negotiate_without(Features::empty());
        assert_eq!(bench.attach_with(7, 1, flag), Status::Ok, "{feature:?}");
        bench.device.reset();
    }
}

#[test]
fn attach_of_an_unknown_endpoint_is_noent__a28() {
    let bench = Bench::new();
    assert_eq!(bench.attach(7, 99), Status::NoEnt);
    assert_eq!(bench.host.domains(), [].into());
}

#[test]
fn a_second_endpoint_shares_the_domain__a29() {
    let bench = Bench::new();
    bench.attach(7, 1);
    assert_eq!(bench.map(7, 0, 0xfff, 0x8000, RW), Status::Ok);
    assert_eq!(bench.attach(7, 2), Status::Ok);
    assert_eq!(bench.translate(1, 0x10, true), Some(0x8010));
    assert_eq!(bench.translate(2, 0x10, true), Some(0x8010));
}

#[test]
fn bypass_flag_against_the_domains_kind_is_inval__a30() {
    let bench = Bench::new();
    bench.attach(7, 1);
    assert_eq!(bench.attach_with(7, 2, BYPASS), Status::Inval);
    assert_eq!(bench.attach_with(8, 2, BYPASS), Status::Ok);
    assert_eq!(bench.attach(8, 1), Status::Inval);
    assert_eq!(bench.host.domains(), [7].into());
}

#[test]
fn attach_elsewhere_is_detach_and_attach__a31_d39() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    assert_eq!(bench.attach(8, 1), Status::Ok);
    assert_eq!(bench.host.domains(), [8].into());
    assert_eq!(bench.translate(1, 0, false), None);
    // The old domain is gone with its mappings.
    assert_eq!(bench.attach(7, 2), Status::Ok);
    assert_eq!(bench.translate(2, 0, false), None);
    assert!(
        bench
            .device
            .mappings(crate::spec::DomainId(7))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn attach_to_a_domain_mapped_over_a_reserved_region_is_unsupp__a32() {
    let host = FakeHost::new(&[1]);
    host.set_endpoint(
        2,
        EndpointProperties {
            reserved: vec![ReservedRegion {
                range: IovaRange::new(0x1000, 0x1fff).unwrap(),
                subtype: ResvMemSubtype::Reserved,
            }],
            ..Default::default()
        },
    );
    let bench = Bench::with(DeviceConfig::default(), host);
    bench.attach(7, 1);
    bench.map(7, 0x1000, 0x1fff, 0, RW);
    assert_eq!(bench.attach(7, 2), Status::Unsupp);
    assert_eq!(bench.unmap(7, 0x1000, 0x1fff), Status::Ok);
    assert_eq!(bench.attach(7, 2), Status::Ok);
}

#[test]
fn attach_with_page_request_of_an_endpoint_without_is_unsupp__a32_x12() {
    let host = FakeHost::new(&[]);
    host.set_endpoint(2, EndpointProperties::default());
    let bench = Bench::with(DeviceConfig::default(), host);
    assert_eq!(bench.attach_with(7, 2, PAGE_REQUEST), Status::Unsupp);
    assert_eq!(bench.attach_pasid(7, 2, PASID, 1), Status::Unsupp);
    assert_eq!(bench.attach(7, 2), Status::Ok);
}

#[test]
fn attach_again_keeps_the_mappings__a31_x15() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.translate(1, 0, false), Some(0x8000));
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.host.domains(), [].into());
}

#[test]
fn attach_outside_the_domain_range_is_range__r22() {
    let config = DeviceConfig {
        domain_range: (5, 9),
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1]));
    assert_eq!(bench.attach(4, 1), Status::Range);
    assert_eq!(bench.attach(10, 1), Status::Range);
    assert_eq!(bench.attach(5, 1), Status::Ok);
    assert_eq!(bench.attach(9, 1), Status::Ok);
}

#[test]
fn attach_over_the_quota_of_domains_is_nomem() {
    let config = DeviceConfig {
        max_domains: 2,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2, 3]));
    assert_eq!(bench.attach(1, 1), Status::Ok);
    assert_eq!(bench.attach_with(2, 2, BYPASS), Status::Ok);
    assert_eq!(bench.attach(3, 3), Status::NoMem);
    assert_eq!(bench.attach(2, 3), Status::Inval);
    // The only endpoint of a domain may move: the domain it leaves makes room.
    assert_eq!(bench.attach(3, 1), Status::Ok);
    assert_eq!(bench.attach(1, 3), Status::NoMem);
}

#[test]
fn a_failed_attach_leaves_everything_as_it_was() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    for call in [Call::AttachDomain, Call::CreateDomain] {
        bench.host.fail(Some(call));
        assert_eq!(bench.attach(8, 1), Status::NoMem);
        bench.host.fail(None);
        assert_eq!(bench.translate(1, 0, false), Some(0x8000));
        assert_eq!(bench.host.domains(), [7].into());
        assert_eq!(bench.device.status().endpoints[0].domain, Some(7));
    }
}

#[test]
fn detach_ignores_reserved_bytes__d35_x17() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PASID);
    bench.attach(7, 1);
    assert_eq!(
        bench.detach_with(7, 1, 0xffff_ffff, 0xffff_ffff),
        Status::Ok
    );
}

#[test]
fn detach_of_an_unknown_endpoint_is_noent__d36() {
    assert_eq!(Bench::new().detach(7, 99), Status::NoEnt);
}

#[test]
fn detach_from_a_domain_it_is_not_in_is_inval__d37() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.attach(8, 2);
    assert_eq!(bench.detach(8, 1), Status::Inval);
    assert_eq!(bench.detach(9, 1), Status::Inval);
    assert_eq!(bench.detach(7, 3), Status::Inval);
    assert_eq!(bench.host.domains(), [7, 8].into());
}

#[test]
fn a_detached_endpoint_reaches_nothing_of_the_domain__d38_r23() {
    let config = DeviceConfig {
        boot_bypass: false,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2]));
    bench.attach(7, 1);
    bench.attach(7, 2);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.translate(1, 0, false), None);
    assert_eq!(bench.translate(2, 0, false), Some(0x8000));
}

#[test]
fn the_last_detach_ends_the_domain_with_its_mappings__d39() {
    let config = DeviceConfig {
        max_mappings: 1,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2]));
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    bench.detach(7, 1);
    assert_eq!(bench.host.domains(), [].into());
    assert_eq!(bench.map(7, 0, 0xfff, 0x8000, RW), Status::NoEnt);
    // The id and the quota are free again.
    assert_eq!(bench.attach_with(7, 1, BYPASS), Status::Ok);
    assert_eq!(bench.attach(8, 2), Status::Ok);
    assert_eq!(bench.map(8, 0, 0xfff, 0x8000, RW), Status::Ok);
}

#[test]
fn device_reset_detaches_every_endpoint__i12() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.attach_pasid(8, 2, PASID, 3);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    bench.device.reset();
    let status = bench.device.status();
    assert!(status.domains.is_empty());
    assert!(
        status
            .endpoints
            .iter()
            .all(|e| e.domain.is_none() && e.pasids.is_empty())
    );
    assert_eq!(bench.host.domains(), [].into());
    assert_eq!(
        bench.host.attachment(pasid_requester(2, 3)),
        Attachment::Blocked
    );
}

#[test]
fn a_removed_endpoint_leaves_its_domain_and_is_unknown() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.attach(7, 2);
    bench.device.remove_endpoint(EndpointId(1)).unwrap();
    assert_eq!(bench.attach(7, 1), Status::NoEnt);
    assert_eq!(bench.host.domains(), [7].into());
    bench.device.remove_endpoint(EndpointId(2)).unwrap();
    assert_eq!(bench.host.domains(), [].into());
    assert!(bench.device.remove_endpoint(EndpointId(2)).is_err());
    bench.host.set_endpoint(2, EndpointProperties::default());
    bench.device.add_endpoint(EndpointId(2)).unwrap();
    assert!(bench.device.add_endpoint(EndpointId(2)).is_err());
    assert_eq!(bench.attach(7, 2), Status::Ok);
}

#[test]
fn head_reserved_is_ignored__r17() {
    // Every request of these tests has it set; with zeros it is the same request.
    let bench = Bench::new();
    let mut attach = attach_bytes(7, 1, 0, 0);
    attach.head.reserved = [0; 3];
    assert_eq!(bench.status(attach.as_bytes()), Status::Ok);
    attach.head.reserved = [0xff; 3];
    assert_eq!(bench.status(attach.as_bytes()), Status::Ok);
}
