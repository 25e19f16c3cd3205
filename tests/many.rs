// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! If a guest makes many attachments, domains or mappings, work and memory grow in proportion.
//! The memory is given back.
//!
//! Attachments and domains are as many as the default quotas allow. With work in proportion to the square of that, no test
//! here would end.

#[path = "common/requests.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod requests;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use vhost_device_iommu::device::events::{Buffers, EventQueue};
use vhost_device_iommu::device::{Device, DeviceConfig, Reply};
use vhost_device_iommu::host::PageRequest;
use vhost_device_iommu::host::soft::{SoftHost, block_on, default_properties};
use vhost_device_iommu::spec::{
    DomainId, EndpointId, EventFlags, Iova, PageResponseCode, Pasid, Status,
};

use requests::{ATTACH_PAGE_REQUEST, PASID, READ, attach, attach_pasid, map};

/// Counts what a thread has allocated and not given back.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // While a thread ends it is not counted any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: the system's allocator does the work; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread has allocated and not given back.
fn live() -> isize {
    LIVE.get()
}

/// The most bytes that it had meanwhile, beyond those at the start.
fn peak_of(work: impl FnOnce()) -> isize {
    let before = live();
    PEAK.set(before);
    work();
    PEAK.get() - before
}

const FIRST: u32 = 1;
const SECOND: u32 = 2;
/// As many PASIDs, and domains, as the quotas allow.
const MANY: u32 = DeviceConfig::MAX_PASIDS;

fn device(config: DeviceConfig) -> Device {
    device_and_host(config).0
}

fn device_and_host(config: DeviceConfig) -> (Device, Arc<SoftHost>) {
    let host = Arc::new(SoftHost::new().expect("a host"));
    let endpoints = [FIRST, SECOND].map(EndpointId);
    for endpoint in endpoints {
        host.add_endpoint(endpoint, default_properties())
            .expect("an endpoint");
    }
    let device = Device::new(config, Arc::clone(&host) as _, &endpoints).expect("a device");
    device.connect();
    device.negotiate(u64::MAX);
    (device, host)
}

fn request(device: &Device, bytes: &[u8]) -> Status {
    let mut batch = device.requests();
    match batch.execute(bytes, bytes.len(), 4).reply {
        Reply::Status(status) => status,
        other => panic!("no status but {other:?}"),
    }
}

#[test]
fn as_many_pasids_as_there_may_be_in_one_domain_are_detached_at_a_disconnect() {
    let device = device(DeviceConfig::default());
    let before = live();
    for round in 0..2 {
        for pasid in 0..MANY / 2 {
            for endpoint in [FIRST, SECOND] {
                let bytes = attach_pasid(7, endpoint, PASID, pasid);
                assert_eq!(request(&device, &bytes), Status::Ok, "{round} {pasid}");
            }
        }
        let one_more = attach_pasid(7, FIRST, PASID, MANY);
        assert_eq!(request(&device, &one_more), Status::NoMem);
        let status = device.status();
        assert_eq!(status.endpoints[1].pasids.len(), MANY as usize / 2);
        drop(status);
        device.disconnect();
        assert!(device.domains_from(DomainId(0), 1).is_empty());
        device.connect();
        device.negotiate(u64::MAX);
    }
    assert!(live() - before < 4096, "{} bytes are kept", live() - before);
}

/// An event queue that always has a buffer.
struct Endless;

impl EventQueue for Endless {
    fn size(&self) -> usize {
        1024
    }

    fn peek(&mut self, _count: usize, _min_len: usize) -> Buffers {
        Buffers::Enough
    }

    fn push(&mut self, _event: &[u8]) {}

    fn discard(&mut self) {}
}

#[test]
fn as_many_pasids_as_there_may_be_with_a_page_request_each_are_detached_at_a_reset() {
    let (device, host) = device_and_host(DeviceConfig {
        max_page_requests: MANY as usize / 2,
        ..DeviceConfig::default()
    });
    let port = host.port(EndpointId(FIRST)).expect("the endpoint");
    let now = Instant::now();
    device.service_events(Some(&mut Endless), now);
    let before = live();
    let mut answers = Vec::new();
    for pasid in 0..MANY {
        let bytes = attach_pasid(pasid % 8, FIRST, PASID | ATTACH_PAGE_REQUEST, pasid);
        assert_eq!(request(&device, &bytes), Status::Ok);
        let page = PageRequest {
            address: Iova(0x1000),
            access: EventFlags::READ,
            length: 0,
        };
        let answer = port.page_request(Some(Pasid(pasid)), vec![page]);
        answers.push(answer.expect("a page request"));
        // One half is outstanding, the other waits on the host.
        if pasid < MANY / 2 {
            device.service_events(Some(&mut Endless), now);
        }
    }
    let counters = device.counters();
    let outstanding = counters.page_request_groups_delivered.get();
    assert_eq!(outstanding, u64::from(MANY / 2));
    device.reset();
    assert_eq!(counters.page_request_withdrawn.get(), outstanding);
    for answer in answers {
        assert_eq!(block_on(answer), PageResponseCode::InvalidRequest);
    }
    assert!(
        live() - before < 64 << 10,
        "{} bytes are kept",
        live() - before
    );
}

#[test]
fn a_status_of_as_many_domains_as_there_may_be_is_taken_in_pieces() {
    let device = device(DeviceConfig::default());
    let before = live();
    for number in 0..MANY {
        let bytes = attach_pasid(number, FIRST, PASID, number);
        assert_eq!(request(&device, &bytes), Status::Ok);
    }
    let status = device.status();
    assert_eq!(status.domains.len(), MANY as usize);
    assert_eq!(status.endpoints[0].pasids.len(), MANY as usize);
    for (number, domain) in (0..).zip(&status.domains) {
        assert_eq!((domain.id, &domain.endpoints[..]), (number, &[FIRST][..]));
    }
    drop(status);
    // In pieces it takes no more memory than a piece.
    let mut seen = 0;
    let peak = peak_of(|| {
        let mut next = Some(0);
        while let Some(from) = next {
            let piece = device.domains_from(DomainId(from), 256);
            seen += piece.len();
            next = piece.last().map(|domain| domain.id + 1);
        }
        let mut next = Some(0);
        while let Some(from) = next {
            let piece = device
                .pasids_from(EndpointId(FIRST), Pasid(from), 256)
                .expect("the endpoint");
            seen += piece.len();
            next = piece.last().map(|attached| attached.pasid + 1);
        }
    });
    assert_eq!(seen, 2 * MANY as usize);
    assert!(peak < 64 << 10, "{peak} bytes");
    device.reset();
    assert!(live() - before < 4096, "{} bytes are kept", live() - before);
}

#[test]
fn as_many_mappings_as_there_may_be_are_listed_in_pieces() {
    let many = 1 << 17;
    let device = device(DeviceConfig {
        max_mappings: many,
        ..DeviceConfig::default()
    });
    let before = live();
    assert_eq!(request(&device, &attach(7, FIRST, 0)), Status::Ok);
    let many = many as u64;
    let mut batch = device.requests();
    for page in 0..many {
        let first = page << 13;
        let bytes = map(7, first, first + 0xfff, first, READ);
        let step = batch.execute(&bytes, bytes.len(), 4);
        assert_eq!(step.reply, Reply::Status(Status::Ok));
    }
    let bytes = map(7, many << 13, (many << 13) + 0xfff, 0, READ);
    let step = batch.execute(&bytes, bytes.len(), 4);
    assert_eq!(step.reply, Reply::Status(Status::NoMem));
    drop(batch);
    let mut seen = 0;
    let peak = peak_of(|| {
        let mut from = Some(Iova(0));
        while let Some(first) = from {
            let piece = device
                .mappings_from(DomainId(7), first, 256)
                .expect("the domain");
            seen += piece.len() as u64;
            from = piece.last().map(|mapping| Iova(mapping.last + 1));
        }
    });
    assert_eq!(seen, many);
    assert!(peak < 64 << 10, "{peak} bytes");
    assert_eq!(device.domains_from(DomainId(7), 1)[0].bytes, many << 12);
    device.reset();
    assert!(live() - before < 4096, "{} bytes are kept", live() - before);
}
