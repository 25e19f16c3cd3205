// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of the driver on Intel VT-d: what its registers say of them, and how the kernel is told of them.
//!
//! Bits and their names are those of Intel's "Virtualization Technology for Directed I/O", 11.4.2 (Capability Register) and
//! 11.4.3 (Extended Capability Register); structures are those of `linux/iommufd.h`.

use crate::host::mapping::IovaRange;
use crate::host::table::{Table, TableSupport};
use crate::spec::TableFormat;

/// NEST, SMTS, FLTS and SMPWC of the Extended Capability Register: nested translation, scalable mode, first-stage
/// translation, and page walks that see the processors' caches.
const NEEDED: [u32; 4] = [26, 43, 47, 48];
/// FL1GP and FL5LP of the Capability Register: pages of 1 GiB, tables of five levels.
const LARGE_PAGES: u32 = 56;
const FIVE_LEVELS: u32 = 60;

/// `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1` takes units of this size, whatever the sizes of pages.
const UNIT_BITS: u32 = 12;
/// A number of units that stands for all of the table.
const EVERYTHING: u64 = u64::MAX;

/// The tables that an IOMMU with these registers reads, each address of them translated once more by the host's table;
/// `None`: none at all.
pub(crate) fn tables(capability: u64, extended: u64) -> Option<TableSupport> {
    let has = |register: u64, bit: u32| register >> bit & 1 == 1;
    NEEDED
        .iter()
        .all(|&bit| has(extended, bit))
        .then(|| TableSupport {
            format: TableFormat::X86_64,
            input_bits: match has(capability, FIVE_LEVELS) {
                true => 57,
                false => 48,
            },
            output_bits: 52,
            page_sizes: 1 << 12 | 1 << 21 | u64::from(has(capability, LARGE_PAGES)) << 30,
        })
}

/// `struct iommu_hwpt_vtd_s1`: flags, `pgtbl_addr`, `addr_width` and 32 reserved bits. No flag is set: privileged accesses
/// fail (SRE), and the hardware sets no other bits than accessed and dirty (EAFE).
pub(super) fn table(table: &Table) -> [u64; 3] {
    [0, table.root.0, table.input_bits.into()]
}

/// `struct iommu_hwpt_vtd_s1_invalidate`: `addr`, `npages`, flags and 32 reserved bits. Entries of all levels are
/// meant, as requests do not say which have changed.
pub(super) fn invalidation(range: IovaRange) -> [u64; 3] {
    let (first, last) = (range.first.0 >> UNIT_BITS, range.last.0 >> UNIT_BITS);
    match last - first {
        all if all == u64::MAX >> UNIT_BITS => [0, EVERYTHING, 0],
        more => [first << UNIT_BITS, more + 1, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Gpa;
    use iommufd_bindings as uapi;
    use std::mem::{offset_of, size_of};

    const ALL: u64 = 1 << 26 | 1 << 43 | 1 << 47 | 1 << 48;

    #[test]
    fn all_of_nesting_scalable_mode_first_stage_and_coherent_walks_are_needed() {
        for bit in NEEDED {
            assert_eq!(tables(!0, !(1 << bit)), None, "{bit}");
        }
        for (capability, input_bits, page_sizes) in [
            (0, 48, 0x20_1000),
            (1 << 60, 57, 0x20_1000),
            (1 << 56, 48, 0x4020_1000),
            (!0, 57, 0x4020_1000),
        ] {
            let support = tables(capability, ALL).unwrap();
            assert_eq!(support.input_bits, input_bits);
            assert_eq!(support.page_sizes, page_sizes);
            assert_eq!(tables(capability, !0), Some(support));
        }
    }

    #[test]
    fn a_table_is_told_as_the_header_has_it() {
        assert_eq!(size_of::<uapi::iommu_hwpt_vtd_s1>(), 24);
        assert_eq!(offset_of!(uapi::iommu_hwpt_vtd_s1, flags), 0);
        assert_eq!(offset_of!(uapi::iommu_hwpt_vtd_s1, pgtbl_addr), 8);
        assert_eq!(offset_of!(uapi::iommu_hwpt_vtd_s1, addr_width), 16);
        for bits in [48, 57] {
            let words = table(&Table {
                format: TableFormat::X86_64,
                input_bits: bits,
                granule: 12,
                root: Gpa(0x1_2345_6000),
                attributes: 0,
            });
            assert_eq!(words, [0, 0x1_2345_6000, bits.into()]);
        }
    }

    #[test]
    fn an_invalidation_is_told_in_units_of_4_kib_with_the_pages_at_its_ends() {
        type Entry = uapi::iommu_hwpt_vtd_s1_invalidate;
        assert_eq!(size_of::<Entry>(), 24);
        assert_eq!(offset_of!(Entry, addr), 0);
        assert_eq!(offset_of!(Entry, npages), 8);
        assert_eq!(offset_of!(Entry, flags), 16);
        let half = 0xffff_8000_0000_0000;
        for (first, last, words) in [
            (0x1000, 0x1fff, [0x1000, 1, 0]),
            (0x1234, 0x1234, [0x1000, 1, 0]),
            (0x1fff, 0x2000, [0x1000, 2, 0]),
            (0, 0xfff, [0, 1, 0]),
            (0, u64::MAX, [0, u64::MAX, 0]),
            (0xfff, u64::MAX - 0xfff, [0, u64::MAX, 0]),
            (0x1000, u64::MAX, [0x1000, (1 << 52) - 1, 0]),
            (half, u64::MAX, [half, 1 << 35, 0]),
            (u64::MAX, u64::MAX, [u64::MAX - 0xfff, 1, 0]),
        ] {
            let range = IovaRange::new(first, last).unwrap();
            assert_eq!(invalidation(range), words, "{first:#x}-{last:#x}");
        }
    }
}
