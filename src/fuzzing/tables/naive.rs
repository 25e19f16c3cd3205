// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The formats of tables, told as plainly as can be: which bits of an address each level looks at, and which bits of an entry
//! mean what. It knows nothing of processors that change entries.

use crate::host::mapping::{IovaRange, Mapping};
use crate::host::soft::{Needed, Page, WalkError};
use crate::host::table::Table;
use crate::spec::{Gpa, Iova, MapFlags, TableFormat};

/// The bits of an address that a level looks at, and whether its entries can be pages.
struct Level {
    high: u32,
    low: u32,
    has_pages: bool,
}

const fn level(high: u32, low: u32, has_pages: bool) -> Level {
    Level {
        high,
        low,
        has_pages,
    }
}

const X86_64: &[Level] = &[
    level(56, 48, false),
    level(47, 39, false),
    level(38, 30, true),
    level(29, 21, true),
    level(20, 12, true),
];
const ARM64_4K: &[Level] = &[
    level(47, 39, false),
    level(38, 30, true),
    level(29, 21, true),
    level(20, 12, true),
];
const ARM64_16K: &[Level] = &[
    level(47, 47, false),
    level(46, 36, false),
    level(35, 25, true),
    level(24, 14, true),
];
const ARM64_64K: &[Level] = &[
    level(47, 42, false),
    level(41, 29, true),
    level(28, 16, true),
];

/// The bits `high` to `low` of a value.
fn field(value: u64, high: u32, low: u32) -> u64 {
    (low..=high)
        .rev()
        .fold(0, |number, place| number * 2 + u64::from(bit(value, place)))
}

fn bit(value: u64, place: u32) -> bool {
    (value >> place) % 2 == 1
}

/// What a walk should find, and the places of the entries that it should have read.
pub(crate) fn walk(
    table: &Table,
    read: impl Fn(u64) -> Option<u64>,
    iova: u64,
    needed: Needed,
) -> (Result<Page, WalkError>, Vec<u64>) {
    let mut places = Vec::new();
    let result = look(table, read, iova, needed, &mut places);
    (result, places)
}

fn look(
    table: &Table,
    read: impl Fn(u64) -> Option<u64>,
    iova: u64,
    needed: Needed,
    places: &mut Vec<u64>,
) -> Result<Page, WalkError> {
    if needed.privileged {
        return Err(WalkError::Privileged);
    }
    let bits = u32::from(table.input_bits);
    let inside = match table.format {
        TableFormat::X86_64 => (bits..64).all(|place| bit(iova, place) == bit(iova, bits - 1)),
        TableFormat::Arm64 => (bits..64).all(|place| !bit(iova, place)),
    };
    if !inside {
        return Err(WalkError::Outside);
    }
    let levels = match (table.format, table.granule) {
        (TableFormat::X86_64, _) => X86_64,
        (TableFormat::Arm64, 12) => ARM64_4K,
        (TableFormat::Arm64, 14) => ARM64_16K,
        (TableFormat::Arm64, _) => ARM64_64K,
    };
    let mut at = table.root.0;
    let mut entries: Vec<u64> = Vec::new();
    for level in levels.iter().filter(|level| level.low < bits) {
        let place = at + 8 * field(iova, level.high, level.low);
        let entry = read(place).ok_or(WalkError::NoMemory)?;
        places.push(place);
        entries.push(entry);
        let is_page = match table.format {
            TableFormat::X86_64 => x86_64_is_page(entry, level)?,
            TableFormat::Arm64 => arm64_is_page(entry, level)?,
        };
        if is_page {
            return match table.format {
                TableFormat::X86_64 => x86_64_page(&entries, level, iova, needed),
                TableFormat::Arm64 => arm64_page(&entries, level, iova, needed),
            };
        }
        at = match table.format {
            TableFormat::X86_64 => field(entry, 51, 12) << 12,
            TableFormat::Arm64 => {
                let lowest = table.granule.into();
                field(entry, 47, lowest) << lowest
            }
        };
    }
    unreachable!("the last level has pages or nothing")
}

fn x86_64_is_page(entry: u64, level: &Level) -> Result<bool, WalkError> {
    if !bit(entry, 0) {
        return Err(WalkError::Absent);
    }
    if level.low == 12 {
        return Ok(true);
    }
    let is_large = bit(entry, 7);
    if is_large && (!level.has_pages || field(entry, level.low - 1, 13) != 0) {
        return Err(WalkError::Malformed);
    }
    Ok(is_large)
}

fn x86_64_page(
    entries: &[u64],
    level: &Level,
    iova: u64,
    needed: Needed,
) -> Result<Page, WalkError> {
    let last = entries[entries.len() - 1];
    let can_write = entries.iter().all(|&entry| bit(entry, 1));
    let exec = !entries.iter().any(|&entry| bit(entry, 63));
    let for_users = entries.iter().all(|&entry| bit(entry, 2));
    let is_dirty = bit(last, 6) || needed.write;
    if !for_users || needed.write && !can_write || needed.exec && !exec {
        return Err(WalkError::Permission);
    }
    let gpa = field(last, 51, level.low) << level.low;
    Ok(page(iova, level, gpa, can_write && is_dirty, exec))
}

fn arm64_is_page(entry: u64, level: &Level) -> Result<bool, WalkError> {
    let is_last = matches!(level.low, 12 | 14 | 16);
    match (bit(entry, 1), bit(entry, 0)) {
        (true, true) => Ok(is_last),
        (false, true) if level.has_pages && !is_last => Ok(true),
        _ => Err(WalkError::Absent),
    }
}

fn arm64_page(
    entries: &[u64],
    level: &Level,
    iova: u64,
    needed: Needed,
) -> Result<Page, WalkError> {
    let (last, tables) = entries.split_last().expect("an entry");
    let limited = |place| tables.iter().any(|&table| bit(table, place));
    let for_users = bit(*last, 6) && bit(*last, 10) && !limited(61);
    let can_write = !bit(*last, 7) && !limited(62);
    let exec = !bit(*last, 54) && !limited(60);
    if !for_users || needed.write && !can_write || needed.exec && !exec {
        return Err(WalkError::Permission);
    }
    let gpa = field(*last, 47, level.low) << level.low;
    Ok(page(iova, level, gpa, can_write, exec))
}

fn page(iova: u64, level: &Level, gpa: u64, can_write: bool, exec: bool) -> Page {
    let bytes = 1 << level.low;
    let first = iova / bytes * bytes;
    let write = if can_write {
        MapFlags::WRITE
    } else {
        MapFlags::empty()
    };
    Page {
        mapping: Mapping {
            range: IovaRange {
                first: Iova(first),
                last: Iova(first + (bytes - 1)),
            },
            gpa: Gpa(gpa),
            flags: MapFlags::READ | write,
        },
        exec,
    }
}
