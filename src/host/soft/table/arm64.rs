// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries of ARM64: stage 1 of VMSAv8-64 (X107), "descriptors" there.
//!
//! Encodings that VMSAv8-64 reserves are translation faults there, as an invalid descriptor is: a block at a level without
//! blocks, and the block's encoding at the last level. So they are absent here, and no entry of this format is malformed. Bits
//! that are reserved in a valid descriptor have no meaning, those of 52-bit addresses among them. Nor have the contiguous bit,
//! which only describes neighbours, nG, PXN, DBM (the device writes nothing), the shareability and the kind of memory.

use super::{Entry, Rights, low_bits};
use crate::spec::Gpa;

/// Bits 1 and 0: the type.
const TYPE: u64 = 3;
const BLOCK: u64 = 0b01;
/// A table, or the page at the last level.
const TABLE_OR_PAGE: u64 = 0b11;

/// AP[1], AP[2].
const AP_UNPRIVILEGED: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const UXN: u64 = 1 << 54;

/// The limits in the descriptor of a table.
const UXN_TABLE: u64 = 1 << 60;
const AP_TABLE_NO_UNPRIVILEGED: u64 = 1 << 61;
const AP_TABLE_READ_ONLY: u64 = 1 << 62;

/// What an entry means, so many levels above the last.
pub(super) fn decode(entry: u64, granule: u8, height: u8) -> Entry {
    match (entry & TYPE, height) {
        (TABLE_OR_PAGE, 0) => page(entry, granule),
        (TABLE_OR_PAGE, _) => {
            let limits = Rights {
                user: entry & AP_TABLE_NO_UNPRIVILEGED == 0,
                write: entry & AP_TABLE_READ_ONLY == 0,
                exec: entry & UXN_TABLE == 0,
            };
            Entry::Table(address(entry, granule), limits)
        }
        (BLOCK, _) if has_blocks(granule, height) => page(entry, granule + height * (granule - 3)),
        _ => Entry::Absent,
    }
}

/// Without 52-bit addresses: 2 MiB and 1 GiB; 32 MiB; 512 MiB.
fn has_blocks(granule: u8, height: u8) -> bool {
    height == 1 || (granule, height) == (12, 2)
}

/// A page or a block with so many bits of offset.
fn page(entry: u64, offset_bits: u8) -> Entry {
    Entry::Page {
        gpa: address(entry, offset_bits),
        rights: Rights {
            // Without AF no access is permitted: the driver has to set it.
            user: entry & AP_UNPRIVILEGED != 0 && entry & AF != 0,
            write: entry & AP_READ_ONLY == 0,
            exec: entry & UXN == 0,
        },
        // A page that can be written counts as dirty: the device has no flag to set.
        is_dirty: true,
    }
}

/// Bits 47 and below, without the offset.
fn address(entry: u64, offset_bits: u8) -> Gpa {
    Gpa(entry & low_bits(48) & !low_bits(offset_bits))
}
