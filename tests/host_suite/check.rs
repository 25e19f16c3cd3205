// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `check` on a machine that has everything but page requests: a device of VFIO behind an IOMMU.

use std::process::{Command, Output};

use serde_json::Value;

use crate::common::binary;
use crate::edu::{self, Edu};
use crate::kernel::Kernel;

/// What `check` says of the `edu` device.
fn check(options: &[&str]) -> Output {
    let endpoint = format!("00:06.0,vfio={}", edu::path().display());
    Command::new(binary())
        .args(["check", "--endpoint", &endpoint])
        .args(options)
        .output()
        .unwrap()
}

fn report(options: &[&str]) -> (Option<i32>, Value) {
    let output = check(&[options, &["--json"]].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), report)
}

/// A finding; section 0 is the machine, section 1 the device.
fn finding<'a>(report: &'a Value, section: usize, check: &str) -> &'a Value {
    let findings = report["sections"][section]["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("{check}: {report:#}"))
}

#[test]
fn a_machine_that_can_serve_is_ready() {
    let (status, report) = report(&[]);
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(report["ready"], true);
    for (section, check, verdict) in [
        (0, "kernel", "yes"),
        (0, "iommufd", "yes"),
        (0, "VFIO character devices", "yes"),
        (0, "IOMMU", "yes"),
        // The lab boots without, and accepts that.
        (0, "interrupt remapping", "limited"),
        (0, "locked memory", "yes"),
        (0, "memory that a guest gives back", "limited"),
        (1, "access", "yes"),
        (1, "IOMMU group", "yes"),
        (1, "IOMMU", "yes"),
        (1, "page requests", "limited"),
        (1, "refused accesses", "limited"),
        (1, "PASIDs", "limited"),
        (1, "tables of the guest", "limited"),
        (1, "in use", "unknown"),
    ] {
        assert_eq!(
            finding(&report, section, check)["verdict"],
            verdict,
            "{report:#}"
        );
    }
    let regions = &finding(&report, 1, "reserved regions")["value"];
    let msi = ["0x00000000fee00000", "0x00000000feefffff", "msi"];
    assert!(
        regions.as_array().unwrap().contains(&msi.into()),
        "{regions}"
    );
}

#[test]
fn binding_tells_pages_and_addresses_and_gives_the_device_back() {
    let (status, report) = report(&["--bind"]);
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(finding(&report, 1, "in use")["verdict"], "yes");
    assert_eq!(
        finding(&report, 1, "page requests in use")["verdict"],
        "limited"
    );
    assert_eq!(
        finding(&report, 1, "page sizes")["value"],
        0xffff_ffff_ffff_f000_u64
    );
    let addresses = &finding(&report, 1, "addresses")["value"];
    assert_eq!(addresses["reserved"][0], "0xfee00000-0xfeefffff MSI");
    Edu::open(&Kernel::open());
}

#[test]
fn a_device_in_use_is_looked_at_but_not_bound() {
    let _edu = Edu::open(&Kernel::open());
    let (status, report) = report(&["--bind"]);
    assert_eq!(status, Some(1), "{report:#}");
    assert_eq!(finding(&report, 1, "access")["verdict"], "yes");
    let refused = finding(&report, 1, "in use");
    assert_eq!(refused["verdict"], "missing");
    assert!(
        refused["advice"]
            .as_str()
            .unwrap()
            .contains("another process uses it")
    );
    assert_eq!(report["ready"], false);
    let text = String::from_utf8(check(&[]).stdout).unwrap();
    assert!(text.contains("\nready: "), "{text}");
}
