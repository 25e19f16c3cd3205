// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device against the specification. Names of tests end in the ids of the points they prove.

mod attach;
mod bypass;
mod config;
mod connection;
mod fake;
mod invalidate;
mod map_unmap;
mod memory;
mod model;
mod page_requests;
mod pasid;
mod probe;
mod reports;
mod requests;
mod tables;
mod time_out;

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, IntoBytes};

use crate::device::events::EventQueue;
use crate::device::{Device, DeviceConfig, Reply, Step};
use crate::host::{PageRequest, Requester};
use crate::spec::{
    self, AttachFlags, DetachFlags, DomainId, EndpointId, Event, EventFlags, Features, Gpa,
    GroupId, Iova, MapFlags, PageResponseFlags, Pasid, Status, TableFormat,
};

use fake::{FakeHost, FakeQueue};

pub(super) const READ: u32 = 1;
pub(super) const WRITE: u32 = 2;
pub(super) const RW: u32 = READ | WRITE;
pub(super) const BYPASS: u32 = 1;
pub(super) const PAGE_REQUEST: u32 = 2;
pub(super) const PASID: u32 = 4;
pub(super) const GRANULE: u64 = 0x1000;

/// A device over a fake host, and a driver that speaks to it in bytes.
pub(super) struct Bench {
    pub device: Device,
    pub host: Arc<FakeHost>,
    pub now: Instant,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(DeviceConfig::default(), FakeHost::new(&[1, 2, 3]))
    }

    /// A front-end is connected, and all features are negotiated.
    pub fn with(config: DeviceConfig, host: FakeHost) -> Self {
        let host = Arc::new(host);
        let endpoints = host.endpoint_ids();
        let device = Device::new(config, host.clone(), &endpoints).expect("device");
        device.connect();
        device.negotiate(device.offered_features().bits());
        Self {
            device,
            host,
            now: Instant::now(),
        }
    }

    pub fn negotiate_without(&self, missing: Features) {
        self.device
            .negotiate((self.device.offered_features() - missing).bits());
    }

    /// One request in a batch of its own.
    pub fn raw(&self, bytes: &[u8], writable: usize) -> Reply {
        self.batch(&[(bytes.to_vec(), writable)])[0]
    }

    /// Requests in one batch. Joined ones get the status that settles them.
    pub fn batch(&self, requests: &[(Vec<u8>, usize)]) -> Vec<Reply> {
        let mut replies = Vec::new();
        let settle = |replies: &mut Vec<Reply>, settled: Option<Status>| {
            if let Some(status) = settled {
                for reply in replies.iter_mut().filter(|reply| **reply == Reply::Joined) {
                    *reply = Reply::Status(status);
                }
            }
        };
        let mut batch = self.device.requests();
        for (bytes, writable) in requests {
            let seen = &bytes[..bytes.len().min(super::MAX_READABLE)];
            let Step { settled, reply } = batch.execute(seen, bytes.len(), *writable);
            settle(&mut replies, settled);
            replies.push(reply);
        }
        settle(&mut replies, batch.finish().settled);
        assert!(
            !replies.contains(&Reply::Joined),
            "a request was never answered"
        );
        replies
    }

    pub fn status(&self, bytes: &[u8]) -> Status {
        match self.raw(bytes, 4) {
            Reply::Status(status) => status,
            other => panic!("no status but {other:?}"),
        }
    }

    pub fn attach(&self, domain: u32, endpoint: u32) -> Status {
        self.attach_with(domain, endpoint, 0)
    }

    pub fn attach_with(&self, domain: u32, endpoint: u32, flags: u32) -> Status {
        self.attach_pasid(domain, endpoint, flags, 0)
    }

    pub fn attach_pasid(&self, domain: u32, endpoint: u32, flags: u32, pasid: u32) -> Status {
        self.status(attach_bytes(domain, endpoint, flags, pasid).as_bytes())
    }

    pub fn detach(&self, domain: u32, endpoint: u32) -> Status {
        self.detach_with(domain, endpoint, 0, 0)
    }

    pub fn detach_with(&self, domain: u32, endpoint: u32, flags: u32, pasid: u32) -> Status {
        self.status(detach_bytes(domain, endpoint, flags, pasid).as_bytes())
    }

    /// A table of four levels at `root`.
    pub fn attach_table(&self, domain: u32, endpoint: u32, root: u64) -> Status {
        self.attach_table_pasid(domain, endpoint, 0, 0, root)
    }

    pub fn attach_table_pasid(
        &self,
        domain: u32,
        endpoint: u32,
        flags: u32,
        pasid: u32,
        root: u64,
    ) -> Status {
        self.status(attach_table_bytes(domain, endpoint, flags, pasid, root).as_bytes())
    }

    pub fn invalidate(&self, domain: u32, first: u64, last: u64) -> Status {
        self.status(invalidate_bytes(domain, first, last).as_bytes())
    }

    pub fn map(&self, domain: u32, first: u64, last: u64, gpa: u64, flags: u32) -> Status {
        self.status(&map_bytes(domain, first, last, gpa, flags))
    }

    pub fn unmap(&self, domain: u32, first: u64, last: u64) -> Status {
        self.status(&unmap_bytes(domain, first, last))
    }

    pub fn respond(&self, endpoint: u32, group: u16, code: u16) -> Status {
        self.respond_with(endpoint, group, code, 0, 0)
    }

    pub fn respond_with(
        &self,
        endpoint: u32,
        group: u16,
        code: u16,
        flags: u32,
        pasid: u32,
    ) -> Status {
        self.status(response_bytes(endpoint, group, code, flags, pasid).as_bytes())
    }

    pub fn service(&self, queue: &mut FakeQueue) -> Option<Instant> {
        self.device
            .service_events(Some(queue as &mut dyn EventQueue), self.now)
    }

    pub fn service_without_queue(&self) -> Option<Instant> {
        self.device.service_events(None, self.now)
    }

    pub fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Whether an access goes through on the host, and where to.
    pub fn translate(&self, endpoint: u32, iova: u64, write: bool) -> Option<u64> {
        self.host.translate(requester(endpoint), iova, write)
    }
}

pub(super) fn requester(endpoint: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: None,
    }
}

pub(super) fn pasid_requester(endpoint: u32, pasid: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: Some(Pasid(pasid)),
    }
}

pub(super) fn page(address: u64, access: EventFlags) -> PageRequest {
    PageRequest {
        address: Iova(address),
        access,
        length: 0,
    }
}

/// R17: `reserved` of the head is ignored, so it is never zero here.
macro_rules! odd {
    ($request:expr) => {{
        let mut request = $request;
        request.head.reserved = [0xa5; 3];
        request
    }};
}

pub(super) fn attach_bytes(domain: u32, endpoint: u32, flags: u32, pasid: u32) -> spec::Attach {
    let flags = AttachFlags::from_bits_retain(flags);
    let (domain, endpoint) = (DomainId(domain), EndpointId(endpoint));
    odd!(spec::Attach::new(domain, endpoint, flags, Pasid(pasid)))
}

pub(super) fn attach_table_bytes(
    domain: u32,
    endpoint: u32,
    flags: u32,
    pasid: u32,
    root: u64,
) -> spec::AttachTable {
    odd!(spec::AttachTable::new(
        DomainId(domain),
        EndpointId(endpoint),
        AttachFlags::from_bits_retain(flags),
        Pasid(pasid),
        TableFormat::X86_64,
        (48, 12),
        Gpa(root)
    ))
}

pub(super) fn invalidate_bytes(domain: u32, first: u64, last: u64) -> spec::Invalidate {
    let (first, last) = (Iova(first), Iova(last));
    odd!(spec::Invalidate::new(DomainId(domain), first, last))
}

pub(super) fn detach_bytes(domain: u32, endpoint: u32, flags: u32, pasid: u32) -> spec::Detach {
    let flags = DetachFlags::from_bits_retain(flags);
    let (domain, endpoint) = (DomainId(domain), EndpointId(endpoint));
    odd!(spec::Detach::new(domain, endpoint, flags, Pasid(pasid)))
}

pub(super) fn map_bytes(domain: u32, first: u64, last: u64, gpa: u64, flags: u32) -> Vec<u8> {
    let flags = MapFlags::from_bits_retain(flags);
    let (first, last) = (Iova(first), Iova(last));
    let map = spec::Map::new(DomainId(domain), first, last, Gpa(gpa), flags);
    odd!(map).as_bytes().to_vec()
}

pub(super) fn unmap_bytes(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let unmap = spec::Unmap::new(DomainId(domain), Iova(first), Iova(last));
    odd!(unmap).as_bytes().to_vec()
}

pub(super) fn probe_bytes(endpoint: u32) -> Vec<u8> {
    let mut probe = spec::Probe::new(EndpointId(endpoint));
    // P54
    probe.reserved = [0x5a; 64];
    odd!(probe).as_bytes().to_vec()
}

pub(super) fn response_bytes(
    endpoint: u32,
    group: u16,
    code: u16,
    flags: u32,
    pasid: u32,
) -> spec::PageResponse {
    let flags = PageResponseFlags::from_bits_retain(flags);
    let (endpoint, group) = (EndpointId(endpoint), GroupId(group));
    odd!(spec::PageResponse::new(
        endpoint,
        flags,
        Pasid(pasid),
        group,
        code
    ))
}

pub(super) fn event(bytes: &[u8]) -> Event {
    Event::read_from_bytes(bytes).expect("a 32-byte event")
}

pub(super) fn fault(bytes: &[u8]) -> spec::FaultReport {
    spec::FaultReport::read_from_bytes(bytes).expect("a 24-byte report")
}
