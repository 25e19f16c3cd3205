// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors and chains of them, carried out.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::host::PageRequest;
use crate::host::soft::{Access, Transfer};
use crate::soft_endpoint::agent::dma::{AccessMode, PAGE, Pieces, Refused};
use crate::soft_endpoint::engine::access::{BUFFER_LEN, Runner, Tally, access_mode};
use crate::soft_endpoint::engine::descriptor::{
    ALIGNMENT, Descriptor, Flags, Job, Operation, Outcome, Piece, REQUEST_LEN,
};
use crate::soft_endpoint::engine::registers::{Cause, Control, Enabled};
use crate::spec::{EventFlags, Iova, Pasid};

impl Runner<'_> {
    /// Carries out the chain at HEAD: its outcome.
    pub(super) fn chain(&mut self) -> Outcome {
        let program = self.engine.program();
        self.dma.begin();
        let fetch = AccessMode {
            access: Access {
                pasid: program
                    .control
                    .contains(Control::FETCH_PASID)
                    .then_some(Pasid(program.fetch_pasid)),
                kinds: EventFlags::READ,
                translated: true,
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
    fn descriptor(&mut self, at: u64, fetch: AccessMode) -> Result<u64, Outcome> {
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
        let store = AccessMode {
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
        match job.operation {
            Operation::Nop => Ok(()),
            Operation::Read | Operation::Write => self.move_buffer(job),
            Operation::Copy => self.copy(job),
            Operation::PageRequest => self.page_request(job),
            Operation::Translate => self.translate(job),
            Operation::StopMarker => {
                self.check_enabled(job.access(EventFlags::empty()))?;
                let interface = self.engine.function.page_requests();
                interface
                    .check()
                    .map_err(|_| Outcome::PageRequestsDisabled)?;
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

    fn move_buffer(&mut self, job: &Job) -> Result<(), Outcome> {
        let direction = match job.operation {
            Operation::Read => EventFlags::READ,
            _ => EventFlags::WRITE,
        };
        let mode = access_mode(job, job.access(direction));
        let pieces = self.pieces(job)?;
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
            result = self.transfer(mode, iova, &mut transfer, &pieces[index + 1..]);
            if result.is_err() {
                break;
            }
            at += length as usize;
        }
        self.buffer = buffer;
        result
    }

    fn copy(&mut self, job: &Job) -> Result<(), Outcome> {
        let source = access_mode(job, job.access(EventFlags::READ));
        let target = access_mode(job, job.access(EventFlags::WRITE));
        let pieces = self.pieces(job)?;
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
                    let arrived = self.tally.done;
                    let read = self.transfer(source, from, &mut Transfer::Read(part), rest);
                    // Only what is written counts.
                    self.tally.done = arrived;
                    read?;
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
    fn page_request(&mut self, job: &Job) -> Result<(), Outcome> {
        let access = job.purpose();
        let mut pages = Vec::new();
        for (iova, length) in self.pieces(job)? {
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
        let count = pages.len() as u32;
        self.request_pages(access, pages)?;
        self.tally.done = count;
        Ok(())
    }

    /// TRANSLATE: each page of each piece.
    fn translate(&mut self, job: &Job) -> Result<(), Outcome> {
        let access = job.purpose();
        if !access.translated || !self.dma.enabled().contains(Enabled::ATS) {
            return Err(Outcome::AtsDisabled);
        }
        let pieces = self.pieces(job)?;
        for (iova, length) in pieces {
            let last = iova.0.saturating_add(u64::from(length.max(1)) - 1);
            let mut at = iova.0;
            loop {
                // A missing translation is no fault: the IOMMU's driver is not told.
                match self.dma.translate(access, Iova(at)) {
                    Ok(()) => {}
                    Err(Refused::Denied(denied)) => {
                        return Err(self.fail(Iova(at), denied.into()));
                    }
                    Err(why) => return Err(why.into()),
                }
                self.tally.done = self.tally.done.wrapping_add(1);
                match (at | (PAGE - 1)).checked_add(1) {
                    Some(next) if next <= last => at = next,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// The pieces of a job: those of its scatter list, or the one that it names itself.
    fn pieces(&mut self, job: &Job) -> Result<Pieces, Outcome> {
        if job.pieces == 0 {
            return Ok(vec![(job.address, job.length)]);
        }
        let read = job.access(EventFlags::READ);
        let mut list = vec![0; job.pieces as usize * size_of::<Piece>()];
        self.read(access_mode(job, read), job.address, &mut list)?;
        // Only the bytes that the list describes count.
        self.tally.done = 0;
        let pieces = <[Piece]>::ref_from_bytes(&list).unwrap_or_default();
        let pieces = pieces.iter();
        Ok(pieces
            .map(|piece| (Iova(piece.address.get()), piece.length.get()))
            .collect())
    }
}
