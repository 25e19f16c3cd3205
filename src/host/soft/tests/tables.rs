// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains that a table of the driver translates; the test plays the driver as well.

mod hold;
mod invalidate;
mod lifetime;

use super::ports::{READ, WRITE, peek, untranslated};
use super::*;
use crate::host::ReservedRegion;
use crate::host::soft::guest_table::{
    ACCESSED, DIRTY, GuestTable, LARGE, NO_EXECUTE, PRESENT, READ_WRITE, READABLE, WRITABLE,
};
use crate::host::soft::{Access, Denied, Port};
use crate::spec::ResvMemSubtype;

const TABLE: DomainId = DomainId(8);
const OTHER: DomainId = DomainId(9);
/// Guest memory where tables are.
const TABLE_PAGES: u64 = 0x8_0000;
const OTHER_PAGES: u64 = 0xa_0000;
const HOLE: u64 = 0x4000_0000;
/// A PASID of A.
const P: Requester = pasid(0x28, 3);

/// The host of [`Fixture`] with two domains that have tables.
struct Tables {
    f: Fixture,
    table: GuestTable,
    other: GuestTable,
}

impl Tables {
    fn new() -> Self {
        let f = Fixture::new();
        let table = GuestTable::new(&f.memory, TABLE_PAGES);
        let other = GuestTable::new(&f.memory, OTHER_PAGES);
        for (domain, table) in [(TABLE, &table), (OTHER, &other)] {
            let by = Translations::Table(table.description());
            f.host.create_domain(domain, by).expect("domain");
        }
        Self { f, table, other }
    }

    /// With a requester in the domain of the first table.
    fn with(requester: Requester, page_requests: PageRequests) -> Self {
        let t = Self::new();
        t.attach(requester, TABLE, page_requests);
        t
    }

    fn attach(&self, requester: Requester, domain: DomainId, page_requests: PageRequests) {
        let to = Attachment::Domain {
            domain,
            page_requests,
        };
        self.f.host.attach(requester, to).expect("attach");
    }

    fn invalidate(&self, domain: DomainId, first: u64, last: u64) {
        let range = IovaRange::new(first, last).expect("range");
        self.f
            .host
            .invalidate(domain, &[range])
            .expect("invalidate");
    }
}

/// Writes a byte.
fn poke(port: &Port, access: Access, iova: u64, byte: u8) -> Result<(), Denied> {
    let moved = port.transfer(access, Iova(iova), &mut Transfer::Write(&[byte]), 0)?;
    assert_eq!(moved, 1);
    Ok(())
}

fn with(access: Access, kinds: EventFlags) -> Access {
    Access {
        kinds: access.kinds | kinds,
        ..access
    }
}

#[test]
fn an_access_goes_where_the_table_says_at_the_time__x81() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READ_WRITE);
    t.table.set(0x2000, 0x9000 | READ_WRITE);
    assert_eq!(t.f.read(A, 0x1ffe, 4), Ok(vec![5, 5, 9, 9]));
    t.f.write(A, 0x1fff, &[0xaa, 0xbb]).expect("write");
    let byte = |gpa| t.f.memory.read_obj::<u8>(GuestAddress(gpa)).expect("RAM");
    assert_eq!([byte(0x5fff), byte(0x9000)], [0xaa, 0xbb]);
    // The driver changes it, and tells nobody.
    t.table.set(0x3000, 0x7000 | READABLE);
    t.table.set(0x2000, 0x6000 | READABLE);
    assert_eq!(t.f.read(A, 0x2ffe, 4), Ok(vec![6, 6, 7, 7]));
    assert!(t.f.events().is_empty());
}

#[test]
fn what_is_kept_serves_until_it_is_invalidated__x82() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let port = t.f.port(A);
    for access in [READ, untranslated(READ)] {
        t.table.set(0x1000, 0x5000 | READABLE);
        assert_eq!(peek(&port, access, 0x1000), Ok(5));
        t.table.set(0x1000, 0x6000 | READABLE);
        assert_eq!(peek(&port, access, 0x1000), Ok(5), "kept");
        t.invalidate(TABLE, 0x1000, 0x1fff);
        assert_eq!(peek(&port, access, 0x1000), Ok(6));
        t.table.set(0x1000, 0);
        t.invalidate(TABLE, 0x1000, 0x1fff);
        assert_eq!(peek(&port, access, 0x1000), Err(Denied::Translation));
    }
    assert_eq!(port.counters().hits, 1);
}

#[test]
fn an_entry_that_was_absent_serves_as_soon_as_it_is_there__x83() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let port = t.f.port(A);
    for (page, access) in [(0x1000, READ), (0x2000, untranslated(READ))] {
        assert_eq!(peek(&port, access, page), Err(Denied::Translation));
        t.table.set(page, 0x5000 | READABLE);
        assert_eq!(peek(&port, access, page), Ok(5));
    }
}

#[test]
fn nothing_is_denied_because_of_what_is_kept__x84() {
    let t = Tables::with(A, PageRequests::Reported);
    let port = t.f.port(A);
    for (page, [read, write]) in [
        (0x1000, [READ, WRITE]),
        (0x2000, [READ, WRITE].map(untranslated)),
    ] {
        let execute = with(read, EventFlags::EXEC);
        t.table.set(page, 0x5000 | READABLE | NO_EXECUTE);
        assert_eq!(peek(&port, read, page), Ok(5));
        assert_eq!(poke(&port, write, page, 5), Err(Denied::Permission));
        assert_eq!(peek(&port, execute, page), Err(Denied::Permission));
        t.table.set(page, 0x5000 | READ_WRITE | NO_EXECUTE);
        assert_eq!(poke(&port, write, page, 5), Ok(()));
        t.table.set(page, 0x5000 | READ_WRITE);
        assert_eq!(peek(&port, execute, page), Ok(5));
        // To a page without memory, and away from there.
        t.table.set(page + 0x8000, HOLE | READABLE);
        assert_eq!(peek(&port, read, page + 0x8000), Err(Denied::NoMemory));
        t.table.set(page + 0x8000, 0x7000 | READABLE);
        assert_eq!(peek(&port, read, page + 0x8000), Ok(7));
    }
    assert!(t.f.events().is_empty());
}

/// The three orders in which a page becomes writable to a device.
#[test]
fn what_is_kept_permits_writing_only_if_dirty_was_set__x86() {
    let t = Tables::with(A, PageRequests::Unwanted);
    let port = t.f.port(A);
    for (page, [read, write]) in [
        (0x1000, [READ, WRITE]),
        (0x2000, [READ, WRITE].map(untranslated)),
    ] {
        let entry = || t.table.entry(page) & (ACCESSED | DIRTY);
        // Fresh.
        t.table.set(page, 0x5000 | READ_WRITE);
        poke(&port, write, page, 5).expect("writable");
        assert_eq!(entry(), ACCESSED | DIRTY);
        // Written before, then clean again, as after a write-back.
        t.table.set(page, 0x5000 | READ_WRITE);
        t.invalidate(TABLE, page, page);
        assert_eq!(peek(&port, read, page), Ok(5));
        assert_eq!(entry(), ACCESSED);
        // Read before.
        poke(&port, write, page, 5).expect("writable");
        assert_eq!(entry(), ACCESSED | DIRTY);
        // Dirty by somebody else: a read keeps what serves writes.
        t.table.set(page, 0x5000 | READ_WRITE | DIRTY);
        t.invalidate(TABLE, page, page);
        assert_eq!(peek(&port, read, page), Ok(5));
        t.table.set(page, 0);
        assert_eq!(poke(&port, write, page, 5), Ok(()), "kept");
        t.invalidate(TABLE, page, page);
    }
}

#[test]
fn a_translation_for_reading_serves_no_execution_and_none_serves_privileged_accesses() {
    let t = Tables::with(P, PageRequests::Reported);
    let port = t.f.port(A);
    for translated in [true, false] {
        let read = Access {
            pasid: P.pasid,
            translated,
            ..READ
        };
        let execute = with(read, EventFlags::EXEC);
        t.table.set(0x1000, 0x5000 | READABLE | NO_EXECUTE);
        t.table.set(0x2000, 0x6000 | READABLE);
        assert_eq!(peek(&port, read, 0x1000), Ok(5));
        assert_eq!(peek(&port, execute, 0x1000), Err(Denied::Permission));
        assert_eq!(peek(&port, read, 0x2000), Ok(6));
        assert_eq!(peek(&port, execute, 0x2000), Ok(6));
        // What was read can be executed: one walk found both.
        t.table.set(0x2000, 0);
        assert_eq!(peek(&port, execute, 0x2000), Ok(6), "kept");
        for access in [read, execute] {
            let privileged = with(access, EventFlags::PRIVILEGED);
            let denied = peek(&port, privileged, 0x2000);
            assert_eq!(denied, Err(Denied::Privileged));
        }
        t.invalidate(TABLE, 0, u64::MAX);
    }
}

#[test]
fn absent_and_denied_entries_are_asked_for_if_the_driver_wants_that__x88() {
    let t = Tables::with(A, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READABLE);
    t.table.set(0x3000, 0x7000 | PRESENT | WRITABLE);
    let absent = denied(Denied::Translation, Iova(0x2000));
    assert_eq!(t.f.read(A, 0x1ff0, 0x20), absent);
    let permission = |at| denied(Denied::Permission, Iova(at));
    assert_eq!(t.f.write(A, 0x1000, &[1]), permission(0x1000));
    assert_eq!(t.f.write(A, 0x3000, &[1]), permission(0x3000));
    let reasons = [0x2000, 0x1000, 0x3000].map(|at| (Reason::Mapping, at));
    assert_eq!(t.f.faults(), reasons);
    t.attach(A, TABLE, PageRequests::Reported);
    thread::scope(|scope| {
        let access = scope.spawn(|| t.f.write(A, 0x1ffe, &[1, 2, 3, 4]));
        for page in [0x1000, 0x2000] {
            let group = t.f.next_group();
            assert_eq!(
                group.pages[0].address,
                Iova(page | if page == 0x1000 { 0xffe } else { 0 })
            );
            assert_eq!(group.pages[0].access, EventFlags::WRITE);
            t.table.set(page, 0x5000 | READ_WRITE);
            let answered = t.f.host.respond(group.cookie, Answer::Success);
            answered.expect("answer");
        }
        assert_eq!(access.join().expect("thread"), Ok(()));
    });
}

#[test]
fn what_no_answer_could_help_is_aborted_and_reported__x89() {
    let t = Tables::with(A, PageRequests::Reported);
    // A page of 2 MiB that begins at 4 KiB, PS in the root, a table and a page where no memory is.
    t.table.set_large(0x20_0000, 0x2000 | READ_WRITE);
    t.table
        .store(t.table.entry_at(1 << 39, 3), READ_WRITE | LARGE);
    t.table
        .store(t.table.entry_at(2 << 39, 3), HOLE | READ_WRITE);
    t.table.set(0x1000, HOLE | READ_WRITE);
    for (iova, why, reason) in [
        (0x20_0000, Denied::Malformed, Reason::Mapping),
        (1 << 39, Denied::Malformed, Reason::Mapping),
        (2 << 39, Denied::NoMemory, Reason::Unknown),
        (0x1000, Denied::NoMemory, Reason::Unknown),
        (1 << 47, Denied::Outside, Reason::Mapping),
        (u64::MAX >> 1, Denied::Outside, Reason::Mapping),
    ] {
        assert_eq!(t.f.read(A, iova, 1), denied(why, Iova(iova)));
        assert_eq!(t.f.write(A, iova, &[1]), denied(why, Iova(iova)));
        // A group would be among them.
        assert_eq!(t.f.faults(), [(reason, iova); 2]);
    }
    for why in [Denied::Privileged, Denied::Contended] {
        assert!(!why.is_recoverable());
        t.f.port(A).report(READ, why, Iova(0x1000));
        assert_eq!(t.f.faults(), [(Reason::Mapping, 0x1000)]);
    }
}

#[test]
fn what_the_driver_wrote_before_its_answer_is_in_effect__x90() {
    let t = Tables::with(A, PageRequests::Reported);
    thread::scope(|scope| {
        let access = scope.spawn(|| t.f.read(A, 0x1000, 0x10_000));
        for page in 1..=16 {
            let group = t.f.next_group();
            assert_eq!(group.pages[0].address, Iova(page << 12));
            t.table.set(page << 12, page << 12 | READABLE);
            let answered = t.f.host.respond(group.cookie, Answer::Success);
            answered.expect("answer");
        }
        let data = access.join().expect("thread").expect("read");
        let pages: Vec<u8> = data.chunks(4096).map(|page| page[0]).collect();
        assert_eq!(pages, (1..=16).collect::<Vec<u8>>());
    });
    assert!(t.f.events().is_empty());
}

#[test]
fn reserved_regions_do_not_concern_a_pasid_with_a_table__x91() {
    let t = Tables::new();
    let id = EndpointId(0x38);
    let region = |first, last, subtype| ReservedRegion {
        range: IovaRange::new(first, last).expect("range"),
        subtype,
    };
    let properties = EndpointProperties {
        reserved: vec![
            region(0x1000, 0x1fff, ResvMemSubtype::Reserved),
            region(0xfee0_0000, 0xfeef_ffff, ResvMemSubtype::Msi),
        ],
        ..default_properties()
    };
    t.f.host.add_endpoint(id, properties).expect("endpoint");
    let requester = pasid(id.0, 1);
    t.attach(requester, TABLE, PageRequests::Unwanted);
    t.table.set(0x1000, 0x5000 | READ_WRITE);
    t.table.set(0xfee0_0000, 0x6000 | READ_WRITE);
    assert_eq!(t.f.read(requester, 0x1000, 1), Ok(vec![5]));
    assert_eq!(t.f.write(requester, 0xfee0_0000, &[6]), Ok(()));
    assert_eq!(t.f.read(requester, 0xfee0_0000, 1), Ok(vec![6]));
}

#[test]
fn a_copy_goes_through_tables_and_mappings_and_dirties_only_what_it_writes() {
    for translated in [true, false] {
        let t = Tables::with(P, PageRequests::Reported);
        t.f.attach(A, PageRequests::Unwanted);
        t.f.map(0x10_0000, 0x10_3fff, 0x2_0000, RW);
        t.table.set(0x1000, 0x5000 | READABLE);
        t.table.set(0x2000, 0x9000 | READABLE);
        t.table.set(0x4000, 0x3_0000 | READ_WRITE);
        let port = t.f.port(A);
        let half = |access: Access, requester: Requester, iova| {
            let access = Access {
                pasid: requester.pasid,
                translated,
                ..access
            };
            (access, Iova(iova))
        };
        // From the table to mappings, until a page is missing.
        let moved = port.copy(half(READ, P, 0x1800), half(WRITE, A, 0x10_0000), 0x3000);
        assert_eq!(moved, 0x1800);
        let byte = |gpa| t.f.memory.read_obj::<u8>(GuestAddress(gpa)).expect("RAM");
        assert_eq!(
            [0x2_0000, 0x2_07ff, 0x2_0800, 0x2_17ff, 0x2_1800].map(byte),
            [5, 5, 9, 9, 0x21]
        );
        // Nothing to read, so nothing is written.
        let moved = port.copy(half(READ, P, 0x3000), half(WRITE, P, 0x4000), 16);
        assert_eq!((moved, t.table.entry(0x4000) & DIRTY), (0, 0));
        let moved = port.copy(half(READ, P, 0x2000), half(WRITE, P, 0x4000), 16);
        assert_eq!((moved, t.table.entry(0x4000) & DIRTY), (16, DIRTY));
        assert_eq!(byte(0x3_0000), 9);
        let denied = port.copy(half(READ, P, 0x1000), half(WRITE, P, 0x2000), 16);
        assert_eq!(denied, 0, "not writable");
        assert!(t.f.events().is_empty());
    }
}
