// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The walk of a page table that the guest owns (draft 2, "Table formats").
//!
//! ```text
//! address ── root ── entry ── entry ── entry of the page ── page
//!                      A        A           A, D
//! ```
//!
//! The guest can change an entry at any moment, and can make a table of anything. So a walk loads each entry once, as a whole,
//! and decides by that value alone. A flag is set by an exchange with that value (X85); if the entry is another one by then, the
//! walk begins again. A walk takes as many steps as the format has levels, so a table that leads back into itself is harmless.
//!
//! What is in the way decides in this order, the same at every walk of the same table: a privileged access; a table that its
//! format does not allow; an address outside; then from the root down, at each entry, no memory, an absent entry, a malformed
//! one. Whether all entries together permit the access is asked when the page is found, as processors do. So an entry that is
//! malformed is never taken for one that the driver could make right by permitting more (X89).
//!
//! `x86_64`, `arm64`: what an entry means.

mod arm64;
#[cfg(test)]
mod tests;
mod x86_64;

use std::ops::BitAnd;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use crate::host::mapping::{IovaRange, Mapping};
use crate::host::table::Table;
use crate::spec::{Gpa, Iova, MapFlags, TableFormat};

/// A walk that finds an entry changed so often gives up. The caller may hold a lock that an INVALIDATE waits for, and a guest
/// could change entries for ever.
const TRIES: usize = 16;

/// The most levels that a format has.
const MAX_LEVELS: usize = 5;

/// What an access needs of a page besides being there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    /// It writes.
    pub(crate) write: bool,
    /// It fetches instructions.
    pub(crate) exec: bool,
    /// It is privileged.
    pub(crate) privileged: bool,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The whole page. READ, and WRITE only if writing is permitted and the entry has DIRTY by now, where the format has
    /// that flag (X86).
    pub(crate) mapping: Mapping,
    /// Whether instructions can be fetched from it.
    pub(crate) exec: bool,
}

/// Why a walk found no page for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalkError {
    /// An entry does not exist (X88).
    #[error("an entry does not exist")]
    Absent,
    /// The entries do not permit the access (X88).
    #[error("the entries do not permit the access")]
    Permission,
    /// An entry, or the table's description, is none of the format (X89).
    #[error("an entry is malformed")]
    Malformed,
    /// Tables permit no privileged access (X89).
    #[error("tables permit no privileged access")]
    Privileged,
    /// The address is not one of the table's (X89).
    #[error("the address is outside of the table's input")]
    Outside,
    /// No memory is where an entry, or the root, should be (X89). Whether memory is behind the page, the access will see.
    #[error("no memory where an entry should be")]
    NoMemory,
    /// The guest changed an entry at every try. Nothing is known of the page; the caller should let its locks go and come back.
    #[error("the guest keeps changing the entry")]
    Contended,
}

/// An entry that a walk has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its level, as the format counts: 5 to 1 for x86-64, 0 to 3 for arm64.
    pub(crate) level: u8,
    /// Where it is.
    pub(crate) entry_at: Gpa,
    /// What it was.
    pub(crate) entry: u64,
}

/// The page that an address is in. ACCESSED is set in all entries on the way, and DIRTY in that of the page if the access writes,
/// where the format has these flags. An access that is denied changes nothing, unless entries changed under its walk.
pub(crate) fn walk(
    table: &Table,
    memory: &GuestMemoryMmap,
    iova: Iova,
    needed: Needed,
) -> Result<Page, WalkError> {
    walk_with(table, memory, iova, needed, || ())
}

/// The walk level by level, without setting a flag: for people. WRITE is there only if DIRTY was there.
pub(crate) fn trace(
    table: &Table,
    memory: &GuestMemoryMmap,
    iova: Iova,
    needed: Needed,
) -> (Vec<Step>, Result<Page, WalkError>) {
    let mut path = Path::default();
    let found = read(table, memory, iova, needed, &mut path);
    (
        path.steps().to_vec(),
        found.map(|found| found.page(found.is_dirty)),
    )
}

/// As [`walk`]; `between` happens after entries are read and before flags are set.
fn walk_with(
    table: &Table,
    memory: &GuestMemoryMmap,
    iova: Iova,
    needed: Needed,
    mut between: impl FnMut(),
) -> Result<Page, WalkError> {
    for _ in 0..TRIES {
        let mut path = Path::default();
        let found = read(table, memory, iova, needed, &mut path)?;
        between();
        let done = match table.format {
            TableFormat::X86_64 => set_flags(memory, path.steps(), needed.write)?,
            // The device writes nothing (X107).
            TableFormat::Arm64 => true,
        };
        if done {
            return Ok(found.page(found.is_dirty || needed.write));
        }
    }
    Err(WalkError::Contended)
}

/// What an entry means, at its level.
enum Entry {
    Absent,
    Malformed,
    /// Another table is at this address.
    Table(Gpa, Rights),
    Page {
        gpa: Gpa,
        rights: Rights,
        /// A translation that is kept may permit writing.
        is_dirty: bool,
    },
}

/// What an entry permits to itself and to all that is below it.
#[derive(Clone, Copy)]
struct Rights {
    /// Unprivileged accesses at all.
    user: bool,
    write: bool,
    exec: bool,
}

impl Rights {
    const ALL: Self = Self {
        user: true,
        write: true,
        exec: true,
    };

    fn permit(self, needed: Needed) -> bool {
        self.user && (self.write || !needed.write) && (self.exec || !needed.exec)
    }
}

impl BitAnd for Rights {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self {
            user: self.user && other.user,
            write: self.write && other.write,
            exec: self.exec && other.exec,
        }
    }
}

/// A page that permits the access.
struct Found {
    range: IovaRange,
    gpa: Gpa,
    rights: Rights,
    is_dirty: bool,
}

impl Found {
    fn page(&self, is_dirty: bool) -> Page {
        let mut flags = MapFlags::READ;
        flags.set(MapFlags::WRITE, self.rights.write && is_dirty); // X86
        Page {
            mapping: Mapping {
                range: self.range,
                gpa: self.gpa,
                flags,
            },
            exec: self.rights.exec,
        }
    }
}

/// The entries of a walk, from the root down.
#[derive(Default)]
struct Path {
    steps: [Step; MAX_LEVELS],
    length: usize,
}

impl Path {
    fn push(&mut self, step: Step) {
        self.steps[self.length] = step;
        self.length += 1;
    }

    fn steps(&self) -> &[Step] {
        &self.steps[..self.length]
    }
}

/// Reads the entries on the way to a page. Writes nothing.
fn read(
    table: &Table,
    memory: &GuestMemoryMmap,
    iova: Iova,
    needed: Needed,
    path: &mut Path,
) -> Result<Found, WalkError> {
    if needed.privileged {
        return Err(WalkError::Privileged);
    }
    if !table.is_possible() {
        return Err(WalkError::Malformed);
    }
    if !is_input(table, iova) {
        return Err(WalkError::Outside);
    }
    let address = iova.0 & low_bits(table.input_bits);
    let mut at = table.root;
    let mut rights = Rights::ALL;
    for height in (0..table.levels()).rev() {
        let shift = table.granule + height * table.index_bits();
        let index = (address >> shift) & low_bits(table.index_bits());
        let entry_at = Gpa(at.0 + index * 8);
        // The one load of this entry: whatever is decided, is decided by its value.
        let entry = with_entry(memory, entry_at, |entry| entry.load(Ordering::SeqCst))?;
        let entry = u64::from_le(entry);
        let (level, meaning) = match table.format {
            TableFormat::X86_64 => (height + 1, x86_64::decode(entry, height)),
            TableFormat::Arm64 => (3 - height, arm64::decode(entry, table.granule, height)),
        };
        path.push(Step {
            level,
            entry_at,
            entry,
        });
        match meaning {
            Entry::Absent => return Err(WalkError::Absent),
            Entry::Malformed => return Err(WalkError::Malformed),
            Entry::Table(next, limits) => {
                at = next;
                rights = rights & limits;
            }
            Entry::Page {
                gpa,
                rights: own,
                is_dirty,
            } => {
                rights = rights & own;
                if !rights.permit(needed) {
                    return Err(WalkError::Permission);
                }
                let offset = low_bits(shift);
                return Ok(Found {
                    range: IovaRange {
                        first: Iova(iova.0 & !offset),
                        last: Iova(iova.0 | offset),
                    },
                    gpa,
                    rights,
                    is_dirty,
                });
            }
        }
    }
    // No format has a table at the lowest level.
    Err(WalkError::Malformed)
}

/// Whether the address is one of the table's.
fn is_input(table: &Table, iova: Iova) -> bool {
    match table.format {
        TableFormat::X86_64 => {
            let unused = 64 - u32::from(table.input_bits);
            let extended = (iova.0 << unused).cast_signed() >> unused;
            extended.cast_unsigned() == iova.0
        }
        // The half of TTBR0.
        TableFormat::Arm64 => iova.0 & !low_bits(table.input_bits) == 0,
    }
}

/// Sets ACCESSED and DIRTY, from the root down. False if an entry is not what it was: then the flags that are set already are
/// in entries that the walk did use (X85).
fn set_flags(memory: &GuestMemoryMmap, steps: &[Step], write: bool) -> Result<bool, WalkError> {
    for (number, step) in steps.iter().enumerate() {
        let is_page = number + 1 == steps.len();
        let new = step.entry | x86_64::flags(is_page && write);
        if new == step.entry {
            continue;
        }
        let exchanged = with_entry(memory, step.entry_at, |entry| {
            let (old, new) = (step.entry.to_le(), new.to_le());
            entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        })?;
        if exchanged.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An entry in guest memory.
fn with_entry<T>(
    memory: &GuestMemoryMmap,
    at: Gpa,
    with: impl FnOnce(&AtomicU64) -> T,
) -> Result<T, WalkError> {
    let slice = memory
        .get_slice(GuestAddress(at.0), size_of::<u64>())
        .map_err(|_| WalkError::NoMemory)?;
    // A region that begins at an odd address has no entries that could be read at once.
    let entry = slice.get_atomic_ref(0).map_err(|_| WalkError::NoMemory)?;
    Ok(with(entry))
}

/// The lowest bits set, so many.
const fn low_bits(count: u8) -> u64 {
    (1 << count) - 1
}
