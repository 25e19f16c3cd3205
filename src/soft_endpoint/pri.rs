// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Page Request Interface of a function: its registers, and what is outstanding (PCI Express Base, "Page Request
//! Extended Capability").
//!
//! A group counts against Outstanding Page Request Allocation from when it is raised until its answer is there, also if the
//! agent that raised it was reset.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::{Mutex, MutexGuard};

use crate::host::soft::PendingResponse;
use crate::spec::PageResponseCode;

/// Outstanding Page Request Capacity: what the function can have outstanding at most.
pub const CAPACITY: u32 = 256;

bitflags::bitflags! {
    /// Page Request Control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u16 {
        /// Page requests may be raised.
        const ENABLE = 1 << 0;
        /// Written as 1 while ENABLE is 0: forgets what is outstanding. Reads as 0.
        const RESET = 1 << 1;
    }

    /// Page Request Status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u16 {
        /// A group was answered RESPONSE_FAILURE; no more are raised. A 1 clears.
        const RESPONSE_FAILURE = 1 << 0;
        /// There was an answer to a group that was forgotten. A 1 clears.
        const UNEXPECTED_GROUP = 1 << 1;
        /// Not enabled, and nothing is outstanding.
        const STOPPED = 1 << 8;
        /// Answers to requests with a PASID have it.
        const PASID_REQUIRED = 1 << 15;
    }
}

/// Why no group can be raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// PRI is not enabled, or a Response Failure stopped it.
    Disabled,
    /// The group is larger than the allocation: there will never be room.
    TooLarge,
}

/// The Page Request Interface of a function.
#[derive(Default)]
pub struct PageRequestInterface {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    enabled: bool,
    response_failure: bool,
    unexpected_group: bool,
    allocation: u32,
    outstanding: u32,
    peak: u32,
    /// Changes when what is outstanding is forgotten.
    epoch: u64,
    /// Those that wait for allocation.
    waiting: Vec<Waker>,
}

impl Inner {
    fn forget(&mut self) {
        self.epoch += 1;
        self.outstanding = 0;
        self.wake();
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

impl PageRequestInterface {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Page Request Control.
    pub fn control(&self) -> Control {
        match self.lock().enabled {
            true => Control::ENABLE,
            false => Control::empty(),
        }
    }

    /// Writes Page Request Control.
    pub fn set_control(&self, control: Control) {
        let mut inner = self.lock();
        inner.enabled = control.contains(Control::ENABLE);
        if control == Control::RESET {
            inner.forget();
        }
        inner.wake();
    }

    /// Page Request Status.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let mut status = Status::PASID_REQUIRED;
        status.set(Status::RESPONSE_FAILURE, inner.response_failure);
        status.set(Status::UNEXPECTED_GROUP, inner.unexpected_group);
        status.set(Status::STOPPED, !inner.enabled && inner.outstanding == 0);
        status
    }

    /// Writes Page Request Status: a 1 clears.
    pub fn clear_status(&self, written: Status) {
        let mut inner = self.lock();
        inner.response_failure &= !written.contains(Status::RESPONSE_FAILURE);
        inner.unexpected_group &= !written.contains(Status::UNEXPECTED_GROUP);
    }

    /// Outstanding Page Request Allocation.
    pub fn allocation(&self) -> u32 {
        self.lock().allocation
    }

    /// Writes Outstanding Page Request Allocation.
    pub fn set_allocation(&self, allocation: u32) {
        let mut inner = self.lock();
        inner.allocation = allocation;
        inner.wake();
    }

    /// Page requests outstanding, and the most at a time since the reset of the function.
    pub fn outstanding(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.outstanding, inner.peak)
    }

    /// The reset of the function: all registers, and what is outstanding.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.forget();
        *inner = Inner {
            epoch: inner.epoch,
            ..Inner::default()
        };
    }

    /// Whether a group may be raised.
    ///
    /// # Errors
    /// [`Refusal::Disabled`].
    pub fn check(&self) -> Result<(), Refusal> {
        let inner = self.lock();
        match inner.enabled && !inner.response_failure {
            true => Ok(()),
            false => Err(Refusal::Disabled),
        }
    }

    /// Takes allocation for a group of `requests`. While others have it, the waker of `context` is woken when that
    /// changes. Ready with [`Refusal`] if there will never be room, or no group may be raised.
    pub fn poll_allocation(
        self: &Arc<Self>,
        context: &Context<'_>,
        requests: u32,
    ) -> Poll<Result<Allocation, Refusal>> {
        let mut inner = self.lock();
        // More than the capacity can be written, and means the capacity.
        let allocation = inner.allocation.min(CAPACITY);
        if !inner.enabled || inner.response_failure {
            return Poll::Ready(Err(Refusal::Disabled));
        }
        if requests > allocation {
            return Poll::Ready(Err(Refusal::TooLarge));
        }
        if inner.outstanding.saturating_add(requests) > allocation {
            if !inner.waiting.iter().any(|w| w.will_wake(context.waker())) {
                inner.waiting.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        inner.outstanding += requests;
        inner.peak = inner.peak.max(inner.outstanding);
        Poll::Ready(Ok(Allocation {
            interface: Arc::clone(self),
            requests,
            epoch: inner.epoch,
        }))
    }

    fn answered(&self, allocation: &Allocation, code: Option<PageResponseCode>) {
        let mut inner = self.lock();
        if allocation.epoch == inner.epoch {
            inner.outstanding = inner.outstanding.saturating_sub(allocation.requests);
        } else {
            inner.unexpected_group = true;
        }
        inner.response_failure |= code == Some(PageResponseCode::ResponseFailure);
        inner.wake();
    }
}

/// The allocation that a group takes.
pub struct Allocation {
    interface: Arc<PageRequestInterface>,
    requests: u32,
    epoch: u64,
}

/// A group that was raised.
pub struct Group {
    response: PendingResponse,
    /// `None` when it is answered.
    allocation: Option<Allocation>,
}

impl Group {
    /// A group with its allocation.
    pub fn new(response: PendingResponse, allocation: Allocation) -> Self {
        Self {
            response,
            allocation: Some(allocation),
        }
    }

    /// Waits for the answer. RESPONSE_FAILURE stops the interface.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<PageResponseCode> {
        let poll = Pin::new(&mut self.response).poll(context);
        if let Poll::Ready(code) = poll
            && let Some(allocation) = self.allocation.take()
        {
            allocation.interface.answered(&allocation, Some(code));
        }
        poll
    }
}

impl Drop for Group {
    /// The agent waits no more. The group counts until its answer comes.
    fn drop(&mut self) {
        let Some(allocation) = self.allocation.take() else {
            return;
        };
        let waker = Waker::from(Arc::new(Forgotten(allocation)));
        let mut context = Context::from_waker(&waker);
        if Pin::new(&mut self.response).poll(&mut context).is_ready() {
            waker.wake();
        }
    }
}

/// Woken with the answer to a group that no agent waits for.
struct Forgotten(Allocation);

impl Wake for Forgotten {
    fn wake(self: Arc<Self>) {
        self.0.interface.answered(&self.0, None);
    }
}
