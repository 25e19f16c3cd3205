// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Walks of tables in the memory of a guest. `x86_64`, `arm64`: what entries mean. `changes`: entries that change under the
//! walk. `random`: random tables against a naive reader. Here: what all formats share, and tables that lead nowhere.

mod arm64;
mod changes;
mod random;
mod x86_64;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const MEMORY: u64 = 0x8_0000;
const ROOT: u64 = 0x1_0000;

const READ: Needed = Needed {
    write: false,
    exec: false,
    privileged: false,
};
const WRITE: Needed = Needed {
    write: true,
    ..READ
};
const EXEC: Needed = Needed { exec: true, ..READ };

struct Guest {
    memory: GuestMemoryMmap,
    table: Table,
}

impl Guest {
    fn new(format: TableFormat, input_bits: u8, granule: u8) -> Self {
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])
                .expect("memory"),
            table: Table {
                format,
                input_bits,
                granule,
                root: Gpa(ROOT),
                attributes: 0,
            },
        }
    }

    fn x86_64(input_bits: u8) -> Self {
        Self::new(TableFormat::X86_64, input_bits, 12)
    }

    fn arm64(granule: u8, input_bits: u8) -> Self {
        Self::new(TableFormat::Arm64, input_bits, granule)
    }

    fn set(&self, at: u64, entry: u64) {
        let written = self.memory.write_obj(entry.to_le(), GuestAddress(at));
        written.expect("memory");
    }

    fn get(&self, at: u64) -> u64 {
        u64::from_le(self.memory.read_obj(GuestAddress(at)).expect("memory"))
    }

    /// Writes entries for an address, from the root down, each into a table of its own. All but the last get the address of the
    /// next table besides. Where they are.
    fn chain(&self, iova: u64, entries: &[u64]) -> Vec<u64> {
        let (granule, bits) = (self.table.granule, self.table.input_bits);
        let below = |level: usize| {
            let levels = (bits - granule).div_ceil(granule - 3);
            granule + (levels - 1 - level as u8) * (granule - 3)
        };
        let address = iova << (64 - bits) >> (64 - bits);
        let place = |level: usize| {
            let index = (address >> below(level)) % (1 << (granule - 3));
            ROOT + ((level as u64) << granule) + 8 * index
        };
        let places: Vec<_> = (0..entries.len()).map(place).collect();
        for (level, (&entry, &at)) in entries.iter().zip(&places).enumerate() {
            let is_last = level + 1 == entries.len();
            let next = ROOT + ((level as u64 + 1) << granule);
            self.set(at, if is_last { entry } else { entry | next });
        }
        places
    }

    fn walk(&self, iova: u64, needed: Needed) -> Result<Page, WalkError> {
        walk(&self.table, &self.memory, Iova(iova), needed)
    }

    /// All of memory, to see that nothing is written.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("memory");
        bytes
    }
}

/// A page at `gpa` for the addresses from `first` to `last`.
fn page(first: u64, last: u64, gpa: u64, flags: MapFlags, exec: bool) -> Page {
    Page {
        mapping: Mapping {
            range: IovaRange::new(first, last).expect("a range"),
            gpa: Gpa(gpa),
            flags,
        },
        exec,
    }
}

/// An entry of each format that leads to a table, one of a page, one of a large page.
const FORMATS: [(TableFormat, u64, u64, u64); 2] = [
    (TableFormat::X86_64, 0x7, 0x7, 0x87),
    (TableFormat::Arm64, 0x3, 0x443, 0x441),
];

#[test]
fn privileged_accesses_are_denied_before_the_table_is_looked_at() {
    for (format, table, page, _) in FORMATS {
        let guest = Guest::new(format, 48, 12);
        guest.chain(0x5000, &[table, table, table, page]);
        let privileged = Needed {
            privileged: true,
            ..READ
        };
        for iova in [0x5000, 0x6000, 1 << 60] {
            assert_eq!(guest.walk(iova, privileged), Err(WalkError::Privileged));
        }
        assert!(guest.walk(0x5000, READ).is_ok());
    }
}

#[test]
fn a_table_that_its_format_does_not_allow_is_malformed() {
    for (format, ..) in FORMATS {
        let mut guest = Guest::new(format, 48, 12);
        for (input_bits, granule) in [(0, 12), (255, 12), (48, 0), (48, 255), (12, 12), (64, 3)] {
            guest.table = Table {
                input_bits,
                granule,
                ..guest.table
            };
            assert_eq!(guest.walk(0, READ), Err(WalkError::Malformed));
        }
    }
}

#[test]
fn there_may_be_no_memory_at_the_root_or_behind_an_entry() {
    for (format, table, page, _) in FORMATS {
        let mut guest = Guest::new(format, 48, 12);
        guest.chain(0, &[table, table | 1 << 40, table, page]);
        assert_eq!(guest.walk(0, READ), Err(WalkError::NoMemory));
        // The last address that an entry, and a root, can have.
        let bits = if format == TableFormat::X86_64 {
            52
        } else {
            48
        };
        let last = (1 << bits) - 0x1000;
        guest.chain(0, &[table, table | last, table, page]);
        assert_eq!(guest.walk(0, READ), Err(WalkError::NoMemory));
        for root in [MEMORY, last] {
            guest.table.root = Gpa(root);
            assert_eq!(guest.walk((1 << 47) - 1, READ), Err(WalkError::NoMemory));
        }
    }
}

#[test]
fn memory_may_end_in_a_table_and_begin_where_no_entry_is_aligned() {
    // The first region ends in the midst of the root, behind a half entry. The host's pages put the second one's odd start at
    // an even address.
    let ranges = [(GuestAddress(0), 0x1014), (GuestAddress(0x2004), 0x1000)];
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
    let mut table = Table {
        format: TableFormat::X86_64,
        input_bits: 48,
        granule: 12,
        root: Gpa(0x1000),
        attributes: 0,
    };
    let found = |table: &Table, index: u64| walk(table, &memory, Iova(index << 39), READ);
    assert_eq!(found(&table, 0), Err(WalkError::Absent));
    assert_eq!(found(&table, 1), Err(WalkError::Absent));
    assert_eq!(found(&table, 2), Err(WalkError::NoMemory));
    assert_eq!(found(&table, 3), Err(WalkError::NoMemory));
    table.root = Gpa(0x2000);
    assert_eq!(found(&table, 0), Err(WalkError::NoMemory));
    assert_eq!(found(&table, 1), Err(WalkError::NoMemory));
}

#[test]
fn a_page_needs_no_memory_to_be_found() {
    for (format, table, page, _) in FORMATS {
        let guest = Guest::new(format, 48, 12);
        guest.chain(0, &[table, table, table, page | 1 << 47]);
        let found = guest.walk(0xfff, WRITE).expect("a page");
        assert_eq!(found.mapping.translate(Iova(0xfff)), Gpa(1 << 47 | 0xfff));
    }
}

#[test]
fn a_table_that_leads_back_into_itself_has_an_end() {
    for (format, table, page, _) in FORMATS {
        let mut guest = Guest::new(format, 48, 12);
        // One entry is all levels: with these bits it is a table above, and at the last level a page, the root itself.
        guest.chain(0, &[table | page | ROOT]);
        let found = guest.walk(0, WRITE).expect("a page");
        assert_eq!(found.mapping.gpa, Gpa(ROOT));
        // Its flags are those of all levels.
        let flags = if format == TableFormat::X86_64 {
            0x60
        } else {
            0
        };
        assert_eq!(guest.get(ROOT), table | page | ROOT | flags);
        // Others are not there.
        assert_eq!(guest.walk(0x1000, READ), Err(WalkError::Absent));
        if format == TableFormat::X86_64 {
            guest.table.input_bits = 57;
            assert!(guest.walk(0, WRITE).is_ok());
        }
    }
}

#[test]
fn the_first_entry_that_leads_nowhere_decides_and_permission_comes_last() {
    let guest = Guest::x86_64(48);
    // Supervisor, read-only, execute-disable; then absent, malformed, nowhere.
    let forbidden = 1 << 63 | 0x1;
    let malformed = 0x87 | 1 << 13;
    let all = Needed {
        exec: true,
        ..WRITE
    };
    for (last, error) in [
        (0, WalkError::Absent),
        (malformed, WalkError::Malformed),
        (0x7 | 1 << 40, WalkError::NoMemory),
        (0x87, WalkError::Permission),
    ] {
        guest.chain(0, &[forbidden, forbidden, last]);
        assert_eq!(guest.walk(0, all), Err(error));
    }
    guest.chain(0, &[0x7, malformed, 0]);
    assert_eq!(guest.walk(0, all), Err(WalkError::Malformed));
    guest.chain(0, &[0x7, 0, malformed]);
    assert_eq!(guest.walk(0, all), Err(WalkError::Absent));
}

#[test]
fn a_trace_has_every_level_down_to_what_decides_and_sets_no_flag() {
    for (format, table, page, large) in FORMATS {
        let guest = Guest::new(format, 48, 12);
        let levels = match format {
            TableFormat::X86_64 => [4, 3, 2, 1],
            TableFormat::Arm64 => [0, 1, 2, 3],
        };
        let iova = 0x1234_5678_9abc & !(1 << 47);
        for (last, entries) in [
            (page, &[table, table, table, page][..]),
            (large, &[table, table, large]),
            (0, &[table, 0]),
        ] {
            let places = guest.chain(iova, entries);
            let before = guest.bytes();
            let (steps, result) = trace(&guest.table, &guest.memory, Iova(iova), WRITE);
            assert!(before == guest.bytes());
            let expected: Vec<_> = places
                .iter()
                .zip(levels)
                .map(|(&at, level)| Step {
                    level,
                    entry_at: Gpa(at),
                    entry: guest.get(at),
                })
                .collect();
            assert_eq!(steps, expected);
            assert_eq!(result.is_ok(), last != 0);
            // What the table says now: the walk would have made it dirty.
            let can_write = result.map(|page| page.mapping.flags.contains(MapFlags::WRITE));
            let dirty_is_a_flag = format == TableFormat::X86_64;
            assert_eq!(can_write.unwrap_or(!dirty_is_a_flag), !dirty_is_a_flag);
        }
        let (steps, result) = trace(&guest.table, &guest.memory, Iova(1 << 60), READ);
        assert_eq!((steps.len(), result), (0, Err(WalkError::Outside)));
    }
}
