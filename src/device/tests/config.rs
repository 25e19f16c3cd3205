// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Features and config space.

use zerocopy::FromBytes;

use super::fake::FakeHost;
use super::*;
use crate::device::SetupError;
use crate::host::Limits;
use crate::host::mapping::IovaRange;
use crate::spec::Config;

fn config_of(device: &Device) -> Config {
    Config::read_from_bytes(&device.config_space()).unwrap()
}

#[test]
fn map_unmap_is_offered_and_the_legacy_bypass_is_not__f2_f3_f4() {
    let offered = Bench::new().device.offered_features();
    assert!(offered.contains(
        Features::MAP_UNMAP
            | Features::INPUT_RANGE
            | Features::DOMAIN_RANGE
            | Features::PROBE
            | Features::BYPASS_CONFIG
    ));
    assert!(!offered.contains(Features::BYPASS));
}

#[test]
fn page_size_mask_has_a_bit_and_its_lowest_is_the_granule__c8_r24() {
    let config = DeviceConfig {
        page_size_mask: Some(1 << 16 | 1 << 21),
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1]));
    assert_eq!(
        config_of(&bench.device).page_size_mask.get(),
        1 << 16 | 1 << 21
    );
    bench.attach(1, 1);
    assert_eq!(bench.map(1, 0, 0xfff, 0, RW), Status::Range);
    assert_eq!(bench.map(1, 0, 0xffff, 0, RW), Status::Ok);
}

#[test]
fn page_sizes_that_the_host_has_not_are_refused__c8() {
    // None of the host's, and some that are finer.
    for mask in [1 << 11, 0, 1 << 2, 1 << 11 | 1 << 12, !0x7ff] {
        let config = DeviceConfig {
            page_size_mask: Some(mask),
            ..DeviceConfig::default()
        };
        let refused = Device::new(config, Arc::new(FakeHost::new(&[1])), &[EndpointId(1)]);
        assert!(
            matches!(refused, Err(SetupError::PageSizes(_))),
            "{mask:#x}"
        );
    }
}

#[test]
fn input_range_is_what_host_and_configuration_have_in_common__r21() {
    let host = FakeHost::new(&[1]).with_limits(Limits {
        page_size_mask: !0xfff,
        input_range: IovaRange::new(0x1000, 0x7fff_ffff).unwrap(),
    });
    let config = DeviceConfig {
        input_range: IovaRange::new(0, 0xffff).unwrap(),
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, host);
    let range = config_of(&bench.device).input_range;
    assert_eq!((range.first.get(), range.last.get()), (0x1000, 0xffff));
    bench.attach(1, 1);
    assert_eq!(bench.map(1, 0, 0xfff, 0, RW), Status::Range);
    assert_eq!(bench.map(1, 0xf000, 0x1_0fff, 0, RW), Status::Range);
    assert_eq!(bench.map(1, 0x1000, 0xffff, 0, RW), Status::Ok);
}

#[test]
fn writes_touch_bypass_only_and_never_fail__c5_c6() {
    let bench = Bench::new();
    let before = bench.device.config_space();
    // QEMU writes the whole space, whatever it holds.
    let mut written = [0xa5; 40];
    written[36] = 0;
    bench.device.write_config(0, &written);
    let mut expected = before;
    expected[36] = 0;
    assert_eq!(bench.device.config_space(), expected);
    bench.device.write_config(37, &[1]);
    bench.device.write_config(usize::MAX, &[1]);
    bench.device.write_config(0, &[1; 36]);
    bench.device.write_config(36, &[]);
    assert_eq!(bench.device.config_space(), expected);
}

#[test]
fn domain_range_and_reserved_bytes_are_as_configured() {
    let config = DeviceConfig {
        domain_range: (3, 17),
        ..DeviceConfig::default()
    };
    let device = Bench::with(config, FakeHost::new(&[1])).device;
    let config = config_of(&device);
    assert_eq!(
        (
            config.domain_range.first.get(),
            config.domain_range.last.get()
        ),
        (3, 17)
    );
    assert_eq!(config.reserved, [0; 3]);
}

#[test]
fn the_extension_comes_with_probe__x3() {
    let offered = Bench::new().device.offered_features();
    assert!(offered.contains(Features::PAGE_REQUEST | Features::PASID | Features::PROBE));
}

#[test]
fn tables_come_with_probe__x73() {
    // Also where no endpoint has any: one that has may be plugged in.
    for endpoints in [&[1][..], &[]] {
        let bench = Bench::with(DeviceConfig::default(), FakeHost::new(endpoints));
        let offered = bench.device.offered_features();
        assert!(offered.contains(Features::ATTACH_TABLE | Features::PROBE));
    }
}
