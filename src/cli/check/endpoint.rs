// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device can do as an endpoint.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::iommu::Kind;
use super::pci::{self, Capabilities};
use super::report::{Finding, Section, Verdict};
use super::tree::Tree;
use crate::endpoints::{Backing, EndpointSpec, VfioDevice};
use crate::host::iommufd::{EndpointSource, IommufdHost};
use crate::host::{EndpointProperties, Host};
use crate::spec::{EndpointId, ResvMemSubtype};

/// Drivers that leave DMA to others: their devices may share a group with an endpoint.
const HARMLESS_DRIVERS: [&str; 2] = ["pcieport", "pci-stub"];

/// The finding of a trial.
const IN_USE: &str = "in use";

/// Whether the device is set up as for serving.
#[derive(Clone, Copy)]
pub(super) enum Trial<'a> {
    NotAsked,
    NoIommufd,
    With(&'a IommufdHost),
}

/// Looks at the device of an endpoint, and tries it out where that is asked for. `None` when the endpoint names no
/// path.
pub(super) fn section(tree: &Tree, endpoint: &EndpointSpec, trial: Trial<'_>) -> Option<Section> {
    let Backing::Vfio {
        device: VfioDevice::Path(path),
        ..
    } = &endpoint.backing
    else {
        return None;
    };
    let mut findings = vec![access(path)];
    let device = SysfsDevice::find(tree, path);
    if let Some(device) = &device {
        let page_requests = device.page_requests();
        let refused_accesses = device.refused_accesses(&page_requests);
        findings.extend([
            device.group(),
            device.iommu(),
            device.reserved(),
            page_requests,
            refused_accesses,
            device.pasids(),
            device.tables(),
        ]);
    }
    match trial {
        Trial::With(host) => findings.extend(bound(host, endpoint.id, path)),
        Trial::NoIommufd => findings.push(Finding::unknown(
            IN_USE,
            "there is no iommufd to bind it to",
            "see \"iommufd\" above",
        )),
        Trial::NotAsked => findings.push(Finding::unknown(
            IN_USE,
            "not tried",
            "add --bind to set the device up as for serving, which resets it, and to give it back",
        )),
    }
    let address = device.map(|device| device.address);
    Some(Section {
        subject: format!(
            "endpoint {}: {}, {}",
            endpoint.id,
            path.display(),
            address.as_deref().unwrap_or("which VFIO does not know")
        ),
        findings,
    })
}

/// Opening does nothing to a device.
fn access(path: &Path) -> Finding {
    const CHECK: &str = "access";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::yes(CHECK, "this user can open it"),
        Err(error) => Finding::missing(
            CHECK,
            error.to_string(),
            "bind the device to vfio-pci and give this user access to the file: see docs/hardware.md",
        ),
    }
}

/// A device as sysfs has it.
struct SysfsDevice<'a> {
    tree: &'a Tree,
    directory: PathBuf,
    /// Its PCI address on this machine.
    address: String,
}

impl<'a> SysfsDevice<'a> {
    fn find(tree: &'a Tree, path: &Path) -> Option<Self> {
        let name = path.file_name()?;
        let directory = Path::new("sys/class/vfio-dev").join(name).join("device");
        let address = tree.link_name(&directory)?;
        Some(Self {
            tree,
            directory,
            address,
        })
    }

    /// The kernel gives a group away as a whole.
    fn group(&self) -> Finding {
        const CHECK: &str = "IOMMU group";
        let group = self.tree.link_name(self.directory.join("iommu_group"));
        let Some(group) = group.filter(|group| !self.tree.is_without_iommu(group)) else {
            return Finding::missing(
                CHECK,
                "it is in none: no IOMMU is in front of it",
                "switch the IOMMU on, or take a device behind one",
            );
        };
        let devices = format!("sys/kernel/iommu_groups/{group}/devices");
        let others = self.tree.names(&devices);
        let others: Vec<_> = others
            .iter()
            .filter(|name| **name != self.address)
            .map(|name| {
                let link = format!("{devices}/{name}/driver");
                (name, self.tree.link_name(link))
            })
            .collect();
        let in_use = |driver: &Option<String>| {
            driver.as_ref().is_some_and(|driver| {
                !HARMLESS_DRIVERS.contains(&driver.as_str()) && !driver.contains("vfio")
            })
        };
        let words = others.iter().map(|(name, driver)| {
            let driver = driver.as_deref().unwrap_or("no driver");
            format!("{name} ({driver})")
        });
        let words = words.collect::<Vec<_>>().join(", ");
        if others.iter().any(|(_, driver)| in_use(driver)) {
            return Finding::missing(
                CHECK,
                format!("{group}, with {words}"),
                "the kernel gives a group away as a whole: unbind the others from their drivers, or bind them to \
                 vfio-pci too",
            );
        }
        match others.is_empty() {
            true => Finding::yes(CHECK, format!("{group}, alone")),
            false => Finding::limited(
                CHECK,
                format!("{group}, with {words}"),
                "the kernel moves devices of a group together, so this one is served only while no process has another \
                 of them: give the guest one",
            ),
        }
    }

    fn iommu_kind(&self) -> Option<(String, Kind)> {
        let name = self.tree.link_name(self.directory.join("iommu"))?;
        let kind = Kind::of(&name);
        Some((name, kind))
    }

    fn iommu(&self) -> Finding {
        const CHECK: &str = "IOMMU";
        match self.iommu_kind() {
            Some((name, kind)) => Finding::yes(CHECK, format!("{name}, {}", kind.name())),
            None => Finding::missing(
                CHECK,
                "none",
                "switch it on in the firmware and in the kernel, or take a device behind one",
            ),
        }
    }

    /// Lines of `first last kind`.
    fn reserved(&self) -> Finding {
        const CHECK: &str = "reserved regions";
        let file = self.directory.join("iommu_group/reserved_regions");
        let text = self.tree.text(file).unwrap_or_default();
        let regions: Vec<[&str; 3]> = text
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.try_into().ok()
            })
            .collect();
        let words = regions
            .iter()
            .map(|[first, last, kind]| format!("{first}-{last} {kind}"));
        let words = words.collect::<Vec<_>>().join(", ");
        let value = json!(regions);
        if regions.iter().any(|[_, _, kind]| *kind == "direct") {
            return Finding::missing(
                CHECK,
                words,
                "the firmware wants memory of its own mapped for the device (direct), and the kernel does not give \
                 such a device away: switch that use off in the firmware, or take another device",
            )
            .value(value);
        }
        let found = match words.is_empty() {
            true => "none".to_owned(),
            false => words,
        };
        Finding::yes(CHECK, found).value(value)
    }

    /// `None` when configuration space cannot be read whole.
    fn capabilities(&self) -> Option<Capabilities> {
        let config = self.tree.bytes(self.directory.join("config"))?;
        // Without privilege the kernel shows the first 64 bytes.
        (config.len() > 64).then(|| pci::capabilities(&config))
    }

    fn page_requests(&self) -> Finding {
        const CHECK: &str = "page requests";
        let Some(capabilities) = self.capabilities() else {
            return unreadable(CHECK);
        };
        let virtual_function = self.tree.exists(self.directory.join("physfn"));
        let why = match (capabilities.ats, capabilities.pri, self.iommu_kind()) {
            (false, false, _) => Err("the device has neither ATS nor PRI"),
            (true, false, _) => Err("the device has ATS and no PRI"),
            (false, true, _) => Err("the device has PRI and no ATS"),
            (..) if virtual_function => Err("Linux takes none from virtual functions (SR-IOV)"),
            (.., None) => Err("there is no IOMMU in front of it"),
            (.., Some((_, kind))) => kind.page_requests(self.tree, &self.directory.join("iommu")),
        };
        let value = json!({ "ats": capabilities.ats, "pri": capabilities.pri });
        match why {
            Ok(()) => Finding::yes(CHECK, "the device has ATS and PRI, and its IOMMU passes them on"),
            Err(why) => Finding::limited(
                CHECK,
                why,
                "what the device accesses must be mapped before; accesses to anything else are aborted",
            ),
        }
        .value(value)
    }

    /// Fault reports: what the guest hears of an access that the IOMMU refused.
    fn refused_accesses(&self, page_requests: &Finding) -> Finding {
        const CHECK: &str = "refused accesses";
        let kind = self.iommu_kind().map(|(_, kind)| kind);
        if page_requests.verdict == Verdict::Yes {
            return Finding::yes(CHECK, "they come as page requests, each of them");
        }
        match kind.filter(|kind| kind.logs_refused_accesses()) {
            Some(_) => Finding::limited(
                CHECK,
                "the kernel logs few of them, about five in five seconds for the whole machine",
                "with --kernel-log /dev/kmsg the guest gets a fault report of each that is logged",
            ),
            None => Finding::limited(
                CHECK,
                "nothing tells of them",
                "the guest gets no fault reports of this device",
            ),
        }
    }

    /// Tables of the driver: the IOMMU must nest. Seen in QEMU 11.1: without PASIDs, see docs/passthrough.md.
    fn tables(&self) -> Finding {
        const CHECK: &str = "tables of the guest";
        let readable = match self.iommu_kind() {
            None => Err("there is no IOMMU in front of it"),
            Some((_, kind)) => kind.tables(self.tree, &self.directory.join("iommu")),
        };
        match readable {
            Ok(tables) => {
                let words = format!(
                    "its IOMMU reads them ({tables}): for accesses without a PASID, as a guest of QEMU 11 sees no PASIDs"
                );
                Finding::yes(CHECK, words).value(json!(tables))
            }
            Err(why) => Finding::limited(
                CHECK,
                why,
                "the guest maps by requests; PCI functions in software (soft=) can be attached to tables",
            ),
        }
    }

    fn pasids(&self) -> Finding {
        const CHECK: &str = "PASIDs";
        match self.capabilities() {
            None => unreadable(CHECK),
            Some(Capabilities {
                pasid: Some(width), ..
            }) => {
                // Seen in QEMU 11.1: see docs/passthrough.md.
                let words = format!("{width} bits; a guest of QEMU 11 does not see them");
                Finding::yes(CHECK, words).value(width)
            }
            Some(_) => Finding::limited(
                CHECK,
                "the device has none",
                "it has one address space at a time",
            ),
        }
    }
}

fn unreadable(check: &'static str) -> Finding {
    Finding::unknown(
        check,
        "configuration space cannot be read",
        "run this as root",
    )
}

/// Sets the device up as for serving: bound to an iommufd of our own, where it is blocked. It is given back when the
/// host is dropped.
fn bound(host: &IommufdHost, id: EndpointId, path: &Path) -> Vec<Finding> {
    let source = EndpointSource::VfioPath(path.to_owned());
    if let Err(error) = host.add_endpoint(id, source, None) {
        return vec![super::refused(IN_USE, &error)];
    }
    let Some(properties) = host.properties(id) else {
        return vec![Finding::missing(
            IN_USE,
            "it is gone",
            "see the kernel's log",
        )];
    };
    vec![
        Finding::yes(IN_USE, "bound to an iommufd, attached and blocked"),
        match properties.page_requests {
            true => Finding::yes("page requests in use", "it attaches to a fault queue"),
            false => Finding::limited(
                "page requests in use",
                "the kernel attaches it to no fault queue",
                "see \"page requests\" above; Intel needs intel_iommu=on,sm_on",
            ),
        },
        pasids_in_use(&properties),
        Finding::yes("page sizes", words_of_pages(host.limits().page_size_mask))
            .value(host.limits().page_size_mask),
        addresses(host, &properties),
    ]
}

fn pasids_in_use(properties: &EndpointProperties) -> Finding {
    const CHECK: &str = "PASIDs in use";
    match properties.pasid_width {
        0 => Finding::limited(
            CHECK,
            "device, IOMMU and kernel together have none",
            "it has one address space at a time",
        ),
        width => Finding::yes(CHECK, format!("{width} bits")).value(width),
    }
}

fn words_of_pages(mask: u64) -> String {
    format!(
        "{} bytes and every power of two above",
        1u64 << mask.trailing_zeros()
    )
}

fn addresses(host: &IommufdHost, properties: &EndpointProperties) -> Finding {
    let range = host.limits().input_range;
    let holes = properties.reserved.iter().map(|region| {
        let kind = match region.subtype {
            ResvMemSubtype::Msi => "MSI",
            _ => "reserved",
        };
        format!("{}-{} {kind}", region.range.first, region.range.last)
    });
    let holes: Vec<_> = holes.collect();
    let without = match holes.is_empty() {
        true => String::new(),
        false => format!(" without {}", holes.join(", ")),
    };
    let value: Value = json!({ "first": range.first.0, "last": range.last.0, "reserved": holes });
    Finding::yes(
        "addresses",
        format!("{}-{}{without}", range.first, range.last),
    )
    .value(value)
}

#[cfg(test)]
mod tests {
    use super::super::pci::tests::config;
    use super::super::report::Verdict;
    use super::super::tree::TestTree;
    use super::*;

    const DEVICE: &str = "sys/devices/pci0000:00/0000:00:05.0";
    const ATS_AND_PRI: [u32; 2] = [0x0f, 0x13];

    /// A machine with one device of VFIO behind an Intel IOMMU that has everything.
    fn machine(config: &[u8]) -> TestTree {
        let test = TestTree::new(&[
            (
                "sys/devices/virtual/iommu/dmar0/intel-iommu/ecap",
                "c0020f00f4a",
            ),
            (
                "sys/kernel/iommu_groups/3/reserved_regions",
                "0x00000000fee00000 0x00000000feefffff msi\n",
            ),
        ]);
        test.file(&format!("{DEVICE}/config"), config);
        test.link("sys/class/vfio-dev/vfio0/device", DEVICE);
        test.link(
            &format!("{DEVICE}/iommu_group"),
            "sys/kernel/iommu_groups/3",
        );
        test.link(
            &format!("{DEVICE}/iommu"),
            "sys/devices/virtual/iommu/dmar0",
        );
        test.link("sys/kernel/iommu_groups/3/devices/0000:00:05.0", DEVICE);
        test
    }

    fn device(test: &TestTree) -> SysfsDevice<'_> {
        SysfsDevice::find(&test.tree, Path::new("/dev/vfio/devices/vfio0")).unwrap()
    }

    #[test]
    fn a_device_alone_behind_an_iommu_is_as_it_should_be() {
        let test = machine(&config(&[0x0f, 0x13, 0x1b]));
        let device = device(&test);
        assert_eq!(device.address, "0000:00:05.0");
        assert_eq!(device.group().found, "3, alone");
        assert_eq!(device.iommu().found, "dmar0, Intel VT-d (DMAR)");
        assert_eq!(device.reserved().verdict, Verdict::Yes);
        assert_eq!(device.page_requests().verdict, Verdict::Yes);
        assert_eq!(device.pasids().value, 20);
    }

    #[test]
    fn a_device_that_vfio_does_not_have_is_not_found() {
        let test = TestTree::new(&[]);
        assert!(SysfsDevice::find(&test.tree, Path::new("/dev/vfio/devices/vfio0")).is_none());
    }

    #[test]
    fn a_group_is_served_as_a_whole_or_not_at_all() {
        for (driver, verdict) in [
            (None, Verdict::Limited),
            (Some("vfio-pci"), Verdict::Limited),
            (Some("pcieport"), Verdict::Limited),
            (Some("e1000e"), Verdict::Missing),
        ] {
            let test = machine(&[0; 256]);
            let other = "sys/devices/pci0000:00/0000:00:05.1";
            test.file(&format!("{other}/config"), &[]);
            test.link("sys/kernel/iommu_groups/3/devices/0000:00:05.1", other);
            if let Some(driver) = driver {
                test.link(
                    &format!("{other}/driver"),
                    &format!("sys/bus/pci/drivers/{driver}"),
                );
            }
            assert_eq!(device(&test).group().verdict, verdict, "{driver:?}");
        }
    }

    #[test]
    fn page_requests_need_device_and_iommu_and_no_virtual_function() {
        for (capabilities, verdict) in [
            (&config(&ATS_AND_PRI)[..], Verdict::Yes),
            (&config(&[0x0f]), Verdict::Limited),
            (&config(&[0x13]), Verdict::Limited),
            (&[0; 256], Verdict::Limited),
            (&[0; 64], Verdict::Unknown),
        ] {
            let test = machine(capabilities);
            assert_eq!(device(&test).page_requests().verdict, verdict);
        }
        let test = machine(&config(&ATS_AND_PRI));
        test.link(
            &format!("{DEVICE}/physfn"),
            "sys/devices/pci0000:00/0000:00:06.0",
        );
        // It leads somewhere.
        test.file("sys/devices/pci0000:00/0000:00:06.0/config", &[]);
        assert_eq!(device(&test).page_requests().verdict, Verdict::Limited);
        test.file(
            "sys/devices/virtual/iommu/dmar0/intel-iommu/ecap",
            b"f020df",
        );
        assert_eq!(device(&test).page_requests().verdict, Verdict::Limited);
    }

    #[test]
    fn memory_of_the_firmware_stands_in_the_way() {
        let test = machine(&[0; 256]);
        test.file(
            "sys/kernel/iommu_groups/3/reserved_regions",
            b"0x1000 0x1fff direct-relaxable\n0x2000 0x2fff direct\n",
        );
        let finding = device(&test).reserved();
        assert_eq!(finding.verdict, Verdict::Missing);
        assert!(
            finding
                .found
                .starts_with("0x1000-0x1fff direct-relaxable, ")
        );
    }

    #[test]
    fn the_smallest_page_names_the_others() {
        assert_eq!(
            words_of_pages(!0xfff),
            "4096 bytes and every power of two above"
        );
    }
}
