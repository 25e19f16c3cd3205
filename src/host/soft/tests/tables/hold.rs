// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! While tables are held nothing reads or writes one, and whoever would waits, without a trace, until it can go on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::super::ports::hammer_a_page;
use super::lifetime::bytes;
use super::*;
use crate::host::soft::Route;

/// Notes that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

impl Tables {
    /// The bytes of both tables.
    fn bytes(&self) -> [Vec<u8>; 2] {
        [&self.table, &self.other].map(|table| bytes(&self.f, table))
    }
}

/// A requester in bypass, one with mappings and PASIDs with tables, and each has a page at 0x1000.
fn of_each_kind() -> (Tables, Port, [Access; 2]) {
    let t = Tables::with(P, PageRequests::Reported);
    t.attach(pasid(0x28, 4), OTHER, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READ_WRITE);
    t.other.set(0x1000, 0x6000 | READ_WRITE);
    let port = t.f.port(A);
    let of = |pasid| Access {
        pasid: Some(Pasid(pasid)),
        ..READ
    };
    (t, port, [of(3), of(4)])
}

#[test]
fn what_is_held_is_neither_walked_nor_kept_nor_flagged__x87() {
    let (t, port, held) = of_each_kind();
    for access in held {
        for access in [access, untranslated(access)] {
            peek(&port, access, 0x1000).expect("a page");
        }
    }
    assert_eq!(
        port.cached().len(),
        1,
        "the second took the slot of the first"
    );
    t.f.host.hold_tables();
    assert!(port.cached().is_empty());
    for table in [&t.table, &t.other] {
        table.set(0x1000, 0x7000 | READ_WRITE);
        // What is malformed or absent is not found out either.
        table.set(0x2000, 0);
        table.set(0x3000, HOLE | READABLE);
    }
    let before = t.bytes();
    for read in held {
        for access in [read, untranslated(read)] {
            let write = Access {
                kinds: EventFlags::WRITE,
                ..access
            };
            for page in [0x1000, 0x2000, 0x3000, 1 << 47] {
                assert_eq!(peek(&port, access, page), Err(Denied::Held));
                assert_eq!(poke(&port, write, page, 9), Err(Denied::Held));
                let translated = port.translate(access, Iova(page));
                assert_eq!(translated, Err(Denied::Held));
                assert_eq!(port.copy((access, Iova(page)), (write, Iova(page)), 16), 0);
            }
        }
        let route = port.route(read.pasid, Iova(0x1000));
        assert!(matches!(route, Ok(Route::Held { .. })));
    }
    assert!(before == t.bytes(), "a flag was set");
    assert!(port.cached().is_empty());
    // No request of the driver can come, but what one would do is done.
    t.invalidate(TABLE, 0, u64::MAX);
    assert_eq!(peek(&port, held[0], 0x1000), Err(Denied::Held));
    port.report(held[0], Denied::Held, Iova(0x1000));
    assert!(!Denied::Held.is_recoverable());
    assert!(t.f.events().is_empty());
    t.f.host.hold_tables();
    t.f.host.release_tables();
    for access in held {
        assert_eq!(peek(&port, access, 0x1000), Ok(7));
        assert!(matches!(
            port.route(access.pasid, Iova(0x1000)),
            Ok(Route::Table(_))
        ));
    }
    assert!(before != t.bytes());
}

#[test]
fn bypass_and_mappings_are_not_held() {
    let (t, port, _) = of_each_kind();
    t.f.attach(A, PageRequests::Unwanted);
    t.f.map(0x1000, 0x1fff, 0x8000, RW);
    t.f.host.attach(B, Attachment::Bypass).expect("attach");
    let bypass = t.f.port(B);
    assert_eq!(peek(&port, READ, 0x1000), Ok(8));
    t.f.host.hold_tables();
    assert_eq!(port.cached().len(), 1, "a mapping is kept");
    assert_eq!(peek(&port, READ, 0x1000), Ok(8));
    assert_eq!(peek(&bypass, READ, 0x9000), Ok(9));
    // What a table does not translate fails as ever.
    assert_eq!(peek(&port, READ, 0x2000), Err(Denied::Translation));
    let nowhere = Access {
        pasid: Some(Pasid(9)),
        ..READ
    };
    assert_eq!(peek(&port, nowhere, 0x1000), Err(Denied::Blocked));
    assert_eq!(block_on(port.released(None)), ());
}

/// Whatever changes what a held access finds wakes it, and it ends as it finds things then.
#[test]
fn an_access_that_is_held_goes_on_with_whatever_ends_that__x87() {
    type End = fn(&Tables);
    type Ended = Result<Vec<u8>, AccessError>;
    let blocked = denied(Denied::Blocked, Iova(0x1ffe));
    let gone = denied(Denied::NoEndpoint, Iova(0x1ffe));
    let read = |bytes: [u8; 4]| Ok(bytes.to_vec());
    let ends: [(&str, End, Ended); 5] = [
        ("release", |t| t.f.host.release_tables(), read([5, 5, 9, 9])),
        (
            "detach",
            |t| t.f.host.attach(P, Attachment::Blocked).expect("detach"),
            blocked,
        ),
        (
            "bypass",
            |t| t.f.host.attach(P, Attachment::Bypass).expect("attach"),
            read([1, 1, 2, 2]),
        ),
        (
            "mappings",
            |t| t.f.attach(P, PageRequests::Unwanted),
            read([6, 6, 7, 7]),
        ),
        ("removal", |t| t.f.host.remove_endpoint(P.endpoint), gone),
    ];
    for (name, end, expected) in ends {
        let t = Tables::with(P, PageRequests::Reported);
        t.f.attach(B, PageRequests::Unwanted);
        t.f.map(0x1000, 0x2fff, 0x6000, RW);
        t.table.set(0x1000, 0x5000 | READABLE);
        t.table.set(0x2000, 0x9000 | READABLE);
        let port = t.f.port(A);
        t.f.host.hold_tables();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut data = [0; 4];
        let mut access = Box::pin(port.access(P.pasid, Iova(0x1ffe), Transfer::Read(&mut data)));
        for _ in 0..3 {
            assert!(access.as_mut().poll(&mut context).is_pending());
            assert_eq!(t.f.host.held_accesses(), 1, "one place, however often");
        }
        assert!(!woken.take());
        // Another table is held as well, and what becomes of others is not its matter.
        t.attach(P, OTHER, PageRequests::Reported);
        assert!(woken.take() && access.as_mut().poll(&mut context).is_pending());
        t.attach(P, TABLE, PageRequests::Reported);
        assert!(woken.take() && access.as_mut().poll(&mut context).is_pending());
        assert!(t.f.events().is_empty(), "{name}");
        end(&t);
        assert!(woken.take(), "{name}");
        let Poll::Ready(ended) = access.as_mut().poll(&mut context) else {
            panic!("{name}: it goes on waiting");
        };
        drop(access);
        assert_eq!(t.f.host.held_accesses(), 0, "{name}");
        assert_eq!(ended.map(|()| data.to_vec()), expected, "{name}");
    }
}

#[test]
fn an_access_that_nobody_waits_for_any_more_is_forgotten() {
    let (t, port, [first, _]) = of_each_kind();
    t.f.host.hold_tables();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        let mut data = [0; 4];
        let mut access =
            Box::pin(port.access(first.pasid, Iova(0x1000), Transfer::Read(&mut data)));
        let mut released = Box::pin(port.released(first.pasid));
        assert!(access.as_mut().poll(&mut context).is_pending());
        assert!(released.as_mut().poll(&mut context).is_pending());
        assert_eq!(t.f.host.held_accesses(), 2);
        drop((access, released));
        assert_eq!(t.f.host.held_accesses(), 0);
    }
    assert!(t.f.events().is_empty());
}

/// An access in flight holds its port's lock.
#[test]
fn the_hold_waits_for_an_access_in_flight__x87() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let _port = t.f.port(A);
    let state = Arc::clone(&t.f.host.ports.of(A.endpoint)[0]);
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        let in_flight = state.lock_for_access();
        let host = &t.f.host;
        scope.spawn(move || {
            host.hold_tables();
            done.send(())
        });
        while !state.is_wanted() {
            thread::yield_now();
        }
        assert!(finished.try_recv().is_err());
        drop(in_flight);
        finished.recv().expect("done");
    });
}

/// A port is at work when the hold comes. From then on the table, and the page that it names, are the test's.
#[test]
fn no_access_and_no_walk_is_in_flight_once_tables_are_held__x87() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let entry_at = t.table.entry_at(0, 0);
    let clean = 0x5000 | READ_WRITE;
    for translated in [true, false] {
        let write = Access {
            translated,
            ..WRITE
        };
        let give = || {
            t.table.store(entry_at, clean);
            t.f.host.release_tables();
        };
        let take = || {
            t.f.host.hold_tables();
            t.table.store(entry_at, clean);
        };
        hammer_a_page(&t.f, write, 100, give, take, || {
            assert_eq!(t.table.entry(0), clean, "a flag was set");
        });
        t.f.host.release_tables();
    }
}

/// Holds and releases follow each other as fast as they can: no access is left behind.
#[test]
fn accesses_go_on_however_often_they_are_held() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READABLE);
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(t.f.read(A, 0x1000, 1), Ok(vec![5]));
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        while done.load(Ordering::Relaxed) < 2 {
            t.f.host.hold_tables();
            thread::yield_now();
            t.f.host.release_tables();
        }
    });
    assert!(t.f.events().is_empty());
    assert_eq!(t.f.host.held_accesses(), 0);
}
