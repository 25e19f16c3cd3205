// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device against the specification. Names of tests end in the ids of the points they prove.

mod attach;
mod bypass;
mod config;
mod connection;
mod fake;
mod map_unmap;
mod memory;
mod model;
mod page_requests;
mod pasid;
mod probe;
mod requests;
mod time_out;

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::events::EventQueue;
use crate::device::{Device, DeviceConfig, Reply, Step};
use crate::host::{PageRequest, Requester};
use crate::spec::{
    self, EndpointId, Event, EventFlags, Features, Head, Iova, Pasid, RequestType, Status,
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

pub(super) fn head(kind: RequestType) -> Head {
    Head {
        kind: kind as u8,
        // R17: ignored, so never zero here.
        reserved: [0xa5; 3],
    }
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
        self.status(
            spec::Detach {
                head: head(RequestType::Detach),
                domain: U32::new(domain),
                endpoint: U32::new(endpoint),
                pasid: U32::new(pasid),
                flags: U32::new(flags),
            }
            .as_bytes(),
        )
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

pub(super) fn attach_bytes(domain: u32, endpoint: u32, flags: u32, pasid: u32) -> spec::Attach {
    spec::Attach {
        head: head(RequestType::Attach),
        domain: U32::new(domain),
        endpoint: U32::new(endpoint),
        flags: U32::new(flags),
        pasid: U32::new(pasid),
    }
}

pub(super) fn map_bytes(domain: u32, first: u64, last: u64, gpa: u64, flags: u32) -> Vec<u8> {
    let map = spec::Map {
        head: head(RequestType::Map),
        domain: U32::new(domain),
        virt_start: U64::new(first),
        virt_end: U64::new(last),
        phys_start: U64::new(gpa),
        flags: U32::new(flags),
    };
    map.as_bytes().to_vec()
}

pub(super) fn unmap_bytes(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let unmap = spec::Unmap {
        head: head(RequestType::Unmap),
        domain: U32::new(domain),
        virt_start: U64::new(first),
        virt_end: U64::new(last),
        reserved: U32::new(0),
    };
    unmap.as_bytes().to_vec()
}

pub(super) fn probe_bytes(endpoint: u32) -> Vec<u8> {
    let probe = spec::Probe {
        head: head(RequestType::Probe),
        endpoint: U32::new(endpoint),
        reserved: [0x5a; 64],
    };
    probe.as_bytes().to_vec()
}

pub(super) fn response_bytes(
    endpoint: u32,
    group: u16,
    code: u16,
    flags: u32,
    pasid: u32,
) -> spec::PageResponse {
    spec::PageResponse {
        head: head(RequestType::PageResponse),
        endpoint: U32::new(endpoint),
        flags: U32::new(flags),
        pasid: U32::new(pasid),
        group_id: U16::new(group),
        code: U16::new(code),
        reserved: [0; 8],
    }
}

pub(super) fn event(bytes: &[u8]) -> Event {
    Event::read_from_bytes(bytes).expect("a 32-byte event")
}

pub(super) fn fault(bytes: &[u8]) -> spec::FaultReport {
    spec::FaultReport::read_from_bytes(bytes).expect("a 24-byte report")
}
