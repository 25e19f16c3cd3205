// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each request does (§ Device operations).
//!
//! The order of checks is one for all requests: the buffer, reserved fields and flags (INVAL, in `request`),
//! the endpoint (NOENT), the domain (NOENT, INVAL), ranges (RANGE), alignment (RANGE), reserved regions and
//! overlap (INVAL), quotas (NOMEM), and last the host.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::MutexGuard;

use crate::device::book::ResponseError;
use crate::device::domain::{By, Domain, DomainKind, Paging};
use crate::device::joined::TakenOut;
use crate::device::request::{PageResponse, Refusal, Request, parse};
use crate::device::{Device, State, probe};
use crate::host::Requester;
use crate::host::mapping::{IovaRange, Mapping, Overlap, Split};
use crate::spec::{DomainId, EndpointId, PageResponseCode, Status, TAIL_LEN};

/// What to put into a request's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: used length 0 (R15, R16).
    Unwritten,
    /// The tail, with this status; used length is the whole writable part.
    Status(Status),
    /// [`Batch::properties`], zeros up to the tail, then the tail with status OK.
    Properties,
    /// Not known yet: this UNMAP or INVALIDATE was joined to the ones before or after it. The reply is
    /// `Reply::Status(settled)` of the next [`Step`] or of [`Finished`] that has `settled`.
    Joined,
}

/// What came of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The status of *every* request answered [`Reply::Joined`] before this one, when it is known by now.
    pub settled: Option<Status>,
    /// The reply to this one.
    pub reply: Reply,
}

/// What came of the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The status of every request that was still [`Reply::Joined`].
    pub settled: Option<Status>,
    /// [`super::Device::service_events`] has something to do.
    pub events_wanted: bool,
}

/// A batch of requests: carries them out in order, under the device's state lock.
pub struct Batch<'a> {
    device: &'a Device,
    state: MutexGuard<'a, State>,
    joins_requests: bool,
    events_wanted: bool,
    /// Reads the clock that its caller has.
    clock: Option<fn() -> Instant>,
    /// Once a batch: a host without memory is not asked for each request.
    move_tried: bool,
    tally: Tally,
}

/// Counts of a batch: added to the device's counters once.
#[derive(Default)]
struct Tally {
    requests: u64,
    failed: u64,
    unwritten: u64,
    map: u64,
    unmap: u64,
    invalidate: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self {
            device,
            state: device.state(),
            joins_requests: device.host.joins_requests(),
            events_wanted: false,
            clock: None,
            move_tried: false,
            tally: Tally::default(),
        }
    }

    /// The same with a clock: times of page requests are noted. It is read for each PAGE_RESPONSE alone.
    #[must_use]
    pub fn timed(mut self, clock: fn() -> Instant) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Carries out one request. `readable` is the device-readable part of its buffer, or the first
    /// [`super::MAX_READABLE`] bytes of it; `readable_len` and `writable_len` are the lengths of the two parts.
    pub fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step {
        self.tally.requests += 1;
        log::trace!("request {readable:02x?} with {writable_len} bytes for the answer");
        if !self.state.driver_ready {
            self.first_request();
        }
        if self.state.move_owed && !self.move_tried {
            self.move_tried = true;
            self.device.place_all_unattached(&mut self.state);
        }
        let request = match parse(readable, readable_len, writable_len, self.state.features) {
            Ok(request) => request,
            Err(Refusal::Status(status)) => return self.replied(None, Err(status)),
            Err(Refusal::Unwritten) => {
                self.tally.unwritten += 1;
                return Step {
                    settled: None,
                    reply: Reply::Unwritten,
                };
            }
        };
        match request {
            Request::Unmap { domain, range } => return self.unmap(domain, range),
            Request::Invalidate { domain, range } => return self.invalidate(domain, range),
            _ => {}
        }
        // Any other request finds those before it carried out on the host (X69, X104).
        let settled = self.settle();
        let counters = &self.device.counters;
        let result = match request {
            Request::Map { domain, mapping } => self.map(domain, &mapping),
            Request::Attach(attach) => {
                self.device
                    .attach(&mut self.state, &attach)
                    .inspect(|()| match attach.by {
                        Some(By::Table(_)) => counters.attach_table.increment(),
                        _ => counters.attach.increment(),
                    })
            }
            Request::Detach(detach) => self
                .device
                .detach(&mut self.state, &detach)
                .inspect(|()| counters.detach.increment()),
            Request::PageResponse(response) => self
                .page_response(&response)
                .inspect(|()| counters.page_response.increment()),
            Request::Probe { endpoint } => match self.probe(endpoint, writable_len) {
                Ok(()) => {
                    counters.probe.increment();
                    return Step {
                        settled,
                        reply: Reply::Properties,
                    };
                }
                Err(status) => Err(status),
            },
            Request::Unmap { .. } | Request::Invalidate { .. } => Ok(()),
        };
        self.replied(settled, result)
    }

    /// The driver's first request since the reset.
    #[cold]
    fn first_request(&mut self) {
        if self.state.detach_owed {
            self.device.detach_all(&mut self.state);
        }
        self.state.driver_ready = true;
        self.device.book().driver_is_ready();
        self.events_wanted = true;
    }

    /// The properties for the last [`Reply::Properties`]: at most `probe_size` bytes.
    pub fn properties(&self) -> &[u8] {
        &self.state.properties
    }

    /// Ends the batch: tells the host of the requests that are still joined. Dropping the batch does so too, but their
    /// statuses are lost.
    pub fn finish(mut self) -> Finished {
        Finished {
            settled: self.settle(),
            events_wanted: self.events_wanted,
        }
    }

    fn replied(&mut self, settled: Option<Status>, result: Result<(), Status>) -> Step {
        let status = result.err().unwrap_or(Status::Ok);
        self.tally.failed += u64::from(status != Status::Ok);
        Step {
            settled,
            reply: Reply::Status(status),
        }
    }

    fn map(&mut self, id: DomainId, mapping: &Mapping) -> Result<(), Status> {
        let result = self.try_map(id, mapping);
        match result {
            Ok(()) => self.tally.map += 1,
            Err(status) => {
                // Linux's driver does not look at the status, so the log has to say it.
                if self.device.counters.map_failed.increment_and_log() {
                    log::warn!(
                        "MAP of {}-{} to {} in domain {id} failed: {status:?}",
                        mapping.range.first,
                        mapping.range.last,
                        mapping.gpa
                    );
                }
            }
        }
        result
    }

    fn try_map(&mut self, id: DomainId, mapping: &Mapping) -> Result<(), Status> {
        let device = self.device;
        let range = &mapping.range;
        // M43, M44
        let paging = paging(&self.state.domains, id)?;
        // R21
        if !device.input_range.covers(range) {
            return Err(Status::Range);
        }
        // M40, R24
        let offset = (1 << device.page_size_mask.trailing_zeros()) - 1;
        let end = range.last.0.wrapping_add(1);
        if (range.first.0 | end | mapping.gpa.0) & offset != 0 {
            return Err(Status::Range);
        }
        // A physical end beyond the address space.
        if mapping
            .gpa
            .0
            .checked_add(range.last.0 - range.first.0)
            .is_none()
        {
            return Err(Status::Range);
        }
        // V62
        if paging.touches_reserved(range) {
            return Err(Status::Inval);
        }
        {
            // M41; a mapping that is both over the quota and over another one is told of the latter.
            let mut table = paging.write();
            let full = self.state.mappings >= device.config.max_mappings;
            if full {
                return Err(if table.overlaps(range) {
                    Status::Inval
                } else {
                    Status::NoMem
                });
            }
            table.insert(mapping).map_err(|Overlap| Status::Inval)?;
        }
        if let Err(error) = device.host.map(id, mapping) {
            // Exactly this mapping is in the range.
            let _: Result<(), Split> = paging.write().remove(range, |_| {});
            return Err(device.count_host_error(&error));
        }
        self.state.mappings += 1;
        Ok(())
    }

    fn unmap(&mut self, id: DomainId, range: IovaRange) -> Step {
        let mut settled = None;
        if self.state.joined.has_others_than(id) || self.state.invalidates.domain().is_some() {
            settled = self.settle();
        }
        let taken = match take_out(&mut self.state, id, &range) {
            Ok(Some(taken)) => taken,
            // U52
            Ok(None) => {
                self.tally.unmap += 1;
                return self.replied(settled, Ok(()));
            }
            Err(status) => return self.unmap_failed(settled, id, range, status),
        };
        if taken.joins {
            self.state.joined.join(id, &taken);
        } else {
            // Something else is mapped between this one and those before it: those are settled alone.
            let aside = self.state.joined.set_aside(&taken);
            settled = self.settle();
            self.state.joined.take_back(aside);
            self.state.joined.join(id, &taken);
        }
        self.joined(settled)
    }

    /// The reply to a request that was joined to others.
    fn joined(&mut self, settled: Option<Status>) -> Step {
        let reply = if self.joins_requests {
            Reply::Joined
        } else {
            Reply::Status(self.settle().unwrap_or(Status::Ok))
        };
        Step { settled, reply }
    }

    fn unmap_failed(
        &mut self,
        settled: Option<Status>,
        id: DomainId,
        range: IovaRange,
        status: Status,
    ) -> Step {
        if self.device.counters.unmap_failed.increment_and_log() {
            log::warn!(
                "UNMAP of {}-{} in domain {id} failed: {status:?}",
                range.first,
                range.last
            );
        }
        self.replied(settled, Err(status))
    }

    fn invalidate(&mut self, id: DomainId, range: IovaRange) -> Step {
        let settled = match self.state.invalidates.domain() == Some(id) {
            true => None,
            false => self.settle(),
        };
        let status = match self.state.domains.get(&id).map(Domain::by) {
            // The range may have any alignment.
            Some(By::Table(_)) => {
                self.state.invalidates.join(id, range);
                return self.joined(settled);
            }
            // X102
            Some(_) => Status::Inval,
            // X101
            None => Status::NoEnt,
        };
        self.count_failed_invalidates(1, id, status);
        self.replied(settled, Err(status))
    }

    fn count_failed_invalidates(&self, requests: u64, id: DomainId, status: Status) {
        let counter = &self.device.counters.invalidate_failed;
        counter.add(requests - 1);
        // A driver that invalidates under a lock of its page tables has nobody to tell.
        if counter.increment_and_log() {
            log::warn!("INVALIDATE in domain {id} failed: {status:?}");
        }
    }

    /// Tells the host of the joined requests: there are UNMAPs or INVALIDATEs; `None` when there are neither.
    fn settle(&mut self) -> Option<Status> {
        self.settle_unmaps().or_else(|| self.settle_invalidates())
    }

    fn settle_invalidates(&mut self) -> Option<Status> {
        let domain = self.state.invalidates.domain()?;
        let settled = self.state.invalidates.settle(&*self.device.host)?;
        Some(match settled.result {
            Ok(()) => {
                self.tally.invalidate += settled.requests;
                Status::Ok
            }
            Err(error) => {
                self.tally.failed += settled.requests;
                let status = self.device.count_host_error(&error);
                self.count_failed_invalidates(settled.requests, domain, status);
                status
            }
        })
    }

    /// Tells the host of the joined UNMAPs; `None` when there are none.
    fn settle_unmaps(&mut self) -> Option<Status> {
        let device = self.device;
        let state = &mut *self.state;
        let domains = &state.domains;
        let settled = state
            .joined
            .settle(&*device.host, |domain| paging(domains, domain).ok())?;
        device.counters.unmap_host_calls.increment();
        state.mappings += settled.put_back;
        Some(match settled.result {
            Ok(()) => {
                self.tally.unmap += settled.requests;
                Status::Ok
            }
            Err(error) => {
                device.counters.unmap_failed.add(settled.requests);
                self.tally.failed += settled.requests;
                device.count_host_error(&error)
            }
        })
    }

    fn probe(&mut self, id: EndpointId, writable_len: usize) -> Result<(), Status> {
        let State {
            endpoints,
            properties,
            features,
            ..
        } = &mut *self.state;
        // P55
        let endpoint = endpoints.get(&id).ok_or(Status::NoEnt)?;
        // P58
        if writable_len < self.device.probe_size + TAIL_LEN {
            return Err(Status::Inval);
        }
        properties.clear();
        probe::append(
            endpoint,
            *features,
            self.device.config.max_page_requests,
            properties,
        );
        Ok(())
    }

    fn page_response(&mut self, response: &PageResponse) -> Result<(), Status> {
        let device = self.device;
        let requester = Requester {
            endpoint: response.endpoint,
            pasid: response.pasid,
        };
        {
            let mut book = device.book();
            let since = book
                .respond(&*device.host, requester, response.group, response.code)
                .map_err(|error| match error {
                    ResponseError::Stale => {
                        device.counters.page_response_stale.increment();
                        Status::NoEnt
                    }
                    ResponseError::WrongPasid => Status::Inval,
                    ResponseError::Host(error) => device.count_host_error(&error),
                })?;
            if let (Some(since), Some(clock)) = (since, self.clock) {
                let waited = clock().saturating_duration_since(since);
                device.page_request_times.observe(waited);
            }
            // It may have waited for an id.
            self.events_wanted |= book.holds_any();
        }
        match response.code {
            PageResponseCode::Success => device.counters.page_request_success.increment(),
            PageResponseCode::InvalidRequest => device.counters.page_request_invalid.increment(),
            PageResponseCode::ResponseFailure => {
                device.counters.page_request_failure.increment();
                device.turn_page_requests_off(&mut self.state, response.endpoint);
            }
        }
        Ok(())
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.settle();
        let counters = &self.device.counters;
        counters.requests.add(self.tally.requests);
        counters.requests_failed.add(self.tally.failed);
        counters.requests_unwritten.add(self.tally.unwritten);
        counters.map.add(self.tally.map);
        counters.unmap.add(self.tally.unmap);
        counters.invalidate.add(self.tally.invalidate);
    }
}

/// M43/U49: no such domain; M44/U50: a bypass domain has no mappings, and X99: nor has one with a table.
fn paging(domains: &BTreeMap<DomainId, Domain>, id: DomainId) -> Result<&Paging, Status> {
    match domains.get(&id) {
        None => Err(Status::NoEnt),
        Some(Domain {
            kind: DomainKind::Bypass | DomainKind::Table(_),
            ..
        }) => Err(Status::Inval),
        Some(Domain {
            kind: DomainKind::Paging(paging),
            ..
        }) => Ok(paging),
    }
}

/// Takes what an UNMAP removes out of the table.
fn take_out(
    state: &mut State,
    id: DomainId,
    range: &IovaRange,
) -> Result<Option<TakenOut>, Status> {
    // U49, U50
    let paging = paging(&state.domains, id)?;
    // U51
    let taken = state
        .joined
        .take_out(&mut paging.write(), range)
        .map_err(|Split| Status::Range)?;
    state.mappings -= taken.as_ref().map_or(0, |taken| taken.count);
    Ok(taken)
}
