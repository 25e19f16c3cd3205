// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Arm's SMMUv3 over a table of the guest's driver: what the kernel tells of it, and what it is given, word by word.
//!
//! ```text
//! stream table entry (STE, the kernel's: we give two words)
//!   └── context descriptor (CD, ours, in memory that the parent's page table maps)
//!         └── the driver's table (TTB0) ── each address of it translated by the parent's page table
//! ```
//!
//! Names of fields are those of Arm's "System Memory Management Unit Architecture Specification, SMMU architecture version
//! 3" (IHI 0070): 4 commands, 5.2 stream table entry, 5.4 context descriptor, 6.3 registers. What of them iommufd takes is
//! in `linux/iommufd.h`, at the structures used here. Nothing here calls the kernel.

use iommufd_bindings as uapi;

use crate::host::mapping::IovaRange;
use crate::host::table::{Table, TableSupport};
use crate::spec::TableFormat;

/// A command for the SMMU, as `IOMMU_HWPT_INVALIDATE` takes it.
pub type Command = uapi::iommu_viommu_arm_smmuv3_invalidate;

/// Bytes of a context descriptor, and what it is aligned to.
pub const DESCRIPTOR_BYTES: u64 = 64;

/// Names the translations of one domain in the caches of the SMMU (CD.ASID), of [`Smmu::asid_bits`].
pub type Asid = u16;

/// Bits of an address without LVA and LPA2 (IDR5.VAX 0, CD.IPS 5): the format has no more.
const ADDRESS_BITS: u8 = 48;

/// More single pages than this are not named: everything is forgotten instead. It bounds what one request of the guest's
/// driver costs; Linux's own driver has the same bound (`CMDQ_MAX_TLBI_OPS`).
const MOST_PAGES: u64 = 512;

/// IDR0.TTF: the formats of tables.
const TTF_AARCH64: [u32; 2] = [0b10, 0b11];
/// IDR0.TTENDIAN: 0b11 is an SMMU that reads big-endian tables alone.
const TTENDIAN_BIG: u32 = 0b11;
/// IDR5.GRAN4K, GRAN16K and GRAN64K, with the sizes of pages and blocks that go with each.
const GRANULES: [(u32, u64); 3] = [
    (4, 1 << 12 | 1 << 21 | 1 << 30),
    (5, 1 << 14 | 1 << 25),
    (6, 1 << 16 | 1 << 29),
];

/// `IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI` of `linux/iommufd.h` (Linux 7.3).
const ERRATUM_REPEAT: u32 = 1;

/// CMD_CFGI_CD, CMD_TLBI_NH_ALL, CMD_TLBI_NH_VA (4.3, 4.4).
const CFGI_CD: u64 = 0x05;
const TLBI_NH_ALL: u64 = 0x10;
const TLBI_NH_VA: u64 = 0x12;

/// What an SMMU says of itself that matters to a table of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Sizes of pages and blocks, a bit each.
    pub page_sizes: u64,
    /// Width of an [`Asid`].
    pub asid_bits: u8,
    /// Each command must be given, and have ended, twice (an erratum).
    pub repeats: bool,
}

impl Smmu {
    /// What `IOMMU_GET_HW_INFO` tells; `None` if it reads no table of the format ARM64. Only fields are looked at that
    /// `linux/iommufd.h` allows: IDR5.OAS is none of them. Whether the kernel nests is seen only when it is asked to.
    pub fn new(info: &uapi::iommu_hw_info_arm_smmuv3) -> Option<Self> {
        let [idr0, .., idr5] = info.idr;
        let page_sizes = GRANULES
            .iter()
            .filter(|(bit, _)| idr5 >> bit & 1 == 1)
            .fold(0, |sizes, (_, more)| sizes | more);
        let reads = TTF_AARCH64.contains(&(idr0 >> 2 & 0b11))
            && idr0 >> 21 & 0b11 != TTENDIAN_BIG
            && page_sizes != 0;
        reads.then_some(Self {
            page_sizes,
            asid_bits: if idr0 >> 12 & 1 == 1 { 16 } else { 8 },
            repeats: info.flags & ERRATUM_REPEAT != 0,
        })
    }

    /// The property of an endpoint behind it, as far as this SMMU goes: the parent's page table can map fewer addresses.
    pub fn tables(&self) -> TableSupport {
        TableSupport {
            format: TableFormat::Arm64,
            input_bits: ADDRESS_BITS,
            output_bits: ADDRESS_BITS,
            page_sizes: self.page_sizes,
        }
    }
}

/// The stream table entry of an endpoint that is translated by the one context descriptor at `descriptor`, an address of
/// the parent's page table.
///
/// The endpoint cannot use PASIDs then (S1CDMax 0), nor ATS (EATS 0): the kernel turns ATS off, so no command is needed for
/// what the endpoint itself would keep.
pub fn stream_table_entry(descriptor: u64) -> uapi::iommu_hwpt_arm_smmuv3 {
    let valid = 1;
    let stage_1 = 0b101 << 1;
    // The descriptor is read write-back and inner shareable, as the driver's table is: S1CIR, S1COR, S1CSH.
    let cached = 0b01 << 2 | 0b01 << 4 | 0b11 << 6;
    uapi::iommu_hwpt_arm_smmuv3 {
        ste: [valid | stage_1 | descriptor, cached].map(u64::to_le),
    }
}

/// The context descriptor of a domain with a table of the format ARM64, in the byte order of memory.
///
/// TTB0 alone. Walks are write-back and inner shareable. Nothing is written to the table (HA, HD 0), so an entry without AF
/// is as good as absent. Faults abort the access and are recorded (A, R); none stalls (S 0).
pub fn context_descriptor(table: &Table, asid: Asid) -> [u64; 8] {
    let granule = match table.granule {
        16 => 0b01,
        14 => 0b10,
        _ => 0b00,
    };
    // T0SZ, TG0; IR0, OR0 and SH0 as in the entry of the stream table.
    let walk =
        u64::from(64 - table.input_bits) | granule << 6 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
    // EPD1, V; AA64, R, A; ASET, as the ASID is none of the processors'.
    let flags = 1 << 30 | 1 << 31 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47;
    let first = walk | flags | IPS_48_BITS << 32 | u64::from(asid) << 48;
    [first, table.root.0, 0, table.attributes, 0, 0, 0, 0].map(u64::to_le)
}

/// CD.IPS: addresses of 48 bits come out. The SMMU takes it for less if it has less.
const IPS_48_BITS: u64 = 5;

/// Makes the SMMU forget the context descriptor of an endpoint, which has changed. `stream` is the endpoint's number as a
/// vDEVICE (`virt_id`).
pub fn forget_descriptor(stream: u32) -> Command {
    let leaf = 1;
    command(CFGI_CD | u64::from(stream) << 32, leaf)
}

/// Makes the SMMU forget what it keeps of a table for ranges: translations, and the tables on the way to them, as any of them
/// may have changed. No command is needed if the table has no address in the ranges.
pub fn forget_ranges(table: &Table, asid: Asid, ranges: &[IovaRange]) -> Vec<Command> {
    let end = 1 << table.input_bits;
    let inside = ranges.iter().filter(|range| range.first.0 < end);
    let pages = inside
        .map(|range| range.first.0 >> table.granule..=range.last.0.min(end - 1) >> table.granule);
    let count = pages.clone().fold(0, |count: u64, pages| {
        count.saturating_add(pages.end() - pages.start() + 1)
    });
    if count > MOST_PAGES {
        return vec![forget_all()];
    }
    let named = u64::from(asid) << 48;
    pages
        .flatten()
        .map(|page| command(TLBI_NH_VA | named, page << table.granule))
        .collect()
}

/// Makes the SMMU forget all that it keeps of tables of this guest.
///
/// It names no domain, as CMD_TLBI_NH_ASID would: that leaves entries that the driver has marked as good for every address
/// space (nG 0), and the driver's table can have such.
pub fn forget_all() -> Command {
    command(TLBI_NH_ALL, 0)
}

fn command(first: u64, second: u64) -> Command {
    Command {
        cmd: [first, second].map(u64::to_le),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Gpa, Iova};

    fn table(granule: u8, input_bits: u8) -> Table {
        Table {
            format: TableFormat::Arm64,
            input_bits,
            granule,
            root: Gpa(0x4000_2000),
            attributes: 0xff,
        }
    }

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange {
            first: Iova(first),
            last: Iova(last),
        }
    }

    fn words(commands: &[Command]) -> Vec<[u64; 2]> {
        commands
            .iter()
            .map(|command| command.cmd.map(u64::from_le))
            .collect()
    }

    fn info(idr0: u32, idr5: u32) -> uapi::iommu_hw_info_arm_smmuv3 {
        uapi::iommu_hw_info_arm_smmuv3 {
            idr: [idr0, 0, 0, 0, 0, idr5],
            ..Default::default()
        }
    }

    #[test]
    fn an_smmu_says_which_tables_it_reads() {
        const LITTLE: u32 = 0b10 << 21;
        // AArch64 and AArch32, 4 and 64 KiB, 44 bits; and S1P, S2P and others, which do not matter.
        let qemu = Smmu::new(&info(LITTLE | 0b1111, 0x54)).unwrap();
        assert_eq!(qemu.page_sizes, 0x6021_1000);
        assert_eq!((qemu.asid_bits, qemu.repeats), (8, false));
        for (bit, sizes) in [(4, 0x4020_1000), (5, 0x200_4000), (6, 0x2001_0000)] {
            let smmu = Smmu::new(&info(LITTLE | 0b10 << 2, 1 << bit)).unwrap();
            assert_eq!(smmu.page_sizes, sizes, "{bit}");
        }
        // AArch32 alone; big-endian alone; no granule at all.
        assert_eq!(Smmu::new(&info(LITTLE | 0b01 << 2, 0x70)), None);
        assert_eq!(Smmu::new(&info(0b11 << 21 | 0b10 << 2, 0x70)), None);
        assert_eq!(Smmu::new(&info(LITTLE | 0b10 << 2, 0x0f)), None);
        let mut info = info(LITTLE | 0b10 << 2, 0x10);
        info.flags = 1;
        info.idr[0] |= 1 << 12;
        let smmu = Smmu::new(&info).unwrap();
        assert_eq!((smmu.asid_bits, smmu.repeats), (16, true));
    }

    #[test]
    fn the_property_has_the_granules_of_the_smmu() {
        let smmu = Smmu {
            page_sizes: 0x4020_1000,
            asid_bits: 16,
            repeats: false,
        };
        let support = smmu.tables();
        assert_eq!((support.input_bits, support.output_bits), (48, 48));
        assert!(support.allows(&table(12, 48)));
        assert!(!support.allows(&table(16, 48)));
    }

    #[test]
    fn a_stream_table_entry_leads_to_the_descriptor() {
        // V, Config 5, S1ContextPtr; S1CIR 1, S1COR 1, S1CSH 3.
        let entry = stream_table_entry(0x1_0000_0040).ste.map(u64::from_le);
        assert_eq!(entry, [0x1_0000_004b, 0xd4]);
    }

    #[test]
    fn a_context_descriptor_describes_the_table() {
        let words =
            |granule, bits, asid| context_descriptor(&table(granule, bits), asid).map(u64::from_le);
        // ASID 7, ASET A R - AA64, IPS 5; V EPD1, SH0 3, OR0 1, IR0 1, TG0 0, T0SZ 16.
        let of_4_kib = [0x0007_e205_c000_3510, 0x4000_2000, 0, 0xff, 0, 0, 0, 0];
        assert_eq!(words(12, 48, 7), of_4_kib);
        // TG0 2, T0SZ 28; TG0 1, T0SZ 39.
        assert_eq!(words(14, 36, 0xfedc)[0], 0xfedc_e205_c000_359c);
        assert_eq!(words(16, 25, 0)[0], 0x0000_e205_c000_3567);
    }

    #[test]
    fn a_range_is_forgotten_page_by_page() {
        let forget = |granule, first, last| {
            words(&forget_ranges(
                &table(granule, 48),
                7,
                &[range(first, last)],
            ))
        };
        const VA: u64 = 0x0007_0000_0000_0012;
        assert_eq!(forget(12, 0x40_0000, 0x40_0fff), [[VA, 0x40_0000]]);
        // A page that only overlaps is one of them.
        let two = [[VA, 0x40_0000], [VA, 0x40_1000]];
        assert_eq!(forget(12, 0x40_0fff, 0x40_1000), two);
        assert_eq!(forget(16, 0x40_1000, 0x40_1000), [[VA, 0x40_0000]]);
        assert_eq!(forget(14, 0x3fff, 0x4000), [[VA, 0], [VA, 0x4000]]);
        let last = [[VA, 0xffff_ffff_f000]];
        assert_eq!(forget(12, 0xffff_ffff_f000, u64::MAX), last);
    }

    #[test]
    fn a_long_range_is_forgotten_with_all_else() {
        let forget = |first, last| words(&forget_ranges(&table(12, 48), 7, &[range(first, last)]));
        const ALL: [[u64; 2]; 1] = [[0x10, 0]];
        assert_eq!(forget(0, 0x1f_ffff).len(), 512);
        assert_eq!(forget(0, 0x20_0000), ALL);
        assert_eq!(forget(0, u64::MAX), ALL);
        assert_eq!(words(&[forget_all()]), ALL);
        // All ranges count.
        let forget = |ranges: &[IovaRange]| words(&forget_ranges(&table(12, 48), 7, ranges));
        let half = range(0x1000, 0x10_0fff);
        assert_eq!(forget(&[half, half]).len(), 512);
        assert_eq!(forget(&[half, half, range(0, 0)]), ALL);
    }

    #[test]
    fn nothing_is_kept_of_addresses_that_the_table_does_not_have() {
        let small = table(12, 39);
        assert_eq!(forget_ranges(&small, 7, &[range(1 << 39, u64::MAX)]), []);
        let last = forget_ranges(&small, 7, &[range((1 << 39) - 1, u64::MAX)]);
        let first = [0x0007_0000_0000_0012, 0x7f_ffff_f000];
        assert_eq!(words(&last), [first]);
    }

    #[test]
    fn a_changed_descriptor_is_forgotten_by_the_endpoint_that_it_is_of() {
        let forget = words(&[forget_descriptor(0x28)]);
        assert_eq!(forget, [[0x28_0000_0005, 1]]);
    }
}
