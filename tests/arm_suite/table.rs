// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that stands for a guest's, and tables of the format ARM64 in it, as a driver writes them.
//!
//! The memory is of large pages. QEMU's SMMU (11.1) translates the address of a root by the host's table first, and aligns it
//! to the root's size then. So a root of more than 4 KiB is found only where the host maps it in one piece.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::spec::{Gpa, TableFormat};

/// Where the memory is for the guest.
pub const BASE: u64 = 0x4000_0000;
const LENGTH: u64 = 4 << 20;

/// How many large pages Linux is to have, of 2 MiB each: those of a few tests, as one may end while the next begins.
const LARGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
const LARGE_PAGES_WANTED: &str = "8";

/// The first page is for data of tests; each has 64 KiB, so that it is one of each granule.
pub const PAGE: u64 = 1 << 16;
pub const PAGES: u64 = 4;

/// What an entry may have beside an address: valid, a page or a table, AF, AP[1], and not global; inner shareable.
pub const LEAF: u64 = VALID | PAGE_OR_TABLE | AF | USER | 1 << 11 | 0b11 << 8;
pub const AF: u64 = 1 << 10;
pub const READ_ONLY: u64 = 1 << 7;
const USER: u64 = 1 << 6;
const VALID: u64 = 1;
const PAGE_OR_TABLE: u64 = 2;

/// Anonymous memory that is shared with devices.
pub struct Memory {
    start: *mut u8,
    length: u64,
}

impl Memory {
    /// Of pages of the usual size.
    pub fn small(length: u64) -> Self {
        Self::new(length, 0)
    }

    fn large(length: u64) -> Self {
        fs::write(LARGE_PAGES, LARGE_PAGES_WANTED).unwrap();
        Self::new(length, libc::MAP_HUGETLB)
    }

    fn new(length: u64, more: i32) -> Self {
        // SAFETY: a new mapping, at no fixed address.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | more,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast();
        Self { start, length }
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// A word of it; a device reads and writes it too.
    pub fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: aligned, in the mapping, which lives as long as `self`; others access it as a device does.
        unsafe { AtomicU64::from_ptr(self.start.wrapping_add(offset as usize).cast()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference is left.
        unsafe { libc::munmap(self.start.cast(), self.length as usize) };
    }
}

/// The guest's memory: pages for data, then tables.
pub struct Guest {
    pub memory: Memory,
    /// Where the next table goes.
    next: u64,
}

impl Guest {
    pub fn new() -> Self {
        Self {
            memory: Memory::large(LENGTH),
            next: PAGES * PAGE,
        }
    }

    /// An empty table. No word of it is anything else's, so each granule and size finds its alignment.
    pub fn table(&mut self, granule: u8, input_bits: u8) -> Table {
        Table {
            format: TableFormat::Arm64,
            input_bits,
            granule,
            root: Gpa(self.allocate()),
            attributes: 0xff,
        }
    }

    fn allocate(&mut self) -> u64 {
        let new = self.next;
        self.next += PAGE;
        assert!(self.next <= LENGTH);
        BASE + new
    }

    /// The address of a page for data.
    pub fn page(&self, number: u64) -> u64 {
        assert!(number < PAGES);
        BASE + number * PAGE
    }

    /// Fills the first bytes of a page for data.
    pub fn fill(&self, number: u64, word: u64) {
        for offset in (0..BYTES).step_by(8) {
            self.memory
                .word(number * PAGE + offset)
                .store(word, Ordering::SeqCst);
        }
    }

    /// The words that a page for data begins with.
    pub fn words(&self, number: u64) -> Vec<u64> {
        let offsets = (0..BYTES).step_by(8);
        let words = offsets.map(|offset| self.memory.word(number * PAGE + offset));
        words.map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// Sets the entry of the smallest page at a virtual address, with the tables on the way to it.
    pub fn set(&mut self, table: &Table, address: u64, entry: u64) {
        let index_bits = table.granule - 3;
        let below = |level: u8| table.granule + level * index_bits;
        let levels = (table.input_bits - table.granule).div_ceil(index_bits);
        let mut at = table.root.0;
        for level in (0..levels).rev() {
            // The root has the bits that are left for it: the address has no more.
            let index = address >> below(level) & ((1 << index_bits) - 1);
            let slot = at - BASE + index * 8;
            if level == 0 {
                self.memory.word(slot).store(entry, Ordering::SeqCst);
                return;
            }
            let found = self.memory.word(slot).load(Ordering::SeqCst);
            at = if found & VALID != 0 {
                found & !0xfff
            } else {
                let new = self.allocate();
                let entry = new | VALID | PAGE_OR_TABLE;
                self.memory.word(slot).store(entry, Ordering::SeqCst);
                new
            };
        }
    }
}

/// How much a test copies.
pub const BYTES: u64 = 64;
