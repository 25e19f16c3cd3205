// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host; the test plays the device.

mod ports;
mod tables;

use std::sync::mpsc;
use std::thread;

use crate::host::soft::port::MAX_RETRIES;
use crate::host::{Fault, PageRequest, PageRequests, Translations};
use crate::spec::{Iova, Reason};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::host::PageRequestGroup;
use crate::host::mapping::{MappingTable, SharedMappings};
use crate::spec::{EventFlags, Gpa, MapFlags, Pasid};

const RAM: u64 = 0x10_0000;
const DOMAIN: DomainId = DomainId(7);
const A: Requester = plain(0x28);
const B: Requester = plain(0x30);

const fn plain(endpoint: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: None,
    }
}

const fn pasid(endpoint: u32, pasid: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: Some(Pasid(pasid)),
    }
}

/// A host with two endpoints, one domain and [`RAM`] bytes of memory; byte `n` is `n >> 12`.
struct Fixture {
    host: Arc<SoftHost>,
    memory: GuestMemoryMmap,
    table: SharedMappings,
}

impl Fixture {
    fn new() -> Self {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("memory");
        for page in 0..RAM >> 12 {
            memory
                .write_slice(&[page as u8; 4096], GuestAddress(page << 12))
                .expect("fill");
        }
        let host = Arc::new(SoftHost::new().expect("host"));
        for requester in [A, B] {
            host.add_endpoint(requester.endpoint, default_properties())
                .expect("endpoint");
        }
        host.update_memory(&memory, &[], &[]).expect("memory");
        let table = Arc::new(std::sync::RwLock::new(MappingTable::default()));
        host.create_domain(DOMAIN, Translations::Mappings(Arc::clone(&table)))
            .expect("domain");
        Self {
            host,
            memory,
            table,
        }
    }

    fn attach(&self, requester: Requester, page_requests: PageRequests) {
        let to = Attachment::Domain {
            domain: DOMAIN,
            page_requests,
        };
        self.host.attach(requester, to).expect("attach");
    }

    fn map(&self, first: u64, last: u64, gpa: u64, flags: MapFlags) {
        let mapping = Mapping {
            range: IovaRange::new(first, last).expect("range"),
            gpa: Gpa(gpa),
            flags,
        };
        self.host.map(DOMAIN, &mapping).expect("map");
        let mut table = self.table.write().expect("table");
        table.insert(&mapping).expect("no overlap");
    }

    fn unmap(&self, first: u64, last: u64) {
        self.take_from_table(first, last);
        let range = IovaRange::new(first, last).expect("range");
        self.host.unmap(DOMAIN, range, &[]).expect("unmap");
    }

    /// The half of an UNMAP that the device does itself.
    fn take_from_table(&self, first: u64, last: u64) {
        let range = IovaRange::new(first, last).expect("range");
        let mut table = self.table.write().expect("table");
        table.remove(&range, |_| ()).expect("no split");
    }

    fn port(&self, requester: Requester) -> Port {
        self.host.port(requester.endpoint).expect("port")
    }

    fn read(&self, requester: Requester, iova: u64, length: usize) -> Result<Vec<u8>, AccessError> {
        let mut data = vec![0xee; length];
        let transfer = Transfer::Read(&mut data);
        block_on(
            self.port(requester)
                .access(requester.pasid, Iova(iova), transfer),
        )?;
        Ok(data)
    }

    fn write(&self, requester: Requester, iova: u64, data: &[u8]) -> Result<(), AccessError> {
        let transfer = Transfer::Write(data);
        block_on(
            self.port(requester)
                .access(requester.pasid, Iova(iova), transfer),
        )
    }

    fn raise(&self, requester: Requester, pages: Vec<PageRequest>) -> PendingResponse {
        let raised = self.port(requester).page_request(requester.pasid, pages);
        raised.expect("raise")
    }

    fn events(&self) -> Vec<HostEvent> {
        let mut events = Vec::new();
        self.host.take_events(&mut |event| events.push(event));
        events
    }

    /// Waits until the host has something to tell; it must be one group.
    fn next_group(&self) -> PageRequestGroup {
        wait_readable(self.host.events.event_fd());
        match self.events().as_slice() {
            [HostEvent::PageRequest(group)] => group.clone(),
            other => panic!("expected a group, got {other:?}"),
        }
    }

    fn faults(&self) -> Vec<(Reason, u64)> {
        self.events()
            .iter()
            .map(|event| match event {
                HostEvent::Fault(fault) => (fault.reason, fault.address.expect("address").0),
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }
}

fn epoll_of(fd: RawFd) -> vmm_sys_util::epoll::Epoll {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    let epoll = Epoll::new().expect("epoll");
    epoll
        .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
        .expect("add");
    epoll
}

fn wait_readable(fd: RawFd) {
    let mut events = [vmm_sys_util::epoll::EpollEvent::default()];
    assert_eq!(epoll_of(fd).wait(10_000, &mut events).expect("wait"), 1);
}

fn is_readable(fd: RawFd) -> bool {
    let mut events = [vmm_sys_util::epoll::EpollEvent::default()];
    epoll_of(fd).wait(0, &mut events).expect("wait") == 1
}

/// An access that may return `T`, and was aborted.
fn denied<T>(denied: Denied, at: Iova) -> Result<T, AccessError> {
    Err(AccessError::Denied(denied, at))
}

const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

#[test]
fn an_access_goes_through_the_mappings_of_the_domain() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    f.map(0x2000, 0x2fff, 0x9000, RW);
    let data = f.read(A, 0x1ffe, 4).expect("read");
    assert_eq!(data, [5, 5, 9, 9]);
    f.write(A, 0x1fff, &[0xaa, 0xbb]).expect("write");
    assert_eq!(
        f.memory.read_obj::<u8>(GuestAddress(0x5fff)).ok(),
        Some(0xaa)
    );
    assert_eq!(
        f.memory.read_obj::<u8>(GuestAddress(0x9000)).ok(),
        Some(0xbb)
    );
    assert!(f.events().is_empty());
}

#[test]
fn an_access_larger_than_a_chunk_moves_every_byte() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x10_0000, 0x10_0000 + RAM - 1, 0, RW);
    let data = f.read(A, 0x10_0000, RAM as usize).expect("read");
    assert!(
        data.iter()
            .enumerate()
            .all(|(at, &byte)| byte == (at >> 12) as u8)
    );
}

#[test]
fn a_miss_without_page_requests_is_a_fault_at_the_first_failing_byte() {
    for page_requests in [PageRequests::Unwanted, PageRequests::Off] {
        let f = Fixture::new();
        f.attach(A, page_requests);
        f.map(0x1000, 0x1fff, 0x5000, RW);
        let result = f.read(A, 0x1ff0, 0x20);
        assert_eq!(result, denied(Denied::Translation, Iova(0x2000)));
        assert_eq!(f.faults(), [(Reason::Mapping, 0x2000)]);
    }
}

#[test]
fn a_mapping_permits_what_its_flags_say__m45() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, MapFlags::READ);
    f.map(0x2000, 0x2fff, 0x6000, MapFlags::WRITE);
    f.map(0x3000, 0x3fff, 0x7000, MapFlags::empty());
    f.read(A, 0x1000, 1).expect("readable");
    f.write(A, 0x2000, &[1]).expect("writable");
    for (result, at) in [
        (f.write(A, 0x1000, &[1]), 0x1000),
        (f.read(A, 0x2000, 1).map(drop), 0x2000),
        (f.read(A, 0x3000, 1).map(drop), 0x3000),
    ] {
        assert_eq!(result, denied(Denied::Permission, Iova(at)));
    }
    let reasons = [0x1000, 0x2000, 0x3000].map(|at| (Reason::Mapping, at));
    assert_eq!(f.faults(), reasons);
    assert_eq!(f.memory.read_obj::<u8>(GuestAddress(0x5000)).ok(), Some(5));
}

#[test]
fn a_new_endpoint_is_blocked() {
    let f = Fixture::new();
    assert_eq!(f.read(A, 0x1000, 1), denied(Denied::Blocked, Iova(0x1000)));
    assert_eq!(f.faults(), [(Reason::Domain, 0x1000)]);
}

#[test]
fn bypass_is_identity_up_to_the_end_of_memory() {
    let f = Fixture::new();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    assert_eq!(f.read(A, 0x3fff, 2).expect("read"), [3, 4]);
    let result = f.write(A, RAM - 1, &[1, 2]);
    assert_eq!(result, denied(Denied::NoMemory, Iova(RAM)));
    assert_eq!(f.faults(), [(Reason::Unknown, RAM)]);
}

#[test]
fn a_pasid_is_never_in_bypass_by_itself() {
    let f = Fixture::new();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    assert!(f.read(pasid(0x28, 1), 0, 1).is_err());
    f.attach(pasid(0x28, 1), PageRequests::Unwanted);
    f.map(0, 0xfff, 0x5000, RW);
    assert_eq!(f.read(pasid(0x28, 1), 0, 1).expect("mapped"), [5]);
    assert_eq!(f.read(A, 0, 1).expect("bypass"), [0]);
    f.host
        .attach(pasid(0x28, 1), Attachment::Blocked)
        .expect("detach");
    assert!(f.read(pasid(0x28, 1), 0, 1).is_err());
}

#[test]
fn a_pasid_beyond_the_width_does_not_exist() {
    let f = Fixture::new();
    let result = f.read(pasid(0x28, 1 << 20), 0, 1);
    assert_eq!(result, denied(Denied::NoPasid(20), Iova(0)));
}

#[test]
fn an_access_beyond_the_last_address_is_refused() {
    let f = Fixture::new();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    assert_eq!(f.read(A, u64::MAX, 2), Err(AccessError::Wraps));
    assert!(f.read(A, u64::MAX, 1).is_err());
    assert_eq!(f.read(A, u64::MAX, 0), Ok(Vec::new()));
}

#[test]
fn a_mapping_of_addresses_without_memory_takes_effect_when_memory_appears() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    f.map(0x1000, 0x1fff, RAM, RW);
    assert_eq!(f.read(A, 0x1000, 1), denied(Denied::NoMemory, Iova(0x1000)));
    assert_eq!(f.faults(), [(Reason::Unknown, 0x1000)]);
    let more = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x1000)]).expect("memory");
    f.host.update_memory(&more, &[], &[]).expect("update");
    assert_eq!(f.read(A, 0x1000, 1), Ok(vec![0]));
}

#[test]
fn memory_that_went_away_cannot_be_reached() {
    let f = Fixture::new();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    f.host
        .update_memory(&GuestMemoryMmap::new(), &[], &[])
        .expect("update");
    assert_eq!(f.read(A, 0, 1), denied(Denied::NoMemory, Iova(0)));
}

#[test]
fn a_miss_raises_a_page_request_and_goes_on_after_success() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    thread::scope(|scope| {
        let access = scope.spawn(|| f.read(A, 0x1ffe, 4));
        let group = f.next_group();
        assert_eq!(group.requester, A);
        let wanted = PageRequest {
            address: Iova(0x2000),
            access: EventFlags::READ,
            length: 2,
        };
        assert_eq!(group.pages, [wanted]);
        f.map(0x2000, 0x2fff, 0x9000, RW);
        f.host
            .respond(group.cookie, Answer::Success)
            .expect("answer");
        assert_eq!(access.join().expect("thread"), Ok(vec![5, 5, 9, 9]));
    });
    assert!(f.events().is_empty());
}

#[test]
fn a_missing_permission_raises_a_page_request_too() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    f.map(0x1000, 0x1fff, 0x5000, MapFlags::READ);
    thread::scope(|scope| {
        let access = scope.spawn(|| f.write(A, 0x1000, &[1]));
        let group = f.next_group();
        assert_eq!(group.pages[0].access, EventFlags::WRITE);
        f.host
            .respond(group.cookie, Answer::Invalid)
            .expect("answer");
        let failed = AccessError::PageRequest(Iova(0x1000), PageResponseCode::InvalidRequest);
        assert_eq!(access.join().expect("thread"), Err(failed));
    });
}

#[test]
fn answers_success_that_bring_nothing_end_in_a_fault() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    thread::scope(|scope| {
        let access = scope.spawn(|| f.read(A, 0x1000, 1));
        for _ in 0..MAX_RETRIES {
            let group = f.next_group();
            f.host
                .respond(group.cookie, Answer::Success)
                .expect("answer");
        }
        let failed = denied(Denied::Translation, Iova(0x1000));
        assert_eq!(access.join().expect("thread"), failed);
    });
    assert_eq!(f.faults(), [(Reason::Mapping, 0x1000)]);
}

#[test]
fn a_group_is_one_event_with_its_pages_in_order() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    let pages: Vec<PageRequest> = (1..=3)
        .map(|page| PageRequest {
            address: Iova(page << 12),
            access: EventFlags::READ | EventFlags::WRITE,
            length: 0,
        })
        .collect();
    let response = f.raise(A, pages.clone());
    let group = f.next_group();
    assert_eq!(group.pages, pages);
    f.host
        .respond(group.cookie, Answer::Success)
        .expect("answer");
    assert_eq!(block_on(response), PageResponseCode::Success);
}

#[test]
fn attaching_elsewhere_answers_the_groups_of_that_requester_only() {
    let f = Fixture::new();
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    let requesters = [A, B, pasid(0x28, 3)];
    let mut responses = Vec::new();
    for requester in requesters {
        f.attach(requester, PageRequests::Reported);
        responses.push(f.raise(requester, vec![page]));
    }
    let cookies: Vec<Cookie> = f
        .events()
        .into_iter()
        .map(|event| match event {
            HostEvent::PageRequest(group) => group.cookie,
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    assert_eq!(
        block_on(responses.remove(0)),
        PageResponseCode::InvalidRequest
    );
    assert!(matches!(
        f.host.respond(cookies[0], Answer::Success),
        Err(HostError::NoGroup(_))
    ));
    for (response, cookie) in responses.into_iter().zip(&cookies[1..]) {
        f.host
            .respond(*cookie, Answer::Success)
            .expect("still there");
        assert_eq!(block_on(response), PageResponseCode::Success);
    }
}

#[test]
fn attaching_to_the_same_changes_nothing() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    let response = f.raise(A, vec![page]);
    f.attach(A, PageRequests::Reported);
    let group = f.next_group();
    f.host
        .respond(group.cookie, Answer::Success)
        .expect("answer");
    assert_eq!(block_on(response), PageResponseCode::Success);
}

#[test]
fn a_group_withdrawn_before_it_was_taken_is_never_handed_out() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    f.attach(B, PageRequests::Reported);
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    let dead = f.raise(A, vec![page]);
    f.host.remove_endpoint(A.endpoint);
    assert!(!is_readable(f.host.events.event_fd()));
    assert_eq!(block_on(dead), PageResponseCode::InvalidRequest);
    // The cookie is free again, and means the new group.
    let alive = f.raise(B, vec![page]);
    let group = f.next_group();
    assert_eq!(group.requester, B);
    f.host
        .respond(group.cookie, Answer::Success)
        .expect("answer");
    assert_eq!(block_on(alive), PageResponseCode::Success);
    let gone = f.host.port(A.endpoint);
    assert!(matches!(gone, Err(HostError::NoEndpoint(id)) if id == A.endpoint));
}

#[test]
fn page_requests_without_a_translation_to_ask_for_are_answered_at_once() {
    let f = Fixture::new();
    let page = PageRequest {
        address: Iova(0x1234),
        access: EventFlags::READ,
        length: 0,
    };
    let ask = || block_on(f.raise(A, vec![page]));
    assert_eq!(ask(), PageResponseCode::InvalidRequest);
    assert_eq!(f.faults(), [(Reason::Domain, 0x1234)]);
    f.host.attach(A, Attachment::Bypass).expect("attach");
    assert_eq!(ask(), PageResponseCode::InvalidRequest);
    f.attach(A, PageRequests::Off);
    assert_eq!(ask(), PageResponseCode::InvalidRequest);
    assert!(f.events().is_empty());
}

/// Every fault is handed out, or counted as dropped.
#[test]
fn waiting_faults_are_bounded_and_those_beyond_are_counted() {
    let f = Fixture::new();
    for at in 0..1000 {
        assert!(f.read(A, at, 1).is_err());
    }
    let mut events = f.events();
    assert_eq!(events.pop(), Some(HostEvent::FaultsDropped(1000 - 64)));
    assert_eq!(events.len(), 64);
    assert!(matches!(events[0], HostEvent::Fault(fault) if fault.address == Some(Iova(0))));
    assert!(f.read(A, 5, 1).is_err());
    assert_eq!(f.faults(), [(Reason::Domain, 5)]);
}

#[test]
fn faults_of_an_endpoint_that_is_removed_are_counted_as_dropped() {
    let f = Fixture::new();
    for requester in [A, B, A] {
        assert!(f.read(requester, 0, 1).is_err());
    }
    f.host.remove_endpoint(A.endpoint);
    f.host.remove_endpoint(B.endpoint);
    assert!(is_readable(f.host.events.event_fd()));
    assert_eq!(f.events(), [HostEvent::FaultsDropped(3)]);
    assert!(!is_readable(f.host.events.event_fd()));
}

/// Accesses fail on several threads while another takes the events, as the fault worker does.
#[test]
fn no_fault_of_a_burst_is_lost_between_delivered_and_dropped() {
    const EACH: u64 = 3000;
    let f = Fixture::new();
    let (mut delivered, mut dropped) = (0, 0);
    let mut take = |events: Vec<HostEvent>| {
        for event in events {
            match event {
                HostEvent::Fault(_) => delivered += 1,
                HostEvent::FaultsDropped(count) => dropped += count,
                other => panic!("unexpected {other:?}"),
            }
        }
    };
    thread::scope(|scope| {
        let bursts = [A, B].map(|requester| {
            let f = &f;
            scope.spawn(move || {
                for at in 0..EACH {
                    assert!(f.read(requester, at, 1).is_err());
                }
            })
        });
        while bursts.iter().any(|burst| !burst.is_finished()) {
            take(f.events());
        }
    });
    take(f.events());
    assert_eq!(delivered + dropped, 2 * EACH);
    assert!(delivered >= 64);
}

/// Groups that come and go for hours leave nothing behind.
#[test]
fn answered_and_withdrawn_groups_leave_no_trace() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    for round in 0..900 {
        let responses = [(); 3].map(|()| f.raise(A, vec![page]));
        match round % 3 {
            // The device does not take them.
            0 => f.host.remove_endpoint(A.endpoint),
            1 => f.host.attach(A, Attachment::Blocked).expect("detach"),
            _ => {
                for event in f.events() {
                    let HostEvent::PageRequest(group) = event else {
                        panic!("unexpected {event:?}");
                    };
                    f.host
                        .respond(group.cookie, Answer::Invalid)
                        .expect("answer");
                }
            }
        }
        for response in responses {
            assert_eq!(block_on(response), PageResponseCode::InvalidRequest);
        }
        if round % 3 == 0 {
            let added = f.host.add_endpoint(A.endpoint, default_properties());
            added.expect("endpoint");
        }
        f.attach(A, PageRequests::Reported);
        assert_eq!(f.host.events.sizes(), [0; 4]);
    }
}

#[test]
fn a_cookie_that_was_not_handed_out_yet_is_none() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    let page = PageRequest {
        address: Iova(0),
        access: EventFlags::READ,
        length: 0,
    };
    let response = f.raise(A, vec![page]);
    let early = f.host.respond(Cookie(0), Answer::Success);
    assert!(matches!(early, Err(HostError::NoGroup(Cookie(0)))));
    let group = f.next_group();
    f.host
        .respond(group.cookie, Answer::Success)
        .expect("answer");
    assert_eq!(block_on(response), PageResponseCode::Success);
}

#[test]
fn the_event_descriptor_is_readable_exactly_while_something_waits() {
    let f = Fixture::new();
    let fd = f.host.event_fds()[0];
    assert!(!is_readable(fd));
    assert!(f.read(A, 0, 1).is_err());
    assert!(f.read(A, 0, 1).is_err());
    assert!(is_readable(fd));
    assert_eq!(f.events().len(), 2);
    assert!(!is_readable(fd));
}

#[test]
fn many_accesses_wait_at_once_and_each_gets_its_own_answer() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Reported);
    thread::scope(|scope| {
        let accesses: Vec<_> = (0..32u64)
            .map(|page| {
                scope.spawn({
                    let f = &f;
                    move || f.read(A, page << 12, 1)
                })
            })
            .collect();
        let mut groups = Vec::new();
        while groups.len() < accesses.len() {
            wait_readable(f.host.events.event_fd());
            f.host.take_events(&mut |event| groups.push(event));
        }
        // In another order than they came.
        for event in groups.iter().rev() {
            let HostEvent::PageRequest(group) = event else {
                panic!("unexpected {event:?}");
            };
            let page = group.pages[0].address.0 >> 12;
            if page % 2 == 0 {
                f.map(page << 12, (page << 12) | 0xfff, page << 12, RW);
                f.host
                    .respond(group.cookie, Answer::Success)
                    .expect("answer");
            } else {
                f.host
                    .respond(group.cookie, Answer::Invalid)
                    .expect("answer");
            }
        }
        for (page, access) in accesses.into_iter().enumerate() {
            let result = access.join().expect("thread");
            match page % 2 {
                0 => assert_eq!(result, Ok(vec![page as u8])),
                _ => assert!(matches!(result, Err(AccessError::PageRequest(..)))),
            }
        }
    });
}

/// Readers of one table, one endpoint and one memory are inside at the same time: a reader that another one
/// kept out would never meet it at the barrier.
#[test]
fn accesses_do_not_wait_for_each_other() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.attach(B, PageRequests::Unwanted);
    f.map(0, 0xfff, 0x5000, RW);
    // Held for reading here as by an access in flight, and in its order.
    let endpoint = f.host.find(A.endpoint).expect("endpoint");
    let views = endpoint.views();
    let table = f.table.read().expect("table");
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        for requester in [A, B] {
            let (f, done) = (&f, done.clone());
            scope.spawn(move || done.send(f.read(requester, 0, 8)));
        }
        for _ in 0..2 {
            let result = finished
                .recv_timeout(std::time::Duration::from_secs(10))
                .expect("not blocked");
            assert_eq!(result, Ok(vec![5; 8]));
        }
    });
    drop((table, views));
}

type Remover<'a> = Box<dyn Fn() + Send + 'a>;

/// UNMAP, DETACH and the removal of memory each wait for an access in flight, which holds its port's lock.
#[test]
fn taking_away_waits_for_accesses_in_flight() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0, 0xfff, 0x5000, RW);
    let _port = f.port(A);
    let state = Arc::clone(&f.host.ports.of(A.endpoint)[0]);
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        let in_flight = state.lock_for_access();
        let removers: [(&str, Remover<'_>); 3] = [
            ("unmap", Box::new(|| f.unmap(0, 0xfff))),
            (
                "detach",
                Box::new(|| f.host.attach(A, Attachment::Blocked).expect("detach")),
            ),
            (
                "memory",
                Box::new(|| {
                    let none = GuestMemoryMmap::new();
                    f.host.update_memory(&none, &[], &[]).expect("update");
                }),
            ),
        ];
        for (name, remove) in removers {
            let done = done.clone();
            scope.spawn(move || {
                remove();
                done.send(name)
            });
        }
        // None can be through, however long one looks.
        assert!(finished.try_recv().is_err());
        thread::yield_now();
        assert!(finished.try_recv().is_err());
        drop(in_flight);
        let mut names: Vec<&str> = (0..3).map(|_| finished.recv().expect("name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["detach", "memory", "unmap"]);
    });
    assert!(f.read(A, 0, 1).is_err());
}

/// A reader hammers a page while it is mapped and unmapped under it. After an unmap returns, the page is given
/// a new content that the reader must never see.
#[test]
fn no_access_is_in_flight_once_unmap_has_returned() {
    const SECRET: u8 = 0xff;
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut hits = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || hits == 0 {
                if let Ok(data) = f.read(A, 0, 4096) {
                    assert!(!data.contains(&SECRET));
                    hits += 1;
                }
                f.events();
            }
        });
        let mut round = 0;
        while round < 500 {
            f.memory
                .write_slice(&[1; 4096], GuestAddress(0x5000))
                .expect("fill");
            f.map(0, 0xfff, 0x5000, RW);
            thread::yield_now();
            f.unmap(0, 0xfff);
            f.memory
                .write_slice(&[SECRET; 4096], GuestAddress(0x5000))
                .expect("fill");
            round += 1;
        }
        f.memory
            .write_slice(&[1; 4096], GuestAddress(0x5000))
            .expect("fill");
        f.map(0, 0xfff, 0x5000, RW);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().expect("reader");
    });
}
