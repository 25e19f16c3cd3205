// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where endpoints are: ATTACH, ATTACH_TABLE, DETACH, bypass and reset (§ ATTACH, § DETACH, § Device initialization;
//! draft 2 for ATTACH_TABLE).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::device::domain::{By, Domain, DomainKind, Left, Paging};
use crate::device::endpoint::{Endpoint, Membership, Residence};
use crate::device::request::{Attach, Detach};
use crate::device::{Device, State};
use crate::host::{Attachment, HostError, PageRequests, Requester, Translations};
use crate::spec::{DomainId, EndpointId, Pasid, Status};

impl Device {
    /// ATTACH, and ATTACH_TABLE, which does the same with another kind of domain (X95).
    pub(super) fn attach(&self, state: &mut State, request: &Attach) -> Result<(), Status> {
        // A28
        let endpoint = state
            .endpoints
            .get(&request.endpoint)
            .ok_or(Status::NoEnt)?;
        let by = check_ability(endpoint, request)?;
        let old = endpoint.membership(request.pasid);
        let moves = old.is_none_or(|membership| membership.domain != request.domain);
        let page_requests = page_requests(endpoint, old.filter(|_| !moves), request.page_request);
        match state.domains.get(&request.domain) {
            // A30, X98, X99
            Some(domain) if domain.by() != by => return Err(Status::Inval),
            Some(domain) => {
                // X91: what is reserved does not concern tables.
                if let DomainKind::Paging(paging) = &domain.kind {
                    paging.check_reserved(&endpoint.reserved)?;
                }
            }
            None => {
                // R22
                let (first, last) = self.config.domain_range;
                if !(first..=last).contains(&request.domain.0) {
                    return Err(Status::Range);
                }
                // Leaving a domain as the last one makes room for another.
                let ends = old
                    .and_then(|old| state.domains.get(&old.domain))
                    .is_some_and(Domain::has_one_requester);
                if state.domains.len() - usize::from(ends) >= self.config.max_domains {
                    return Err(Status::NoMem);
                }
            }
        }
        if request.pasid.is_some() && old.is_none() && state.pasids >= self.config.max_pasids {
            return Err(Status::NoMem);
        }
        // A29, A31, A33
        let membership = Membership {
            domain: request.domain,
            page_requests,
        };
        let requester = Requester {
            endpoint: request.endpoint,
            pasid: request.pasid,
        };
        self.enter(state, request.domain, request.endpoint, by)?;
        let to = attachment(membership, by == By::Bypass);
        if let Err(error) = self.move_requester(requester, to) {
            self.leave(state, request.domain, request.endpoint);
            return Err(self.count_host_error(&error));
        }
        let Some(endpoint) = state.endpoints.get_mut(&request.endpoint) else {
            return Err(Status::NoEnt);
        };
        endpoint
            .residence
            .set(request.pasid, Residence::Attached(membership));
        if request.page_request {
            endpoint.page_requests_off = false;
        }
        match old {
            Some(old) => self.leave(state, old.domain, request.endpoint),
            None => state.pasids += usize::from(request.pasid.is_some()),
        }
        Ok(())
    }

    /// DETACH.
    pub(super) fn detach(&self, state: &mut State, request: &Detach) -> Result<(), Status> {
        // D36
        let endpoint = state
            .endpoints
            .get(&request.endpoint)
            .ok_or(Status::NoEnt)?;
        check_pasid(endpoint, request.pasid)?;
        // D37
        endpoint
            .membership(request.pasid)
            .filter(|membership| membership.domain == request.domain)
            .ok_or(Status::Inval)?;
        self.detach_requester(state, request.endpoint, request.pasid)
    }

    /// Takes a requester out of its domain, to where it belongs unattached.
    fn detach_requester(
        &self,
        state: &mut State,
        id: EndpointId,
        pasid: Option<Pasid>,
    ) -> Result<(), Status> {
        let (bypass, connected) = (state.bypass, state.connected);
        let endpoint = state.endpoints.get(&id).ok_or(Status::NoEnt)?;
        let unattached = endpoint.unattached(bypass, connected);
        self.take_out(state, id, pasid, unattached)
    }

    /// Takes a requester out of its domain. D38: it reaches none of the domain's mappings afterwards. A PASID is blocked
    /// then; the endpoint itself is where `unattached` says, or blocked.
    fn take_out(
        &self,
        state: &mut State,
        id: EndpointId,
        pasid: Option<Pasid>,
        unattached: Residence,
    ) -> Result<(), Status> {
        let Some(endpoint) = state.endpoints.get_mut(&id) else {
            return Err(Status::NoEnt);
        };
        let Some(old) = endpoint.membership(pasid) else {
            return Ok(());
        };
        let requester = Requester {
            endpoint: id,
            pasid,
        };
        match pasid {
            Some(pasid) => {
                self.move_requester(requester, Attachment::Blocked)
                    .map_err(|error| self.count_host_error(&error))?;
                endpoint.residence.remove(pasid);
                state.pasids -= 1;
            }
            None => {
                endpoint.residence.plain = self
                    .to_unattached(requester, unattached, &mut state.move_owed)
                    .map_err(|error| self.count_host_error(&error))?;
            }
        }
        self.leave(state, old.domain, id);
        Ok(())
    }

    /// Moves a requester to where it belongs unattached. If bypass cannot be had it is blocked, and `owed` says that it is
    /// to be tried again.
    fn to_unattached(
        &self,
        requester: Requester,
        wanted: Residence,
        owed: &mut bool,
    ) -> Result<Residence, HostError> {
        if wanted == Residence::Bypass {
            match self.move_requester(requester, Attachment::Bypass) {
                Ok(()) => return Ok(Residence::Bypass),
                Err(error) => {
                    let often = !self.counters.host_errors.increment_and_log();
                    if !std::mem::replace(owed, true) || !often {
                        log::error!(
                            "{requester}: blocked until the host can put it in bypass: {error}"
                        );
                    }
                }
            }
        }
        self.move_requester(requester, Attachment::Blocked)?;
        Ok(Residence::Blocked)
    }

    /// Puts an endpoint that is not attached where the config space says (B25).
    pub(super) fn place_unattached(&self, state: &mut State, id: EndpointId) {
        let (bypass, connected) = (state.bypass, state.connected);
        let Some(endpoint) = state.endpoints.get_mut(&id) else {
            return;
        };
        let wanted = endpoint.unattached(bypass, connected);
        let is = endpoint.residence.plain;
        if is.membership().is_some() || is == wanted {
            return;
        }
        let requester = Requester {
            endpoint: id,
            pasid: None,
        };
        match self.to_unattached(requester, wanted, &mut state.move_owed) {
            Ok(residence) => endpoint.residence.plain = residence,
            Err(error) => {
                self.count_host_error(&error);
                if !std::mem::replace(&mut state.move_owed, true) {
                    log::error!("{requester}: the host cannot block it yet: {error}");
                }
            }
        }
    }

    /// Writes `bypass` of the config space and moves the endpoints that are attached to nothing.
    pub(super) fn set_bypass(&self, state: &mut State, bypass: bool) {
        state.bypass = bypass;
        self.place_all_unattached(state);
    }

    /// Puts every endpoint that is not attached where the config space says.
    pub(super) fn place_all_unattached(&self, state: &mut State) {
        for id in ids(state) {
            self.place_unattached(state, id);
        }
        let (bypass, connected) = (state.bypass, state.connected);
        state.move_owed = state.endpoints.values().any(|endpoint| {
            let is = endpoint.residence.plain;
            is.membership().is_none() && is != endpoint.unattached(bypass, connected)
        });
    }

    /// I12: no attachment, no domain. C10: `bypass` stays.
    pub(super) fn reset_state(&self, state: &mut State) {
        self.counters.resets.increment();
        self.detach_all(state);
        self.place_all_unattached(state);
        for endpoint in state.endpoints.values_mut() {
            endpoint.page_requests_off = false;
        }
        state.driver_ready = false;
        self.book().reset(&*self.host, &self.counters);
    }

    /// Ends every attachment. Those that the host cannot end are tried again before the next driver's first request.
    pub(super) fn detach_all(&self, state: &mut State) {
        state.detach_owed = false;
        for id in ids(state) {
            let attached: Vec<_> = state
                .endpoints
                .get(&id)
                .map(|endpoint| endpoint.memberships().map(|(pasid, _)| pasid).collect())
                .unwrap_or_default();
            for pasid in attached {
                if self.detach_requester(state, id, pasid).is_err() {
                    state.detach_owed = true;
                }
            }
        }
        match state.detach_owed {
            true => {
                log::error!("endpoints are still attached after a reset, as the host refused");
            }
            // There is none any more: those to come are not held (X87).
            false => self.host.release_tables(),
        }
    }

    /// Ends every attachment to a table. Its endpoint is blocked, whatever the config space says, until the reset that
    /// follows: to an endpoint in bypass, addresses of a process would be guest-physical ones.
    pub(super) fn end_tables(&self, state: &mut State) {
        for id in ids(state) {
            let attached: Vec<_> = state
                .endpoints
                .get(&id)
                .into_iter()
                .flat_map(Endpoint::memberships)
                .filter(|(_, membership)| has_table(state, membership.domain))
                .map(|(pasid, _)| pasid)
                .collect();
            for pasid in attached {
                if self.take_out(state, id, pasid, Residence::Blocked).is_err() {
                    // The host refused, and has said why: it is tried again at the reset.
                    state.detach_owed = true;
                }
            }
        }
    }

    /// X70: the endpoint raises no page requests until it is attached with PAGE_REQUEST.
    pub(super) fn turn_page_requests_off(&self, state: &mut State, id: EndpointId) {
        let Some(endpoint) = state.endpoints.get_mut(&id) else {
            return;
        };
        endpoint.page_requests_off = true;
        let reporting: Vec<_> = endpoint
            .memberships()
            .filter(|(_, membership)| membership.page_requests == PageRequests::Reported)
            .collect();
        for (pasid, membership) in reporting {
            let off = Membership {
                page_requests: PageRequests::Off,
                ..membership
            };
            let requester = Requester {
                endpoint: id,
                pasid,
            };
            endpoint.residence.set(pasid, Residence::Attached(off));
            if let Err(error) = self.move_requester(requester, attachment(off, false)) {
                // The host still raises them: answer what is there, and whatever comes.
                self.count_host_error(&error);
                let mut book = self.book();
                let groups = book.refuse(&*self.host, &self.counters, requester);
                self.counters.page_request_withdrawn.add(groups);
                book.set_attachment(requester, attachment(off, false));
            }
        }
    }

    /// Moves a requester on the host and in the book, as one step for the reader of page requests.
    fn move_requester(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        let mut book = self.book();
        if book.attachment(requester) == to {
            return Ok(());
        }
        self.host.attach(requester, to)?;
        // X54; the host has answered them.
        self.counters
            .page_request_withdrawn
            .add(book.withdraw(requester));
        book.set_attachment(requester, to);
        Ok(())
    }

    /// Counts a requester of an endpoint in, making the domain when it is the first.
    fn enter(
        &self,
        state: &mut State,
        id: DomainId,
        endpoint: EndpointId,
        by: By,
    ) -> Result<(), Status> {
        let domain = match state.domains.entry(id) {
            Entry::Occupied(domain) => domain.into_mut(),
            Entry::Vacant(place) => place.insert(Domain::new(self.make_domain(id, by)?)),
        };
        if domain.enter(endpoint) {
            refresh_reserved(domain, &state.endpoints);
        }
        Ok(())
    }

    /// Makes the domain on the host, which has none for bypass.
    fn make_domain(&self, id: DomainId, by: By) -> Result<DomainKind, Status> {
        let (kind, translations) = match by {
            By::Bypass => return Ok(DomainKind::Bypass),
            By::Mappings => {
                let paging = Paging::new();
                let translations = Translations::Mappings(paging.mappings.clone());
                (DomainKind::Paging(paging), translations)
            }
            By::Table(table) => (DomainKind::Table(table), Translations::Table(table)),
        };
        self.host
            .create_domain(id, translations)
            .map_err(|error| self.count_host_error(&error))?;
        Ok(kind)
    }

    /// Counts a requester of an endpoint out. D39: the domain ends with its last, and its mappings with it.
    pub(super) fn leave(&self, state: &mut State, id: DomainId, endpoint: EndpointId) {
        let Some(domain) = state.domains.get_mut(&id) else {
            return;
        };
        match domain.leave(endpoint) {
            Left::Requester => {}
            Left::Endpoint => refresh_reserved(domain, &state.endpoints),
            // X87: the host has let go of a table before the request is answered.
            Left::Everything => match state.domains.remove(&id).map(|domain| domain.kind) {
                Some(DomainKind::Paging(paging)) => {
                    state.mappings -= paging.read().len();
                    self.host.destroy_domain(id);
                }
                Some(DomainKind::Table(_)) => self.host.destroy_domain(id),
                Some(DomainKind::Bypass) | None => {}
            },
        }
    }

    /// Counts and logs a failed host call. Returns its status.
    pub(super) fn count_host_error(&self, error: &HostError) -> Status {
        if self.counters.host_errors.increment_and_log() {
            log::error!("{error}");
        }
        error.status()
    }
}

pub(super) fn ids(state: &State) -> Vec<EndpointId> {
    state.endpoints.keys().copied().collect()
}

fn has_table(state: &State, domain: DomainId) -> bool {
    let domain = state.domains.get(&domain);
    domain.is_some_and(|domain| matches!(domain.by(), By::Table(_)))
}

fn attachment(membership: Membership, bypass: bool) -> Attachment {
    if bypass {
        return Attachment::Bypass;
    }
    Attachment::Domain {
        domain: membership.domain,
        page_requests: membership.page_requests,
    }
}

/// Drafts 1 and 2: what an endpoint cannot do is UNSUPP, a PASID beyond its width INVAL. Returns what the domain is to
/// translate by.
fn check_ability(endpoint: &Endpoint, request: &Attach) -> Result<By, Status> {
    if request.page_request && !endpoint.properties.page_requests {
        return Err(Status::Unsupp);
    }
    check_pasid(endpoint, request.pasid)?;
    // X97
    let by = request.by.ok_or(Status::Unsupp)?;
    if let By::Table(table) = &by {
        let mut formats = endpoint.properties.tables.iter();
        if !formats.any(|support| support.allows(table)) {
            return Err(Status::Unsupp);
        }
    }
    Ok(by)
}

fn check_pasid(endpoint: &Endpoint, pasid: Option<Pasid>) -> Result<(), Status> {
    let Some(Pasid(pasid)) = pasid else {
        return Ok(());
    };
    match endpoint.properties.pasid_width {
        0 => Err(Status::Unsupp),
        width if u64::from(pasid) >> width != 0 => Err(Status::Inval),
        _ => Ok(()),
    }
}

/// `old` is the attachment to the same domain, when there is one.
fn page_requests(endpoint: &Endpoint, old: Option<Membership>, asked: bool) -> PageRequests {
    match asked {
        true => PageRequests::Reported,
        // X70: off until it is attached again with PAGE_REQUEST.
        false if endpoint.page_requests_off => PageRequests::Off,
        false if old.is_some_and(|old| old.page_requests == PageRequests::Off) => PageRequests::Off,
        false => PageRequests::Unwanted,
    }
}

/// Collects what the endpoints of a domain have reserved (V62).
fn refresh_reserved(domain: &mut Domain, endpoints: &BTreeMap<EndpointId, Endpoint>) {
    let inside: Vec<_> = domain
        .endpoints()
        .filter_map(|id| endpoints.get(&id))
        .collect();
    if let DomainKind::Paging(paging) = &mut domain.kind {
        let regions = inside.iter().flat_map(|endpoint| &endpoint.reserved);
        paging.set_reserved(regions.map(|region| region.range));
    }
}
