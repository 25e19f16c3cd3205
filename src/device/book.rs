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
//! The host gives a cookie out again as soon as it is answered. So the lock around the book is held wherever the host's
//! queue is read, a group is answered, or an attachment is moved.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::device::counters::Counters;
use crate::device::events::{Buffers, EventQueue, Reports, fault_report, page_request_event};
use crate::device::groups::Groups;
use crate::host::{
    Answer, Attachment, Cookie, Fault, Host, HostError, HostEvent, PageRequestGroup, PageRequests,
    PerPasid, Requester,
};
use crate::spec::{
    EVENT_LEN, EndpointId, EventFlags, FAULT_REPORT_LEN, Features, GroupId, PageResponseCode,
    Reason,
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

struct EndpointBook {
    /// Where the endpoint and its PASIDs are on the host. A PASID that is not here is blocked.
    attachments: PerPasid<Attachment>,
    timeout_logged: bool,
}

impl Default for EndpointBook {
    fn default() -> Self {
        Self {
            attachments: PerPasid::new(Attachment::Blocked),
            timeout_logged: false,
        }
    }
}

/// How often the host is asked at most for events that are to be dropped. Each answer is bounded, so devices that go on
/// raising faults do not hold a connection up.
const MAX_DRAINS: usize = 4096;

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
    /// A front-end is connected: its guest hears of what happens from now on.
    connected: bool,
    /// The driver has sent a request: Linux takes no event before.
    driver_ready: bool,
    endpoints: BTreeMap<EndpointId, EndpointBook>,
    pub groups: Groups,
    reports: Reports,
    /// The endpoint whose group was delivered last: the next one is looked at first.
    served_last: Option<EndpointId>,
    /// Empty between calls. Kept for its allocation.
    incoming: Vec<HostEvent>,
}

impl PageRequestBook {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            features: Features::empty(),
            connected: false,
            driver_ready: false,
            endpoints: BTreeMap::new(),
            groups: Groups::new(rules.timeout),
            reports: Reports::default(),
            served_last: None,
            incoming: Vec::new(),
        }
    }

    pub fn negotiate(&mut self, features: Features) {
        self.features = features;
    }

    /// A front-end is there. What was raised before its time is not for its guest.
    pub fn connect(&mut self, host: &dyn Host, counters: &Counters) {
        // Its driver may have been faster than this call.
        if !self.driver_ready {
            self.drop_events(host, counters);
            counters.fault_reports_dropped.add(self.reports.clear());
        }
        for book in self.endpoints.values_mut() {
            book.timeout_logged = false;
        }
        self.connected = true;
    }

    /// The front-end is gone; the device was reset.
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.features = Features::empty();
    }

    pub fn driver_is_ready(&mut self) {
        self.driver_ready = true;
    }

    /// The queues stopped: events are held, and no group's time runs. Returns whether that was so before.
    pub fn suspend(&mut self, now: Instant) -> bool {
        let stood_still = self.groups.time_stands_still();
        self.groups.stop_time(now);
        stood_still
    }

    /// The queues run again.
    pub fn resume(&mut self, now: Instant) {
        self.groups.restart_time(now);
    }

    /// A device reset: the next driver finds nothing of the one before. Its attachments were moved before, and their
    /// groups withdrawn; what is left is of attachments that the host could not move.
    pub fn reset(&mut self, host: &dyn Host, counters: &Counters) {
        self.driver_ready = false;
        self.groups.forget_stop();
        while let Some(group) = self.groups.take_any() {
            counters.page_request_withdrawn.increment();
            answer_invalid(host, counters, group.cookie);
        }
        self.drop_events(host, counters);
        counters.fault_reports_dropped.add(self.reports.clear());
    }

    /// Takes the host's events; no driver hears of them.
    fn drop_events(&mut self, host: &dyn Host, counters: &Counters) {
        let mut incoming = std::mem::take(&mut self.incoming);
        for _ in 0..MAX_DRAINS {
            host.take_events(&mut |event| incoming.push(event));
            if incoming.is_empty() {
                break;
            }
            for event in incoming.drain(..) {
                match event {
                    HostEvent::PageRequest(group) => {
                        counters.page_request_groups.increment();
                        counters.page_request_unwanted.increment();
                        answer_invalid(host, counters, group.cookie);
                        counters.fault_reports_dropped.increment();
                    }
                    HostEvent::Fault(_) | HostEvent::LoggedFault(_) => {
                        counters.fault_reports_dropped.increment();
                    }
                    HostEvent::FaultsDropped(count) => counters.fault_reports_dropped.add(count),
                    HostEvent::LogLinesLost(count) => counters.log_lines_lost.add(count),
                }
            }
        }
        self.incoming = incoming;
    }

    /// Where a requester is on the host.
    pub fn attachment(&self, requester: Requester) -> Attachment {
        self.endpoints
            .get(&requester.endpoint)
            .and_then(|book| book.attachments.get(requester.pasid))
            .copied()
            .unwrap_or(Attachment::Blocked)
    }

    /// Records where a requester is on the host by now.
    pub fn set_attachment(&mut self, requester: Requester, to: Attachment) {
        let book = self.endpoints.entry(requester.endpoint).or_default();
        match (requester.pasid, to) {
            (Some(pasid), Attachment::Blocked) => drop(book.attachments.remove(pasid)),
            (pasid, to) => book.attachments.set(pasid, to),
        }
    }

    /// Answers the groups of a requester INVALID_REQUEST. Returns how many.
    pub fn refuse(&mut self, host: &dyn Host, counters: &Counters, requester: Requester) -> u64 {
        for cookie in self.groups.cookies_of(requester) {
            answer_invalid(host, counters, cookie);
        }
        self.withdraw(requester)
    }

    /// Forgets the groups of a requester: the host has answered them while it moved the attachment (X54).
    /// Returns how many.
    pub fn withdraw(&mut self, requester: Requester) -> u64 {
        self.groups.forget_requester(requester)
    }

    /// Forgets an endpoint that is gone, with its fault reports. Returns how many groups and reports.
    pub fn remove_endpoint(&mut self, endpoint: EndpointId) -> (u64, u64) {
        self.endpoints.remove(&endpoint);
        (
            self.groups.forget_endpoint(endpoint),
            self.reports.forget(endpoint),
        )
    }

    /// Whether groups wait for buffers or ids.
    pub fn holds_any(&self) -> bool {
        self.groups.holds_any()
    }

    /// Carries the driver's answer to the host (X68); what goes there comes from the book. Says when the group came.
    pub fn respond(
        &mut self,
        host: &dyn Host,
        requester: Requester,
        id: GroupId,
        code: PageResponseCode,
    ) -> Result<Option<Instant>, ResponseError> {
        let endpoint = requester.endpoint;
        let group = self
            .groups
            .outstanding(endpoint, id)
            .ok_or(ResponseError::Stale)?;
        if group.requester.pasid != requester.pasid {
            return Err(ResponseError::WrongPasid);
        }
        let answer = match code {
            PageResponseCode::Success => Answer::Success,
            PageResponseCode::InvalidRequest => Answer::Invalid,
            PageResponseCode::ResponseFailure => Answer::ResponseFailure,
        };
        let answered = host.respond(group.cookie, answer);
        if let Err(error @ (HostError::NoMemory(_) | HostError::Internal(_))) = answered {
            return Err(ResponseError::Host(error));
        }
        let since = self.groups.take_outstanding(endpoint, id);
        // Anything else says that the host has no such group any more: it was withdrawn there.
        answered.map(|()| since).map_err(|_| ResponseError::Stale)
    }

    /// See [`super::Device::service_events`].
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
                HostEvent::LoggedFault(fault) => {
                    let reason = match fault.reason {
                        Reason::Mapping => missing(self.attachment(fault.requester)),
                        reason => reason,
                    };
                    self.report(counters, &Fault { reason, ..fault });
                }
                HostEvent::FaultsDropped(count) => counters.fault_reports_dropped.add(count),
                HostEvent::LogLinesLost(count) => counters.log_lines_lost.add(count),
            }
        }
        self.incoming = incoming;
        self.expire(host, counters, now);
        if let Some(queue) = queue
            && self.driver_ready
            && !self.groups.time_stands_still()
        {
            self.deliver_reports(counters, queue);
            self.deliver_groups(host, counters, queue);
            // Refused groups leave reports behind.
            self.deliver_reports(counters, queue);
        }
        self.groups.next_deadline()
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
            self.report_group(counters, &group, missing(attachment));
        } else if self.groups.len() >= self.rules.max_groups {
            // X51
            if counters.page_request_over_quota.increment_and_log() {
                log::warn!(
                    "{}: page request refused, {} groups are waiting already (--max-page-requests)",
                    group.requester,
                    self.groups.len()
                );
            }
            answer_invalid(host, counters, group.cookie);
        } else {
            self.groups.hold(group, now);
        }
    }

    /// Answers what has waited too long (X53).
    fn expire(&mut self, host: &dyn Host, counters: &Counters, now: Instant) {
        while let Some(group) = self.groups.take_expired(now) {
            counters.page_request_timeouts.increment();
            answer_invalid(host, counters, group.cookie);
            if let Some(book) = self.endpoints.get_mut(&group.requester.endpoint)
                && !std::mem::replace(&mut book.timeout_logged, true)
            {
                log::warn!(
                    "{}: the driver did not answer a page request in time (--page-response-timeout); \
                     further ones of this endpoint are only counted",
                    group.requester
                );
            }
        }
    }

    fn deliver_reports(&mut self, counters: &Counters, queue: &mut dyn EventQueue) {
        let (delivered, bad) = self.reports.deliver(queue);
        counters.fault_reports.add(delivered);
        counters.event_buffers_bad.add(bad);
    }

    /// A group of each endpoint in turn, for as long as any fits. One that does not fit holds its endpoint up
    /// and no other (X50).
    fn deliver_groups(&mut self, host: &dyn Host, counters: &Counters, queue: &mut dyn EventQueue) {
        loop {
            let mut progress = false;
            for endpoint in self.groups.waiting_behind(self.served_last) {
                if self.deliver_next(endpoint, host, counters, queue) {
                    self.served_last = Some(endpoint);
                    progress = true;
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// Delivers or refuses the first held group of an endpoint. False when there is none or it has to wait.
    fn deliver_next(
        &mut self,
        endpoint: EndpointId,
        host: &dyn Host,
        counters: &Counters,
        queue: &mut dyn EventQueue,
    ) -> bool {
        let Some(group) = self.groups.first_held(endpoint) else {
            return false;
        };
        let count = group.pages.len();
        if count > queue.size() {
            // It never fits (X52).
            self.refuse_next(endpoint, host, counters, None);
            return true;
        }
        match queue.peek(count, EVENT_LEN) {
            Buffers::TooFew => false,
            Buffers::Enough => self.hand_over_next(endpoint, counters, queue),
            // The driver's buffers cannot take it (X38).
            Buffers::TooSmall { .. } => {
                self.refuse_next(endpoint, host, counters, Some(queue));
                true
            }
        }
    }

    /// Puts the first held group of an endpoint into buffers that are there for all of it. False when no id is unused.
    fn hand_over_next(
        &mut self,
        endpoint: EndpointId,
        counters: &Counters,
        queue: &mut dyn EventQueue,
    ) -> bool {
        let Some((id, group)) = self.groups.deliver_first(endpoint) else {
            return false;
        };
        let count = group.pages.len();
        for (index, page) in group.pages.iter().enumerate() {
            let last = index + 1 == count;
            let event = page_request_event(group.requester, id, page, last, self.rules.granule);
            queue.push(event.as_bytes());
        }
        counters.page_request_groups_delivered.increment();
        true
    }

    /// Answers the first held group of an endpoint INVALID_REQUEST, and reports it as a fault. `queue` has a buffer at
    /// its head that was too small for the event: the report takes it, ahead of what waits.
    fn refuse_next(
        &mut self,
        endpoint: EndpointId,
        host: &dyn Host,
        counters: &Counters,
        queue: Option<&mut dyn EventQueue>,
    ) {
        let Some(group) = self.groups.take_first(endpoint) else {
            return;
        };
        counters.page_request_unwanted.increment();
        answer_invalid(host, counters, group.cookie);
        if let Some(queue) = queue
            && queue.peek(1, FAULT_REPORT_LEN) == Buffers::Enough
        {
            let report = fault_report(&fault_of(&group, Reason::Mapping), self.has_pasid());
            queue.push(report.as_bytes());
            counters.fault_reports.increment();
        } else {
            self.report_group(counters, &group, Reason::Mapping);
        }
    }

    fn report_group(&mut self, counters: &Counters, group: &PageRequestGroup, reason: Reason) {
        if !group.pages.is_empty() {
            self.report(counters, &fault_of(group, reason));
        }
    }

    fn report(&mut self, counters: &Counters, fault: &Fault) {
        // A guest hears of what happens in its time.
        let in_time = self.connected || self.driver_ready;
        // E65: an event names an endpoint that the driver knows.
        let known = self.endpoints.contains_key(&fault.requester.endpoint);
        let report = fault_report(fault, self.has_pasid());
        if !in_time || !known || !self.reports.add(report) {
            counters.fault_reports_dropped.increment();
        }
    }

    #[cfg(test)]
    pub fn entries_kept(&self) -> usize {
        self.groups.entries_kept()
    }

    fn has_pasid(&self) -> bool {
        self.features.contains(Features::PASID)
    }

    /// An endpoint of the device: its faults are reported.
    pub fn add_endpoint(&mut self, endpoint: EndpointId) {
        self.endpoints.entry(endpoint).or_default();
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

/// What an access lacked that found no translation.
fn missing(attachment: Attachment) -> Reason {
    match attachment {
        Attachment::Blocked => Reason::Domain,
        // Nothing is missing in bypass.
        Attachment::Bypass => Reason::Unknown,
        Attachment::Domain { .. } => Reason::Mapping,
    }
}

fn answer_invalid(host: &dyn Host, counters: &Counters, cookie: Cookie) {
    match host.respond(cookie, Answer::Invalid) {
        // Withdrawn on the host meanwhile: no device waits for the answer.
        Ok(()) | Err(HostError::NoGroup(_)) => {}
        Err(error) => {
            if counters.host_errors.increment_and_log() {
                log::error!("answering a page request: {error}");
            }
        }
    }
}
