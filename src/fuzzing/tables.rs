// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any page table that a guest owns, against a naive reader of it.
//!
//! The input is a description and a series of actions; see [`tables`]. The property tests of the walk build their tables here
//! too: [`Bench`].

pub(crate) mod naive;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::fuzzing::Input;
use crate::host::soft::{Needed, Page, WalkError, trace, walk};
use crate::host::table::Table;
use crate::spec::{Gpa, Iova, MapFlags, TableFormat};

/// Guest memory: a region, a hole, a region.
const FIRST: u64 = 0x4_0000;
const HOLE: u64 = 0x2_0000;
const SECOND: u64 = 0x2_0000;

/// Frames of memory that tables are in, the hole's among them: so many, of 64 KiB where the granule is that large.
pub(crate) const FRAMES: u8 = 8;

/// Entries of a table that are used, so that entries and addresses meet.
pub(crate) const SLOTS: u8 = 4;

/// The most actions of one input.
const MAX_ACTIONS: usize = 128;

/// Runs one input.
///
/// The description: u8 (format, granule, 5 levels), u8 (bits of an address for arm64), u8 (frame of the root). Actions, a byte
/// each: 0 writes an entry that leads to a frame (u8 frame and u8 slot of the entry, u8 frame it leads to, u64 other bits), 1
/// writes any entry (u8 frame, u8 slot, u64), 2 accesses an address that leads to slots (u8 kinds, u8 for each of five levels,
/// from the lowest up), 3 accesses any address (u8 kinds, u64), 4 moves the root anywhere (u64) for the actions that follow.
pub fn tables(input: &[u8]) {
    run(&mut Input(input));
}

/// Runs one input; how many accesses found a page.
fn run(input: &mut Input<'_>) -> Option<usize> {
    let (kind, bits) = (input.u8()?, input.u8()?);
    let (format, input_bits, granule) = match kind % 8 {
        0 | 1 => (TableFormat::X86_64, 48, 12),
        2 | 3 => (TableFormat::X86_64, 57, 12),
        4 | 5 => (TableFormat::Arm64, 25 + bits % 24, 12),
        6 => (TableFormat::Arm64, 25 + bits % 24, 14),
        _ => (TableFormat::Arm64, 25 + bits % 24, 16),
    };
    let mut bench = Bench::new(format, input_bits, granule, input.u8()?);
    let mut found = 0;
    for _ in 0..MAX_ACTIONS {
        match act(&mut bench, input) {
            Some(true) => found += 1,
            Some(false) => (),
            // An input that ends early is complete.
            None => break,
        }
    }
    bench.end();
    Some(found)
}

/// Whether the action found a page.
fn act(bench: &mut Bench, input: &mut Input<'_>) -> Option<bool> {
    Some(match input.u8()? % 5 {
        0 => {
            let at = bench.entry(input.u8()?, input.u8()?);
            let target = bench.frame(input.u8()?);
            bench.set(at, input.u64()? | target);
            false
        }
        1 => {
            let at = bench.entry(input.u8()?, input.u8()?);
            bench.set(at, input.u64()?);
            false
        }
        2 => {
            let needed = needed(input.u8()?);
            let iova = bench.address(input.bytes(5)?);
            bench.access(iova, needed).is_ok()
        }
        3 => {
            let needed = needed(input.u8()?);
            bench.access(input.u64()?, needed).is_ok()
        }
        _ => {
            bench.table.root = Gpa(input.u64()?);
            false
        }
    })
}

fn needed(kinds: u8) -> Needed {
    Needed {
        write: kinds & 1 != 0,
        exec: kinds & 2 != 0,
        // Seldom: nothing else is looked at then.
        privileged: kinds & 0xfc == 0xfc,
    }
}

/// Guest memory with a table, and what should be in that memory.
pub(crate) struct Bench {
    table: Table,
    memory: GuestMemoryMmap,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Bench {
    /// A table without entries, whose root is in a frame.
    pub(crate) fn new(format: TableFormat, input_bits: u8, granule: u8, root: u8) -> Self {
        let ranges = [
            (GuestAddress(0), FIRST as usize),
            (GuestAddress(FIRST + HOLE), SECOND as usize),
        ];
        let mut bench = Self {
            table: Table {
                format,
                input_bits,
                granule,
                root: Gpa(0),
                attributes: 0,
            },
            memory: GuestMemoryMmap::from_ranges(&ranges).expect("memory"),
            first: vec![0; FIRST as usize],
            second: vec![0; SECOND as usize],
        };
        bench.table.root = Gpa(bench.frame(root));
        bench
    }

    /// The address of a frame: four or more in each region and two or more in the hole, if there are so many.
    pub(crate) fn frame(&self, number: u8) -> u64 {
        let number = u64::from(number % FRAMES);
        match self.table.granule {
            16 => number << 16,
            // The last frames of the first region, one in the hole, the first of the second region.
            granule => {
                let frames = 1 << granule;
                match number {
                    0..=3 => FIRST - (number + 1) * frames,
                    4 => FIRST,
                    _ => FIRST + HOLE + (number - 5) * frames,
                }
            }
        }
    }

    /// Where an entry is.
    pub(crate) fn entry(&self, frame: u8, slot: u8) -> u64 {
        self.frame(frame) + 8 * self.index(slot)
    }

    fn index(&self, slot: u8) -> u64 {
        let entries = 1 << (self.table.granule - 3);
        match slot % SLOTS {
            0 => 0,
            1 => 1,
            2 => entries / 2,
            _ => entries - 1,
        }
    }

    /// An address that leads to these slots, from the lowest level up; one more bit says where in the page.
    pub(crate) fn address(&self, slots: &[u8]) -> u64 {
        let (granule, bits) = (u32::from(self.table.granule), self.table.input_bits.into());
        let mut address = 0;
        for (&slot, level) in slots.iter().zip(0..) {
            let place = granule + level * (granule - 3);
            if place < bits {
                address |= self.index(slot) << place;
            }
        }
        if slots.first().is_some_and(|&slot| slot >= 128) {
            address |= (1 << granule) - 1;
        }
        let unused = 64 - bits;
        match self.table.format {
            TableFormat::X86_64 => ((address << unused).cast_signed() >> unused).cast_unsigned(),
            TableFormat::Arm64 => address << unused >> unused,
        }
    }

    /// Writes an entry, if there is memory.
    pub(crate) fn set(&mut self, at: u64, entry: u64) {
        if let Some(word) = self.word(at) {
            word.copy_from_slice(&entry.to_le_bytes());
            let written = self.memory.write_obj(entry.to_le(), GuestAddress(at));
            written.expect("memory");
        }
    }

    fn word(&mut self, at: u64) -> Option<&mut [u8]> {
        let (bytes, at) = match at.checked_sub(FIRST + HOLE) {
            Some(at) => (&mut self.second, at),
            None => (&mut self.first, at),
        };
        let at = usize::try_from(at).ok()?;
        bytes.get_mut(at..at.checked_add(8)?)
    }

    fn read(&self, at: u64) -> Option<u64> {
        let (bytes, at) = match at.checked_sub(FIRST + HOLE) {
            Some(at) => (&self.second, at),
            None => (&self.first, at),
        };
        let word = bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    }

    /// An access: the walk, the trace and the naive reader must agree.
    pub(crate) fn access(&mut self, iova: u64, needed: Needed) -> Result<Page, WalkError> {
        let table = self.table;
        let (steps, traced) = trace(&table, &self.memory, Iova(iova), needed);
        let walked = walk(&table, &self.memory, Iova(iova), needed);
        if !table.is_possible() {
            let error = if needed.privileged {
                WalkError::Privileged
            } else {
                WalkError::Malformed
            };
            assert_eq!((walked, traced), (Err(error), Err(error)));
            return walked;
        }
        let (expected, places) = naive::walk(&table, |at| self.read(at), iova, needed);
        assert_eq!(walked, expected, "{table:x?} {iova:#x} {needed:?}");
        let entries = |at: &u64| (*at, self.read(*at).unwrap_or_default());
        let read: Vec<_> = steps
            .iter()
            .map(|step| (step.entry_at.0, step.entry))
            .collect();
        assert_eq!(read, places.iter().map(entries).collect::<Vec<_>>());
        // The trace sets no DIRTY, so it may see a page that cannot be written yet.
        let traced = traced.map(|mut page| {
            if needed.write {
                page.mapping.flags |= MapFlags::WRITE;
            }
            page
        });
        assert_eq!(traced, walked);
        if walked.is_ok() && table.format == TableFormat::X86_64 {
            for (number, &at) in places.iter().enumerate() {
                let is_page = number + 1 == places.len();
                let flags = if is_page && needed.write { 0x60 } else { 0x20 };
                self.word(at).expect("an entry")[0] |= flags;
            }
        }
        walked
    }

    /// Memory has what it should have, and nothing else.
    pub(crate) fn end(&self) {
        for (at, expected) in [(0, &self.first), (FIRST + HOLE, &self.second)] {
            let mut bytes = vec![0; expected.len()];
            let read = self.memory.read_slice(&mut bytes, GuestAddress(at));
            read.expect("memory");
            assert!(
                bytes == *expected,
                "a write astray in the region at {at:#x}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn seeds() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/tables")
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads files")]
    fn the_seeds_of_the_fuzzer_find_pages() {
        for entry in std::fs::read_dir(seeds()).expect("fuzz/seeds/tables") {
            let path = entry.expect("an entry").path();
            let seed = std::fs::read(&path).expect("a seed");
            // A read and a write, of a page and of a larger one or, without larger ones, of the page again.
            let found = run(&mut Input(&seed)).expect("a description");
            assert!(found >= 4, "{path:?}: {found} pages");
        }
    }

    struct Seed(Vec<u8>);

    impl Seed {
        fn leads(&mut self, (frame, slot): (u8, u8), to: u8, bits: u64) {
            self.0.extend([0, frame, slot, to]);
            self.0.extend(bits.to_le_bytes());
        }

        fn accesses(&mut self, slots: [u8; 5]) {
            for kinds in [0, 1, 2, 3, 0xfc] {
                self.0.extend([2, kinds]);
                self.0.extend(slots);
            }
        }
    }

    /// Makes the seeds anew: `cargo test --lib make_the_seeds -- --ignored`.
    #[test]
    #[ignore = "writes to fuzz/seeds"]
    fn make_the_seeds() {
        std::fs::create_dir_all(seeds()).expect("a directory");
        // The kind, bits above 25, levels; a table, a page, a large page.
        let x86 = (0x7, 0x7, 0x87);
        let arm = (0x3, 0x443, 0x441);
        for (name, kind, bits, levels, (table, page, large)) in [
            ("x86-64-48", 0, 0, 4, x86),
            ("x86-64-57", 2, 0, 5, x86),
            ("arm64-4k-48", 4, 23, 4, arm),
            ("arm64-4k-39", 4, 14, 3, arm),
            ("arm64-16k-48", 6, 23, 4, arm),
            ("arm64-16k-36", 6, 11, 2, arm),
            ("arm64-64k-48", 7, 23, 3, arm),
            ("arm64-64k-42", 7, 17, 2, arm),
        ] {
            let mut seed = Seed(vec![kind, bits, 0]);
            for frame in 0..levels - 1 {
                seed.leads((frame, 0), frame + 1, table);
            }
            seed.leads((levels - 1, 0), 6, page);
            // Any address is a page's at the second level from below, if it is aligned: gigabytes.
            let bits: u64 = large | 0x4000_0000;
            seed.0.extend([1, levels - 2, 1]);
            seed.0.extend(bits.to_le_bytes());
            seed.accesses([0; 5]);
            seed.accesses([0, 1, 0, 0, 0]);
            // Any address; the root in the hole.
            seed.0.extend([3, 0]);
            seed.0.extend((1_u64 << 63).to_le_bytes());
            seed.0.push(4);
            seed.0.extend((FIRST).to_le_bytes());
            seed.accesses([0; 5]);
            std::fs::write(seeds().join(name), &seed.0).expect("a seed");
        }
        // Every entry leads to its own table, and one is a page at the last level.
        let mut seed = Seed(vec![0, 0, 0]);
        seed.leads((0, 0), 0, 0x7);
        seed.leads((0, 1), 0, 0x7);
        seed.accesses([0; 5]);
        seed.accesses([1; 5]);
        std::fs::write(seeds().join("x86-64-loop"), &seed.0).expect("a seed");
    }
}
