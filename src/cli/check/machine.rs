// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the machine has, whichever device is served.

use std::path::Path;

use super::iommu::Kind;
use super::pci;
use super::report::{Finding, Section};
use super::tree::Tree;
use crate::host::iommufd::{self, IommufdHost, SetupError};

/// Versions of Linux and what they brought.
const MILESTONES: [((u32, u32), &str); 5] = [
    ((6, 2), "iommufd"),
    ((6, 6), "VFIO character devices"),
    ((6, 11), "page requests"),
    ((6, 14), "guest memory by file"),
    ((6, 15), "PASIDs"),
];
/// The first that will do.
const NEEDED: (u32, u32) = (6, 6);

pub(super) fn section(tree: &Tree, host: &Result<IommufdHost, SetupError>) -> Section {
    let findings = [
        vec![kernel(tree), iommufd(tree, host)],
        vec![character_devices(tree), iommus(tree), interrupts(tree)],
        vec![locked_memory(), memory_cgroup(tree), memory_given_back()],
        vec![page_requests(tree)],
    ];
    Section {
        subject: "this machine".to_owned(),
        findings: findings.concat(),
    }
}

fn kernel(tree: &Tree) -> Finding {
    const CHECK: &str = "kernel";
    let release = tree.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let Some(version) = version(&release) else {
        let found = format!("'{release}' is no version of Linux that can be read");
        return Finding::unknown(CHECK, found, "see uname -r: 6.6 is needed, 6.15 wanted");
    };
    let (has, lacks): (Vec<_>, Vec<_>) =
        MILESTONES.iter().partition(|(since, _)| *since <= version);
    let found = format!(
        "Linux {release}: {}",
        list(&has, "nothing of what is needed")
    );
    let finding = match lacks.is_empty() {
        true => Finding::yes(CHECK, found),
        false => {
            let found = format!("{found}; not {}", list(&lacks, ""));
            let advice =
                "boot a newer kernel (a distribution may have brought these to an older one)";
            match version < NEEDED {
                true => Finding::missing(CHECK, found, advice),
                false => Finding::limited(CHECK, found, advice),
            }
        }
    };
    finding.value(release)
}

fn list(milestones: &[&((u32, u32), &str)], none: &str) -> String {
    if milestones.is_empty() {
        return none.to_owned();
    }
    let words = milestones
        .iter()
        .map(|((major, minor), what)| format!("{what} ({major}.{minor})"));
    words.collect::<Vec<_>>().join(", ")
}

/// `6.12.9-amd64`
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn iommufd(tree: &Tree, host: &Result<IommufdHost, SetupError>) -> Finding {
    const CHECK: &str = "iommufd";
    let host = match host {
        Ok(host) => host,
        Err(_) if is_built_without(tree, "IOMMUFD") => {
            return Finding::missing(CHECK, "this kernel is built without", OTHER_KERNEL);
        }
        Err(error) => return super::refused(CHECK, error),
    };
    let support = host.kernel_support();
    let mut lacks = Vec::new();
    if !support.fault_queue {
        lacks.push("no page requests");
    }
    if !support.map_file {
        lacks.push("guest memory by address instead of by file");
    }
    match lacks.is_empty() {
        true => Finding::yes(
            CHECK,
            "it opens, and has a fault queue and mappings of files",
        ),
        false => Finding::limited(
            CHECK,
            format!("it opens, with {}", lacks.join(" and ")),
            "boot a newer kernel",
        ),
    }
}

/// What to do about a kernel that lacks an option.
const OTHER_KERNEL: &str = "boot a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV: Debian's have neither, \
                            docs/hardware.md has the options";

/// Whether the configuration of the running kernel, which distributions install beside it, says so.
fn is_built_without(tree: &Tree, option: &str) -> bool {
    let release = tree.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let configuration = tree.text(format!("boot/config-{release}"));
    let line = format!("# CONFIG_{option} is not set");
    configuration.is_some_and(|text| text.lines().any(|other| other == line))
}

fn character_devices(tree: &Tree) -> Finding {
    const CHECK: &str = "VFIO character devices";
    let names = tree.names("sys/class/vfio-dev");
    // An option that depends on one that is not set is not in the configuration at all.
    let without = ["VFIO_DEVICE_CDEV", "IOMMUFD"];
    if without.iter().any(|option| is_built_without(tree, option)) {
        return Finding::missing(CHECK, "this kernel is built without", OTHER_KERNEL);
    }
    if !tree.exists("sys/class/vfio-dev") {
        return Finding::missing(
            CHECK,
            "the kernel has none",
            "modprobe vfio-pci; the kernel needs CONFIG_VFIO_DEVICE_CDEV",
        );
    }
    let devices = names.iter().map(|name| {
        let device = tree.link_name(format!("sys/class/vfio-dev/{name}/device"));
        let without = match iommufd::is_without_iommu(name) {
            true => ", without an IOMMU",
            false => "",
        };
        format!(
            "/dev/vfio/devices/{name} is {}{without}",
            device.unwrap_or_default()
        )
    });
    let devices = devices.collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Finding::missing(
            CHECK,
            "no device is there",
            "bind one to vfio-pci: see docs/hardware.md",
        );
    }
    match names.iter().all(|name| iommufd::is_without_iommu(name)) {
        true => Finding::missing(
            CHECK,
            devices,
            "a device without an IOMMU reaches all memory of this machine and is not served: take one behind an IOMMU",
        ),
        false => Finding::yes(CHECK, devices),
    }
    .value(names)
}

fn iommus(tree: &Tree) -> Finding {
    const CHECK: &str = "IOMMU";
    let names = tree.names("sys/class/iommu");
    let groups = tree.names("sys/kernel/iommu_groups");
    // VFIO makes groups for devices without an IOMMU.
    let groups = groups.iter().filter(|group| !tree.is_without_iommu(group));
    let groups = groups.count();
    if groups == 0 {
        return Finding::missing(
            CHECK,
            "no device is behind one",
            "switch it on in the firmware (VT-d, AMD-Vi, SMMU) and in the kernel (Intel: intel_iommu=on)",
        );
    }
    let kinds = names
        .iter()
        .map(|name| format!("{name} is {}", Kind::of(name).name()));
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    Finding::yes(CHECK, format!("{groups} groups; {kinds}")).value(names)
}

/// A device that can write where it likes can raise any interrupt, unless these are remapped: the kernel binds none
/// then.
fn interrupts(tree: &Tree) -> Finding {
    const CHECK: &str = "interrupt remapping";
    let accepted = tree.text("sys/module/iommufd/parameters/allow_unsafe_interrupts");
    // x86 marks the chips so; elsewhere there is no sign.
    let remapped = tree
        .text("proc/interrupts")
        .is_some_and(|text| text.contains("IR-"));
    if remapped {
        return Finding::yes(CHECK, "on");
    }
    if accepted.as_deref() == Some("Y") {
        return Finding::limited(
            CHECK,
            "no sign of it, and iommufd.allow_unsafe_interrupts accepts that",
            "a device can raise any interrupt: trust it and its guest",
        );
    }
    match cfg!(target_arch = "x86_64") {
        true => Finding::missing(
            CHECK,
            "off: the kernel will bind no device",
            "switch it on in the firmware and take intremap=off from the command line; \
             or boot with iommufd.allow_unsafe_interrupts=1 to accept that a device can raise any interrupt",
        ),
        false => Finding::unknown(
            CHECK,
            "the kernel does not tell",
            "add --bind and --endpoint: without it the kernel refuses to bind a device",
        ),
    }
}

fn locked_memory() -> Finding {
    const CHECK: &str = "locked memory";
    match iommufd::pinning_limit() {
        None => Finding::yes(CHECK, "as much as there is"),
        Some(limit) => Finding::limited(
            CHECK,
            format!("this user may pin {} MiB", limit >> 20),
            "what devices can reach is pinned: raise RLIMIT_MEMLOCK (ulimit -l; LimitMEMLOCK= in systemd) to the \
             guest's size, or grant CAP_IPC_LOCK",
        )
        .value(limit),
    }
}

/// The lowest limit on the way up. What the kernel allocates for mappings counts towards it.
fn memory_cgroup(tree: &Tree) -> Finding {
    const CHECK: &str = "memory cgroup";
    let groups = tree.text("proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let limits = own.into_iter().flat_map(|own| Path::new(own).ancestors());
    let limit = limits
        .filter_map(|path| {
            let file = Path::new("sys/fs/cgroup").join(path).join("memory.max");
            tree.text(file)?.parse::<u64>().ok()
        })
        .min();
    match limit {
        None => Finding::yes(CHECK, "no limit is in sight"),
        Some(limit) => Finding::limited(
            CHECK,
            format!("{} MiB", limit >> 20),
            "the kernel's page tables for mappings count towards it: 1/512 of what is mapped in pages of 4 KiB",
        )
        .value(limit),
    }
}

/// A limit that nothing on the machine shows. The kernel pins what a device can reach; QEMU's own VFIO device tells QEMU
/// to give none of it back, which this process cannot tell it.
fn memory_given_back() -> Finding {
    Finding::limited(
        "memory that a guest gives back",
        "a device goes on with the old page, and what it writes there is lost",
        "give a guest with such devices no virtio-mem and no balloon, free page reporting (free-page-reporting=on) \
         included",
    )
}

/// Which functions could raise page requests: for operators who look for one.
fn page_requests(tree: &Tree) -> Finding {
    const CHECK: &str = "devices with page requests";
    let mut able = Vec::new();
    let mut readable = false;
    for address in tree.names("sys/bus/pci/devices") {
        let config = tree.bytes(format!("sys/bus/pci/devices/{address}/config"));
        let config = config.unwrap_or_default();
        // Without privilege the kernel shows the first 64 bytes.
        readable |= config.len() > 64;
        if pci::capabilities(&config).pri {
            able.push(address);
        }
    }
    match (able.is_empty(), readable) {
        (false, _) => Finding::yes(CHECK, able.join(", ")).value(able),
        (true, true) => Finding::limited(
            CHECK,
            "no PCI function here has the Page Request Interface (PRI)",
            "everything else works without; for page requests without such a device use software endpoints",
        ),
        (true, false) => Finding::unknown(
            CHECK,
            "configuration space cannot be read",
            "run this as root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pci::tests::config;
    use super::super::report::Verdict;
    use super::super::tree::TestTree;
    use super::*;

    fn with(path: &str, text: &str) -> TestTree {
        TestTree::new(&[(path, text)])
    }

    #[test]
    fn a_kernel_is_as_good_as_what_it_brings() {
        for (release, verdict) in [
            ("7.2.0-lab", Verdict::Yes),
            ("6.15.1", Verdict::Yes),
            ("6.14.0-rc3+", Verdict::Limited),
            ("6.6.119-amd64", Verdict::Limited),
            ("6.5.0", Verdict::Missing),
            ("5.10.0", Verdict::Missing),
            ("", Verdict::Unknown),
        ] {
            let test = with("proc/sys/kernel/osrelease", release);
            assert_eq!(kernel(&test.tree).verdict, verdict, "{release}");
        }
        let test = with("proc/sys/kernel/osrelease", "6.12.9\n");
        assert_eq!(
            kernel(&test.tree).found,
            "Linux 6.12.9: iommufd (6.2), VFIO character devices (6.6), page requests (6.11); \
             not guest memory by file (6.14), PASIDs (6.15)"
        );
    }

    #[test]
    fn devices_of_vfio_are_told_by_address() {
        let test = TestTree::new(&[]);
        assert_eq!(character_devices(&test.tree).verdict, Verdict::Missing);
        test.link(
            "sys/class/vfio-dev/vfio0/device",
            "sys/devices/pci0000:00/0000:00:05.0",
        );
        assert_eq!(
            character_devices(&test.tree).found,
            "/dev/vfio/devices/vfio0 is 0000:00:05.0"
        );
    }

    /// As Debian has it.
    #[test]
    fn a_kernel_built_without_iommufd_is_told_from_a_module_that_is_not_loaded() {
        let absent = || Err(iommufd::open_iommufd(Path::new("/nonexistent")).unwrap_err());
        let test = with("proc/sys/kernel/osrelease", "7.3.4-amd64");
        let of_tree = |test: &TestTree| iommufd(&test.tree, &absent());
        assert!(of_tree(&test).advice.unwrap().contains("modprobe iommufd"));
        let config = "boot/config-7.3.4-amd64";
        test.file(config, b"CONFIG_IOMMUFD=m\nCONFIG_VFIO_DEVICE_CDEV=y\n");
        assert!(of_tree(&test).advice.unwrap().contains("modprobe iommufd"));
        assert_eq!(character_devices(&test.tree).found, "the kernel has none");
        test.file(config, b"CONFIG_VFIO=m\n# CONFIG_IOMMUFD is not set\n");
        for finding in [of_tree(&test), character_devices(&test.tree)] {
            assert_eq!(finding.verdict, Verdict::Missing);
            assert_eq!(finding.found, "this kernel is built without");
            assert!(finding.advice.unwrap().contains("CONFIG_IOMMUFD"));
        }
    }

    #[test]
    fn memory_that_is_given_back_is_a_limit_on_every_machine() {
        let finding = memory_given_back();
        assert_eq!(finding.verdict, Verdict::Limited);
        let advice = finding.advice.unwrap();
        for device in ["virtio-mem", "balloon", "free page reporting"] {
            assert!(advice.contains(device), "{advice}");
        }
    }

    #[test]
    fn an_iommu_is_one_with_groups() {
        let test = with("sys/class/iommu/dmar0/address", "fed90000");
        assert_eq!(iommus(&test.tree).verdict, Verdict::Missing);
        test.file("sys/kernel/iommu_groups/0/type", b"DMA-FQ\n");
        assert_eq!(
            iommus(&test.tree).found,
            "1 groups; dmar0 is Intel VT-d (DMAR)"
        );
    }

    #[test]
    fn interrupts_are_remapped_or_that_is_accepted() {
        let remapped = with(
            "proc/interrupts",
            " 24: 0 IR-PCI-MSI-0000:00:1f.2 0-edge ahci\n",
        );
        assert_eq!(interrupts(&remapped.tree).verdict, Verdict::Yes);
        let parameter = "sys/module/iommufd/parameters/allow_unsafe_interrupts";
        let accepted = with(parameter, "Y\n");
        assert_eq!(interrupts(&accepted.tree).verdict, Verdict::Limited);
        let neither = interrupts(&with(parameter, "N\n").tree).verdict;
        let expected = match cfg!(target_arch = "x86_64") {
            true => Verdict::Missing,
            false => Verdict::Unknown,
        };
        assert_eq!(neither, expected);
    }

    #[test]
    fn the_lowest_limit_of_a_cgroup_and_those_above_counts() {
        let test = TestTree::new(&[
            ("proc/self/cgroup", "1:cpu:/x\n0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ]);
        assert_eq!(memory_cgroup(&test.tree).verdict, Verdict::Yes);
        test.file("sys/fs/cgroup/a/memory.max", b"2097152\n");
        test.file("sys/fs/cgroup/a/b/memory.max", b"4194304\n");
        assert_eq!(memory_cgroup(&test.tree).value, 2 << 20);
    }

    #[test]
    fn devices_with_page_requests_are_named() {
        let test = TestTree::new(&[]);
        let file = |address: &str| format!("sys/bus/pci/devices/{address}/config");
        test.file(&file("0000:00:01.0"), &[0; 64]);
        assert_eq!(page_requests(&test.tree).verdict, Verdict::Unknown);
        test.file(&file("0000:00:02.0"), &[0; 256]);
        assert_eq!(page_requests(&test.tree).verdict, Verdict::Limited);
        test.file(&file("0000:00:03.0"), &config(&[0x0f, 0x13]));
        assert_eq!(page_requests(&test.tree).found, "0000:00:03.0");
    }
}
