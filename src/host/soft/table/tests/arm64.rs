// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ARM64: what entries mean.

use super::*;

const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11 | UNPRIVILEGED | AF;
const BLOCK: u64 = 0b01 | UNPRIVILEGED | AF;
const UNPRIVILEGED: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const UXN: u64 = 1 << 54;

const ALL: MapFlags = MapFlags::READ.union(MapFlags::WRITE);
const IOVA: u64 = 0xf234_5678_9abc;

/// An address with so many bits.
fn iova(bits: u8) -> u64 {
    IOVA & ((1 << bits) - 1)
}

#[test]
fn the_root_is_at_the_level_that_the_bits_leave__x107() {
    // Granule, bits, levels.
    for (granule, bits, levels) in [
        (12, 48, 4),
        (12, 40, 4),
        (12, 39, 3),
        (12, 31, 3),
        (12, 30, 2),
        (12, 25, 2),
        (14, 48, 4),
        (14, 47, 3),
        (14, 37, 3),
        (14, 36, 2),
        (14, 26, 2),
        (14, 25, 1),
        (16, 48, 3),
        (16, 43, 3),
        (16, 42, 2),
        (16, 30, 2),
        (16, 29, 1),
        (16, 25, 1),
    ] {
        let guest = Guest::arm64(granule, bits);
        let mut entries = vec![TABLE; levels];
        let gpa = 0x7fff_ffff_0000;
        entries[levels - 1] = PAGE | gpa;
        let iova = iova(bits);
        guest.chain(iova, &entries);
        let bytes = 1 << granule;
        let first = iova / bytes * bytes;
        let expected = page(first, first + bytes - 1, gpa, ALL, true);
        assert_eq!(guest.walk(iova, READ), Ok(expected), "{granule} {bits}");
        let steps = trace(&guest.table, &guest.memory, Iova(iova), READ).0;
        let levels: Vec<_> = steps.iter().map(|step| usize::from(step.level)).collect();
        assert_eq!(levels, (4 - steps.len()..4).collect::<Vec<_>>());
    }
}

#[test]
fn blocks_are_of_the_sizes_that_the_granule_has__x107() {
    // Granule, level counted from the root of 48 bits, size if there are blocks.
    for (granule, level, shift) in [
        (12, 0, None),
        (12, 1, Some(30)),
        (12, 2, Some(21)),
        (12, 3, None),
        (14, 0, None),
        (14, 1, None),
        (14, 2, Some(25)),
        (14, 3, None),
        (16, 0, None),
        (16, 1, Some(29)),
        (16, 2, None),
    ] {
        let guest = Guest::arm64(granule, 48);
        let mut entries = vec![TABLE; level + 1];
        // Bits of the offset are reserved, nT (bit 16) among them, and have no meaning.
        let gpa = 0x7fff_c000_0000;
        entries[level] = BLOCK | gpa | 1 << 16;
        guest.chain(IOVA, &entries);
        let found = guest.walk(IOVA, WRITE);
        let Some(shift) = shift else {
            // VMSAv8-64 reserves the encoding, and takes it for an invalid descriptor.
            assert_eq!(found, Err(WalkError::Absent), "{granule} {level}");
            continue;
        };
        let offset = (1 << shift) - 1;
        let expected = page(IOVA & !offset, IOVA | offset, gpa, ALL, true);
        assert_eq!(found, Ok(expected), "{granule} {level}");
    }
}

#[test]
fn invalid_descriptors_are_absent_whatever_else_they_say__x107() {
    for level in 0..4 {
        for kind in [0b00, 0b10] {
            let guest = Guest::arm64(12, 48);
            let mut entries = vec![TABLE; level + 1];
            entries[level] = PAGE & !0b11 | kind;
            guest.chain(IOVA, &entries);
            assert_eq!(guest.walk(IOVA, READ), Err(WalkError::Absent));
        }
    }
}

/// A read, a write and a fetch of instructions through three tables and a page, or two and a block.
fn accesses(entries: &[u64]) -> [Result<Page, WalkError>; 3] {
    let guest = Guest::arm64(12, 48);
    guest.chain(IOVA, entries);
    [READ, WRITE, EXEC].map(|needed| guest.walk(IOVA, needed))
}

#[test]
fn the_page_says_who_may_do_what__x107() {
    let denied = Err(WalkError::Permission);
    let pages = [
        vec![TABLE, TABLE, TABLE, PAGE],
        vec![TABLE, TABLE, BLOCK],
        vec![TABLE, BLOCK],
    ];
    for open in pages {
        let with = |set: u64, clear: u64| {
            let mut entries = open.clone();
            let last = entries.last_mut().expect("a level");
            *last = *last & !clear | set;
            accesses(&entries)
        };
        let [read, write, exec] = with(0, 0);
        let page = read.expect("a page");
        assert_eq!((page.mapping.flags, page.exec), (ALL, true));
        assert_eq!((write, exec), (read, read));
        assert_eq!(with(0, UNPRIVILEGED), [denied; 3]);
        assert_eq!(with(0, AF), [denied; 3]);
        let [read, write, exec] = with(READ_ONLY, 0);
        assert_eq!(read.expect("a page").mapping.flags, MapFlags::READ);
        assert_eq!((write, exec), (denied, read));
        // The device sets nothing: DBM makes no page that is read-only writable.
        assert_eq!(with(READ_ONLY | 1 << 51, 0)[1], denied);
        let [read, write, exec] = with(UXN, 0);
        assert!(!read.expect("a page").exec);
        assert_eq!((write, exec), (read, denied));
    }
}

#[test]
fn tables_limit_what_is_below_them__x107() {
    let (uxn, no_user, read_only) = (1 << 60, 1 << 61, 1 << 62);
    let denied = Err(WalkError::Permission);
    for level in 0..3 {
        let with = |set: u64| {
            let mut entries = [TABLE, TABLE, TABLE, PAGE];
            entries[level] |= set;
            accesses(&entries)
        };
        assert_eq!(with(no_user), [denied; 3]);
        let [read, write, exec] = with(read_only);
        assert_eq!(read.expect("a page").mapping.flags, MapFlags::READ);
        assert_eq!((write, exec), (denied, read));
        let [read, write, exec] = with(uxn);
        assert!(!read.expect("a page").exec);
        assert_eq!((write, exec), (read, denied));
    }
    // In a page they are bits for software, or have another meaning.
    let [read, write, exec] = accesses(&[TABLE, TABLE, TABLE, PAGE | uxn | no_user | read_only]);
    assert_eq!(read.expect("a page").mapping.flags, ALL);
    assert_eq!((write, exec), (read, read));
}

#[test]
fn other_bits_have_no_meaning__x107() {
    let plain = accesses(&[TABLE, TABLE, TABLE, PAGE]);
    assert!(plain[0].is_ok());
    // The kind of memory, NS, shareability, nG, bits that 52-bit addresses would have, GP, DBM, contiguous, PXN, software's.
    let of_pages = [2, 3, 4, 5, 8, 9, 11, 48, 49, 50, 51, 52, 53];
    for place in of_pages.into_iter().chain(55..64) {
        let entry = PAGE | 1 << place;
        assert_eq!(accesses(&[TABLE, TABLE, TABLE, entry]), plain, "{place}");
    }
    // AP and AF of a page are nothing in a table.
    for place in (2..12).chain(48..60).chain([63]) {
        let entry = TABLE | 1 << place;
        assert_eq!(accesses(&[TABLE, entry, TABLE, PAGE]), plain, "{place}");
    }
    // Addresses of larger granules begin further up.
    for granule in [14, 16] {
        let guest = Guest::arm64(granule, 42);
        let below = ((1 << granule) - 1) & !0xfff;
        let levels = if granule == 14 { 3 } else { 2 };
        let mut entries = vec![TABLE | below; levels];
        entries[levels - 1] = PAGE | below;
        guest.chain(0, &entries);
        assert_eq!(guest.walk(0, READ).expect("a page").mapping.gpa, Gpa(0));
    }
}

#[test]
fn only_the_lower_half_exists__x107() {
    for bits in 25..=48 {
        let guest = Guest::arm64(12, bits);
        let last = (1 << bits) - 1;
        assert_eq!(guest.walk(last, READ), Err(WalkError::Absent));
        for place in bits..64 {
            for iova in [1 << place, last | 1 << place] {
                assert_eq!(guest.walk(iova, READ), Err(WalkError::Outside));
            }
        }
        assert_eq!(guest.walk(u64::MAX, READ), Err(WalkError::Outside));
    }
}

#[test]
fn the_device_writes_nothing_to_a_table__x85_x107() {
    let guest = Guest::arm64(12, 48);
    guest.chain(IOVA, &[TABLE, TABLE, TABLE, PAGE | 1 << 51]);
    guest.chain(
        0,
        &[TABLE, TABLE, TABLE, (PAGE & !AF) | READ_ONLY | 1 << 51],
    );
    let before = guest.bytes();
    for needed in [READ, WRITE, EXEC] {
        assert!(guest.walk(IOVA, needed).is_ok());
        assert_eq!(guest.walk(0, needed), Err(WalkError::Permission));
    }
    assert!(before == guest.bytes());
}
