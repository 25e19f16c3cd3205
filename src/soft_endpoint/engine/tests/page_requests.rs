// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests of DMA, and what the Page Request Interface says about them.

use super::*;

const ASK: Flags = Flags::PAGE_REQUESTS;
/// An address that is not mapped at first.
const IOVA: u64 = 0x40_0000;
const PAGE: u64 = 0x1000;

/// Addresses and access kinds of a group.
fn asked(group: &PageRequestGroup) -> Vec<(u64, EventFlags)> {
    let pages = group.pages.iter();
    pages.map(|page| (page.address.0, page.access)).collect()
}

fn with_group(descriptor: Descriptor, group: u8) -> Descriptor {
    Descriptor {
        group,
        ..descriptor
    }
}

fn with_pasid(descriptor: Descriptor, pasid: u32) -> Descriptor {
    let flags = Flags::from_bits_retain(descriptor.flags.get()) | Flags::PASID;
    Descriptor {
        flags: flags.bits().into(),
        pasid: pasid.into(),
        ..descriptor
    }
}

impl Fixture {
    fn start_one(&self, descriptor: Descriptor) {
        self.store(CHAIN, &[descriptor]);
        self.start(0, CHAIN);
    }

    /// Waits for the end of the chain of one descriptor.
    fn end(&self) -> Completion {
        self.interrupt();
        self.completion(CHAIN)
    }

    fn state(&self, engine: usize) -> u32 {
        self.register(engine, engine::STATUS) & 0xff
    }

    /// Waits until an engine is in a state: there is no event for that.
    fn wait_for_state(&self, engine: usize, state: registers::State) {
        while self.state(engine) != state as u32 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_read_of_a_page_that_is_not_there_is_tried_again_after_success() {
    let f = Fixture::new();
    f.fill(DATA, 0x1000, 5);
    f.start_one(copy(ASK, IOVA + 0x10, 0x8000, 64));
    let group = f.group();
    assert_eq!(asked(&group), [(IOVA + 0x10, EventFlags::READ)]);
    assert_eq!(group.pages[0].length, 64);
    f.wait_for_state(0, registers::State::WaitingForAnswer);
    assert_eq!(f.function.page_requests.outstanding(), (1, 1));
    f.map(IOVA, IOVA + 0xfff, DATA, RW);
    f.answer(&group, Answer::Success);
    let done = f.end();
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!((done.groups.get(), done.retries.get()), (1, 1));
    assert_eq!(f.bytes(0x8000, 64), pattern(0x1000, 5)[0x10..0x50]);
    assert_eq!(f.function.page_requests.outstanding(), (0, 1));
    assert_eq!(f.register(0, engine::SUCCESSES), 1);
}

#[test]
fn a_mapping_without_the_permission_is_asked_for_too() {
    let f = Fixture::new();
    f.map(IOVA, IOVA + 0xfff, DATA, MapFlags::READ);
    f.start_one(copy(ASK, 0x8000, IOVA, 16));
    let group = f.group();
    assert_eq!(asked(&group), [(IOVA, EventFlags::WRITE)]);
    f.unmap(IOVA, IOVA + 0xfff);
    f.map(IOVA, IOVA + 0xfff, DATA, RW);
    f.answer(&group, Answer::Success);
    assert_eq!(f.end().status.get(), status(Outcome::Done));
}

#[test]
fn the_missing_pages_of_an_access_come_in_groups_of_the_size_asked_for() {
    let f = Fixture::new();
    let length = 5 * PAGE as u32;
    // One page in the middle is there.
    f.map(IOVA + PAGE, IOVA + 2 * PAGE - 1, DATA + PAGE, RW);
    f.start_one(with_group(copy(ASK, IOVA, 0x8000, length), 3));
    let group = f.group();
    let pages: Vec<u64> = asked(&group).iter().map(|&(at, _)| at).collect();
    // COPY reads four pages at a time.
    assert_eq!(pages, [IOVA, IOVA + 2 * PAGE, IOVA + 3 * PAGE]);
    f.map(IOVA, IOVA + PAGE - 1, DATA, RW);
    f.map(IOVA + 2 * PAGE, IOVA + 4 * PAGE - 1, DATA, RW);
    f.answer(&group, Answer::Success);
    let group = f.group();
    assert_eq!(asked(&group), [(IOVA + 4 * PAGE, EventFlags::READ)]);
    f.map(IOVA + 4 * PAGE, IOVA + 5 * PAGE - 1, DATA, RW);
    f.answer(&group, Answer::Success);
    let done = f.end();
    assert_eq!(done.done.get(), length);
    assert_eq!(done.groups.get(), 2);
}

/// A read of 8 bytes of every other page from [`IOVA`] on.
fn scattered(f: &Fixture, count: u32) -> Descriptor {
    let mut list = Vec::new();
    for piece in 0..u64::from(count) {
        let piece = Piece {
            address: (IOVA + piece * 2 * PAGE).into(),
            length: 8.into(),
            reserved: 0.into(),
        };
        list.extend_from_slice(piece.as_bytes());
    }
    f.memory
        .write_slice(&list, GuestAddress(LIST))
        .expect("list");
    Descriptor {
        pieces: count.into(),
        ..descriptor(Operation::Read, ASK, LIST, 0)
    }
}

/// A reset waits for the look at what else is missing, so that has an end.
#[test]
fn a_group_asks_for_what_is_near() {
    let f = Fixture::new();
    for (last, pages) in [(255, 2), (256, 1)] {
        let read = scattered(&f, last + 1);
        let gap = IOVA + u64::from(last) * 2 * PAGE;
        f.map(IOVA + PAGE, gap - 1, 0, RW);
        f.start_one(with_group(read, 64));
        let group = f.group();
        assert_eq!(group.pages.len(), pages);
        f.answer(&group, Answer::Invalid);
        assert_eq!(f.end().status.get(), status(Outcome::InvalidRequest));
        f.unmap(IOVA, gap);
    }
}

#[test]
fn a_group_reaches_over_the_pieces_of_a_scatter_list() {
    let f = Fixture::new();
    let read = scattered(&f, 64);
    f.start_one(with_group(read, 64));
    let group = f.group();
    assert_eq!(group.pages.len(), 64);
    f.map(IOVA, IOVA + 128 * PAGE - 1, DATA, RW);
    f.answer(&group, Answer::Success);
    let done = f.end();
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.groups.get(), 1);
}

#[test]
fn a_group_without_an_access_is_what_its_descriptor_says() {
    let f = Fixture::new();
    let kinds = [
        (Flags::FOR_READ, EventFlags::READ),
        (Flags::FOR_WRITE, EventFlags::WRITE),
        (
            Flags::FOR_READ | Flags::FOR_WRITE,
            EventFlags::READ | EventFlags::WRITE,
        ),
    ];
    for (flags, kind) in kinds {
        let length = 64 * PAGE as u32;
        let ask = descriptor(Operation::PageRequest, flags, IOVA, length);
        f.start_one(with_group(ask, 64));
        let group = f.group();
        let expected: Vec<_> = (0..64).map(|page| (IOVA + page * PAGE, kind)).collect();
        assert_eq!(asked(&group), expected);
        f.answer(&group, Answer::Success);
        let done = f.end();
        assert_eq!(done.status.get(), status(Outcome::Done));
        assert_eq!((done.done.get(), done.groups.get()), (64, 1));
    }
    let ask = descriptor(Operation::PageRequest, Flags::FOR_READ, IOVA, 0x2000);
    let too_many = f.run(&[with_group(ask, 1)]);
    assert_eq!(too_many.status.get(), status(Outcome::BadDescriptor));
}

#[test]
fn requests_with_a_pasid_carry_it_and_its_modes() {
    let f = Fixture::new();
    f.attach(Some(7), PageRequests::Reported);
    let flags = ASK | Flags::EXEC | Flags::PRIVILEGED;
    f.start_one(with_pasid(descriptor(Operation::Read, flags, IOVA, 16), 7));
    let group = f.group();
    assert_eq!(group.requester.pasid, Some(Pasid(7)));
    let kinds = EventFlags::READ | EventFlags::EXEC | EventFlags::PRIVILEGED;
    assert_eq!(asked(&group), [(IOVA, kinds)]);
    f.map(IOVA, IOVA + 0xfff, DATA, RW);
    f.answer(&group, Answer::Success);
    assert_eq!(f.end().status.get(), status(Outcome::Done));
}

#[test]
fn descriptors_can_be_fetched_with_a_pasid_and_on_demand() {
    let f = Fixture::new();
    f.attach(Some(9), PageRequests::Reported);
    f.set(0, engine::CONTROL, 0b1110);
    f.set(0, engine::FETCH_PASID, 9);
    f.block.write(at(0, engine::HEAD), &IOVA.to_le_bytes());
    f.set(0, engine::DOORBELL, 1);
    let group = f.group();
    assert_eq!(group.requester.pasid, Some(Pasid(9)));
    assert_eq!(asked(&group), [(IOVA, EventFlags::READ)]);
    let nop = descriptor(Operation::Nop, Flags::empty(), 0, 0);
    f.store(DATA, &[nop]);
    f.map(IOVA, IOVA + 0xfff, DATA, RW);
    f.answer(&group, Answer::Success);
    assert_eq!(f.interrupt(), 0);
    assert_eq!(f.completion(DATA).status.get(), status(Outcome::Done));
}

#[test]
fn invalid_request_fails_the_access_and_no_other() {
    let f = Fixture::new();
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    f.answer(&f.group(), Answer::Invalid);
    let failed = f.end();
    assert_eq!(failed.status.get(), status(Outcome::InvalidRequest));
    assert_eq!(failed.address.get(), IOVA);
    assert_eq!(f.register64(0, engine::FAULT), IOVA);
    assert_eq!(f.register64(0, engine::CURRENT), CHAIN);
    let cause = Cause::CHAIN | Cause::ERROR;
    assert_eq!(f.register(0, engine::INTERRUPT), cause.bits());
    let next = f.run(&[copy(ASK, 0x8000, 0x9000, 64)]);
    assert_eq!(next.status.get(), status(Outcome::Done));
}

#[test]
fn response_failure_stops_all_page_requests_until_the_driver_clears_it() {
    let f = Fixture::new();
    let interface = &f.function.page_requests;
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    f.answer(&f.group(), Answer::ResponseFailure);
    assert_eq!(f.end().status.get(), status(Outcome::ResponseFailure));
    assert!(interface.status().contains(pri::Status::RESPONSE_FAILURE));
    let ask = descriptor(Operation::PageRequest, Flags::FOR_READ, IOVA, 1);
    let refused = f.run(&[ask]);
    assert_eq!(refused.status.get(), status(Outcome::PageRequestsDisabled));
    // An access that may not ask is made all the same, so that somebody hears of it.
    let failed = f.run(&[copy(ASK, IOVA, 0x8000, 64)]);
    assert_eq!(failed.status.get(), status(Outcome::Translation));
    assert_eq!(f.faults(), [(Reason::Mapping, IOVA)]);
    interface.clear_status(pri::Status::RESPONSE_FAILURE);
    f.start_one(ask);
    f.answer(&f.group(), Answer::Success);
    assert_eq!(f.end().status.get(), status(Outcome::Done));
}

#[test]
fn success_in_vain_ends_in_a_fault() {
    let f = Fixture::new();
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    for _ in 0..16 {
        f.answer(&f.group(), Answer::Success);
    }
    let failed = f.end();
    assert_eq!(failed.status.get(), status(Outcome::Retries));
    assert_eq!((failed.groups.get(), failed.retries.get()), (16, 16));
    assert_eq!(f.faults(), [(Reason::Mapping, IOVA)]);
}

#[test]
fn engines_wait_for_allocation_that_others_have() {
    let f = Fixture::new();
    f.function.page_requests.set_allocation(2);
    for engine in 0..3 {
        let address = CHAIN + 0x100 * engine as u64;
        let to = 0x8000 + 0x100 * engine as u64;
        let from = IOVA + PAGE * engine as u64;
        f.store(address, &[copy(ASK, from, to, 64)]);
    }
    f.start(0, CHAIN);
    let first = f.group();
    f.start(1, CHAIN + 0x100);
    let second = f.group();
    f.start(2, CHAIN + 0x200);
    f.wait_for_state(2, registers::State::WaitingForAllocation);
    assert_eq!(f.events(), []);
    f.answer(&second, Answer::Invalid);
    assert_eq!(f.interrupt(), 1);
    let third = f.group();
    f.answer(&third, Answer::Invalid);
    f.answer(&first, Answer::Invalid);
    let mut others = [f.interrupt(), f.interrupt()];
    others.sort_unstable();
    assert_eq!(others, [0, 2]);
    assert_eq!(f.function.page_requests.outstanding(), (0, 2));
}

#[test]
fn a_group_never_exceeds_the_allocation() {
    let f = Fixture::new();
    f.function.page_requests.set_allocation(2);
    let ask = descriptor(Operation::PageRequest, Flags::FOR_READ, IOVA, 0x3000);
    let refused = f.run(&[with_group(ask, 3)]);
    assert_eq!(refused.status.get(), status(Outcome::Allocation));
    // An access asks for as many as it can.
    f.start_one(with_group(copy(ASK, IOVA, 0x8000, 0x3000), 64));
    let group = f.group();
    assert_eq!(group.pages.len(), 2);
    f.map(IOVA, IOVA + 0x2fff, DATA, RW);
    f.answer(&group, Answer::Success);
    assert_eq!(f.end().status.get(), status(Outcome::Done));
    f.function.page_requests.set_allocation(0);
    let none = f.run(&[with_group(ask, 3)]);
    assert_eq!(none.status.get(), status(Outcome::Allocation));
    // More than the capacity means the capacity.
    f.function.page_requests.set_allocation(u32::MAX);
    f.start_one(with_group(ask, 3));
    f.answer(&f.group(), Answer::Success);
    assert_eq!(f.end().status.get(), status(Outcome::Done));
}

#[test]
fn a_stop_marker_is_no_request() {
    let f = Fixture::new();
    f.attach(Some(7), PageRequests::Reported);
    f.function.page_requests.set_allocation(0);
    let marker = descriptor(Operation::StopMarker, Flags::PASID, 0, 0);
    let done = f.run(&[with_pasid(marker, 7)]);
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.groups.get(), 0);
    assert_eq!(f.register(0, engine::MARKERS), 1);
    assert_eq!(f.events(), []);
    // PCI has Stop Markers for PASIDs only.
    let without = descriptor(Operation::StopMarker, Flags::empty(), 0, 0);
    let bad = f.run(&[without]);
    assert_eq!(bad.status.get(), status(Outcome::BadDescriptor));
}

#[test]
fn a_reset_gives_up_a_group_and_its_answer_comes_all_the_same() {
    let f = Fixture::new();
    let interface = &f.function.page_requests;
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    let group = f.group();
    f.set(0, engine::CONTROL, 1);
    assert_eq!(f.register(0, engine::STATUS), 0);
    // The group counts until its answer is there.
    assert_eq!(interface.outstanding().0, 1);
    interface.set_control(pri::Control::empty());
    assert!(!interface.status().contains(pri::Status::STOPPED));
    f.answer(&group, Answer::Success);
    assert_eq!(interface.outstanding().0, 0);
    assert!(interface.status().contains(pri::Status::STOPPED));
    assert!(!interface.status().contains(pri::Status::UNEXPECTED_GROUP));
    assert!(f.interrupts.try_recv().is_err());
}

#[test]
fn an_answer_to_a_group_that_was_forgotten_is_unexpected() {
    let f = Fixture::new();
    let interface = &f.function.page_requests;
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    let group = f.group();
    f.block.reset();
    interface.reset();
    assert_eq!(interface.outstanding(), (0, 0));
    f.answer(&group, Answer::Success);
    assert_eq!(interface.outstanding(), (0, 0));
    assert!(interface.status().contains(pri::Status::UNEXPECTED_GROUP));
    interface.clear_status(pri::Status::UNEXPECTED_GROUP);
    let status = pri::Status::STOPPED | pri::Status::PASID_REQUIRED;
    assert_eq!(interface.status(), status);
}

#[test]
fn a_detach_ends_the_groups_of_an_engine_that_waits() {
    let f = Fixture::new();
    f.start_one(copy(ASK, IOVA, 0x8000, 64));
    f.group();
    let requester = Requester {
        endpoint: ENDPOINT,
        pasid: None,
    };
    f.host
        .attach(requester, Attachment::Blocked)
        .expect("detach");
    f.interrupt();
    // The completion is written while DETACH is on its way, or not at all.
    let outcomes = [Outcome::InvalidRequest, Outcome::Blocked].map(status);
    assert!(outcomes.contains(&f.outcome(0)));
    f.start(0, CHAIN);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::Blocked));
    assert_eq!(f.function.page_requests.outstanding().0, 0);
}
