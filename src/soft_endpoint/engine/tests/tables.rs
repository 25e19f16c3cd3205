// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Engines in a domain with a table of the driver: a PASID's, as the address space of a process is.

use super::*;
use crate::host::soft::guest_table::{
    ACCESSED, DIRTY, GuestTable, LARGE, NO_EXECUTE, READ_WRITE, READABLE,
};
use crate::spec::Iova;

const TABLE: DomainId = DomainId(2);
const OTHER: DomainId = DomainId(3);
const PASID: u32 = 5;
const IOVA: u64 = 0x7fff_0000_0000;
/// Guest memory for the tables.
const TABLE_PAGES: u64 = 0x18_0000;
const OTHER_PAGES: u64 = 0x1c_0000;

impl Fixture {
    /// PASID 5 is attached to a domain with a table, with page requests; descriptors are fetched without a PASID.
    fn with_table() -> (Self, GuestTable) {
        let f = Self::new();
        let table = f.table_domain(TABLE, TABLE_PAGES);
        f.attach_table(PASID, TABLE);
        (f, table)
    }

    fn table_domain(&self, domain: DomainId, pages: u64) -> GuestTable {
        let table = GuestTable::new(&self.memory, pages);
        let by = Translations::Table(table.description());
        self.host.create_domain(domain, by).expect("domain");
        table
    }

    fn attach_table(&self, pasid: u32, domain: DomainId) {
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: Some(Pasid(pasid)),
        };
        let to = Attachment::Domain {
            domain,
            page_requests: PageRequests::Reported,
        };
        self.host.attach(requester, to).expect("attach");
    }

    fn invalidate(&self, first: u64, last: u64) {
        let range = IovaRange::new(first, last).expect("range");
        self.host.invalidate(TABLE, &[range]).expect("invalidate");
    }

    fn hits_and_misses(&self) -> (u32, u32) {
        let counter = |register| self.register(0, register);
        (counter(engine::HITS), counter(engine::MISSES))
    }
}

/// A READ or WRITE of 16 bytes in the address space of the PASID, which asks for pages.
fn touch(operation: Operation, flags: Flags, iova: u64) -> Descriptor {
    Descriptor {
        pasid: PASID.into(),
        ..descriptor(
            operation,
            Flags::PASID | Flags::PAGE_REQUESTS | flags,
            iova,
            16,
        )
    }
}

fn read(iova: u64) -> Descriptor {
    touch(Operation::Read, Flags::empty(), iova)
}

fn write(iova: u64) -> Descriptor {
    touch(Operation::Write, Flags::empty(), iova)
}

fn assert_done(done: &Completion, groups: u32) {
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.groups.get(), groups);
}

#[test]
fn a_page_that_the_driver_enters_is_hit_without_an_invalidate__x83_x88_x90() {
    let (f, table) = Fixture::with_table();
    f.fill(DATA, 0x1000, 7);
    f.store(
        CHAIN,
        &[Descriptor {
            pasid: PASID.into(),
            ..copy(Flags::PASID | Flags::PAGE_REQUESTS, IOVA, IOVA + 0x1800, 16)
        }],
    );
    f.start(0, CHAIN);
    for (at, access, entry) in [
        (IOVA, EventFlags::READ, DATA | READABLE),
        (
            IOVA + 0x1800,
            EventFlags::WRITE,
            (DATA + 0x1000) | READ_WRITE,
        ),
    ] {
        let group = f.group();
        assert_eq!(group.requester.pasid, Some(Pasid(PASID)));
        let [page] = group.pages[..] else {
            panic!("one page: {group:?}");
        };
        assert_eq!((page.address, page.access), (Iova(at), access));
        table.set(at, entry);
        f.answer(&group, Answer::Success);
    }
    assert_eq!(f.interrupt(), 0);
    assert_done(&f.completion(CHAIN), 2);
    assert_eq!(f.bytes(DATA + 0x1800, 16), f.bytes(DATA, 16));
    assert_eq!(table.entry(IOVA) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(
        table.entry(IOVA + 0x1000) & (ACCESSED | DIRTY),
        ACCESSED | DIRTY
    );
    // Now it is kept.
    assert_done(&f.run(&[read(IOVA)]), 0);
    assert_eq!(f.events(), []);
}

/// Linux sends nothing when it makes an entry wider.
#[test]
fn what_was_kept_for_reading_asks_for_nothing_once_it_is_writable__x84() {
    let (f, table) = Fixture::with_table();
    table.set(IOVA, DATA | READABLE | NO_EXECUTE);
    assert_done(&f.run(&[read(IOVA)]), 0);
    table.set(IOVA, DATA | READ_WRITE | NO_EXECUTE);
    assert_done(&f.run(&[write(IOVA)]), 0);
    table.set(IOVA, DATA | READ_WRITE);
    assert_done(&f.run(&[touch(Operation::Read, Flags::EXEC, IOVA)]), 0);
    assert_eq!(f.events(), []);
}

#[test]
fn a_write_makes_its_entry_dirty_even_if_a_read_was_first__x86() {
    let (f, table) = Fixture::with_table();
    for flags in [Flags::empty(), Flags::UNTRANSLATED] {
        table.set(IOVA, DATA | READ_WRITE);
        assert_done(&f.run(&[touch(Operation::Read, flags, IOVA)]), 0);
        assert_eq!(table.entry(IOVA) & (ACCESSED | DIRTY), ACCESSED);
        assert_done(&f.run(&[touch(Operation::Write, flags, IOVA)]), 0);
        assert_eq!(table.entry(IOVA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        f.invalidate(0, u64::MAX);
    }
}

#[test]
fn execution_needs_its_permission_and_privileged_accesses_are_aborted__x88_x89() {
    let (f, table) = Fixture::with_table();
    table.set(IOVA, DATA | READABLE | NO_EXECUTE);
    assert_done(&f.run(&[read(IOVA)]), 0);
    let execute = touch(Operation::Read, Flags::EXEC, IOVA);
    f.store(CHAIN, &[execute]);
    f.start(0, CHAIN);
    let group = f.group();
    assert_eq!(group.pages[0].access, EventFlags::READ | EventFlags::EXEC);
    f.answer(&group, Answer::Invalid);
    f.interrupt();
    let refused = f.completion(CHAIN);
    assert_eq!(refused.status.get(), status(Outcome::InvalidRequest));
    let privileged = f.run(&[touch(Operation::Read, Flags::PRIVILEGED, IOVA)]);
    assert_eq!(privileged.status.get(), status(Outcome::Permission));
    assert_eq!(privileged.groups.get(), 0);
    assert_eq!(f.faults(), [(Reason::Mapping, IOVA)]);
}

#[test]
fn nothing_is_asked_for_where_no_answer_could_help__x89() {
    let (f, table) = Fixture::with_table();
    const HOLE: u64 = 0x4000_0000;
    table.set_large(IOVA, 0x2000 | READ_WRITE);
    table.store(table.entry_at(1 << 39, 3), READ_WRITE | LARGE);
    table.store(table.entry_at(2 << 39, 3), HOLE | READ_WRITE);
    table.set(3 << 39, HOLE | READ_WRITE);
    for (iova, outcome, reason) in [
        (IOVA, Outcome::Translation, Reason::Mapping),
        (1 << 39, Outcome::Translation, Reason::Mapping),
        (2 << 39, Outcome::NoMemory, Reason::Unknown),
        (3 << 39, Outcome::NoMemory, Reason::Unknown),
        (0xffff_7fff_ffff_f000, Outcome::Translation, Reason::Mapping),
    ] {
        for access in [read(iova), write(iova)] {
            let failed = f.run(&[access]);
            assert_eq!(failed.status.get(), status(outcome), "{iova:#x}");
            assert_eq!((failed.groups.get(), failed.address.get()), (0, iova));
            // A group would be an event too.
            assert_eq!(f.faults(), [(reason, iova)]);
        }
    }
}

/// One entry of 2 MiB is kept at three addresses. A process that gives one page of it back has the whole entry split.
#[test]
fn a_large_page_is_missed_everywhere_after_an_invalidate_of_one_page__x103() {
    let (f, table) = Fixture::with_table();
    table.set_large(IOVA, READABLE);
    let reads = [0x10_0000, 0x10_1000, 0x17_f000].map(|offset| read(IOVA + offset));
    f.run(&reads);
    f.run(&reads);
    let before = f.hits_and_misses();
    f.run(&reads);
    assert_eq!(f.hits_and_misses().1, before.1, "all of them are kept");
    f.invalidate(IOVA + 0x1000, IOVA + 0x1fff);
    f.run(&reads);
    assert_eq!(f.hits_and_misses().1, before.1 + 3);
    assert_eq!(f.register(0, engine::INVALIDATED), 3);
}

#[test]
fn an_invalidate_leaves_the_domains_of_other_pasids__x103() {
    let (f, table) = Fixture::with_table();
    let other = f.table_domain(OTHER, OTHER_PAGES);
    f.attach_table(6, OTHER);
    table.set(IOVA, DATA | READABLE);
    other.set(IOVA + 0x2_0000, DATA | READABLE);
    let of_other = Descriptor {
        pasid: 6.into(),
        ..read(IOVA + 0x2_0000)
    };
    f.run(&[read(IOVA), of_other]);
    table.set(IOVA, 0);
    other.set(IOVA + 0x2_0000, 0);
    f.invalidate(0, u64::MAX);
    // Kept, as nobody has invalidated it.
    assert_done(&f.run(&[of_other]), 0);
    f.store(CHAIN, &[read(IOVA)]);
    f.start(0, CHAIN);
    let group = f.group();
    f.answer(&group, Answer::Invalid);
    f.interrupt();
}

/// The driver's processor has locks while it sends INVALIDATE: it could not answer before it is complete.
#[test]
fn an_invalidate_is_complete_while_engines_wait_for_answers__x105() {
    let (f, table) = Fixture::with_table();
    for engine in 0..registers::ENGINES {
        let chain = CHAIN + 64 * engine as u64;
        f.store(chain, &[write(IOVA + ((engine as u64) << 12))]);
        f.start(engine, chain);
    }
    let mut groups = Vec::new();
    while groups.len() < registers::ENGINES {
        f.host.take_events(&mut |event| match event {
            HostEvent::PageRequest(group) => groups.push(group),
            other => panic!("expected a group, got {other:?}"),
        });
        std::thread::yield_now();
    }
    f.invalidate(0, u64::MAX);
    f.invalidate(IOVA, IOVA + 0xfff);
    for group in &groups {
        table.set(group.pages[0].address.0, DATA | READ_WRITE);
        f.answer(group, Answer::Success);
    }
    for _ in 0..registers::ENGINES {
        f.interrupt();
    }
    for engine in 0..registers::ENGINES {
        assert_eq!(f.outcome(engine), status(Outcome::Done));
    }
}

/// Waits until an access of the first engine is held.
fn wait_until_held(f: &Fixture) {
    while f.host.held_accesses() == 0 {
        assert_ne!(f.register(0, engine::STATUS) & 0xff, 0, "it is idle");
        std::thread::yield_now();
    }
}

#[test]
fn an_engine_waits_while_tables_are_held_and_nobody_hears_of_it__x87() {
    let (f, table) = Fixture::with_table();
    table.set(IOVA, DATA | READ_WRITE);
    table.set(IOVA + 0x1000, (DATA + 0x1000) | READ_WRITE);
    f.fill(DATA, 0x1000, 7);
    let flags = Flags::PASID | Flags::PAGE_REQUESTS;
    let in_process = |job: Descriptor| Descriptor {
        pasid: PASID.into(),
        ..job
    };
    for job in [
        copy(flags, IOVA, IOVA + 0x1000, 16),
        copy(flags | Flags::UNTRANSLATED, IOVA, IOVA + 0x1000, 16),
        descriptor(Operation::Translate, flags | Flags::FOR_WRITE, IOVA, 16),
    ] {
        f.host.hold_tables();
        let before = [0, 0x1000].map(|page| table.entry(IOVA + page));
        f.store(CHAIN, &[in_process(job)]);
        f.start(0, CHAIN);
        wait_until_held(&f);
        assert!(f.interrupts.try_recv().is_err());
        assert_eq!(before, [0, 0x1000].map(|page| table.entry(IOVA + page)));
        f.host.release_tables();
        assert_eq!(f.interrupt(), 0);
        let done = f.completion(CHAIN);
        assert_done(&done, 0);
        assert_eq!(done.retries.get(), 0);
    }
    assert_eq!(f.bytes(DATA + 0x1000, 16), f.bytes(DATA, 16));
    assert!(f.events().is_empty());
}

#[test]
fn a_reset_ends_an_engine_that_is_held() {
    let (f, table) = Fixture::with_table();
    table.set(IOVA, DATA | READ_WRITE);
    for job in [
        read(IOVA),
        touch(Operation::Translate, Flags::FOR_WRITE, IOVA),
    ] {
        f.host.hold_tables();
        let before = table.entry(IOVA);
        f.store(CHAIN, &[job]);
        f.start(0, CHAIN);
        wait_until_held(&f);
        // It returns when the engine has stopped.
        f.set(0, engine::CONTROL, 1);
        assert_eq!(f.host.held_accesses(), 0);
        assert_eq!(f.register(0, engine::STATUS) & 0xff, 0, "idle");
        f.host.release_tables();
        assert_eq!(table.entry(IOVA), before);
        assert_done(&f.run(&[job]), 0);
    }
    // The process ends: so does every engine.
    f.host.hold_tables();
    f.start(0, CHAIN);
    wait_until_held(&f);
    let host = std::sync::Arc::clone(&f.host);
    drop(f);
    assert_eq!(host.held_accesses(), 0);
}
