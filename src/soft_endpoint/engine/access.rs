// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The accesses of an engine: its DMA, counted in its registers and in the descriptor's completion.

use crate::host::PageRequest;
use crate::host::soft::{Access, Denied, Transfer};
use crate::soft_endpoint::agent::dma::{AccessMode, Dma, Progress, Refused};
use crate::soft_endpoint::engine::descriptor::{Completion, Flags, Job, Outcome};
use crate::soft_endpoint::engine::registers::State;
use crate::soft_endpoint::engine::state::Engine;
use crate::soft_endpoint::pri::Refusal;
use crate::spec::{Iova, PageResponseCode};

/// An engine's own memory, which READ fills and WRITE empties, in bytes.
pub(super) const BUFFER_LEN: usize = 64 << 10;
/// Bytes that COPY has on their way: they stay in the processor's cache.
const COPY_LEN: usize = 16 << 10;

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

/// What an engine's thread has to itself.
pub(super) struct Runner<'a> {
    pub(super) engine: &'a Engine,
    pub(super) dma: Dma<'a>,
    pub(super) buffer: Vec<u8>,
    pub(super) copy: Vec<u8>,
    /// Of the descriptor being carried out.
    pub(super) tally: Tally,
}

/// Counts what an access does, in the registers and in the descriptor's tally.
struct Counting<'a> {
    engine: &'a Engine,
    tally: &'a mut Tally,
}

impl Progress for Counting<'_> {
    fn moved(&mut self, bytes: usize) {
        self.engine.progress.bytes.add(bytes as u64);
        self.tally.done = self.tally.done.wrapping_add(bytes as u32);
    }

    fn waits_for_allocation(&mut self) {
        self.engine.progress.enter(State::WaitingForAllocation);
    }

    fn raised(&mut self, requests: u32) {
        let progress = &self.engine.progress;
        progress.groups.add(1);
        progress.requests.add(requests.into());
        self.tally.groups += 1;
        progress.enter(State::WaitingForAnswer);
    }

    fn goes_on(&mut self, answer: Option<PageResponseCode>) {
        self.engine.progress.enter(State::Running);
        if answer == Some(PageResponseCode::Success) {
            self.engine.progress.successes.add(1);
        }
    }

    fn retries(&mut self) {
        self.tally.retries += 1;
    }
}

impl<'a> Runner<'a> {
    /// For the engine's thread, which calls this.
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            dma: Dma::new(&*engine.function, &engine.port, &engine.thread),
            buffer: vec![0; BUFFER_LEN],
            copy: vec![0; COPY_LEN],
            tally: Tally::default(),
        }
    }

    /// The engine's memory after a reset.
    pub(super) fn reset(&mut self) {
        self.buffer.fill(0);
    }

    pub(super) fn read(
        &mut self,
        mode: AccessMode,
        iova: Iova,
        buffer: &mut [u8],
    ) -> Result<(), Outcome> {
        self.transfer(mode, iova, &mut Transfer::Read(buffer), &[])
    }

    pub(super) fn write(
        &mut self,
        mode: AccessMode,
        iova: Iova,
        data: &[u8],
    ) -> Result<(), Outcome> {
        self.transfer(mode, iova, &mut Transfer::Write(data), &[])
    }

    /// See [`Dma::transfer`].
    pub(super) fn transfer(
        &mut self,
        mode: AccessMode,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        rest: &[(Iova, u32)],
    ) -> Result<(), Outcome> {
        let mut counting = Counting {
            engine: self.engine,
            tally: &mut self.tally,
        };
        let result = self.dma.transfer(&mut counting, mode, iova, transfer, rest);
        result.map_err(|(at, why)| self.fail(at, why.into()))
    }

    /// See [`Dma::request_pages`].
    pub(super) fn request_pages(
        &mut self,
        access: Access,
        pages: Vec<PageRequest>,
    ) -> Result<(), Outcome> {
        let mut counting = Counting {
            engine: self.engine,
            tally: &mut self.tally,
        };
        let result = self.dma.request_pages(&mut counting, access, pages);
        result.map_err(Outcome::from)
    }

    /// See [`Dma::check_enabled`].
    pub(super) fn check_enabled(&self, access: Access) -> Result<Access, Outcome> {
        self.dma.check_enabled(access).map_err(Outcome::from)
    }

    /// Notes where it failed.
    pub(super) fn fail(&mut self, at: Iova, why: Outcome) -> Outcome {
        self.tally.address = at.0;
        self.engine.progress.fault.set(at.0);
        why
    }
}

/// The mode of a job's accesses.
pub(super) fn access_mode(job: &Job, access: Access) -> AccessMode {
    AccessMode {
        access,
        group: job
            .flags
            .contains(Flags::PAGE_REQUESTS)
            .then_some(job.group),
    }
}

impl From<Denied> for Outcome {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NoEndpoint | Denied::Blocked => Self::Blocked,
            // Its width is in configuration space.
            Denied::NoPasid(_) => Self::PasidDisabled,
            Denied::NoPageRequests => Self::PageRequestsDisabled,
            // To a device an address that cannot be asked for is one without a translation.
            // An agent waits while it is held.
            Denied::Translation
            | Denied::Malformed
            | Denied::Outside
            | Denied::Contended
            | Denied::Held => Self::Translation,
            Denied::Permission | Denied::Privileged => Self::Permission,
            Denied::NoMemory => Self::NoMemory,
        }
    }
}

impl From<Refused> for Outcome {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Stopped => Self::Reset,
            Refused::BusMaster => Self::BusMaster,
            Refused::PasidDisabled => Self::PasidDisabled,
            Refused::Wraps => Self::BadDescriptor,
            Refused::Denied(denied) => denied.into(),
            Refused::Retries => Self::Retries,
            Refused::Interface(Refusal::Disabled) => Self::PageRequestsDisabled,
            Refused::Interface(Refusal::TooLarge) => Self::Allocation,
            Refused::Answered(PageResponseCode::ResponseFailure) => Self::ResponseFailure,
            // SUCCESS is no refusal.
            Refused::Answered(_) => Self::InvalidRequest,
        }
    }
}
