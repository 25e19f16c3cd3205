// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The request queue: from descriptor chains to the device and back.
//!
//! Nothing here allocates, formats or takes a lock per request.

use std::hint::spin_loop;
use std::time::Instant;

use crate::device::{Device, Finished, Reply, Requests, Step};
use crate::spec::{Status, TAIL_LEN};
use crate::transport::chain::TailPlace;
use crate::transport::polling::Polling;
use crate::transport::ring::{Ring, RingError};

/// Requests are shown to the driver as used after so many, so that it goes on while the rest of a batch is served.
const PUBLISH_EVERY: u16 = 16;

/// The longest buffer of a PROBE that is filled: no device has more properties. Longer ones are INVAL.
const MAX_PROPERTIES: u32 = 1 << 20;

/// How often the clock is read while polling: once in so many looks at the ring.
const LOOKS_PER_CLOCK: u32 = 16;

/// What carries a batch of requests out: [`Requests`], or a stand-in for it.
pub trait Execute {
    /// See [`Requests::execute`].
    fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step;
    /// See [`Requests::properties`].
    fn properties(&self) -> &[u8];
    /// A chain was broken, and goes back unwritten.
    fn broken(&mut self);
    /// See [`Requests::finish`].
    fn finish(self) -> Finished;
}

/// A batch on the device.
pub(crate) struct DeviceBatch<'a> {
    device: &'a Device,
    requests: Requests<'a>,
}

impl<'a> DeviceBatch<'a> {
    pub fn new(device: &'a Device) -> Self {
        Self {
            device,
            requests: device.requests(),
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
    fn broken(&mut self) {
        let counters = self.device.counters();
        counters.requests.increment();
        counters.requests_unwritten.increment();
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

/// What serving a ring for a while came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// There is nothing to do until the driver kicks.
    Idle,
    /// Somebody wants the ring.
    Interrupted,
    /// The ring cannot be served.
    Broken(RingError),
}

/// What a worker needs besides the ring.
pub(crate) struct Service<'a, N, I> {
    pub held: &'a mut Vec<Held>,
    pub polling: &'a mut Polling,
    /// Notifies the driver.
    pub notify: N,
    /// Whether somebody wants the ring.
    pub interrupted: I,
}

impl<N: Fn(), I: Fn() -> bool> Service<'_, N, I> {
    /// Serves the ring until nothing comes any more. `batch` begins a batch; `events_wanted` is called when one
    /// says so.
    pub fn run<B: Execute>(
        &mut self,
        ring: &mut Ring<'_>,
        batch: impl Fn() -> B,
        events_wanted: impl Fn(),
    ) -> Served {
        match self.run_until(ring, batch, events_wanted) {
            Ok(served) => served,
            Err(error) => Served::Broken(error),
        }
    }

    fn run_until<B: Execute>(
        &mut self,
        ring: &mut Ring<'_>,
        batch: impl Fn() -> B,
        events_wanted: impl Fn(),
    ) -> Result<Served, RingError> {
        if ring.pending()? == 0 {
            // A spurious wake-up, or one before the first request: no reason to watch.
            if !ring.enable_kicks(0)? {
                return Ok(Served::Idle);
            }
        }
        self.polling.woken(Instant::now());
        loop {
            ring.disable_kicks();
            while ring.pending()? != 0 {
                if pass(ring, batch(), self.held)?.events_wanted {
                    events_wanted();
                }
                if ring.wants_interrupt() {
                    (self.notify)();
                }
                if (self.interrupted)() {
                    return Ok(Served::Interrupted);
                }
            }
            match self.watch(ring)? {
                Watch::Paid => continue,
                Watch::Interrupted => return Ok(Served::Interrupted),
                Watch::Expired => {}
            }
            // What came in while asking for a kick may come without one.
            if !ring.enable_kicks(0)? {
                return Ok(Served::Idle);
            }
        }
    }

    /// Watches the ring, without kicks, for as long as that is likely to pay.
    fn watch(&mut self, ring: &Ring<'_>) -> Result<Watch, RingError> {
        let window = self.polling.window();
        let start = Instant::now();
        self.polling.idle(start);
        if window.is_zero() {
            return Ok(Watch::Expired);
        }
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if ring.pending()? != 0 {
                    self.polling.paid();
                    return Ok(Watch::Paid);
                }
                if (self.interrupted)() {
                    return Ok(Watch::Interrupted);
                }
                spin_loop();
            }
            if start.elapsed() >= window {
                return Ok(Watch::Expired);
            }
        }
    }
}

enum Watch {
    Paid,
    Interrupted,
    Expired,
}

/// Carries out what is available now, as one batch.
pub(crate) fn pass<B: Execute>(
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
        settle(ring, held, status);
        ring.publish();
    }
    Ok(finished)
}

#[inline]
fn serve_next<B: Execute>(ring: &mut Ring<'_>, batch: &mut B, held: &mut Vec<Held>) {
    let head = ring.head(0);
    let chain = ring.chain(head);
    ring.take();
    let Ok(chain) = chain else {
        batch.broken();
        ring.give_back(head, 0);
        return;
    };
    let step = batch.execute(
        chain.readable(),
        chain.readable_len,
        chain.writable_len as usize,
    );
    if let Some(status) = step.settled {
        settle(ring, held, status);
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
    chain.tail.write(&mut ring.view, tail(status));
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

fn settle(ring: &mut Ring<'_>, held: &mut Vec<Held>, status: Status) {
    for request in held.drain(..) {
        request.tail.write(&mut ring.view, tail(status));
        ring.give_back(request.head, request.written);
    }
}

/// R19: the reserved bytes are zero.
fn tail(status: Status) -> [u8; TAIL_LEN] {
    let tail = [status as u8, 0, 0, 0];
    #[cfg(odd_bits)]
    let tail = crate::transport::odd_bits::tail(tail);
    tail
}
