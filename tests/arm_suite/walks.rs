// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the SMMU makes of our entries, descriptors and commands: `host::iommufd::smmuv3` on a real walk of two stages.

use std::sync::atomic::Ordering;

use vhost_device_iommu::host::iommufd::smmuv3::{self, Asid, Smmu};
use vhost_device_iommu::host::mapping::IovaRange;
use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::spec::{Gpa, Iova};

use crate::edu::Edu;
use crate::kernel::Kernel;
use crate::table::{AF, BASE, BYTES, Guest, LEAF, Memory, READ_ONLY};

/// Where our descriptors are for the SMMU: behind the guest's memory.
const DESCRIPTORS: u64 = 0x1_0000_0000;
/// The device's number in the guest's SMMU.
const STREAM: u32 = 0x28;
const ASID: Asid = 7;

/// Two pages that tests copy from and to, apart in each granule.
const FROM: u64 = 0x40_0000;
const TO: u64 = 0x60_0000;

/// A device, and all that it needs to be translated by a table of the guest.
struct Lab {
    // Dropped first: with the device's file its attachment ends.
    edu: Edu,
    kernel: Kernel,
    viommu: u32,
    descriptors: Memory,
    guest: Guest,
}

impl Lab {
    fn new() -> Self {
        let kernel = Kernel::open();
        let edu = Edu::open(&kernel);
        let guest = Guest::new();
        let descriptors = Memory::small(1 << 16);
        let ioas = kernel.address_space();
        let memory = &guest.memory;
        kernel.map(ioas, BASE, memory.start(), memory.length(), true);
        let (start, length) = (descriptors.start(), descriptors.length());
        kernel.map(ioas, DESCRIPTORS, start, length, false);
        let parent = kernel.parent(edu.dev, ioas);
        let viommu = kernel.viommu(edu.dev, parent);
        kernel.vdevice(viommu, edu.dev, STREAM);
        Self {
            edu,
            kernel,
            viommu,
            descriptors,
            guest,
        }
    }

    /// Writes the descriptor of a table to a place among ours.
    fn describe(&self, place: u64, table: &Table, asid: Asid) {
        let words = smmuv3::context_descriptor(table, asid);
        for (index, word) in (0..).zip(words) {
            let offset = place * smmuv3::DESCRIPTOR_BYTES + index * 8;
            self.descriptors.word(offset).store(word, Ordering::SeqCst);
        }
    }

    /// Attaches the device to what a descriptor describes.
    fn attach(&self, place: u64) {
        let at = DESCRIPTORS + place * smmuv3::DESCRIPTOR_BYTES;
        let entry = smmuv3::stream_table_entry(at);
        let nested = self.kernel.nested(self.edu.dev, self.viommu, &entry);
        self.edu.attach(nested);
    }

    /// A table that leads to two pages of data, with the device attached to it.
    fn attached(granule: u8, input_bits: u8) -> (Self, Table) {
        let mut lab = Self::new();
        let table = lab.guest.table(granule, input_bits);
        lab.lead(&table, FROM, 0, LEAF);
        lab.lead(&table, TO, 1, LEAF);
        lab.describe(0, &table, ASID);
        lab.attach(0);
        (lab, table)
    }

    /// Has an address lead to a page of data.
    fn lead(&mut self, table: &Table, address: u64, page: u64, bits: u64) {
        let entry = self.guest.page(page) | bits;
        self.guest.set(table, address, entry);
    }

    fn forget(&self, table: &Table, first: u64, last: u64) {
        let range = IovaRange {
            first: Iova(first),
            last: Iova(last),
        };
        let commands = smmuv3::forget_ranges(table, ASID, &[range]);
        self.kernel.give(self.viommu, &commands);
    }

    /// Copies from one address to another, through the device.
    fn copy(&self) {
        self.edu.read(FROM, BYTES);
        self.edu.write(TO, BYTES);
    }

    /// What arrives in a page of data when the device copies. It was something else before.
    fn arrives(&self, page: u64) -> u64 {
        self.guest.fill(page, UNTOUCHED);
        self.copy();
        let words = self.guest.words(page);
        assert!(words.iter().all(|&word| word == words[0]), "{words:x?}");
        words[0]
    }
}

/// What is in a page that no device has written to.
const UNTOUCHED: u64 = 0x7777_7777_7777_7777;
const FIRST: u64 = 0x1111_2222_3333_4444;
const SECOND: u64 = 0x5555_6666_7777_8888;

#[test]
fn the_emulated_smmu_reads_tables_of_each_granule() {
    let kernel = Kernel::open();
    let edu = Edu::open(&kernel);
    let smmu = Smmu::new(&kernel.smmu(edu.dev)).unwrap();
    for granule in [12, 14, 16] {
        assert_ne!(smmu.page_sizes & 1 << granule, 0, "{granule}");
    }
}

#[test]
fn a_table_of_the_guest_carries_dma_whatever_its_granule_and_size() {
    // Four levels, three, two; of each granule.
    for (granule, input_bits) in [
        (12, 48),
        (12, 39),
        (12, 25),
        (14, 48),
        (14, 36),
        (16, 48),
        (16, 42),
        (16, 29),
    ] {
        let (lab, _) = Lab::attached(granule, input_bits);
        lab.guest.fill(0, FIRST);
        assert_eq!(lab.arrives(1), FIRST, "{granule} {input_bits}");
    }
}

#[test]
fn a_changed_entry_is_stale_until_its_page_is_forgotten() {
    let (mut lab, table) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    lab.guest.fill(2, SECOND);
    assert_eq!(lab.arrives(1), FIRST);
    lab.lead(&table, FROM, 2, LEAF);
    assert_eq!(lab.arrives(1), FIRST);
    lab.forget(&table, TO, TO + 0xfff);
    assert_eq!(lab.arrives(1), FIRST, "another page was forgotten");
    lab.forget(&table, FROM + 0x123, FROM + 0x123);
    assert_eq!(lab.arrives(1), SECOND);
}

#[test]
fn a_changed_entry_is_stale_until_everything_is_forgotten() {
    let (mut lab, table) = Lab::attached(16, 48);
    lab.guest.fill(0, FIRST);
    lab.guest.fill(2, SECOND);
    assert_eq!(lab.arrives(1), FIRST);
    lab.lead(&table, FROM, 2, LEAF);
    assert_eq!(lab.arrives(1), FIRST);
    lab.forget(&table, 0, u64::MAX);
    assert_eq!(lab.arrives(1), SECOND);
}

#[test]
fn an_entry_that_is_absent_or_forbids_it_blocks_the_access() {
    let (mut lab, table) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    assert_eq!(lab.arrives(1), FIRST);
    // Absent; read-only; without AF.
    let page = lab.guest.page(1);
    for entry in [0, page | LEAF | READ_ONLY, page | LEAF & !AF] {
        lab.guest.set(&table, TO, entry);
        lab.forget(&table, TO, TO);
        assert_eq!(lab.arrives(1), UNTOUCHED, "{entry:#x}");
    }
    // That it was absent is not kept.
    lab.lead(&table, TO, 1, LEAF);
    assert_eq!(lab.arrives(1), FIRST);
}

#[test]
fn an_address_beyond_the_table_is_blocked() {
    let (lab, _) = Lab::attached(12, 25);
    lab.guest.fill(0, FIRST);
    assert_eq!(lab.arrives(1), FIRST);
    lab.guest.fill(1, UNTOUCHED);
    lab.edu.write(TO | 1 << 25, BYTES);
    assert_eq!(lab.guest.words(1)[0], UNTOUCHED);
}

#[test]
fn a_changed_descriptor_is_in_force_when_it_is_forgotten() {
    let (mut lab, _) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    lab.guest.fill(2, SECOND);
    assert_eq!(lab.arrives(1), FIRST);
    let other = lab.guest.table(14, 36);
    lab.lead(&other, FROM, 2, LEAF);
    lab.lead(&other, TO, 1, LEAF);
    lab.describe(0, &other, ASID + 1);
    assert_eq!(lab.arrives(1), FIRST);
    let command = smmuv3::forget_descriptor(STREAM);
    lab.kernel.give(lab.viommu, &[command]);
    assert_eq!(lab.arrives(1), SECOND);
}

#[test]
fn two_tables_are_kept_apart_by_their_asids() {
    let (mut lab, _) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    lab.guest.fill(2, SECOND);
    assert_eq!(lab.arrives(1), FIRST);
    let other = lab.guest.table(12, 48);
    lab.lead(&other, FROM, 2, LEAF);
    lab.lead(&other, TO, 1, LEAF);
    lab.describe(1, &other, ASID + 1);
    lab.attach(1);
    assert_eq!(lab.arrives(1), SECOND);
    lab.attach(0);
    assert_eq!(lab.arrives(1), FIRST);
}

#[test]
fn descriptors_cannot_be_written_through_the_table() {
    let (mut lab, table) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    assert_eq!(lab.arrives(1), FIRST);
    let before = lab.descriptors.word(0).load(Ordering::SeqCst);
    lab.guest.set(&table, TO, DESCRIPTORS | LEAF);
    lab.forget(&table, TO, TO);
    lab.copy();
    assert_eq!(lab.descriptors.word(0).load(Ordering::SeqCst), before);
}

#[test]
fn a_root_where_no_memory_is_blocks_all_accesses() {
    let (lab, table) = Lab::attached(12, 48);
    lab.guest.fill(0, FIRST);
    let root = Gpa(BASE - 0x1000);
    lab.describe(1, &Table { root, ..table }, ASID + 1);
    lab.attach(1);
    assert_eq!(lab.arrives(1), UNTOUCHED);
    lab.attach(0);
    assert_eq!(lab.arrives(1), FIRST);
}
