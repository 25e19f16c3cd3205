// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The book of page requests: one entry for each group that the host waits for (X43 to X71 of `virtio-spec/`).
//!
//! A group is *held* until the event queue has buffers for all of it, then *outstanding* until the driver
//! answers, its time is up, or its attachment ends. Only an outstanding group has an id.
//!
//! ```text
//! host ── admit ──▶ held ── deliver ──▶ outstanding ── answer ──▶ host
//!            │        │                     │
//!            └────────┴── refuse, expire, withdraw: answered INVALID_REQUEST
//! ```
//!
//! Whoever reads the host's queue, answers it or moves an attachment holds the lock around the book: the host
//! gives a cookie out again as soon as it is answered.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::device::counters::Counters;
use crate::device::events::{Buffers, EventQueue, Reports, fault_report, page_request_event};
use crate::host::{
    Answer, Attachment, Cookie, Fault, Host, HostError, HostEvent, PageRequestGroup, PageRequests,
    Requester,
};
use crate::spec::{
    EVENT_LEN, EndpointId, EventFlags, FAULT_REPORT_LEN, Features, GroupId, PageResponseCode,
    Pasid, Reason,
};

/// What the book needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The most groups held or outstanding.
    pub max_groups: usize,
    /// How long a group waits for its answer.
    pub timeout: Option<Duration>,
    /// Addresses in events are aligned to this many bytes.
    pub granule: u64,
}

/// A group's number in the book: never used twice.
type Serial = u64;

struct Entry {
    group: PageRequestGroup,
    deadline: Option<Instant>,
    id: Option<GroupId>,
}

#[derive(Default)]
struct EndpointBook {
    /// Where the endpoint and its PASIDs are on the host. Absent: blocked.
    attachments: BTreeMap<Option<Pasid>, Attachment>,
    /// In the order they came. May name groups that are gone.
    held: VecDeque<Serial>,
    outstanding: HashMap<GroupId, Serial>,
    /// Ids go round, so that a late answer meets an unused id and not a new group (X47).
    next_id: u16,
    timeout_logged: bool,
}

/// Why PAGE_RESPONSE was refused.
#[derive(Debug)]
pub(super) enum ResponseError {
    /// No such outstanding group: NOENT.
    Stale,
    /// The PASID is not that of the group, which stays outstanding: INVAL.
    WrongPasid,
    /// The host failed; the group stays outstanding.
    Host(HostError),
}

pub(super) struct PageRequestBook {
    rules: Rules,
    features: Features,
    /// The driver has sent a request: Linux takes no event before.
    driver_ready: bool,
    suspended: bool,
    endpoints: BTreeMap<EndpointId, EndpointBook>,
    entries: HashMap<Serial, Entry>,
    next_serial: Serial,
    /// Ascending. May name groups that are gone.
    deadlines: VecDeque<(Instant, Serial)>,
    reports: Reports,
    /// Whose turn it is to be looked at first.
    turn: Option<EndpointId>,
    incoming: Vec<HostEvent>,
}

impl PageRequestBook {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            features: Features::empty(),
            driver_ready: false,
            suspended: false,
            endpoints: BTreeMap::new(),
            entries: HashMap::new(),
            next_serial: 0,
            deadlines: VecDeque::new(),
            reports: Reports::default(),
            turn: None,
            incoming: Vec::new(),
        }
    }

    pub fn negotiate(&mut self, features: Features) {
        self.features = features;
    }

    pub fn driver_is_ready(&mut self) {
        self.driver_ready = true;
    }

    pub fn set_suspended(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// A device reset: the driver starts anew. Its attachments were moved before, and their groups withdrawn.
    pub fn reset(&mut self) {
        self.driver_ready = false;
        self.suspended = false;
        self.reports.clear();
    }

    /// Where a requester is on the host.
    pub fn attachment(&self, requester: Requester) -> Attachment {
        self.endpoints
            .get(&requester.endpoint)
            .and_then(|book| book.attachments.get(&requester.pasid))
            .copied()
            .unwrap_or(Attachment::Blocked)
    }

    /// Records where a requester is on the host by now.
    pub fn set_attachment(&mut self, requester: Requester, to: Attachment) {
        let book = self.endpoints.entry(requester.endpoint).or_default();
        match to {
            Attachment::Blocked => book.attachments.remove(&requester.pasid),
            _ => book.attachments.insert(requester.pasid, to),
        };
    }

    /// Answers the groups of a requester INVALID_REQUEST. Returns how many.
    pub fn refuse(&mut self, host: &dyn Host, counters: &Counters, requester: Requester) -> u64 {
        for entry in self.entries.values() {
            if entry.group.requester == requester {
                answer_invalid(host, counters, entry.group.cookie);
            }
        }
        self.withdraw(requester)
    }

    /// Forgets the groups of a requester: the host has answered them while it moved the attachment (X54).
    /// Returns how many.
    pub fn withdraw(&mut self, requester: Requester) -> u64 {
        let Some(book) = self.endpoints.get_mut(&requester.endpoint) else {
            return 0;
        };
        let entries = &mut self.entries;
        let before = entries.len();
        let mut keep = |serial: &Serial| match entries.get(serial) {
            Some(entry) if entry.group.requester == requester => {
                entries.remove(serial);
                false
            }
            Some(_) => true,
            None => false,
        };
        book.held.retain(&mut keep);
        book.outstanding.retain(|_, serial| keep(serial));
        (before - self.entries.len()) as u64
    }

    /// Forgets an endpoint that is gone, with its fault reports.
    pub fn remove_endpoint(&mut self, endpoint: EndpointId) -> u64 {
        let before = self.entries.len();
        self.entries
            .retain(|_, entry| entry.group.requester.endpoint != endpoint);
        self.endpoints.remove(&endpoint);
        self.reports.forget(endpoint);
        (before - self.entries.len()) as u64
    }

    /// Whether groups of an endpoint wait for buffers or ids.
    pub fn holds_any(&self) -> bool {
        self.endpoints.values().any(|book| !book.held.is_empty())
    }

    /// Carries the driver's answer to the host (X68); what goes there comes from the book.
    pub fn respond(
        &mut self,
        host: &dyn Host,
        requester: Requester,
        id: GroupId,
        code: PageResponseCode,
    ) -> Result<(), ResponseError> {
        let book = self
            .endpoints
            .get_mut(&requester.endpoint)
            .ok_or(ResponseError::Stale)?;
        let serial = *book.outstanding.get(&id).ok_or(ResponseError::Stale)?;
        let entry = self.entries.get(&serial).ok_or(ResponseError::Stale)?;
        if entry.group.requester.pasid != requester.pasid {
            return Err(ResponseError::WrongPasid);
        }
        let answer = match code {
            PageResponseCode::Success => Answer::Success,
            PageResponseCode::InvalidRequest => Answer::Invalid,
            PageResponseCode::ResponseFailure => Answer::ResponseFailure,
        };
        let answered = host.respond(entry.group.cookie, answer);
        if let Err(error @ (HostError::NoMemory(_) | HostError::Internal(_))) = answered {
            return Err(ResponseError::Host(error));
        }
        book.outstanding.remove(&id);
        self.entries.remove(&serial);
        // Anything else says that the host has no such group any more: it was withdrawn there.
        answered.map_err(|_| ResponseError::Stale)
    }

    /// Does all there is to do: see [`super::Device::service_events`].
    pub fn service(
        &mut self,
        host: &dyn Host,
        counters: &Counters,
        queue: Option<&mut dyn EventQueue>,
        now: Instant,
    ) -> Option<Instant> {
        let mut incoming = std::mem::take(&mut self.incoming);
        host.take_events(&mut |event| incoming.push(event));
        for event in incoming.drain(..) {
            match event {
                HostEvent::PageRequest(group) => self.admit(host, counters, group, now),
                HostEvent::Fault(fault) => self.report(counters, &fault),
                HostEvent::FaultsDropped(count) => counters.fault_reports_dropped.add(count),
            }
        }
        self.incoming = incoming;
        self.expire(host, counters, now);
        if let Some(queue) = queue
            && self.driver_ready
            && !self.suspended
        {
            self.deliver_reports(counters, queue);
            self.deliver_groups(host, counters, queue);
            // Refused groups leave reports behind.
            self.deliver_reports(counters, queue);
        }
        self.next_deadline()
    }

    fn admit(
        &mut self,
        host: &dyn Host,
        counters: &Counters,
        group: PageRequestGroup,
        now: Instant,
    ) {
        counters.page_request_groups.increment();
        let attachment = self.attachment(group.requester);
        let asked = matches!(
            attachment,
            Attachment::Domain {
                page_requests: PageRequests::Reported,
                ..
            }
        );
        let wanted = asked && self.features.contains(Features::PAGE_REQUEST);
        if !wanted || group.pages.is_empty() {
            // X43
            counters.page_request_unwanted.increment();
            answer_invalid(host, counters, group.cookie);
            let reason = match attachment {
                Attachment::Blocked => Reason::Domain,
                // Nothing is missing in bypass.
                Attachment::Bypass => Reason::Unknown,
                Attachment::Domain { .. } => Reason::Mapping,
            };
            self.report_group(counters, &group, reason);
        } else if self.entries.len() >= self.rules.max_groups {
            // X51
            if counters.page_request_over_quota.increment_and_log() {
                log::warn!(
                    "{}: page request refused, {} groups are waiting already (--max-page-requests)",
                    group.requester,
                    self.entries.len()
                );
            }
            answer_invalid(host, counters, group.cookie);
        } else {
            self.hold(group, now);
        }
    }

    fn hold(&mut self, group: PageRequestGroup, now: Instant) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let deadline = self
            .rules
            .timeout
            .and_then(|timeout| now.checked_add(timeout));
        if let Some(deadline) = deadline {
            self.deadlines.push_back((deadline, serial));
            // Most groups are answered long before: do not let their deadlines pile up.
            if self.deadlines.len() > 2 * self.entries.len() + 64 {
                let entries = &self.entries;
                self.deadlines
                    .retain(|(_, other)| *other == serial || entries.contains_key(other));
            }
        }
        let book = self.endpoints.entry(group.requester.endpoint).or_default();
        book.held.push_back(serial);
        self.entries.insert(
            serial,
            Entry {
                group,
                deadline,
                id: None,
            },
        );
    }

    /// Answers what has waited too long (X53).
    fn expire(&mut self, host: &dyn Host, counters: &Counters, now: Instant) {
        while let Some(&(deadline, serial)) = self.deadlines.front() {
            let live = self.entries.contains_key(&serial);
            if live && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            let Some(entry) = self.entries.remove(&serial) else {
                continue;
            };
            counters.page_request_timeouts.increment();
            answer_invalid(host, counters, entry.group.cookie);
            let endpoint = entry.group.requester.endpoint;
            if let Some(book) = self.endpoints.get_mut(&endpoint) {
                if let Some(id) = entry.id {
                    book.outstanding.remove(&id);
                }
                if !std::mem::replace(&mut book.timeout_logged, true) {
                    log::warn!(
                        "{}: the driver did not answer a page request in time (--page-response-timeout); \
                         further ones of this endpoint are only counted",
                        entry.group.requester
                    );
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadlines
            .iter()
            .find_map(|(_, serial)| self.entries.get(serial)?.deadline)
    }

    fn deliver_reports(&mut self, counters: &Counters, queue: &mut dyn EventQueue) {
        let (delivered, bad) = self.reports.deliver(queue);
        counters.fault_reports.add(delivered);
        counters.event_buffers_bad.add(bad);
    }

    /// A group of each endpoint in turn, for as long as any fits. One that does not fit holds its endpoint up
    /// and nobody else (X50).
    fn deliver_groups(&mut self, host: &dyn Host, counters: &Counters, queue: &mut dyn EventQueue) {
        loop {
            let mut progress = false;
            for endpoint in self.endpoints_from_turn() {
                if self.deliver_next(endpoint, host, counters, queue) {
                    self.turn = Some(endpoint);
                    progress = true;
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// The endpoints with held groups, beginning behind the one that was served last.
    fn endpoints_from_turn(&self) -> Vec<EndpointId> {
        let waiting =
            |(id, book): (&EndpointId, &EndpointBook)| (!book.held.is_empty()).then_some(*id);
        let Some(turn) = self.turn else {
            return self.endpoints.iter().filter_map(waiting).collect();
        };
        let behind = self
            .endpoints
            .range((Bound::Excluded(turn), Bound::Unbounded));
        let before = self.endpoints.range(..=turn);
        behind.chain(before).filter_map(waiting).collect()
    }

    /// Delivers or refuses the first held group of an endpoint. False when there is none or it has to wait.
    fn deliver_next(
        &mut self,
        endpoint: EndpointId,
        host: &dyn Host,
        counters: &Counters,
        queue: &mut dyn EventQueue,
    ) -> bool {
        let Some(book) = self.endpoints.get_mut(&endpoint) else {
            return false;
        };
        let entry = loop {
            let Some(serial) = book.held.front() else {
                return false;
            };
            match self.entries.get_mut(serial) {
                Some(entry) => break entry,
                None => book.held.pop_front(),
            };
        };
        let count = entry.group.pages.len();
        let fits = if count > queue.size() {
            None
        } else {
            Some(queue.peek(count, EVENT_LEN))
        };
        match fits {
            Some(Buffers::TooFew) => false,
            Some(Buffers::Enough) => {
                let Some(id) = unused_id(book) else {
                    return false;
                };
                for (index, page) in entry.group.pages.iter().enumerate() {
                    let last = index + 1 == count;
                    let event = page_request_event(
                        entry.group.requester,
                        id,
                        page,
                        last,
                        self.rules.granule,
                    );
                    queue.push(event.as_bytes());
                }
                entry.id = Some(id);
                if let Some(serial) = book.held.pop_front() {
                    book.outstanding.insert(id, serial);
                }
                counters.page_request_groups_delivered.increment();
                true
            }
            // It never fits, or the driver's buffers cannot take it (X38, X52): refused, and reported as a fault.
            None | Some(Buffers::TooSmall { .. }) => {
                let refused = book
                    .held
                    .pop_front()
                    .and_then(|serial| self.entries.remove(&serial));
                if let Some(entry) = refused {
                    counters.page_request_unwanted.increment();
                    answer_invalid(host, counters, entry.group.cookie);
                    let report =
                        fault_report(&fault_of(&entry.group, Reason::Mapping), self.has_pasid());
                    // The buffer that was too small for the event is for its report, ahead of what waits.
                    if fits.is_some() && queue.peek(1, FAULT_REPORT_LEN) == Buffers::Enough {
                        queue.push(report.as_bytes());
                        counters.fault_reports.increment();
                    } else {
                        self.report_group(counters, &entry.group, Reason::Mapping);
                    }
                }
                true
            }
        }
    }

    fn report_group(&mut self, counters: &Counters, group: &PageRequestGroup, reason: Reason) {
        if !group.pages.is_empty() {
            self.report(counters, &fault_of(group, reason));
        }
    }

    fn report(&mut self, counters: &Counters, fault: &Fault) {
        let report = fault_report(fault, self.has_pasid());
        // E65: an event names an endpoint that the driver knows.
        let known = self.endpoints.contains_key(&fault.requester.endpoint);
        if !known || !self.reports.add(report) {
            counters.fault_reports_dropped.increment();
        }
    }

    #[cfg(test)]
    pub fn deadlines_kept(&self) -> usize {
        self.deadlines.len()
    }

    fn has_pasid(&self) -> bool {
        self.features.contains(Features::PASID)
    }

    /// An endpoint of the device: its faults are reported.
    pub fn add_endpoint(&mut self, endpoint: EndpointId) {
        self.endpoints.entry(endpoint).or_default();
    }
}

fn unused_id(book: &mut EndpointBook) -> Option<GroupId> {
    if book.outstanding.len() > usize::from(u16::MAX) {
        return None;
    }
    loop {
        let id = GroupId(book.next_id);
        book.next_id = book.next_id.wrapping_add(1);
        if !book.outstanding.contains_key(&id) {
            return Some(id);
        }
    }
}

/// The fault that a refused group stands for: its first page.
fn fault_of(group: &PageRequestGroup, reason: Reason) -> Fault {
    let first = group.pages.first();
    Fault {
        requester: group.requester,
        reason,
        address: first.map(|page| page.address),
        access: first.map_or(EventFlags::empty(), |page| page.access),
    }
}

fn answer_invalid(host: &dyn Host, counters: &Counters, cookie: Cookie) {
    match host.respond(cookie, Answer::Invalid) {
        // Withdrawn on the host meanwhile: nobody waits for the answer.
        Ok(()) | Err(HostError::NoGroup(_)) => {}
        Err(error) => {
            if counters.host_errors.increment_and_log() {
                log::error!("answering a page request: {error}");
            }
        }
    }
}
