// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page table as a guest's driver keeps it, for tests: x86-64 with four levels, in guest memory.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::host::table::Table;
use crate::spec::{Gpa, TableFormat};

pub(crate) const PRESENT: u64 = 1 << 0;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
/// What a program may read.
pub(crate) const READABLE: u64 = PRESENT | USER;
/// And write.
pub(crate) const READ_WRITE: u64 = READABLE | WRITABLE;

const PAGE: u64 = 4096;

/// A table. Entries of tables permit everything.
pub(crate) struct GuestTable {
    memory: GuestMemoryMmap,
    root: u64,
    /// The page that the next table gets.
    free: AtomicU64,
}

impl GuestTable {
    /// An empty one, in pages of memory from `root` on.
    pub(crate) fn new(memory: &GuestMemoryMmap, root: u64) -> Self {
        let table = Self {
            memory: memory.clone(),
            root,
            free: AtomicU64::new(root),
        };
        table.new_page();
        table
    }

    /// As ATTACH_TABLE describes it.
    pub(crate) fn description(&self) -> Table {
        Table {
            format: TableFormat::X86_64,
            input_bits: 48,
            granule: 12,
            root: Gpa(self.root),
            attributes: 0,
        }
    }

    /// The pages that it has: the first address and the length.
    pub(crate) fn extent(&self) -> (u64, usize) {
        (
            self.root,
            (self.free.load(Ordering::Relaxed) - self.root) as usize,
        )
    }

    /// Sets the entry of a page of 4 KiB.
    pub(crate) fn set(&self, iova: u64, entry: u64) {
        self.store(self.entry_at(iova, 0), entry);
    }

    /// The entry of a page of 4 KiB.
    pub(crate) fn entry(&self, iova: u64) -> u64 {
        self.load(self.entry_at(iova, 0))
    }

    /// Sets the entry of a page of 2 MiB.
    pub(crate) fn set_large(&self, iova: u64, entry: u64) {
        self.store(self.entry_at(iova, 1), entry | LARGE);
    }

    /// Where the entry of an address is, so many levels above the lowest. Tables on the way are made.
    pub(crate) fn entry_at(&self, iova: u64, height: u32) -> u64 {
        let mut table = self.root;
        for above in (height..4).rev() {
            let at = table + ((iova >> (12 + 9 * above)) & 511) * 8;
            if above == height {
                return at;
            }
            if self.load(at) == 0 {
                self.store(at, self.new_page() | READ_WRITE);
            }
            table = self.load(at) & !(PAGE - 1);
        }
        unreachable!("a height of 0 to 3")
    }

    pub(crate) fn store(&self, at: u64, entry: u64) {
        let stored = self.memory.store(entry, GuestAddress(at), Ordering::SeqCst);
        stored.expect("an entry in memory");
    }

    fn load(&self, at: u64) -> u64 {
        let loaded = self.memory.load(GuestAddress(at), Ordering::SeqCst);
        loaded.expect("an entry in memory")
    }

    fn new_page(&self) -> u64 {
        let page = self.free.fetch_add(PAGE, Ordering::Relaxed);
        self.memory
            .write_slice(&[0; PAGE as usize], GuestAddress(page))
            .expect("a page in memory");
        page
    }
}
