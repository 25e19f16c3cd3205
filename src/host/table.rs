// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page tables that the driver owns: what a domain with one is translated by, and what an endpoint can be attached to
//! (draft 2, "Tables of the driver").

use crate::spec::{Gpa, TableFormat};

/// A table of the driver, as ATTACH_TABLE describes it. Two domains with the same table are two domains all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its format.
    pub format: TableFormat,
    /// Bits of a virtual address.
    pub input_bits: u8,
    /// The logarithm to base two of the smallest page, in bytes.
    pub granule: u8,
    /// Where its root is.
    pub root: Gpa,
    /// Depends on the format: MAIR for [`TableFormat::Arm64`], 0 for [`TableFormat::X86_64`].
    pub attributes: u64,
}

impl Table {
    /// Whether its fields are values that the format allows (X96), whatever an endpoint supports.
    pub fn is_possible(&self) -> bool {
        if !has_input_bits(self.format, self.input_bits) {
            return false;
        }
        match self.format {
            TableFormat::X86_64 => {
                self.granule == 12
                    && self.has_root(4096, X86_64_OUTPUT_BITS)
                    && self.attributes == 0
            }
            TableFormat::Arm64 => {
                matches!(self.granule, 12 | 14 | 16)
                    && self.has_root(self.root_bytes().max(64), ARM64_OUTPUT_BITS)
            }
        }
    }

    /// How many tables are on the way to a page of the smallest size. The table is a possible one.
    pub(crate) fn levels(&self) -> u8 {
        (self.input_bits - self.granule).div_ceil(self.index_bits())
    }

    /// Bits of an address that a table below the root looks at: it fills one page of the smallest size with entries of 8
    /// bytes. The table is a possible one.
    pub(crate) fn index_bits(&self) -> u8 {
        self.granule - 3
    }

    /// The root has the bits that are left for it.
    fn root_bytes(&self) -> u64 {
        let below = self.granule + (self.levels() - 1) * self.index_bits();
        8 << (self.input_bits - below)
    }

    fn has_root(&self, alignment: u64, output_bits: u8) -> bool {
        self.root.0.is_multiple_of(alignment) && self.root.0 >> output_bits == 0
    }
}

/// Bits of an address in an entry.
const X86_64_OUTPUT_BITS: u8 = 52;
const ARM64_OUTPUT_BITS: u8 = 48;

/// Whether the format has virtual addresses of so many bits.
fn has_input_bits(format: TableFormat, bits: u8) -> bool {
    match format {
        TableFormat::X86_64 => matches!(bits, 48 | 57),
        TableFormat::Arm64 => (25..=48).contains(&bits),
    }
}

/// A format of tables that an endpoint can be attached to: its TABLE property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSupport {
    /// The format.
    pub format: TableFormat,
    /// The most bits of a virtual address. Smaller values of the format can be used as well.
    pub input_bits: u8,
    /// Bits of a physical address.
    pub output_bits: u8,
    /// Sizes of pages that an entry can describe, a bit each.
    pub page_sizes: u64,
}

impl TableSupport {
    /// Whether an endpoint with this property can be attached to the table (X97). Fields that are not compared here are
    /// those of [`Table::is_possible`].
    pub fn allows(&self, table: &Table) -> bool {
        self.format == table.format
            && has_input_bits(table.format, table.input_bits)
            && table.input_bits <= self.input_bits
            && 1_u64
                .checked_shl(table.granule.into())
                .is_some_and(|size| self.page_sizes & size != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x86_64(input_bits: u8) -> Table {
        Table {
            format: TableFormat::X86_64,
            input_bits,
            granule: 12,
            root: Gpa(0x1000),
            attributes: 0,
        }
    }

    fn arm64(granule: u8, input_bits: u8, root: u64) -> Table {
        Table {
            format: TableFormat::Arm64,
            input_bits,
            granule,
            root: Gpa(root),
            attributes: u64::MAX,
        }
    }

    #[test]
    fn a_table_of_x86_has_48_or_57_bits_and_nothing_else_to_choose() {
        for bits in 0..=u8::MAX {
            assert_eq!(x86_64(bits).is_possible(), bits == 48 || bits == 57);
        }
        let good = x86_64(48);
        for granule in (0..=u8::MAX).filter(|&granule| granule != 12) {
            assert!(!Table { granule, ..good }.is_possible(), "{granule}");
        }
        let attributes = 1;
        assert!(!Table { attributes, ..good }.is_possible());
        for (root, is_possible) in [
            (0, true),
            (0x800, false),
            (0x1008, false),
            ((1 << 52) - 0x1000, true),
            (1 << 52, false),
        ] {
            let root = Gpa(root);
            assert_eq!(Table { root, ..good }.is_possible(), is_possible, "{root}");
        }
    }

    #[test]
    fn a_table_of_arm_has_25_to_48_bits_and_three_granules() {
        for granule in 0..=u8::MAX {
            for bits in 0..=u8::MAX {
                let is_possible = [12, 14, 16].contains(&granule) && (25..=48).contains(&bits);
                assert_eq!(arm64(granule, bits, 0).is_possible(), is_possible);
            }
        }
        assert!(!arm64(12, 48, 1 << 48).is_possible());
    }

    #[test]
    fn the_root_of_arm_is_aligned_to_its_size() {
        for (granule, bits, alignment) in [
            // Level 0 of 512 entries, of 2, and level 1 of 64.
            (12, 48, 0x1000),
            (14, 48, 64),
            (16, 48, 512),
            // One entry; 64 bytes are the least.
            (12, 40, 64),
            // Level 1 of 512, level 2 of 16, level 2 of 2048.
            (12, 39, 0x1000),
            (12, 25, 128),
            (14, 36, 0x4000),
            // Level 3 alone.
            (16, 25, 0x1000),
        ] {
            assert!(arm64(granule, bits, alignment).is_possible());
            let half = arm64(granule, bits, alignment / 2);
            assert!(!half.is_possible(), "{granule} {bits}");
        }
    }

    #[test]
    fn a_property_allows_its_format_and_granules_up_to_its_bits() {
        let support = TableSupport {
            format: TableFormat::Arm64,
            input_bits: 39,
            output_bits: 40,
            page_sizes: 1 << 12 | 1 << 16 | 1 << 21,
        };
        assert!(support.allows(&arm64(12, 39, 0)));
        assert!(support.allows(&arm64(16, 25, 0)));
        assert!(!support.allows(&arm64(12, 40, 0)));
        assert!(!support.allows(&arm64(12, 24, 0)));
        assert!(!support.allows(&arm64(14, 39, 0)));
        assert!(!support.allows(&arm64(76, 39, 0)));
        assert!(!support.allows(&x86_64(48)));
        let support = TableSupport {
            format: TableFormat::X86_64,
            input_bits: 57,
            ..support
        };
        assert!(support.allows(&x86_64(48)));
        assert!(support.allows(&x86_64(57)));
        assert!(!support.allows(&x86_64(50)));
        let input_bits = 48;
        assert!(
            !TableSupport {
                input_bits,
                ..support
            }
            .allows(&x86_64(57))
        );
    }
}
