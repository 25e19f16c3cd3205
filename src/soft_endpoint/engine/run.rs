// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Carrying out descriptors: what an engine's thread does.

use std::task::Poll;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::host::PageRequest;
use crate::host::soft::{Access, Denied, Transfer};
use crate::soft_endpoint::engine::descriptor::{
    ALIGNMENT, Completion, Descriptor, Flags, Job, Operation, Outcome, Piece, REQUEST_LEN,
};
use crate::soft_endpoint::engine::registers::{Cause, Control, Enabled, State};
use crate::soft_endpoint::engine::thread::Engine;
use crate::soft_endpoint::pri::{Allocation, Group, Refusal};
use crate::spec::{EventFlags, Iova, PageResponseCode, Pasid};

/// An engine's own memory, which READ fills and WRITE empties, in bytes.
pub const BUFFER_LEN: usize = 64 << 10;
/// Bytes that COPY has on their way: they stay in the processor's cache.
const COPY_LEN: usize = 16 << 10;
/// How often an access tries again after answers SUCCESS that brought it no further.
const MAX_RETRIES: u32 = 16;
/// Bytes of a page: what a page request asks for.
const PAGE: u64 = 4096;

/// What an engine's thread has to itself.
pub(super) struct Runner<'a> {
    engine: &'a Engine,
    buffer: Vec<u8>,
    copy: Vec<u8>,
    /// Of the descriptor being carried out.
    tally: Tally,
}

/// What [`Completion`] will say.
#[derive(Default)]
struct Tally {
    done: u32,
    address: u64,
    groups: u32,
    retries: u32,
}

impl Tally {
    fn completion(&self, outcome: Outcome) -> Completion {
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
struct Way {
    access: Access,
    /// Page requests in a group; `None` when no page is asked for.
    group: Option<usize>,
}

/// Pieces of memory, in order.
type Pieces = Vec<(Iova, u32)>;

impl<'a> Runner<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            buffer: vec![0; BUFFER_LEN],
            copy: vec![0; COPY_LEN],
            tally: Tally::default(),
        }
    }

    /// The engine's memory after a reset.
    pub(super) fn reset(&mut self) {
        self.buffer.fill(0);
    }

    /// Carries out the chain at HEAD: its outcome.
    pub(super) fn chain(&mut self) -> Outcome {
        let program = self.engine.program();
        let fetch = Way {
            access: Access {
                pasid: program
                    .control
                    .contains(Control::FETCH_PASID)
                    .then_some(Pasid(program.fetch_pasid)),
                kinds: EventFlags::READ,
                translated: self.enabled().contains(Enabled::ATS),
            },
            group: program
                .control
                .contains(Control::FETCH_PAGE_REQUESTS)
                .then_some(1),
        };
        let mut at = program.head;
        let mut count = 0;
        while at != 0 {
            if program.limit != 0 && count == program.limit {
                return Outcome::Limit;
            }
            count += 1;
            self.engine.progress.current.set(at);
            match self.descriptor(at, fetch) {
                Ok(next) => at = next,
                Err(outcome) => return outcome,
            }
        }
        Outcome::Done
    }

    /// Carries out one descriptor: the address of the next.
    fn descriptor(&mut self, at: u64, fetch: Way) -> Result<u64, Outcome> {
        if !at.is_multiple_of(ALIGNMENT) {
            return Err(Outcome::BadDescriptor);
        }
        let mut descriptor = Descriptor::new_zeroed();
        let request = &mut descriptor.as_mut_bytes()[..REQUEST_LEN];
        self.read(fetch, Iova(at), request)?;

        self.tally = Tally::default();
        let job = Job::parse(&descriptor);
        let outcome = match job.and_then(|job| self.job(&job)) {
            Ok(()) => Outcome::Done,
            // Nothing is written any more.
            Err(Outcome::Reset) => return Err(Outcome::Reset),
            Err(outcome) => outcome,
        };
        let completion = self.tally.completion(outcome);
        let store = Way {
            access: Access {
                kinds: EventFlags::WRITE,
                ..fetch.access
            },
            ..fetch
        };
        let address = Iova(at.wrapping_add(REQUEST_LEN as u64));
        self.write(store, address, completion.as_bytes())?;

        self.engine.progress.completed.add(1);
        if outcome != Outcome::Done {
            return Err(outcome);
        }
        if job.is_ok_and(|job| job.flags.contains(Flags::INTERRUPT)) {
            self.engine.interrupt(Cause::DESCRIPTOR);
        }
        Ok(descriptor.next.get())
    }

    fn job(&mut self, job: &Job) -> Result<(), Outcome> {
        let ats = self.enabled().contains(Enabled::ATS);
        match job.operation {
            Operation::Nop => Ok(()),
            Operation::Read | Operation::Write => self.move_buffer(job, ats),
            Operation::Copy => self.copy(job, ats),
            Operation::PageRequest => self.ask(job, ats),
            Operation::Translate => self.translate(job, ats),
            Operation::StopMarker => {
                self.may(job.access(EventFlags::empty(), ats))?;
                let interface = self.engine.function.page_requests();
                let refused = interface.check().is_err();
                if refused {
                    return Err(Outcome::PageRequestsDisabled);
                }
                // It needs no answer, uses no allocation, and the driver never sees it.
                self.engine.progress.markers.add(1);
                Ok(())
            }
            Operation::Flush => {
                self.engine.port.flush();
                Ok(())
            }
        }
    }

    fn move_buffer(&mut self, job: &Job, ats: bool) -> Result<(), Outcome> {
        let direction = match job.operation {
            Operation::Read => EventFlags::READ,
            _ => EventFlags::WRITE,
        };
        let way = way(job, job.access(direction, ats));
        let pieces = self.pieces(job, ats)?;
        let length: u64 = pieces.iter().map(|&(_, length)| u64::from(length)).sum();
        let fits = job.other.checked_add(length);
        if fits.is_none_or(|end| end > BUFFER_LEN as u64) {
            return Err(Outcome::BadDescriptor);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = job.other as usize;
        let mut result = Ok(());
        for (index, &(iova, length)) in pieces.iter().enumerate() {
            let part = &mut buffer[at..at + length as usize];
            let mut transfer = match job.operation {
                Operation::Read => Transfer::Read(part),
                _ => Transfer::Write(part),
            };
            result = self.transfer(way, iova, &mut transfer, &pieces[index + 1..]);
            if result.is_err() {
                break;
            }
            at += length as usize;
        }
        self.buffer = buffer;
        result
    }

    fn copy(&mut self, job: &Job, ats: bool) -> Result<(), Outcome> {
        let source = way(job, job.access(EventFlags::READ, ats));
        let target = way(job, job.access(EventFlags::WRITE, ats));
        let pieces = self.pieces(job, ats)?;
        let mut to = job.other;
        let mut copy = std::mem::take(&mut self.copy);
        let mut result = Ok(());
        'pieces: for (index, &(iova, length)) in pieces.iter().enumerate() {
            let mut done = 0;
            while done < length as usize {
                let count = copy.len().min(length as usize - done);
                let from = iova.0.checked_add(done as u64).map(Iova);
                let part = &mut copy[..count];
                let rest = &pieces[index + 1..];
                result = from.ok_or(Outcome::BadDescriptor).and_then(|from| {
                    self.transfer(source, from, &mut Transfer::Read(part), rest)?;
                    // Only what has arrived counts.
                    self.tally.done -= count as u32;
                    self.transfer(target, Iova(to), &mut Transfer::Write(part), &[])
                });
                if result.is_err() {
                    break 'pieces;
                }
                done += count;
                to = to.wrapping_add(count as u64);
            }
        }
        self.copy = copy;
        result
    }

    /// PAGE_REQUEST: one request for the first byte of each piece, or for each page of the only one.
    fn ask(&mut self, job: &Job, ats: bool) -> Result<(), Outcome> {
        let access = job.purpose(ats);
        let mut pages = Vec::new();
        for (iova, length) in self.pieces(job, ats)? {
            let last = iova.0.saturating_add(u64::from(length.max(1)) - 1);
            let mut at = iova.0;
            loop {
                pages.push(PageRequest {
                    address: Iova(at),
                    access: access.kinds,
                    length: 0,
                });
                // As many as this are more than a group can have.
                match (at | (PAGE - 1)).checked_add(1) {
                    Some(next) if next <= last && pages.len() <= job.group => at = next,
                    _ => break,
                }
            }
        }
        if pages.is_empty() || pages.len() > job.group {
            return Err(Outcome::BadDescriptor);
        }
        self.may(access)?;
        let count = pages.len() as u32;
        self.request(access, pages)?;
        self.tally.done += count;
        Ok(())
    }

    /// TRANSLATE: each page of each piece.
    fn translate(&mut self, job: &Job, ats: bool) -> Result<(), Outcome> {
        let access = job.purpose(ats);
        if !access.translated {
            return Err(Outcome::AtsDisabled);
        }
        let pieces = self.pieces(job, ats)?;
        for (iova, length) in pieces {
            let last = iova.0.saturating_add(u64::from(length.max(1)) - 1);
            let mut at = iova.0;
            loop {
                self.may(access)?;
                // A translation that there is none of is no fault: nobody is told.
                if let Err(denied) = self.engine.port.translate(access, Iova(at)) {
                    return Err(self.fail(Iova(at), outcome_of(denied)));
                }
                self.tally.done += 1;
                match (at | (PAGE - 1)).checked_add(1) {
                    Some(next) if next <= last => at = next,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// The pieces of a job: those of its scatter list, or the one that it names itself.
    fn pieces(&mut self, job: &Job, ats: bool) -> Result<Pieces, Outcome> {
        if job.pieces == 0 {
            return Ok(vec![(job.address, job.length)]);
        }
        let read = job.access(EventFlags::READ, ats);
        let mut list = vec![0; job.pieces as usize * size_of::<Piece>()];
        self.read(way(job, read), job.address, &mut list)?;
        // Only the bytes that the list describes count.
        self.tally.done = 0;
        let pieces = <[Piece]>::ref_from_bytes(&list).unwrap_or_default();
        let pieces = pieces.iter();
        Ok(pieces
            .map(|piece| (Iova(piece.address.get()), piece.length.get()))
            .collect())
    }

    fn read(&mut self, way: Way, iova: Iova, buffer: &mut [u8]) -> Result<(), Outcome> {
        self.transfer(way, iova, &mut Transfer::Read(buffer), &[])
    }

    fn write(&mut self, way: Way, iova: Iova, data: &[u8]) -> Result<(), Outcome> {
        self.transfer(way, iova, &mut Transfer::Write(data), &[])
    }

    /// Moves all bytes of a transfer. `rest` is what comes after them: where pages are asked for, some of them
    /// may be asked for with the first.
    fn transfer(
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
                    self.tally.done += moved as u32;
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
        for &(iova, length) in std::iter::once(&first).chain(rest) {
            let end = iova.0.saturating_add(u64::from(length));
            let mut at = iova.0;
            while at < end && pages.len() < most {
                let next = (at | (PAGE - 1)).saturating_add(1).min(end);
                let asked = |page: &PageRequest| page.address.0 / PAGE == at / PAGE;
                let port = &self.engine.port;
                // The first one has just been missed. Others are looked at without keeping what is found.
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
    fn request(&mut self, access: Access, pages: Vec<PageRequest>) -> Result<(), Outcome> {
        let engine = self.engine;
        let count = pages.len() as u32;
        let allocation = self.allocation(count)?;
        let response = engine
            .port
            .page_request(access.pasid, pages)
            .map_err(|_| Outcome::Blocked)?;
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

    fn enabled(&self) -> Enabled {
        self.engine.function.enabled()
    }

    /// Whether configuration space lets the function make the access, and the driver still wants it.
    fn may(&self, access: Access) -> Result<(), Outcome> {
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
    fn fail(&mut self, at: Iova, why: Outcome) -> Outcome {
        self.tally.address = at.0;
        self.engine.progress.fault.set(at.0);
        why
    }
}

fn way(job: &Job, access: Access) -> Way {
    Way {
        access,
        group: job
            .flags
            .contains(Flags::PAGE_REQUESTS)
            .then_some(job.group),
    }
}

fn outcome_of(denied: Denied) -> Outcome {
    match denied {
        Denied::NoEndpoint | Denied::Blocked => Outcome::Blocked,
        // Its width is in configuration space.
        Denied::NoPasid => Outcome::PasidDisabled,
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
