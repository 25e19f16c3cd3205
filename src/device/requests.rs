// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each request does (§ Device operations).
//!
//! The order of checks is one for all requests: the buffer, reserved fields and flags (INVAL, in `request`),
//! the endpoint (NOENT), the domain (NOENT, INVAL), ranges (RANGE), alignment (RANGE), reserved regions and
//! overlap (INVAL), quotas (NOMEM), and last the host.

use std::sync::MutexGuard;

use crate::device::attach::touches_reserved;
use crate::device::book::ResponseError;
use crate::device::domain::{Domain, DomainKind, Paging};
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
    /// [`Requests::properties`], zeros up to the tail, then the tail with status OK.
    Properties,
    /// Not known yet: this UNMAP was joined to the ones before or after it. The reply is
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
pub struct Requests<'a> {
    device: &'a Device,
    state: MutexGuard<'a, State>,
    joins_unmaps: bool,
    joined: Option<Joined>,
    events_wanted: bool,
    tally: Tally,
}

/// UNMAPs that the table has carried out and the host has not been told of. What they removed is in
/// [`State::unmapped`], to be put back when the host fails.
struct Joined {
    domain: DomainId,
    /// From the first to the last removed mapping: nothing else is mapped in between.
    range: IovaRange,
    requests: u64,
}

/// Counts of a batch: added to the device's counters once.
#[derive(Default)]
struct Tally {
    requests: u64,
    failed: u64,
    unwritten: u64,
    map: u64,
    unmap: u64,
}

impl<'a> Requests<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self {
            device,
            state: device.state(),
            joins_unmaps: device.host.joins_unmaps(),
            joined: None,
            events_wanted: false,
            tally: Tally::default(),
        }
    }

    /// Carries out one request. `readable` is the device-readable part of its buffer, or the first
    /// [`super::MAX_READABLE`] bytes of it; `readable_len` and `writable_len` are the lengths of the two parts.
    pub fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step {
        self.tally.requests += 1;
        log::trace!("request {readable:02x?} with {writable_len} bytes for the answer");
        if !self.state.driver_ready {
            self.state.driver_ready = true;
            self.device.book().driver_is_ready();
            self.events_wanted = true;
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
        if let Request::Unmap { domain, range } = request {
            return self.unmap(domain, range);
        }
        // Everything else sees the host as the UNMAPs before it have left it.
        let settled = self.settle();
        let counters = &self.device.counters;
        let result = match request {
            Request::Map { domain, mapping } => self.map(domain, &mapping),
            Request::Attach(attach) => self
                .device
                .attach(&mut self.state, &attach)
                .inspect(|()| counters.attach.increment()),
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
            Request::Unmap { .. } => Ok(()),
        };
        self.replied(settled, result)
    }

    /// The properties for the last [`Reply::Properties`]: at most `probe_size` bytes.
    pub fn properties(&self) -> &[u8] {
        &self.state.properties
    }

    /// Settles what is still open. Dropping the batch settles it too, but tells nobody.
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
                // The Linux driver does not look at the status: nobody else will say it.
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
        if touches_reserved(paging, range) {
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
            return Err(device.failed(&error));
        }
        self.state.mappings += 1;
        Ok(())
    }

    fn unmap(&mut self, id: DomainId, range: IovaRange) -> Step {
        let mut settled = None;
        if self
            .joined
            .as_ref()
            .is_some_and(|joined| joined.domain != id)
        {
            settled = self.settle();
        }
        let before = self.state.unmapped.len();
        let state = &mut *self.state;
        // U49, U50
        let paging = match paging(&state.domains, id) {
            Ok(paging) => paging,
            Err(status) => return self.unmap_failed(settled, id, range, status),
        };
        // U51, U52
        let mut table = paging.write();
        if let Err(Split) = table.remove(&range, |mapping| state.unmapped.push(mapping)) {
            drop(table);
            return self.unmap_failed(settled, id, range, Status::Range);
        }
        let removed = &state.unmapped[before..];
        let hull = match (removed.first(), removed.last()) {
            (Some(first), Some(last)) => IovaRange {
                first: first.range.first,
                last: last.range.last,
            },
            _ => {
                drop(table);
                self.tally.unmap += 1;
                return self.replied(settled, Ok(()));
            }
        };
        let both = self.joined.as_ref().map(|joined| joined.range.hull(&hull));
        let joins = both.is_none_or(|both| !table.overlaps(&both));
        drop(table);
        state.mappings -= state.unmapped.len() - before;
        match &mut self.joined {
            Some(joined) if joins => {
                joined.range = both.unwrap_or(hull);
                joined.requests += 1;
            }
            joined => {
                if joined.is_some() {
                    // Something else is mapped between them. Settle the earlier ones, whose removals come first.
                    let later = state.unmapped.split_off(before);
                    settled = self.settle();
                    self.state.unmapped.extend(later);
                }
                self.joined = Some(Joined {
                    domain: id,
                    range: hull,
                    requests: 1,
                });
            }
        }
        if self.joins_unmaps {
            return Step {
                settled,
                reply: Reply::Joined,
            };
        }
        match self.settle() {
            Some(status) => Step {
                settled,
                reply: Reply::Status(status),
            },
            None => self.replied(settled, Ok(())),
        }
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

    /// Tells the host of the joined UNMAPs. When it fails, what they removed is back in the table: the guest
    /// never sees OK for something that did not happen.
    fn settle(&mut self) -> Option<Status> {
        let joined = self.joined.take()?;
        let device = self.device;
        let state = &mut *self.state;
        device.counters.unmap_host_calls.increment();
        let status = match device.host.unmap(joined.domain, joined.range) {
            Ok(()) => {
                self.tally.unmap += joined.requests;
                Status::Ok
            }
            Err(error) => {
                let status = device.failed(&error);
                device.counters.unmap_failed.add(joined.requests);
                self.tally.failed += joined.requests;
                state.mappings += state.unmapped.len();
                if let Ok(paging) = paging(&state.domains, joined.domain) {
                    let mut table = paging.write();
                    for mapping in &state.unmapped {
                        // Nothing was mapped there in between.
                        let _: Result<(), Overlap> = table.insert(mapping);
                    }
                }
                status
            }
        };
        state.unmapped.clear();
        state.unmapped.shrink_to(UNMAPPED_KEPT);
        Some(status)
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
            book.respond(&*device.host, requester, response.group, response.code)
                .map_err(|error| match error {
                    ResponseError::Stale => {
                        device.counters.page_response_stale.increment();
                        Status::NoEnt
                    }
                    ResponseError::WrongPasid => Status::Inval,
                    ResponseError::Host(error) => device.failed(&error),
                })?;
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

impl Drop for Requests<'_> {
    fn drop(&mut self) {
        self.settle();
        let counters = &self.device.counters;
        counters.requests.add(self.tally.requests);
        counters.requests_failed.add(self.tally.failed);
        counters.requests_unwritten.add(self.tally.unwritten);
        counters.map.add(self.tally.map);
        counters.unmap.add(self.tally.unmap);
    }
}

/// Entries of [`State::unmapped`] that stay allocated: a batch of single UNMAPs needs no more.
const UNMAPPED_KEPT: usize = 4096;

/// M43/U49: no such domain; M44/U50: a bypass domain has no mappings.
fn paging(
    domains: &std::collections::BTreeMap<DomainId, Domain>,
    id: DomainId,
) -> Result<&Paging, Status> {
    match domains.get(&id) {
        None => Err(Status::NoEnt),
        Some(Domain {
            kind: DomainKind::Bypass,
            ..
        }) => Err(Status::Inval),
        Some(Domain {
            kind: DomainKind::Paging(paging),
            ..
        }) => Ok(paging),
    }
}
