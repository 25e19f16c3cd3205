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
        SetupError::SharesGroup(..) => {
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
    use super::*;
    use crate::host::iommufd::GroupMate;
    use crate::spec::EndpointId;

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
