// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The accesses of an agent: checked against what configuration space enables, carried out through a port, and asked for
//! where a page is missing.

use std::pin::pin;
use std::task::{Poll, Waker};

use crate::host::PageRequest;
use crate::host::soft::{Access, Denied, Port, Transfer};
use crate::soft_endpoint::agent::thread::{self, AgentThread};
use crate::soft_endpoint::function::{Enabled, Function};
use crate::soft_endpoint::pri::{Allocation, Group, Refusal};
use crate::spec::{EventFlags, Iova, PageResponseCode};

/// How often an access tries again after answers SUCCESS that brought it no further.
const MAX_RETRIES: u32 = 16;
/// Bytes of a page: what a page request asks for.
pub(crate) const PAGE: u64 = 4096;
/// Pages that are looked at for one group: a reset waits for no more than this.
const LOOK_AHEAD: usize = 256;

/// How an agent makes accesses.
#[derive(Clone, Copy)]
pub(crate) struct AccessMode {
    pub(crate) access: Access,
    /// Page requests in a group; `None` if no page is asked for.
    pub(crate) group: Option<usize>,
}

/// Pieces of memory, in order: first address, and length in bytes.
pub(crate) type Pieces = Vec<(Iova, u32)>;

/// Why an agent does not make an access or a page request, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The agent was stopped.
    Stopped,
    /// Bus Master Enable is off.
    BusMaster,
    /// The access has a PASID, or is of a kind, that is not enabled.
    PasidDisabled,
    /// The access goes beyond the last address.
    Wraps,
    /// The IOMMU denies it.
    Denied(Denied),
    /// Answers SUCCESS brought it no further.
    Retries,
    /// The Page Request Interface does not raise the group.
    Interface(Refusal),
    /// The answer to a page request, other than SUCCESS.
    Answered(PageResponseCode),
}

/// What an agent is told of its accesses while it makes them. By default it does not care.
pub(crate) trait Progress {
    /// So many bytes were moved.
    fn moved(&mut self, _bytes: usize) {}
    /// The agent waits for others to give allocation back.
    fn waits_for_allocation(&mut self) {}
    /// A group of so many requests was raised; the agent waits for its answer.
    fn raised(&mut self, _requests: u32) {}
    /// The agent goes on, with the answer if there is one.
    fn goes_on(&mut self, _answer: Option<PageResponseCode>) {}
    /// An access is made again after an answer SUCCESS.
    fn retries(&mut self) {}
}

impl Progress for () {}

/// The accesses of an agent, for its thread.
pub(crate) struct Dma<'a> {
    function: &'a dyn Function,
    port: &'a Port,
    thread: &'a AgentThread,
    waker: Waker,
}

impl<'a> Dma<'a> {
    /// For the agent's thread, which calls this.
    pub(crate) fn new(function: &'a dyn Function, port: &'a Port, thread: &'a AgentThread) -> Self {
        Self {
            function,
            port,
            thread,
            waker: thread::waker(),
        }
    }

    /// What configuration space enables now.
    pub(crate) fn enabled(&self) -> Enabled {
        self.function.enabled()
    }

    /// Begins work. If ATS is not enabled, the port's caches are emptied: what was kept while it was enabled is not used
    /// when it is again.
    pub(crate) fn begin(&self) {
        if !self.enabled().contains(Enabled::ATS) {
            self.port.flush();
        }
    }

    /// The access as configuration space lets the function make it: without ATS it is untranslated.
    ///
    /// # Errors
    /// [`Refused::Stopped`], [`Refused::BusMaster`], [`Refused::PasidDisabled`].
    pub(crate) fn check_enabled(&self, access: Access) -> Result<Access, Refused> {
        if self.thread.is_stopping() {
            return Err(Refused::Stopped);
        }
        let enabled = self.enabled();
        if !enabled.contains(Enabled::BUS_MASTER) {
            return Err(Refused::BusMaster);
        }
        let mut needed = Enabled::empty();
        needed.set(Enabled::PASID, access.pasid.is_some());
        needed.set(Enabled::EXEC, access.kinds.contains(EventFlags::EXEC));
        let privileged = access.kinds.contains(EventFlags::PRIVILEGED);
        needed.set(Enabled::PRIVILEGED, privileged);
        if !enabled.contains(needed) {
            return Err(Refused::PasidDisabled);
        }
        Ok(Access {
            translated: access.translated && enabled.contains(Enabled::ATS),
            ..access
        })
    }

    /// Moves all bytes of a transfer. `rest` is what comes after them: where pages are asked for, some of them
    /// may be asked for with the first.
    ///
    /// # Errors
    /// Why it has ended early, and at which address. What the IOMMU denied was reported to its driver.
    pub(crate) fn transfer(
        &self,
        progress: &mut impl Progress,
        mode: AccessMode,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        rest: &[(Iova, u32)],
    ) -> Result<(), (Iova, Refused)> {
        let length = transfer.len();
        let last = (length as u64).saturating_sub(1);
        if iova.0.checked_add(last).is_none() {
            return Err((iova, Refused::Wraps));
        }
        let (mut done, mut retries) = (0, 0);
        while done < length {
            let at = Iova(iova.0 + done as u64);
            let mode = AccessMode {
                access: self.check_enabled(mode.access).map_err(|why| (at, why))?,
                ..mode
            };
            match self.port.transfer(mode.access, at, transfer, done) {
                Ok(moved) => {
                    (done, retries) = (done + moved, 0);
                    progress.moved(moved);
                }
                Err(Denied::Held) => self
                    .wait_for_release(mode.access)
                    .map_err(|why| (at, why))?,
                Err(denied) if retries < MAX_RETRIES && self.can_request(mode, denied) => {
                    retries += 1;
                    let left = (at, (length - done) as u32);
                    let pages = self.missing(mode, left, rest);
                    self.request_pages(progress, mode.access, pages)
                        .map_err(|why| (at, why))?;
                    progress.retries();
                }
                Err(denied) => {
                    self.port.report(mode.access, denied, at);
                    let why = match retries {
                        MAX_RETRIES => Refused::Retries,
                        _ => Refused::Denied(denied),
                    };
                    return Err((at, why));
                }
            }
        }
        Ok(())
    }

    /// An address translation request for an access: see [`Port::translate`].
    ///
    /// # Errors
    /// Why the access would not be made, or not now.
    pub(crate) fn translate(&self, access: Access, iova: Iova) -> Result<(), Refused> {
        loop {
            let access = self.check_enabled(access)?;
            match self.port.translate(access, iova) {
                Err(Denied::Held) => self.wait_for_release(access)?,
                translated => return translated.map_err(Refused::Denied),
            }
        }
    }

    /// Waits while no table of the driver is read.
    fn wait_for_release(&self, access: Access) -> Result<(), Refused> {
        let mut released = pin!(self.port.released(access.pasid));
        let waited = self.thread.wait_until(&self.waker, |context| {
            ready(released.as_mut().poll(context))
        });
        waited.ok_or(Refused::Stopped)
    }

    /// Copies as far as that goes without waiting, and not more than 64 KiB: how many bytes.
    pub(crate) fn copy(
        &self,
        source: (Access, Iova),
        target: (Access, Iova),
        length: usize,
    ) -> usize {
        match (self.check_enabled(source.0), self.check_enabled(target.0)) {
            (Ok(read), Ok(write)) => self.port.copy((read, source.1), (write, target.1), length),
            _ => 0,
        }
    }

    /// Page requests are for endpoints with ATS: an untranslated access is aborted.
    fn can_request(&self, mode: AccessMode, denied: Denied) -> bool {
        denied.is_recoverable()
            && mode.group.is_some()
            && mode.access.translated
            && self.function.page_requests().check().is_ok()
    }

    /// The pages that are not there, from the first on, as many as the group takes and the allocation allows.
    fn missing(
        &self,
        mode: AccessMode,
        first: (Iova, u32),
        rest: &[(Iova, u32)],
    ) -> Vec<PageRequest> {
        let allocation = self.function.page_requests().allocation();
        let most = mode.group.unwrap_or(1).min(allocation.max(1) as usize);
        let mut pages: Vec<PageRequest> = Vec::new();
        let mut looks = 0;
        for &(iova, length) in std::iter::once(&first).chain(rest) {
            let end = iova.0.saturating_add(u64::from(length));
            let mut at = iova.0;
            while at < end && pages.len() < most && looks < LOOK_AHEAD {
                looks += 1;
                let next = (at | (PAGE - 1)).saturating_add(1).min(end);
                let asked = |page: &PageRequest| page.address.0 / PAGE == at / PAGE;
                // The first one has just been missed. What is found of others is not for the endpoint's own cache.
                let untranslated = Access {
                    translated: false,
                    ..mode.access
                };
                let missing = pages.is_empty()
                    || self
                        .port
                        .translate(untranslated, Iova(at))
                        .is_err_and(Denied::is_recoverable);
                if missing && !pages.iter().any(asked) {
                    pages.push(PageRequest {
                        address: Iova(at),
                        access: mode.access.kinds,
                        length: (next - at) as u32,
                    });
                }
                at = next;
            }
        }
        pages
    }

    /// Raises a group and waits for its answer SUCCESS.
    ///
    /// # Errors
    /// Why the group was not raised, or another answer.
    pub(crate) fn request_pages(
        &self,
        progress: &mut impl Progress,
        access: Access,
        pages: Vec<PageRequest>,
    ) -> Result<(), Refused> {
        self.check_enabled(access)?;
        let count = pages.len() as u32;
        let allocation = self.allocation(progress, count)?;
        let response = self
            .port
            .page_request(access.pasid, pages)
            .map_err(Refused::Denied)?;
        progress.raised(count);
        let mut group = Group::new(response, allocation);
        let answer = self
            .thread
            .wait_until(&self.waker, |context| ready(group.poll(context)));
        progress.goes_on(answer);
        match answer.ok_or(Refused::Stopped)? {
            PageResponseCode::Success => Ok(()),
            code => Err(Refused::Answered(code)),
        }
    }

    /// Takes allocation for a group, and waits for it while others have it.
    fn allocation(
        &self,
        progress: &mut impl Progress,
        requests: u32,
    ) -> Result<Allocation, Refused> {
        let interface = self.function.page_requests();
        let allocation = self.thread.wait_until(&self.waker, |context| {
            let poll = interface.poll_allocation(context, requests);
            if poll.is_pending() {
                progress.waits_for_allocation();
            }
            ready(poll)
        });
        progress.goes_on(None);
        allocation
            .ok_or(Refused::Stopped)?
            .map_err(Refused::Interface)
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
