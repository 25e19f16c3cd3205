// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kinds of IOMMU that a machine can have, whether they pass page requests on, and whether they read tables of a guest.

use std::path::Path;

use super::iort;
use super::tree::Tree;
use crate::host::iommufd::vtd;

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
                (INTEL_PAGE_REQUESTS.iter().all(|&bit| has(register, bit)))
                    .then_some(())
                    .ok_or("it lacks page requests, draining them, or scalable mode")
            }
            Self::Amd => {
                let register = hexadecimal(tree, &directory.join("amd-iommu/features"))?;
                has(register, AMD_PAGE_REQUESTS)
                    .then_some(())
                    .ok_or("it lacks peripheral page requests (PPR)")
            }
            Self::SmmuV3 => {
                Err("Linux passes on stalls of platform devices there, no page requests of PCI")
            }
            Self::Smmu | Self::Other => Err("Linux has no page requests there"),
        }
    }

    /// Whether Linux logs the accesses of PCI functions that it refused, in words that this back-end knows.
    pub fn logs_refused_accesses(self) -> bool {
        matches!(self, Self::Intel | Self::Amd | Self::SmmuV3)
    }

    /// Which page tables of a guest it reads, each address of them translated once more by the host's table; or why none.
    /// `directory` is where sysfs has it.
    pub fn tables(self, tree: &Tree, directory: &Path) -> Result<String, &'static str> {
        match self {
            Self::Intel => {
                let extended = hexadecimal(tree, &directory.join("intel-iommu/ecap"))?;
                let register = hexadecimal(tree, &directory.join("intel-iommu/cap"))?;
                let support = vtd::tables(register, extended).ok_or(
                    "it lacks nesting, scalable mode, the first stage, or coherent page walks",
                )?;
                let levels = match support.input_bits {
                    57 => 5,
                    _ => 4,
                };
                let largest = match support.page_sizes >> 30 {
                    0 => "2 MiB",
                    _ => "1 GiB",
                };
                Ok(format!("x86-64, {levels} levels, pages up to {largest}"))
            }
            // Whether it has both stages (IDR0) is not in sysfs.
            Self::SmmuV3 => Err(match iort::keeps_caches_coherent(tree) {
                Some(true) => {
                    "the firmware promises coherent caches (CANWBS); whether the SMMU has both stages shows only when a device is set up"
                }
                Some(false) => {
                    "the firmware does not promise coherent caches (CANWBS), without which Linux seldom nests there"
                }
                None => "the kernel does not tell whether it nests (S1, S2, CANWBS)",
            }),
            Self::Amd | Self::Smmu | Self::Other => Err("Linux 7.3 nests no tables there"),
        }
    }
}

fn has(register: u64, bit: u32) -> bool {
    register >> bit & 1 == 1
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

    #[test]
    fn its_registers_tell_which_tables_it_reads() {
        // NEST, SMTS, FLTS, SMPWC.
        const ALL: u64 = 1 << 26 | 1 << 43 | 1 << 47 | 1 << 48;
        let tables = |extended: u64, register: u64| {
            let files = [
                ("sys/i/intel-iommu/ecap", format!("{extended:x}")),
                ("sys/i/intel-iommu/cap", format!("{register:x}")),
            ];
            let files = files.each_ref().map(|(path, text)| (*path, &**text));
            let test = TestTree::new(&files);
            Kind::Intel.tables(&test.tree, Path::new("sys/i"))
        };
        for (register, words) in [
            (0, "x86-64, 4 levels, pages up to 2 MiB"),
            (1 << 60, "x86-64, 5 levels, pages up to 2 MiB"),
            (1 << 56, "x86-64, 4 levels, pages up to 1 GiB"),
        ] {
            assert_eq!(tables(ALL, register).as_deref(), Ok(words));
            assert_eq!(tables(!0, register).as_deref(), Ok(words));
        }
        assert!(tables(0, 0).is_err());
        let nothing = TestTree::new(&[]);
        for kind in [
            Kind::Intel,
            Kind::Amd,
            Kind::SmmuV3,
            Kind::Smmu,
            Kind::Other,
        ] {
            assert!(kind.tables(&nothing.tree, Path::new("sys/i")).is_err());
        }
    }
}
