// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line as a whole.

use std::time::Duration;

use clap::CommandFactory;

use super::*;

fn parse(options: &str) -> Result<Args, String> {
    let words = std::iter::once("vhost-device-iommu").chain(options.split_whitespace());
    Args::try_parse_from(words).map_err(|error| error.to_string())
}

fn check(options: &str) -> Result<(), ArgsError> {
    parse(options).expect("clap accepts it").serve.check()
}

#[test]
fn the_definition_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn a_socket_and_an_endpoint_are_enough() {
    let args = parse("--socket-path /run/s --endpoint 00:05.0").expect("valid");
    args.serve.check().expect("consistent");
    let config = args.serve.device_config();
    let default = DeviceConfig::default();
    assert!(config.boot_bypass);
    assert_eq!(config.input_range, default.input_range);
    assert_eq!(config.domain_range, default.domain_range);
    assert_eq!(config.max_mappings, default.max_mappings);
    assert_eq!(config.max_domains, default.max_domains);
    assert_eq!(config.max_pasids, default.max_pasids);
    assert_eq!(config.max_page_requests, default.max_page_requests);
    assert_eq!(config.page_response_timeout, default.page_response_timeout);
}

#[test]
fn every_option_reaches_the_device() {
    let args = parse(
        "--fd 3 --endpoint 1 --boot-bypass off --reserved-region 0x1000:0x1fff:0 \
         --page-size-mask 0x1000 --input-range 0:0xffff --domain-range 1:9 --max-mappings 10 \
         --max-domains 11 --max-pasids 13 --max-page-requests 12 --page-response-timeout 0.25",
    )
    .expect("valid");
    let config = args.serve.device_config();
    assert!(!config.boot_bypass);
    assert_eq!(config.page_size_mask, Some(0x1000));
    assert_eq!(config.input_range.last.0, 0xffff);
    assert_eq!(config.domain_range, (1, 9));
    assert_eq!(config.reserved_regions.len(), 1);
    assert_eq!(
        (
            config.max_mappings,
            config.max_domains,
            config.max_pasids,
            config.max_page_requests
        ),
        (10, 11, 13, 12)
    );
    let quarter = Some(Duration::from_millis(250));
    assert_eq!(config.page_response_timeout, quarter);
}

#[test]
fn sockets_of_functions_have_a_mode_where_the_front_ends_socket_is_inherited() {
    let args = parse("--fd 3 --endpoint 1,soft=/s --socket-mode 600").expect("valid");
    assert_eq!(args.serve.socket_mode, Some(0o600));
}

#[test]
fn what_is_missing_or_out_of_range_is_refused() {
    for options in [
        "",
        "--endpoint 1",
        "--socket-path /run/s",
        "--socket-path /run/s --fd 3 --endpoint 1",
        "--fd -1 --endpoint 1",
        "--fd 3 --endpoint x",
        "--fd 3 --endpoint 1 --max-mappings 0",
        "--fd 3 --endpoint 1 --max-page-requests 65537",
        "--fd 3 --endpoint 1 --poll-us 1000001",
        "--fd 3 --endpoint 1 --boot-bypass maybe",
        "--fd 3 --endpoint 1 --seccomp maybe",
        "--fd 3 --endpoint 1 --log-level loud",
        "--fd 3 --endpoint 1 --page-size-mask 0",
        "--fd 3 --endpoint 1,vfio=/a --iommufd /dev/iommu --iommufd-fd 4",
        "viot --iommu 00:04.0",
        "ctl /run/c",
    ] {
        assert!(parse(options).is_err(), "{options}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let base = "--fd 3 --endpoint 1";
    for (more, error) in [
        (
            "--endpoint 00:00.1",
            ArgsError::DuplicateEndpoint(EndpointId(1)),
        ),
        (
            "--endpoint 2,vfio=/a",
            ArgsError::Mixed {
                soft: EndpointId(1),
                device: EndpointId(2),
            },
        ),
        (
            "--iommufd /dev/iommu",
            ArgsError::UnusedIommufd("--iommufd"),
        ),
        ("--iommufd-fd 4", ArgsError::UnusedIommufd("--iommufd-fd")),
        (
            "--endpoint 2,qemu-id=dev0",
            ArgsError::QemuIdWithoutQmp(EndpointId(2)),
        ),
    ] {
        assert_eq!(check(&format!("{base} {more}")), Err(error), "{more}");
    }
    assert_eq!(check("--fd 3 --iommufd-fd 4"), Err(ArgsError::NoWayIn));
    assert_eq!(check("--fd 3 --iommufd-fd 4 --control /c"), Ok(()));
    let same_device = "--fd 3 --endpoint 1,vfio=/a --endpoint 2,vfio=/a";
    let error = ArgsError::DuplicateDevice("/a".to_owned());
    assert_eq!(check(same_device), Err(error));
    let same_fd = "--fd 3 --iommufd-fd 3 --endpoint 1,vfio=/a";
    assert_eq!(
        check(same_fd),
        Err(ArgsError::DuplicateFd(InheritedFd::Number(3)))
    );
    let same_path = "--socket-path /a --control /a --endpoint 1";
    assert_eq!(check(same_path), Err(ArgsError::SamePath("/a".to_owned())));
    let same_soft = "--socket-path /s --endpoint 1,soft=/a --endpoint 2,soft=/a";
    assert_eq!(check(same_soft), Err(ArgsError::SamePath("/a".to_owned())));
}

#[test]
fn subcommands_need_no_socket() {
    let args = parse("viot --iommu 00:04.0 --endpoint 00:05.0 --endpoint 00:06.0").expect("viot");
    assert!(matches!(args.command, Some(Command::Viot(viot)) if viot.endpoints.len() == 2));
    let args = parse("viot --iommu 00:04.0 --bus 01 --bus 0002:03").expect("viot");
    let buses = vec![EndpointId(0x100), EndpointId(0x2_0300)];
    assert!(matches!(args.command, Some(Command::Viot(viot)) if viot.buses == buses));
    for wrong in ["viot --iommu 00:04.0 --bus 01:00.0", "viot --iommu 00:04.0"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    let args = parse("ctl /run/c dma-read endpoint=1 iova=-1").expect("ctl");
    assert!(matches!(args.command, Some(Command::Ctl(ctl)) if ctl.command.len() == 3));
}

#[test]
fn capabilities_are_asked_for_before_anything_else() {
    let asks = |options: &str| {
        asks_for_capabilities(options.split_whitespace().map(std::ffi::OsString::from))
    };
    for options in [
        "--print-capabilities",
        "--nonsense --print-capabilities",
        "--fd x --print-capabilities --endpoint",
    ] {
        assert!(asks(options), "{options}");
    }
    for options in ["", "--fd 3", "ctl /run/c --print-capabilities", "viot"] {
        assert!(!asks(options), "{options}");
    }
}

#[test]
fn check_looks_at_devices_by_path() {
    let check = |options: &str| match parse(&format!("check {options}")).expect("valid").command {
        Some(Command::Check(check)) => check.check(),
        other => panic!("{other:?}"),
    };
    for options in [
        "",
        "--json",
        "--bind --endpoint 1,vfio=/a --endpoint 2,vfio=/b",
    ] {
        assert_eq!(check(options), Ok(()), "{options}");
    }
    for endpoint in ["1", "1,vfio-fd=3", "1,vfio=/a,dev-id=2"] {
        let error = ArgsError::NotCheckable(EndpointId(1));
        assert_eq!(check(&format!("--endpoint {endpoint}")), Err(error));
    }
    let twice = ArgsError::DuplicateDevice("/a".to_owned());
    let same_device = "--endpoint 1,vfio=/a --endpoint 2,vfio=/a";
    assert_eq!(check(same_device), Err(twice));
}

#[test]
fn the_help_names_every_option_and_an_example() {
    let help = Args::command().render_long_help().to_string();
    for option in [
        "--socket-path",
        "--fd",
        "--endpoint",
        "--iommufd",
        "--iommufd-fd",
        "--boot-bypass",
        "--reserved-region",
        "--page-size-mask",
        "--input-range",
        "--domain-range",
        "--max-mappings",
        "--max-domains",
        "--max-pasids",
        "--max-page-requests",
        "--page-response-timeout",
        "--poll-us",
        "--control",
        "--qmp",
        "--log-level",
        "--seccomp",
        "--print-capabilities",
        "--version",
        "vhost-user-test-device-pci",
    ] {
        assert!(help.contains(option), "{option}");
    }
}
