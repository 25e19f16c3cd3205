// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bypass, by the config space and by domain.

use super::fake::{Call, FakeHost};
use super::*;
use crate::host::{Attachment, EndpointProperties, Owner};

#[test]
fn unattached_endpoints_follow_the_config_byte__b25_c9() {
    for (boot_bypass, place) in [(true, Attachment::Bypass), (false, Attachment::Blocked)] {
        let config = DeviceConfig {
            boot_bypass,
            ..DeviceConfig::default()
        };
        let bench = Bench::with(config, FakeHost::new(&[1]));
        // Even when the driver did not accept the feature.
        bench.negotiate_without(Features::BYPASS_CONFIG);
        assert_eq!(bench.host.attachment(requester(1)), place);
        assert_eq!(bench.device.config_space()[36], u8::from(boot_bypass));
    }
}

#[test]
fn writing_the_config_byte_moves_unattached_endpoints__b25_c5() {
    let bench = Bench::new();
    bench.attach(7, 2);
    bench.device.write_config(36, &[0]);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    assert!(matches!(
        bench.host.attachment(requester(2)),
        Attachment::Domain { .. }
    ));
    bench.detach(7, 2);
    assert_eq!(bench.host.attachment(requester(2)), Attachment::Blocked);
    bench.device.write_config(36, &[1]);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
    assert_eq!(bench.host.attachment(requester(2)), Attachment::Bypass);
}

#[test]
fn a_bypass_domain_is_identity_whatever_the_config_byte_says__b25() {
    let bench = Bench::new();
    bench.device.write_config(36, &[0]);
    assert_eq!(bench.attach_with(7, 1, BYPASS), Status::Ok);
    assert_eq!(bench.translate(1, 0x1234, true), Some(0x1234));
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.translate(1, 0x1234, true), None);
}

#[test]
fn map_and_unmap_in_a_bypass_domain_are_inval__m44_u50() {
    let bench = Bench::new();
    bench.attach_with(7, 1, BYPASS);
    assert_eq!(bench.map(7, 0, 0xfff, 0, RW), Status::Inval);
    assert_eq!(bench.unmap(7, 0, 0xfff), Status::Inval);
}

#[test]
fn other_values_than_0_and_1_change_nothing__c7_c11() {
    let bench = Bench::new();
    for value in [2, 0x80, 0xff] {
        bench.device.write_config(36, &[value]);
        assert_eq!(bench.device.config_space()[36], 1);
    }
}

#[test]
fn bypass_survives_a_device_reset_and_not_a_system_reset__c10() {
    let bench = Bench::new();
    bench.device.write_config(36, &[0]);
    bench.device.reset();
    assert_eq!(bench.device.config_space()[36], 0);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    bench.device.disconnect();
    assert_eq!(bench.device.config_space()[36], 1);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
}

#[test]
fn a_driver_ending_its_attachment_gets_bypass_back__b25() {
    let bench = Bench::new();
    bench.attach(7, 1);
    assert_eq!(bench.translate(1, 0x1000, false), None);
    bench.device.reset();
    assert_eq!(bench.translate(1, 0x1000, false), Some(0x1000));
}

#[test]
fn where_the_host_cannot_bypass_the_endpoint_is_blocked__r23() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.host.fail(Some(Call::AttachBypass));
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    assert_eq!(bench.device.status().endpoints[0].state, "blocked");
}

#[test]
fn bypass_with_page_request_is_inval__x11() {
    assert_eq!(
        Bench::new().attach_with(7, 1, BYPASS | PAGE_REQUEST),
        Status::Inval
    );
}

#[test]
fn a_device_of_the_front_ends_is_in_bypass_only_while_there_is_one() {
    let host = FakeHost::new(&[1, 2, 3]);
    for (id, maps_memory) in [(1, true), (2, false)] {
        let owner = Owner::FrontEnd { maps_memory };
        let properties = EndpointProperties {
            owner,
            ..Default::default()
        };
        host.set_endpoint(id, properties);
    }
    let bench = Bench::with(DeviceConfig::default(), host);
    let places = || [1, 2, 3].map(|id| bench.host.attachment(requester(id)));
    let without = [Attachment::Blocked, Attachment::Blocked, Attachment::Bypass];
    let states = || {
        let status = bench.device.status().endpoints;
        [0, 1, 2].map(|index: usize| status[index].state)
    };
    bench.device.disconnect();
    assert_eq!(places(), without);
    assert_eq!(states(), ["blocked", "blocked", "bypass"]);
    bench.device.connect();
    assert_eq!(places(), [Attachment::Bypass; 3]);
    assert_eq!(states(), ["front-end", "bypass", "bypass"]);
    bench.negotiate_without(Features::empty());
    bench.attach(7, 1);
    assert_eq!(states(), ["attached", "bypass", "bypass"]);
    bench.device.disconnect();
    assert_eq!(places(), without);
}

/// Endpoint 1 of two is blocked, as the host had no memory for the bypass.
fn bench_that_owes_bypass() -> Bench {
    let bench = Bench::with(DeviceConfig::default(), FakeHost::new(&[1, 2]));
    bench.attach(7, 1);
    bench.host.fail(Some(Call::AttachBypass));
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    bench
}

#[test]
fn bypass_that_the_host_refused_comes_with_the_next_request_reset_or_connection__b25() {
    type Occasion = fn(&Bench);
    let occasions: [Occasion; 4] = [
        |bench| assert_eq!(bench.raw(&[0xff; 4], 4), Reply::Unwritten),
        |bench| bench.device.reset(),
        |bench| bench.device.system_reset(),
        |bench| bench.device.connect(),
    ];
    for occasion in occasions {
        let bench = bench_that_owes_bypass();
        occasion(&bench);
        assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
        bench.host.fail(None);
        occasion(&bench);
        assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
        assert_eq!(bench.device.status().endpoints[0].state, "bypass");
    }
}

#[test]
fn bypass_that_the_host_refused_at_a_disconnect_comes_with_the_next_connection__b25() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.host.fail(Some(Call::AttachBypass));
    bench.device.disconnect();
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    bench.host.fail(None);
    bench.device.connect();
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
}

#[test]
fn bypass_is_asked_for_once_a_batch_and_only_while_it_is_owed() {
    let bench = bench_that_owes_bypass();
    let errors = || bench.device.counters().host_errors.get();
    let before = errors();
    let requests = vec![(probe_bytes(2), 600); 10];
    bench.batch(&requests);
    assert_eq!(errors(), before + 1);
    // The driver has other plans by now.
    bench.device.write_config(36, &[0]);
    bench.batch(&requests);
    assert_eq!(errors(), before + 1);
    bench.host.fail(None);
    bench.batch(&requests);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    // One that is attached meanwhile is left alone.
    let bench = bench_that_owes_bypass();
    bench.attach(7, 1);
    bench.host.fail(None);
    bench.batch(&requests);
    assert!(matches!(
        bench.host.attachment(requester(1)),
        Attachment::Domain { .. }
    ));
}

#[test]
fn an_endpoint_that_the_host_could_not_block_is_blocked_with_the_next_request__r23() {
    let bench = Bench::new();
    bench.host.fail(Some(Call::Block));
    bench.device.write_config(36, &[0]);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
    assert_eq!(bench.device.status().endpoints[0].state, "bypass");
    bench.batch(&[(probe_bytes(1), 600)]);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Bypass);
    bench.host.fail(None);
    bench.batch(&[(probe_bytes(1), 600)]);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    assert_eq!(bench.device.status().endpoints[0].state, "blocked");
}
