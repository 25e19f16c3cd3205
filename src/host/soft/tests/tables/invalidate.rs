// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INVALIDATE: what is not kept after it, and what it waits for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::super::ports::{hammer_a_page, with_pasid};
use super::*;
use crate::host::soft::port::MAX_TURNS;

/// 2 MiB of addresses in one entry, kept at three of its pages.
#[test]
fn a_large_page_goes_with_any_page_of_it__x103() {
    for at in [0, 0x2f_f000, 0x3f_ffff] {
        for translated in [true, false] {
            let t = Tables::with(A, PageRequests::Unwanted);
            let port = t.f.port(A);
            let read = Access { translated, ..READ };
            t.table.set_large(0x20_0000, READABLE);
            for page in [1, 2, 200] {
                let iova = 0x20_0000 + (page << 12);
                assert_eq!(peek(&port, read, iova), Ok(page as u8));
            }
            t.table.store(t.table.entry_at(0x20_0000, 1), 0);
            let range = if at == 0 { (0, u64::MAX) } else { (at, at) };
            t.invalidate(TABLE, range.0, range.1);
            for page in [1, 2, 200] {
                let iova = 0x20_0000 + (page << 12);
                assert_eq!(peek(&port, read, iova), Err(Denied::Translation));
            }
            assert!(port.cached().is_empty());
        }
    }
}

/// Neighbours of the range stay: they would be walked again for nothing.
#[test]
fn a_range_ends_with_its_last_address_and_takes_what_overlaps__x103() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let port = t.f.port(A);
    for page in 1..=4 {
        t.table.set(page << 12, page << 12 | READABLE);
    }
    let kept_after = |first, last| {
        for page in 1..=4 {
            assert_eq!(peek(&port, READ, page << 12), Ok(page as u8));
        }
        t.invalidate(TABLE, first, last);
        let cached = port.cached().into_iter();
        cached
            .map(|cached| cached.mapping.range.first.0 >> 12)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept_after(0x2000, 0x2fff), [1, 3, 4]);
    assert_eq!(kept_after(0x2fff, 0x3000), [1, 4]);
    assert_eq!(kept_after(0x2001, 0x2001), [1, 3, 4]);
    assert_eq!(kept_after(0x1fff, 0x2000), [3, 4]);
    assert_eq!(kept_after(0, 0xfff), [1, 2, 3, 4]);
    assert_eq!(kept_after(0x5000, u64::MAX), [1, 2, 3, 4]);
    assert_eq!(kept_after(0xffff_8000_0000_0000, u64::MAX), [1, 2, 3, 4]);
    assert!(kept_after(0, u64::MAX).is_empty());
}

#[test]
fn invalidate_reaches_every_port_of_its_domain_and_no_other_domain__x103() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.attach(B, TABLE, PageRequests::Unwanted);
    t.attach(P, OTHER, PageRequests::Unwanted);
    t.f.attach(pasid(0x30, 4), PageRequests::Unwanted);
    t.f.map(0x5000, 0x5fff, 0x8000, RW);
    let [first, second, third] = [A, A, B].map(|requester| t.f.port(requester));
    t.table.set(0x1000, 0x5000 | READABLE);
    t.other.set(0x2000, 0x6000 | READABLE);
    let of_other = with_pasid(3);
    for port in [&first, &second, &third] {
        assert_eq!(peek(port, READ, 0x1000), Ok(5));
        assert_eq!(peek(port, untranslated(READ), 0x1000), Ok(5));
    }
    assert_eq!(peek(&first, of_other, 0x2000), Ok(6));
    assert_eq!(peek(&third, with_pasid(4), 0x5000), Ok(8));
    t.table.set(0x1000, 0);
    t.other.set(0x2000, 0);
    t.invalidate(TABLE, 0, u64::MAX);
    for port in [&first, &second, &third] {
        for access in [READ, untranslated(READ)] {
            assert_eq!(peek(port, access, 0x1000), Err(Denied::Translation));
        }
    }
    assert_eq!(peek(&first, of_other, 0x2000), Ok(6), "another domain's");
    assert_eq!(third.cached().len(), 1, "a mapping");
    t.invalidate(OTHER, 0x2000, 0x2000);
    assert_eq!(peek(&first, of_other, 0x2000), Err(Denied::Translation));
}

/// Linux invalidates everything for each page that it takes back: a port that keeps nothing is passed by.
#[test]
fn a_port_that_keeps_nothing_any_more_counts_as_not_used() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.attach(P, OTHER, PageRequests::Unwanted);
    let port = t.f.port(A);
    let is_used = || t.f.host.ports.of(A.endpoint)[0].is_used();
    t.table.set(0x1000, 0x5000 | READABLE);
    t.other.set(0x2000, 0x6000 | READABLE);
    for round in 1..=3 {
        assert_eq!(peek(&port, READ, 0x1000), Ok(5));
        assert_eq!(peek(&port, with_pasid(3), 0x2000), Ok(6));
        assert_eq!(peek(&port, untranslated(READ), 0x1000), Ok(5));
        t.invalidate(TABLE, 0, u64::MAX);
        assert!(is_used(), "something of the other domain is kept");
        t.invalidate(OTHER, 0x2000, 0x2fff);
        assert!(!is_used());
        assert_eq!(port.counters().invalidated, 2 * round);
        // A denied access keeps nothing, but is one.
        assert_eq!(peek(&port, READ, 0x3000), Err(Denied::Translation));
        assert!(is_used());
    }
}

/// An access in flight holds its port's lock.
#[test]
fn invalidate_waits_for_an_access_in_flight__x103() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let _port = t.f.port(A);
    let state = Arc::clone(&t.f.host.ports.of(A.endpoint)[0]);
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        let in_flight = state.lock_for_access();
        let host = &t.f.host;
        scope.spawn(move || {
            host.invalidate(TABLE, &[IovaRange::ALL])
                .expect("invalidate");
            done.send(())
        });
        // It cannot be through, however long one looks.
        assert!(finished.try_recv().is_err());
        thread::yield_now();
        assert!(finished.try_recv().is_err());
        drop(in_flight);
        finished.recv().expect("done");
    });
}

/// A port hammers a page that is in the table and taken out of it under the port. After INVALIDATE has returned, the page
/// and its entry belong to the test: the port must not touch them.
#[test]
fn no_access_and_no_walk_is_in_flight_once_invalidate_has_returned__x103() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let entry_at = t.table.entry_at(0, 0);
    for translated in [true, false] {
        let write = Access {
            translated,
            ..WRITE
        };
        let give = || t.table.store(entry_at, 0x5000 | READ_WRITE);
        let take = || {
            t.table.store(entry_at, 0);
            t.invalidate(TABLE, 0, 0xfff);
        };
        hammer_a_page(&t.f, write, 100, give, take, || {
            assert_eq!(t.table.entry(0), 0);
        });
    }
}

/// An access whose entries change takes its turns, and whoever wants to invalidate goes in between.
#[test]
fn an_access_whose_entries_change_lets_invalidate_pass_and_ends__x103_x105() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let port = t.f.port(A);
    let invalidated = AtomicBool::new(false);
    thread::scope(|scope| {
        let state = Arc::clone(&t.f.host.ports.of(A.endpoint)[0]);
        let mut turns = 0;
        let ended = port.settled(|_| -> Result<(), Denied> {
            turns += 1;
            if turns == 1 {
                scope.spawn(|| {
                    t.invalidate(TABLE, 0, u64::MAX);
                    invalidated.store(true, Ordering::SeqCst);
                });
                // It waits for this turn.
                while !state.is_wanted() {
                    thread::yield_now();
                }
                assert!(!invalidated.load(Ordering::SeqCst));
            }
            // It went first, or is not there yet.
            assert!(turns == 1 || !state.is_wanted());
            Err(Denied::Contended)
        });
        assert_eq!((ended, turns), (Err(Denied::Contended), MAX_TURNS));
    });
    assert!(invalidated.load(Ordering::SeqCst));
    let settled = port.settled(|_| Ok(7));
    assert_eq!(settled, Ok(7));
}

/// A processor of the guest changes the entry for ever.
#[test]
fn entries_that_change_for_ever_hold_up_neither_accesses_nor_invalidate__x105() {
    const SOFTWARE: u64 = 1 << 9;
    let t = Tables::with(A, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READ_WRITE);
    let at = t.table.entry_at(0x1000, 0);
    let (stop, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    let port = t.f.port(A);
    let memory = t.f.memory.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut entry = 0x5000 | READ_WRITE;
            while !stop.load(Ordering::Relaxed) {
                entry ^= SOFTWARE;
                let stored = memory.store(entry, GuestAddress(at), Ordering::Relaxed);
                stored.expect("memory");
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let written = poke(&port, WRITE, 0x1000, 5);
                assert!(matches!(written, Ok(()) | Err(Denied::Contended)));
                ended.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..200 {
            let before = ended.load(Ordering::Relaxed);
            t.invalidate(TABLE, 0, u64::MAX);
            while ended.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn invalidate_and_detach_wait_for_no_answer__x105() {
    let t = Tables::with(A, PageRequests::Reported);
    thread::scope(|scope| {
        let access = scope.spawn(|| t.f.write(A, 0x1000, &[1]));
        let group = t.f.next_group();
        t.invalidate(TABLE, 0, u64::MAX);
        t.invalidate(TABLE, 0x1000, 0x1fff);
        assert!(!access.is_finished(), "it waits for its answer");
        t.f.host.attach(A, Attachment::Blocked).expect("detach");
        let failed = AccessError::PageRequest(Iova(0x1000), PageResponseCode::InvalidRequest);
        assert_eq!(access.join().expect("thread"), Err(failed));
        let late = t.f.host.respond(group.cookie, Answer::Success);
        assert!(matches!(late, Err(HostError::NoGroup(_))));
    });
}
