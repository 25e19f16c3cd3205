// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! X86_64: what entries mean, and the flags that an access sets.

use super::*;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
/// All that an access can need.
const OPEN: u64 = PRESENT | WRITABLE | USER;

/// In the lower half, in no first entry.
const IOVA: u64 = 0x1234_5678_9abc;

fn flags_of(guest: &Guest, places: &[u64]) -> Vec<u64> {
    places
        .iter()
        .map(|&at| guest.get(at) & (ACCESSED | DIRTY))
        .collect()
}

#[test]
fn four_and_five_levels_lead_to_a_page__x106() {
    for (input_bits, entries, iova) in [
        (48, &[OPEN; 4][..], IOVA),
        (57, &[OPEN; 5], IOVA | 0xa5 << 48),
        (48, &[OPEN; 4], !IOVA),
        (57, &[OPEN; 5], !IOVA),
    ] {
        let guest = Guest::x86_64(input_bits);
        let mut entries = entries.to_vec();
        *entries.last_mut().expect("a level") |= 0x7_8000;
        guest.chain(iova, &entries);
        let first = iova & !0xfff;
        let all = MapFlags::READ | MapFlags::WRITE;
        let expected = page(first, first | 0xfff, 0x7_8000, all, true);
        assert_eq!(guest.walk(iova, WRITE), Ok(expected));
        assert_eq!(guest.walk(iova ^ 1 << 12, WRITE), Err(WalkError::Absent));
    }
}

#[test]
fn each_size_of_page_has_its_addresses__x106() {
    // Bit 12 of a large page is PAT, which is no part of the address. Bit 7 of a small one is PAT as well.
    for (entries, bytes, gpa) in [
        (
            &[OPEN, OPEN, OPEN, OPEN | PS | 0xf_ffff_ffff_f000][..],
            1 << 12,
            0xf_ffff_ffff_f000,
        ),
        (
            &[OPEN, OPEN, OPEN | PS | 0xf_ffff_ffe0_1000],
            1 << 21,
            0xf_ffff_ffe0_0000,
        ),
        (
            &[OPEN, OPEN | PS | 0xf_ffff_c000_1000],
            1 << 30,
            0xf_ffff_c000_0000,
        ),
    ] {
        let guest = Guest::x86_64(48);
        let iova = !IOVA;
        guest.chain(iova, entries);
        let first = iova / bytes * bytes;
        let expected = page(first, first + (bytes - 1), gpa, MapFlags::READ, true);
        assert_eq!(guest.walk(iova, READ), Ok(expected));
    }
}

#[test]
fn the_last_page_ends_at_the_last_address__x106() {
    let guest = Guest::x86_64(57);
    guest.chain(u64::MAX, &[OPEN, OPEN, OPEN | PS]);
    let first = 0_u64.wrapping_sub(1 << 30);
    let expected = page(first, u64::MAX, 0, MapFlags::READ, true);
    assert_eq!(guest.walk(u64::MAX, READ), Ok(expected));
}

#[test]
fn bits_below_the_address_of_a_large_page_are_malformed__x106() {
    for (entries, shift) in [(&[OPEN, OPEN, OPEN | PS][..], 21), (&[OPEN, OPEN | PS], 30)] {
        for place in 12..52 {
            let guest = Guest::x86_64(48);
            let mut entries = entries.to_vec();
            *entries.last_mut().expect("a level") |= 1 << place;
            guest.chain(IOVA, &entries);
            let found = guest.walk(IOVA, READ);
            if (13..shift).contains(&place) {
                assert_eq!(found, Err(WalkError::Malformed), "bit {place}");
            } else {
                assert!(found.is_ok(), "bit {place}");
            }
        }
    }
}

#[test]
fn the_upper_levels_have_no_pages__x106() {
    for (input_bits, entries) in [
        (48, &[OPEN | PS][..]),
        (57, &[OPEN | PS]),
        (57, &[OPEN, OPEN | PS]),
    ] {
        let guest = Guest::x86_64(input_bits);
        guest.chain(IOVA, entries);
        assert_eq!(guest.walk(IOVA, READ), Err(WalkError::Malformed));
    }
}

#[test]
fn each_entry_on_the_way_must_permit_the_access__x106() {
    for levels in [
        &[OPEN; 5][..],
        &[OPEN, OPEN, OPEN, OPEN | PS],
        &[OPEN, OPEN, OPEN | PS],
    ] {
        for level in 0..levels.len() {
            let with = |set: u64, clear: u64| {
                let guest = Guest::x86_64(57);
                let mut entries = levels.to_vec();
                entries[level] = entries[level] & !clear | set;
                guest.chain(IOVA, &entries);
                [READ, WRITE, EXEC].map(|needed| guest.walk(IOVA, needed))
            };
            let denied = Err(WalkError::Permission);
            assert_eq!(with(0, USER), [denied; 3]);
            let [read, write, exec] = with(0, WRITABLE);
            assert!(read.is_ok() && exec.is_ok());
            assert_eq!(write, denied);
            let [read, write, exec] = with(XD, 0);
            assert!(!read.expect("a page").exec && !write.expect("a page").exec);
            assert_eq!(exec, denied);
            assert_eq!(with(0, PRESENT), [Err(WalkError::Absent); 3]);
            let [read, ..] = with(0, 0);
            assert!(read.expect("a page").exec);
        }
    }
}

#[test]
fn addresses_are_sign_extended__x106() {
    for (bits, inside, outside) in [
        (
            48,
            [0x7fff_ffff_ffff, 0xffff_8000_0000_0000],
            [0x8000_0000_0000, 0xffff_7fff_ffff_ffff],
        ),
        (
            57,
            [0x00ff_ffff_ffff_ffff, 0xff00_0000_0000_0000],
            [0x0100_0000_0000_0000, 0xfeff_ffff_ffff_ffff],
        ),
    ] {
        let guest = Guest::x86_64(bits);
        for iova in inside {
            assert_eq!(guest.walk(iova, READ), Err(WalkError::Absent), "{iova:#x}");
        }
        for iova in outside.into_iter().chain([1 << 63, u64::MAX >> 1, 1 << 60]) {
            assert_eq!(guest.walk(iova, READ), Err(WalkError::Outside), "{iova:#x}");
        }
    }
}

#[test]
fn other_flags_have_no_meaning__x106() {
    // PWT, PCD, PAT or a bit for software, G, bits for software, the key.
    let others = (3..5).chain(8..12).chain(52..63);
    for place in others {
        let guest = Guest::x86_64(48);
        let entries = [OPEN | 1 << place; 4];
        let places = guest.chain(IOVA, &entries);
        let found = guest.walk(IOVA, WRITE).expect("a page");
        assert_eq!((found.mapping.gpa, found.exec), (Gpa(0), true));
        // They stay.
        assert_eq!(guest.get(places[3]), entries[3] | ACCESSED | DIRTY);
    }
}

#[test]
fn a_read_sets_accessed_all_the_way_and_dirty_nowhere__x85_x106() {
    for entries in [&[OPEN; 5][..], &[OPEN, OPEN, OPEN | PS]] {
        let guest = Guest::x86_64(57);
        let places = guest.chain(IOVA, entries);
        for needed in [READ, EXEC] {
            guest.walk(IOVA, needed).expect("a page");
            assert_eq!(flags_of(&guest, &places), vec![ACCESSED; places.len()]);
        }
    }
}

#[test]
fn a_write_sets_dirty_in_the_entry_of_the_page_alone__x85_x106() {
    for entries in [&[OPEN; 4][..], &[OPEN, OPEN, OPEN | PS], &[OPEN, OPEN | PS]] {
        let guest = Guest::x86_64(48);
        let places = guest.chain(IOVA, entries);
        guest.walk(IOVA, WRITE).expect("a page");
        let mut expected = vec![ACCESSED; places.len()];
        expected[places.len() - 1] |= DIRTY;
        assert_eq!(flags_of(&guest, &places), expected);
    }
}

#[test]
fn nothing_but_the_flags_is_written__x85() {
    let guest = Guest::x86_64(48);
    let places = guest.chain(IOVA, &[OPEN; 4]);
    // Neighbours of all entries on the way, which could be used as well.
    for at in places.iter().flat_map(|at| [at - 8, at + 8]) {
        guest.set(at, OPEN);
    }
    let mut expected = guest.bytes();
    guest.walk(IOVA, WRITE).expect("a page");
    for at in &places {
        expected[*at as usize] |= ACCESSED as u8;
    }
    expected[places[3] as usize] |= DIRTY as u8;
    assert!(expected == guest.bytes());
}

#[test]
fn an_access_that_is_denied_writes_nothing__x85() {
    let malformed = OPEN | PS | 1 << 13;
    for (entries, needed) in [
        (&[OPEN, OPEN, OPEN, OPEN & !WRITABLE][..], WRITE),
        (&[OPEN, OPEN & !WRITABLE, OPEN, OPEN], WRITE),
        (&[OPEN, OPEN, OPEN, OPEN & !USER], READ),
        (&[OPEN, OPEN, OPEN, OPEN | XD], EXEC),
        (&[OPEN, OPEN, OPEN, 0], READ),
        (&[OPEN, OPEN, malformed], READ),
        (&[OPEN, OPEN, OPEN | 1 << 40, 0], READ),
    ] {
        let guest = Guest::x86_64(48);
        guest.chain(IOVA, entries);
        let before = guest.bytes();
        assert!(guest.walk(IOVA, needed).is_err());
        assert!(before == guest.bytes(), "{entries:x?}");
    }
}

#[test]
fn a_page_permits_writing_once_its_entry_is_dirty__x86() {
    let guest = Guest::x86_64(48);
    let places = guest.chain(IOVA, &[OPEN; 4]);
    let can_write = |needed| {
        let page = guest.walk(IOVA, needed).expect("a page");
        page.mapping.flags.contains(MapFlags::WRITE)
    };
    // DIRTY above the page says nothing of the page.
    guest.set(places[2], guest.get(places[2]) | DIRTY);
    assert!(!can_write(READ));
    assert!(!can_write(EXEC));
    assert!(can_write(WRITE));
    assert!(can_write(READ));
    // The driver takes DIRTY away: the next walk knows.
    guest.set(places[3], guest.get(places[3]) & !DIRTY);
    assert!(!can_write(READ));
}

#[test]
fn a_dirty_page_that_is_read_only_permits_no_writing__x86() {
    // A shadow stack's entry is so.
    for level in 0..4 {
        let guest = Guest::x86_64(48);
        let mut entries = [OPEN | DIRTY; 4];
        entries[level] &= !WRITABLE;
        guest.chain(IOVA, &entries);
        let page = guest.walk(IOVA, READ).expect("a page");
        assert_eq!(page.mapping.flags, MapFlags::READ);
    }
}
