// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kinds of IOMMU that a machine can have, and whether they pass page requests on.

use std::path::Path;

use super::tree::Tree;

/// A kind of IOMMU, by its name in `/sys/class/iommu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Intel,
    Amd,
    SmmuV3,
    Smmu,
    Other,
}

/// Bits of VT-d's Extended Capability Register (11.4.3): page requests, draining them, scalable mode.
const INTEL_PAGE_REQUESTS: [u32; 3] = [29, 42, 43];
/// PPRSup in AMD's Extended Feature Register.
const AMD_PAGE_REQUESTS: u32 = 1;

impl Kind {
    pub fn of(name: &str) -> Self {
        if name.starts_with("dmar") {
            Self::Intel
        } else if name.starts_with("ivhd") {
            Self::Amd
        } else if name.starts_with("smmu3") {
            Self::SmmuV3
        } else if name.starts_with("smmu") {
            Self::Smmu
        } else {
            Self::Other
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Intel => "Intel VT-d (DMAR)",
            Self::Amd => "AMD-Vi",
            Self::SmmuV3 => "Arm SMMUv3",
            Self::Smmu => "Arm SMMU",
            Self::Other => "another kind",
        }
    }

    /// Whether page requests of PCI functions get through it, or why not. `directory` is where sysfs has it.
    pub fn page_requests(self, tree: &Tree, directory: &Path) -> Result<(), &'static str> {
        match self {
            Self::Intel => {
                let register = hexadecimal(tree, &directory.join("intel-iommu/ecap"))?;
                let has = |bit: &u32| register >> bit & 1 == 1;
                (INTEL_PAGE_REQUESTS.iter().all(has))
                    .then_some(())
                    .ok_or("it lacks page requests, draining them, or scalable mode")
            }
            Self::Amd => {
                let register = hexadecimal(tree, &directory.join("amd-iommu/features"))?;
                (register >> AMD_PAGE_REQUESTS & 1 == 1)
                    .then_some(())
                    .ok_or("it lacks peripheral page requests (PPR)")
            }
            Self::SmmuV3 => {
                Err("Linux passes on stalls of platform devices there, no page requests of PCI")
            }
            Self::Smmu | Self::Other => Err("Linux has no page requests there"),
        }
    }
}

/// The first register in a file of sysfs: `f000ca` or, in two parts, `246577efa2254afa:0`.
fn hexadecimal(tree: &Tree, path: &Path) -> Result<u64, &'static str> {
    let text = tree.text(path).unwrap_or_default();
    let first = text.split(':').next().unwrap_or_default();
    u64::from_str_radix(first, 16).map_err(|_| "the kernel does not tell its features")
}

#[cfg(test)]
mod tests {
    use super::super::tree::TestTree;
    use super::*;

    #[test]
    fn the_name_tells_the_kind() {
        for (name, kind) in [
            ("dmar0", Kind::Intel),
            ("ivhd1", Kind::Amd),
            ("smmu3.0x0000000009050000", Kind::SmmuV3),
            ("smmu.0x0000000012c00000", Kind::Smmu),
            ("virtio0", Kind::Other),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn its_registers_tell_whether_page_requests_get_through() {
        for (kind, file, text, passes) in [
            (Kind::Intel, "intel-iommu/ecap", "c0020f00f4a", true),
            (Kind::Intel, "intel-iommu/ecap", "f020df", false),
            (Kind::Intel, "intel-iommu/ecap", "", false),
            (Kind::Amd, "amd-iommu/features", "246577efa2254afa:0", true),
            (Kind::Amd, "amd-iommu/features", "58f77ef22294a5a", true),
            (Kind::Amd, "amd-iommu/features", "8:0", false),
            (Kind::SmmuV3, "none", "", false),
        ] {
            let test = TestTree::new(&[(&format!("sys/i/{file}"), text)]);
            let result = kind.page_requests(&test.tree, Path::new("sys/i"));
            assert_eq!(result.is_ok(), passes, "{kind:?} {text}");
        }
    }
}
