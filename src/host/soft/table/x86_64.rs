// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries of X86_64: the page tables of x86 processors in 64-bit mode (X106).

use super::{Entry, Rights, low_bits};
use crate::spec::Gpa;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// PS. At the lowest level this bit is PAT, without meaning to a device.
const LARGE: u64 = 1 << 7;
/// PAT of a large page, below its address.
const LARGE_PAT: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = low_bits(52) & !low_bits(12);

/// Pages of 1 GiB are the largest: two levels above the lowest.
const LARGEST: u8 = 2;

/// What an entry means, so many levels above the lowest.
pub(super) fn decode(entry: u64, height: u8) -> Entry {
    if entry & PRESENT == 0 {
        return Entry::Absent;
    }
    let rights = Rights {
        user: entry & USER != 0,
        write: entry & WRITE != 0,
        exec: entry & NO_EXECUTE == 0,
    };
    if height > 0 && entry & LARGE == 0 {
        return Entry::Table(Gpa(entry & ADDRESS), rights);
    }
    let offset = low_bits(12 + 9 * height);
    let stray = entry & ADDRESS & offset & !LARGE_PAT;
    if height > LARGEST || stray != 0 {
        return Entry::Malformed;
    }
    Entry::Page {
        gpa: Gpa(entry & ADDRESS & !offset),
        rights,
        is_dirty: entry & DIRTY != 0,
    }
}

/// What an access sets in an entry that it uses.
pub(super) fn flags(writes_to_page: bool) -> u64 {
    if writes_to_page {
        ACCESSED | DIRTY
    } else {
        ACCESSED
    }
}
