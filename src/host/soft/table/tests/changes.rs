// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries that the guest changes while a walk uses them.

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

const OPEN: u64 = 0x7;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;

#[test]
fn an_entry_that_has_gone_stays_gone__x85() {
    for level in 0..4 {
        let guest = Guest::x86_64(48);
        let places = guest.chain(0, &[OPEN; 4]);
        let gone = || guest.set(places[level], 0);
        let found = walk_with(&guest.table, &guest.memory, Iova(0), WRITE, gone);
        assert_eq!(found, Err(WalkError::Absent));
        assert_eq!(guest.get(places[level]), 0);
        for (other, &at) in places.iter().enumerate() {
            let entry = guest.get(at);
            // Those above were used; nothing below.
            assert_eq!(entry & ACCESSED != 0, other < level);
            assert_eq!(entry & DIRTY, 0);
        }
    }
}

#[test]
fn an_entry_that_has_changed_is_read_again__x85() {
    // Another page, and read-only.
    let changed = 0x6005;
    for (needed, expected, flags) in [
        (
            READ,
            Ok(page(0, 0xfff, 0x6000, MapFlags::READ, true)),
            ACCESSED,
        ),
        (WRITE, Err(WalkError::Permission), 0),
    ] {
        let guest = Guest::x86_64(48);
        let places = guest.chain(0, &[OPEN, OPEN, OPEN, OPEN | 0x5000]);
        let change = || guest.set(places[3], changed);
        let found = walk_with(&guest.table, &guest.memory, Iova(0), needed, change);
        assert_eq!(found, expected);
        assert_eq!(guest.get(places[3]), changed | flags);
    }
}

#[test]
fn a_walk_tries_sixteen_times__x85() {
    for (changes, is_found) in [(15, true), (16, false), (usize::MAX, false)] {
        let guest = Guest::x86_64(48);
        let places = guest.chain(0, &[OPEN; 4]);
        let mut tries = 0;
        let found = walk_with(&guest.table, &guest.memory, Iova(0), WRITE, || {
            if tries < changes {
                // A bit for software.
                guest.set(places[3], guest.get(places[3]) ^ 1 << 9);
            }
            tries += 1;
        });
        assert_eq!(tries, 16);
        assert_eq!(found.is_ok(), is_found, "{found:?}");
        assert_eq!(guest.get(places[3]) & DIRTY != 0, is_found);
        if !is_found {
            assert_eq!(found, Err(WalkError::Contended));
            assert_eq!(guest.get(places[3]) & ACCESSED, 0);
        }
    }
}

/// What a vCPU puts into an entry in turn: a number of its own in the bits for software, so that each value is another.
fn turn(number: u64) -> u64 {
    let own = (number % (1 << 11)) << 52;
    own | match number % 4 {
        0 => OPEN | 0x5000,
        // Absent.
        1 => 0x6006,
        // Read-only.
        2 => 0x5 | 0x7000,
        _ => OPEN | 0x8000,
    }
}

#[test]
fn flags_are_set_in_no_entry_that_another_thread_has_changed__x85() {
    let guest = Guest::x86_64(48);
    let at = Gpa(guest.chain(0, &[OPEN, OPEN, OPEN, turn(0)])[3]);
    let rounds = if cfg!(miri) { 60 } else { 50_000 };
    let flips = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let next = turn(number + 1).to_le();
                let swapped = with_entry(&guest.memory, at, |entry| {
                    entry.swap(next, Ordering::SeqCst)
                });
                let before = turn(number);
                // What the walk may have made of it: it was used, or used for writing.
                let flags = match number % 4 {
                    1 | 2 => 0,
                    _ => ACCESSED | DIRTY,
                };
                let old = u64::from_le(swapped.expect("memory"));
                assert!(
                    old == before || old == before | flags,
                    "{old:#x} after {before:#x}"
                );
                number += 1;
                flips.store(number, Ordering::Relaxed);
                // About as long as a walk takes, so that a change comes at any place in it.
                for _ in 0..number % 50 {
                    std::hint::spin_loop();
                }
            }
        });
        let mut walks = 0;
        // The other thread may begin late: both have so many turns.
        while walks < rounds || flips.load(Ordering::Relaxed) < rounds {
            walks += 1;
            let found = guest.walk(0, WRITE);
            let found = found.map(|page| (page.mapping.gpa.0, page.mapping.flags));
            let all = MapFlags::READ | MapFlags::WRITE;
            let is_expected = match found {
                Ok((gpa, flags)) => matches!(gpa, 0x5000 | 0x8000) && flags == all,
                Err(error) => matches!(
                    error,
                    WalkError::Absent | WalkError::Permission | WalkError::Contended
                ),
            };
            if !is_expected {
                stop.store(true, Ordering::Relaxed);
                panic!("{found:x?}");
            }
            // It has found something.
            if flipper.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_table_that_another_thread_flips_for_ever_holds_up_no_walk__x85() {
    let guest = Guest::x86_64(48);
    let places = guest.chain(0, &[OPEN; 4]);
    // The second entry leads to either of two tables, which lead to a page each.
    let (at, one) = (Gpa(places[1]), guest.get(places[1]));
    let other = OPEN | 0x4_0000;
    guest.set(0x4_0000, OPEN | 0x4_1000);
    guest.set(0x4_1000, OPEN | 0x4_2000);
    let rounds = if cfg!(miri) { 40 } else { 5_000 };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for entry in [other, one] {
                    let stored = with_entry(&guest.memory, at, |place| {
                        place.store(entry.to_le(), Ordering::SeqCst);
                    });
                    stored.expect("memory");
                }
            }
        });
        let mut results = Vec::new();
        for _ in 0..rounds {
            let mut tries = 0;
            let found = walk_with(&guest.table, &guest.memory, Iova(0), WRITE, || tries += 1);
            results.push((tries, found.map(|page| page.mapping.gpa.0)));
        }
        stop.store(true, Ordering::Relaxed);
        for (tries, found) in results {
            assert!((1..=16).contains(&tries), "{tries} tries");
            let is_expected = matches!(found, Ok(0 | 0x4_2000) | Err(WalkError::Contended));
            assert!(is_expected, "{found:x?}");
        }
    });
}
