// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The accesses of an engine: permitted or not, translated or asked for, counted.

use std::task::Poll;

use crate::host::PageRequest;
use crate::host::soft::{Access, Denied, Transfer};
use crate::soft_endpoint::engine::descriptor::{Completion, Flags, Job, Outcome};
use crate::soft_endpoint::engine::registers::{Enabled, State};
use crate::soft_endpoint::engine::run::Runner;
use crate::soft_endpoint::pri::{Allocation, Group, Refusal};
use crate::spec::{EventFlags, Iova, PageResponseCode};

/// How often an access tries again after answers SUCCESS that brought it no further.
const MAX_RETRIES: u32 = 16;
/// Bytes of a page: what a page request asks for.
pub(super) const PAGE: u64 = 4096;
/// Pages that are looked at for one group: a reset waits for no more than this.
const LOOK_AHEAD: usize = 256;

/// What [`Completion`] will say.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) done: u32,
    address: u64,
    groups: u32,
    retries: u32,
}

impl Tally {
    pub(super) fn completion(&self, outcome: Outcome) -> Completion {
        Completion {
            status: (outcome as u32).into(),
            done: self.done.into(),
            address: self.address.into(),
            groups: self.groups.into(),
            retries: self.retries.into(),
        }
    }
}

/// How accesses of a descriptor are made.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) access: Access,
    /// Page requests in a group; `None` when no page is asked for.
    pub(super) group: Option<usize>,
}

/// Pieces of memory, in order.
pub(super) type Pieces = Vec<(Iova, u32)>;

impl Runner<'_> {
    pub(super) fn read(&mut self, way: Way, iova: Iova, buffer: &mut [u8]) -> Result<(), Outcome> {
        self.transfer(way, iova, &mut Transfer::Read(buffer), &[])
    }

    pub(super) fn write(&mut self, way: Way, iova: Iova, data: &[u8]) -> Result<(), Outcome> {
        self.transfer(way, iova, &mut Transfer::Write(data), &[])
    }

    /// Moves all bytes of a transfer. `rest` is what comes after them: where pages are asked for, some of them
    /// may be asked for with the first.
    pub(super) fn transfer(
        &mut self,
        way: Way,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        rest: &[(Iova, u32)],
    ) -> Result<(), Outcome> {
        let length = transfer.len();
        let last = (length as u64).saturating_sub(1);
        if iova.0.checked_add(last).is_none() {
            return Err(self.fail(iova, Outcome::BadDescriptor));
        }
        let (mut done, mut retries) = (0, 0);
        while done < length {
            let at = Iova(iova.0 + done as u64);
            if let Err(why) = self.may(way.access) {
                return Err(self.fail(at, why));
            }
            match self.engine.port.transfer(way.access, at, transfer, done) {
                Ok(moved) => {
                    (done, retries) = (done + moved, 0);
                    self.engine.progress.bytes.add(moved as u64);
                    self.tally.done = self.tally.done.wrapping_add(moved as u32);
                }
                Err(denied) if retries < MAX_RETRIES && self.can_ask(way, denied) => {
                    retries += 1;
                    let left = (at, (length - done) as u32);
                    let pages = self.missing(way, left, rest);
                    if let Err(why) = self.request(way.access, pages) {
                        return Err(self.fail(at, why));
                    }
                    self.tally.retries += 1;
                }
                Err(denied) => {
                    self.engine.port.report(way.access, denied, at);
                    let why = match retries {
                        MAX_RETRIES => Outcome::Retries,
                        _ => outcome_of(denied),
                    };
                    return Err(self.fail(at, why));
                }
            }
        }
        Ok(())
    }

    fn can_ask(&self, way: Way, denied: Denied) -> bool {
        denied.is_recoverable()
            && way.group.is_some()
            && way.access.translated
            && self.engine.function.page_requests().check().is_ok()
    }

    /// The pages that are not there, from the first on, as many as the group takes and the allocation allows.
    fn missing(&self, way: Way, first: (Iova, u32), rest: &[(Iova, u32)]) -> Vec<PageRequest> {
        let allocation = self.engine.function.page_requests().allocation();
        let most = way.group.unwrap_or(1).min(allocation.max(1) as usize);
        let mut pages: Vec<PageRequest> = Vec::new();
        let mut looks = 0;
        for &(iova, length) in std::iter::once(&first).chain(rest) {
            let end = iova.0.saturating_add(u64::from(length));
            let mut at = iova.0;
            while at < end && pages.len() < most && looks < LOOK_AHEAD {
                looks += 1;
                let next = (at | (PAGE - 1)).saturating_add(1).min(end);
                let asked = |page: &PageRequest| page.address.0 / PAGE == at / PAGE;
                let port = &self.engine.port;
                // The first one has just been missed. What is found of others is not for the endpoint's own cache.
                let untranslated = Access {
                    translated: false,
                    ..way.access
                };
                let missing = pages.is_empty()
                    || port
                        .translate(untranslated, Iova(at))
                        .is_err_and(Denied::is_recoverable);
                if missing && !pages.iter().any(asked) {
                    pages.push(PageRequest {
                        address: Iova(at),
                        access: way.access.kinds,
                        length: (next - at) as u32,
                    });
                }
                at = next;
            }
        }
        pages
    }

    /// Raises a group and waits for its answer.
    pub(super) fn request(
        &mut self,
        access: Access,
        pages: Vec<PageRequest>,
    ) -> Result<(), Outcome> {
        let engine = self.engine;
        let count = pages.len() as u32;
        let allocation = self.allocation(count)?;
        let response = engine
            .port
            .page_request(access.pasid, pages)
            .map_err(outcome_of)?;
        engine.progress.groups.add(1);
        engine.progress.requests.add(count.into());
        self.tally.groups += 1;
        let mut group = Group::new(response, allocation);
        engine.progress.enter(State::WaitingForAnswer);
        let answer = engine.wait_until(|context| ready(group.poll(context)));
        engine.progress.enter(State::Running);
        match answer.ok_or(Outcome::Reset)? {
            PageResponseCode::Success => {
                engine.progress.successes.add(1);
                Ok(())
            }
            PageResponseCode::InvalidRequest => Err(Outcome::InvalidRequest),
            PageResponseCode::ResponseFailure => Err(Outcome::ResponseFailure),
        }
    }

    /// Takes allocation for a group, and waits for it where others have it.
    fn allocation(&self, requests: u32) -> Result<Allocation, Outcome> {
        let engine = self.engine;
        let interface = engine.function.page_requests();
        let allocation = engine.wait_until(|context| {
            let poll = interface.poll_allocation(context, requests);
            if poll.is_pending() {
                engine.progress.enter(State::WaitingForAllocation);
            }
            ready(poll)
        });
        engine.progress.enter(State::Running);
        allocation
            .ok_or(Outcome::Reset)?
            .map_err(|refusal| match refusal {
                Refusal::Disabled => Outcome::PageRequestsDisabled,
                Refusal::TooLarge => Outcome::Allocation,
            })
    }

    pub(super) fn enabled(&self) -> Enabled {
        self.engine.function.enabled()
    }

    /// Whether configuration space lets the function make the access, and the driver still wants it.
    pub(super) fn may(&self, access: Access) -> Result<(), Outcome> {
        if self.engine.is_stopping() {
            return Err(Outcome::Reset);
        }
        let enabled = self.enabled();
        if !enabled.contains(Enabled::BUS_MASTER) {
            return Err(Outcome::BusMaster);
        }
        let mut needed = Enabled::empty();
        needed.set(Enabled::PASID, access.pasid.is_some());
        needed.set(Enabled::EXEC, access.kinds.contains(EventFlags::EXEC));
        let privileged = access.kinds.contains(EventFlags::PRIVILEGED);
        needed.set(Enabled::PRIVILEGED, privileged);
        match enabled.contains(needed) {
            true => Ok(()),
            false => Err(Outcome::PasidDisabled),
        }
    }

    /// Notes where it failed.
    pub(super) fn fail(&mut self, at: Iova, why: Outcome) -> Outcome {
        self.tally.address = at.0;
        self.engine.progress.fault.set(at.0);
        why
    }
}

pub(super) fn way(job: &Job, access: Access) -> Way {
    Way {
        access,
        group: job
            .flags
            .contains(Flags::PAGE_REQUESTS)
            .then_some(job.group),
    }
}

pub(super) fn outcome_of(denied: Denied) -> Outcome {
    match denied {
        Denied::NoEndpoint | Denied::Blocked => Outcome::Blocked,
        // Its width is in configuration space.
        Denied::NoPasid(_) => Outcome::PasidDisabled,
        Denied::NoPageRequests => Outcome::PageRequestsDisabled,
        Denied::Translation => Outcome::Translation,
        Denied::Permission => Outcome::Permission,
        Denied::NoMemory => Outcome::NoMemory,
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
