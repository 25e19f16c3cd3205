// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-device-iommu check`: what this machine can do for devices, in plain words.
//!
//! Nothing is changed: files are read, and the iommufd and VFIO devices opened and closed. With `--bind` the devices
//! are set up as for serving and given back.
//!
//! Files: `report` (findings and how they are printed), `tree` (files of the kernel), `machine` and `endpoint` (what
//! is looked at), `pci` (configuration space), `iommu` (kinds of IOMMU).
#![forbid(unsafe_code)]

mod endpoint;
mod iommu;
mod iort;
mod machine;
mod pci;
mod report;
mod tree;

use std::io::{self, Write};
use std::path::Path;

use crate::cli::args::{CheckArgs, DEFAULT_IOMMUFD};
use crate::host::iommufd::{self, IommufdHost, SetupError};
use endpoint::Trial;
use report::{Finding, Report};
use tree::Tree;

/// Looks at the machine, and at the devices of `args.endpoints`, and prints a report to standard output: text, or JSON
/// with `args.json`. Whether nothing that serving needs is missing.
///
/// What is missing is no error, but a finding: sources are `/proc`, `/sys`, the configuration of the kernel in `/boot`, the
/// iommufd and, with `args.bind`, the devices.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &CheckArgs) -> io::Result<bool> {
    let report = look(args, &Tree::default());
    let mut output = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut output, &report.json())?;
        writeln!(output)?;
    } else {
        write!(output, "{report}")?;
    }
    output.flush()?;
    Ok(report.is_ready())
}

fn look(args: &CheckArgs, tree: &Tree) -> Report {
    let path = args.iommufd.as_deref();
    let host = iommufd::open_iommufd(path.unwrap_or(Path::new(DEFAULT_IOMMUFD)))
        .and_then(IommufdHost::new);
    let mut sections = vec![machine::section(tree, &host)];
    for endpoint in &args.endpoints {
        let trial = match &host {
            _ if !args.bind => Trial::NotAsked,
            Ok(host) => Trial::With(host),
            Err(_) => Trial::NoIommufd,
        };
        sections.extend(endpoint::section(tree, endpoint, trial));
    }
    Report { sections }
}

/// What the iommufd host refuses, with its own words.
fn refused(check: &'static str, error: &SetupError) -> Finding {
    match error {
        SetupError::Open(path, error, advice) => {
            Finding::missing(check, format!("{path}: {error}"), *advice)
        }
        SetupError::Bind(path, error, advice) => {
            Finding::missing(check, format!("{path}: {error}"), *advice)
        }
        SetupError::NoIommu(_) | SetupError::SharesGroup(..) => {
            Finding::missing(check, error.to_string(), "see \"IOMMU group\" above")
        }
        SetupError::NoMemory(_) => Finding::missing(
            check,
            error.to_string(),
            "the kernel has no memory, or a limit of this process is reached",
        ),
        other => Finding::missing(check, other.to_string(), "see the kernel's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::report::Verdict;
    use super::tree::TestTree;
    use super::*;
    use crate::host::iommufd::GroupMate;
    use crate::spec::EndpointId;

    /// As Linux 7.3 has it, with CONFIG_VFIO_NOIOMMU: a file, and a group.
    #[test]
    fn a_device_without_an_iommu_makes_no_machine_ready() {
        let test = TestTree::new(&[("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n")]);
        let (name, device) = (
            "noiommu-vfio0",
            "sys/devices/pci0000:00/0000:00:05.0".to_owned(),
        );
        test.link(&format!("sys/class/vfio-dev/{name}/device"), &device);
        test.link(
            &format!("{device}/iommu_group"),
            "sys/kernel/iommu_groups/0",
        );
        let endpoint = format!("00:05.0,vfio=/dev/vfio/devices/{name}");
        let args = CheckArgs {
            endpoints: vec![endpoint.parse().unwrap()],
            iommufd: None,
            bind: false,
            json: false,
        };
        let report = look(&args, &test.tree);
        for (section, check) in [
            (0, "VFIO character devices"),
            (0, "IOMMU"),
            (1, "IOMMU group"),
            (1, "IOMMU"),
        ] {
            let findings = &report.sections[section].findings;
            let finding = findings.iter().find(|finding| finding.check == check);
            assert_eq!(finding.unwrap().verdict, Verdict::Missing, "{check}");
        }
        // Another device behind an IOMMU does not mend it.
        test.file("sys/kernel/iommu_groups/1/type", b"DMA-FQ\n");
        test.link("sys/class/vfio-dev/vfio1/device", "sys/devices/other");
        let report = look(&args, &test.tree);
        let verdicts = |section: usize| {
            let findings = report.sections[section].findings.iter();
            findings
                .filter(|finding| finding.check.contains("IOMMU") || finding.check.contains("VFIO"))
                .map(|finding| finding.verdict)
                .collect::<Vec<_>>()
        };
        assert_eq!(verdicts(0), [Verdict::Yes; 2]);
        assert_eq!(verdicts(1), [Verdict::Missing; 2]);
    }

    #[test]
    fn a_group_that_is_in_use_is_no_matter_of_the_kernels_log() {
        let mate = GroupMate::Device("0000:01:00.1".to_owned());
        let error = SetupError::SharesGroup(EndpointId(0x28), 7, mate);
        let finding = refused("in use", &error);
        assert!(
            finding
                .found
                .contains("IOMMU group 7, as 0000:01:00.1, which is in this iommufd too, is")
        );
        assert_eq!(finding.advice.as_deref(), Some("see \"IOMMU group\" above"));
    }
}
