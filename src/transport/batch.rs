// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A batch of requests: from descriptor chains to the device and back.
//!
//! Nothing here allocates, formats or takes a lock per request.

use std::time::Instant;

use crate::device::{Batch, Device, Finished, Reply, Step};
use crate::spec::{Status, TAIL_LEN};
use crate::transport::chain::{Broken, TailPlace};
use crate::transport::ring::{Ring, RingError};

/// Requests are shown to the driver as used after so many, so that it goes on while the rest of a batch is served.
const PUBLISH_EVERY: u16 = 16;

/// The longest buffer of a PROBE that is filled: no device has more properties. Longer ones are INVAL.
const MAX_PROPERTIES: u32 = 1 << 20;

/// What carries a batch of requests out: [`Batch`], or a stand-in for it.
pub trait Execute {
    /// See [`Batch::execute`].
    fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step;
    /// See [`Batch::properties`].
    fn properties(&self) -> &[u8];
    /// A chain was broken, and goes back unwritten.
    fn broken(&mut self, why: Broken);
    /// The tail that carries a status (R19: the reserved bytes are zero).
    fn tail(status: Status) -> [u8; TAIL_LEN] {
        [status as u8, 0, 0, 0]
    }
    /// See [`Batch::finish`].
    fn finish(self) -> Finished;
}

/// A batch on the device.
pub(crate) struct DeviceBatch<'a> {
    device: &'a Device,
    requests: Batch<'a>,
}

impl<'a> DeviceBatch<'a> {
    pub fn new(device: &'a Device) -> Self {
        Self {
            device,
            requests: device.requests().timed(Instant::now),
        }
    }
}

impl Execute for DeviceBatch<'_> {
    #[inline]
    fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step {
        self.requests.execute(readable, readable_len, writable_len)
    }

    fn properties(&self) -> &[u8] {
        self.requests.properties()
    }

    #[cold]
    fn broken(&mut self, why: Broken) {
        let counters = self.device.counters();
        counters.requests.increment();
        if counters.requests_unwritten.increment_and_log()
            && let Broken::Outside(gpa) = why
        {
            log::warn!(
                "a request goes back unwritten: a buffer of it is at guest-physical address {gpa:#x}, which is not in \
                 memory that the front-end shares. If the guest has memory there, its memory backend needs share=on"
            );
        }
    }

    fn finish(self) -> Finished {
        self.requests.finish()
    }
}

/// A request whose status is not known yet ([`Reply::Joined`]).
pub(crate) struct Held {
    head: u16,
    written: u32,
    tail: TailPlace,
}

/// Carries out what is available now, as one batch.
pub(crate) fn serve_available<B: Execute>(
    ring: &mut Ring<'_>,
    mut batch: B,
    held: &mut Vec<Held>,
) -> Result<Finished, RingError> {
    let pending = ring.pending()?;
    for _ in 0..pending {
        serve_next(ring, &mut batch, held);
        if ring.unpublished() >= PUBLISH_EVERY {
            ring.publish();
        }
    }
    ring.publish();
    let finished = batch.finish();
    if let Some(status) = finished.settled {
        answer_held::<B>(ring, held, status);
        ring.publish();
    }
    Ok(finished)
}

#[inline]
fn serve_next<B: Execute>(ring: &mut Ring<'_>, batch: &mut B, held: &mut Vec<Held>) {
    let head = ring.head(0);
    let chain = ring.chain(head);
    ring.take();
    let chain = match chain {
        Ok(chain) => chain,
        Err(why) => {
            batch.broken(why);
            ring.give_back(head, 0);
            return;
        }
    };
    let step = batch.execute(
        chain.readable(),
        chain.readable_len,
        chain.writable_len as usize,
    );
    if let Some(status) = step.settled {
        answer_held::<B>(ring, held, status);
    }
    let status = match step.reply {
        Reply::Status(status) => status,
        Reply::Unwritten => {
            ring.give_back(head, 0);
            return;
        }
        Reply::Joined => {
            held.push(Held {
                head,
                written: chain.writable_len,
                tail: chain.tail,
            });
            return;
        }
        Reply::Properties => properties(ring, batch, head, chain.writable_len),
    };
    chain.tail.write(&mut ring.view, B::tail(status));
    ring.give_back(head, chain.writable_len);
}

/// Writes the properties, and zeros up to the tail (P59).
#[cold]
fn properties<B: Execute>(ring: &mut Ring<'_>, batch: &B, head: u16, writable_len: u32) -> Status {
    if writable_len > MAX_PROPERTIES {
        return Status::Inval;
    }
    let room = (writable_len as usize).saturating_sub(TAIL_LEN);
    match ring.fill(head, batch.properties(), room) {
        Ok(()) => Status::Ok,
        // The driver has changed the chain meanwhile.
        Err(_) => Status::Inval,
    }
}

/// Answers the requests whose status is known by now.
fn answer_held<B: Execute>(ring: &mut Ring<'_>, held: &mut Vec<Held>, status: Status) {
    for request in held.drain(..) {
        request.tail.write(&mut ring.view, B::tail(status));
        ring.give_back(request.head, request.written);
    }
}
