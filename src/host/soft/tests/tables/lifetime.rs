// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Beginnings and ends: of attachments, of domains, and of the memory that a table is in.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::host::soft::{Route, TableRoute};

/// The bytes of a table.
pub(super) fn bytes(f: &Fixture, table: &GuestTable) -> Vec<u8> {
    let (first, length) = table.extent();
    let mut bytes = vec![0; length];
    let read = f.memory.read_slice(&mut bytes, GuestAddress(first));
    read.expect("memory");
    bytes
}

type End = fn(&Tables);

/// Ports work while an attachment ends. Once that is complete, the driver takes the flags out of its table, and none comes
/// back.
#[test]
fn a_table_is_left_alone_once_its_last_attachment_has_ended__x87() {
    let ends: [(&str, End); 4] = [
        ("detach", |t| {
            t.f.host.attach(A, Attachment::Blocked).expect("detach");
        }),
        ("bypass", |t| {
            t.f.host.attach(A, Attachment::Bypass).expect("attach");
        }),
        ("another domain", |t| {
            t.attach(A, OTHER, PageRequests::Unwanted)
        }),
        ("removal", |t| t.f.host.remove_endpoint(A.endpoint)),
    ];
    for (name, end) in ends {
        for translated in [true, false] {
            let t = Tables::with(A, PageRequests::Unwanted);
            let entries: Vec<u64> = (0..64)
                .map(|page| t.table.entry_at(page << 12, 0))
                .collect();
            let clean = |page: u64| page << 12 | READ_WRITE;
            for (page, &at) in (0..).zip(&entries) {
                t.table.store(at, clean(page));
            }
            let port = t.f.port(A);
            let (stop, tried) = (AtomicBool::new(false), AtomicUsize::new(0));
            let more = || {
                let enough = tried.load(Ordering::Relaxed) + 200;
                while tried.load(Ordering::Relaxed) < enough {
                    thread::yield_now();
                }
            };
            thread::scope(|scope| {
                scope.spawn(|| {
                    let write = Access {
                        translated,
                        ..WRITE
                    };
                    while !stop.load(Ordering::Relaxed) {
                        for page in 0..64 {
                            let _ = poke(&port, write, page << 12, page as u8);
                            port.flush();
                            tried.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
                more();
                assert_ne!(t.table.entry(0x1000) & DIRTY, 0, "it was used");
                end(&t);
                for (page, &at) in (0..).zip(&entries) {
                    t.table.store(at, clean(page));
                }
                let before = bytes(&t.f, &t.table);
                more();
                assert!(before == bytes(&t.f, &t.table), "{name}");
                stop.store(true, Ordering::Relaxed);
            });
            t.f.host.destroy_domain(TABLE);
        }
    }
}

#[test]
fn a_table_that_has_another_attachment_is_used_on() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.attach(B, TABLE, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READABLE);
    t.f.host.attach(A, Attachment::Blocked).expect("detach");
    assert_eq!(t.f.read(B, 0x1000, 1), Ok(vec![5]));
    assert_eq!(
        t.f.read(A, 0x1000, 1),
        denied(Denied::Blocked, Iova(0x1000))
    );
}

/// The device makes a domain of the same table again: the attachment to the old one has ended.
#[test]
fn a_domain_made_again_with_the_same_table_is_another_one() {
    let t = Tables::with(A, PageRequests::Reported);
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    let kept = t.f.raise(A, vec![page]);
    t.attach(A, TABLE, PageRequests::Reported);
    let group = t.f.next_group();
    let answered = t.f.host.respond(group.cookie, Answer::Success);
    answered.expect("attaching to the same changes nothing");
    assert_eq!(block_on(kept), PageResponseCode::Success);
    let ended = t.f.raise(A, vec![page]);
    let by = Translations::Table(t.table.description());
    t.f.host.create_domain(TABLE, by).expect("domain");
    t.attach(A, TABLE, PageRequests::Reported);
    assert_eq!(block_on(ended), PageResponseCode::InvalidRequest);
}

#[test]
fn a_table_whose_memory_was_removed_translates_nothing() {
    let t = Tables::with(A, PageRequests::Reported);
    t.table.set(0x1000, 0x5000 | READABLE);
    assert_eq!(t.f.read(A, 0x1000, 1), Ok(vec![5]));
    // Guest memory ends before the table.
    let ranges = [(GuestAddress(0), TABLE_PAGES as usize)];
    let less = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
    t.f.host.update_memory(&less, &[], &[]).expect("memory");
    let missing = denied(Denied::NoMemory, Iova(0x1000));
    assert_eq!(t.f.read(A, 0x1000, 1), missing);
    assert_eq!(t.f.faults(), [(Reason::Unknown, 0x1000)]);
    t.f.host
        .update_memory(&t.f.memory, &[], &[])
        .expect("memory");
    assert_eq!(t.f.read(A, 0x1000, 1), Ok(vec![5]));
}

#[test]
fn an_endpoint_supports_all_that_walks_know() {
    let t = Tables::new();
    let tables = t.f.host.properties(A.endpoint).expect("endpoint").tables;
    assert!(
        tables
            .iter()
            .any(|table| table.allows(&t.table.description()))
    );
    let five_levels = crate::host::table::Table {
        input_bits: 57,
        ..t.table.description()
    };
    assert!(tables.iter().any(|table| table.allows(&five_levels)));
    for granule in [12, 14, 16] {
        let arm64 = crate::host::table::Table {
            format: TableFormat::Arm64,
            input_bits: 48,
            granule,
            root: Gpa(0),
            attributes: 0xff,
        };
        assert!(tables.iter().any(|table| table.allows(&arm64)));
    }
    let formats = tables.iter().map(|table| table.format);
    let once: std::collections::HashSet<_> = formats.collect();
    assert_eq!(once.len(), tables.len(), "each format once");
}

/// For people: the way of an address, without a trace of the look.
#[test]
fn a_route_shows_entries_and_changes_none() {
    let t = Tables::with(P, PageRequests::Reported);
    let port = t.f.port(A);
    t.table.set(0x1000, 0x5000 | READ_WRITE | NO_EXECUTE);
    let before = bytes(&t.f, &t.table);
    let route = |iova| match port.route(P.pasid, Iova(iova)).expect("a PASID") {
        Route::Table(route) => route,
        _ => panic!("not a table"),
    };
    let TableRoute {
        domain,
        table,
        steps,
        page,
        writes,
    } = route(0x1234);
    assert_eq!((domain, *table), (TABLE, t.table.description()));
    let levels: Vec<u8> = steps.iter().map(|step| step.level).collect();
    assert_eq!(levels, [4, 3, 2, 1]);
    assert_eq!(steps[3].entry_at, Gpa(t.table.entry_at(0x1000, 0)));
    assert_eq!(steps[3].entry, t.table.entry(0x1000));
    let page = page.expect("a page");
    assert_eq!(page.mapping.translate(Iova(0x1234)), Gpa(0x5234));
    assert!(writes && !page.exec);
    let absent = route(0x2000);
    assert_eq!((absent.steps.len(), absent.writes), (4, false));
    assert!(absent.page.is_err());
    assert!(before == bytes(&t.f, &t.table), "no flag is set");
    assert!(port.cached().is_empty());
    assert!(matches!(port.route(None, Iova(0)), Ok(Route::Blocked)));
    let too_wide = port.route(Some(Pasid(1 << 20)), Iova(0));
    assert!(matches!(too_wide, Err(Denied::NoPasid(20))));
}
