// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event queue as the device needs it, and what goes into it (§ Fault reporting, draft 1).

use std::collections::VecDeque;

use zerocopy::little_endian::{U16, U32, U64};

use crate::host::{Fault, PageRequest, Requester};
use crate::spec::{EndpointId, Event, EventFlags, FAULT_REPORT_LEN, FaultReport, GroupId, Reason};

/// The event virtqueue.
pub trait EventQueue {
    /// Number of entries of the ring: no group of more can ever be delivered.
    fn size(&self) -> usize;

    /// Looks at the first `count` available buffers, without taking them.
    fn peek(&mut self, count: usize, min_len: usize) -> Buffers;

    /// Takes the first available buffer and fills it with `event`. Called only after [`EventQueue::peek`] said
    /// that it is there and long enough. The driver is notified later, once for all.
    fn push(&mut self, event: &[u8]);

    /// Takes the first available buffer and returns it unused (used length 0): it is too small for anything.
    fn discard(&mut self);
}

/// What [`EventQueue::peek`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// All are there, and each is long enough.
    Enough,
    /// There are fewer, and each that is there is long enough.
    TooFew,
    /// The buffer `index` places behind the head has only `len` device-writable bytes.
    TooSmall {
        /// 0 for the head of the queue.
        index: usize,
        /// Its length.
        len: usize,
    },
}

/// Fault reports that wait for a buffer. A burst says no more than its beginning: the newest are dropped.
pub(super) const MAX_REPORTS: usize = 64;

/// Fault reports in the order they came.
#[derive(Default)]
pub(super) struct Reports(VecDeque<FaultReport>);

impl Reports {
    /// Whether the report was taken; it is not when too many wait already (E67).
    pub fn add(&mut self, report: FaultReport) -> bool {
        let room = self.0.len() < MAX_REPORTS;
        if room {
            self.0.push_back(report);
        }
        room
    }

    /// Drops all. Returns how many.
    pub fn clear(&mut self) -> u64 {
        std::mem::take(&mut self.0).len() as u64
    }

    /// Drops the reports of an endpoint that is going away (E65: an event names a valid endpoint). Returns how many.
    pub fn forget(&mut self, endpoint: EndpointId) -> u64 {
        let before = self.0.len();
        self.0.retain(|report| report.endpoint.get() != endpoint.0);
        (before - self.0.len()) as u64
    }

    /// Puts what fits into the queue. Returns how many were delivered, and how many buffers were too small for
    /// any report (E68).
    pub fn deliver(&mut self, queue: &mut dyn EventQueue) -> (u64, u64) {
        let (mut delivered, mut bad) = (0, 0);
        while let Some(report) = self.0.front() {
            match queue.peek(1, FAULT_REPORT_LEN) {
                Buffers::Enough => {
                    queue.push(zerocopy::IntoBytes::as_bytes(report));
                    self.0.pop_front();
                    delivered += 1;
                }
                Buffers::TooFew => break,
                Buffers::TooSmall { .. } => {
                    queue.discard();
                    bad += 1;
                }
            }
        }
        (delivered, bad)
    }
}

/// The report of a fault. The PASID goes only to a driver that negotiated it (E65).
pub(super) fn fault_report(fault: &Fault, with_pasid: bool) -> FaultReport {
    let mut flags = fault.access & EventFlags::ACCESS;
    // Privileged is a flag of draft 1: the base specification has it undefined (E65).
    flags.set(
        EventFlags::PRIVILEGED,
        with_pasid && flags.contains(EventFlags::PRIVILEGED),
    );
    flags.set(EventFlags::ADDRESS, fault.address.is_some());
    let pasid = fault.requester.pasid.filter(|_| with_pasid);
    flags.set(EventFlags::PASID, pasid.is_some());
    FaultReport {
        reason: fault.reason as u8,
        reserved: [0; 3],
        flags: U32::new(flags.bits()),
        endpoint: U32::new(fault.requester.endpoint.0),
        reserved1: U32::new(pasid.map_or(0, |pasid| pasid.0)),
        address: U64::new(fault.address.map_or(0, |address| address.0)),
    }
}

/// The event of one page request; `granule` is a power of two.
pub(super) fn page_request_event(
    requester: Requester,
    group: GroupId,
    page: &PageRequest,
    last: bool,
    granule: u64,
) -> Event {
    let mut flags = page.access & EventFlags::ACCESS;
    flags |= EventFlags::PAGE_REQUEST | EventFlags::ADDRESS | EventFlags::GROUP_ID;
    flags.set(EventFlags::LAST, last);
    flags.set(EventFlags::PASID, requester.pasid.is_some());
    let address = page.address.0 & !(granule - 1);
    // The hint counts from the address in the event.
    let length = match page.length {
        0 => 0,
        length => length.saturating_add((page.address.0 - address).try_into().unwrap_or(u32::MAX)),
    };
    Event {
        reason: Reason::Mapping as u8,
        reserved: [0; 3],
        flags: U32::new(flags.bits()),
        endpoint: U32::new(requester.endpoint.0),
        pasid: U32::new(requester.pasid.map_or(0, |pasid| pasid.0)),
        address: U64::new(address),
        group_id: U16::new(group.0),
        reserved2: U16::new(0),
        length: U32::new(length),
    }
}
