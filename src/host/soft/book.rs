// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the software host has to tell, and who waits for an answer.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::{Cookie, Fault, HostError, HostEvent, PageRequest, PageRequestGroup, Requester};
use crate::spec::{EndpointId, PageResponseCode};

/// Faults that wait to be taken. The device holds 64 in turn; of more, the newest are dropped, as a guest
/// that cannot keep up with its faults learns nothing from a thousand.
const MAX_FAULTS: usize = 64;
/// Page-request groups outstanding. The device's own quota is smaller by default; this one bounds our memory
/// while the device does not ask for events.
const MAX_GROUPS: usize = 1 << 16;
/// Page requests in all those groups: 24 MiB of them.
const MAX_PAGES: usize = 1 << 20;
/// Events handed out per call: what one look at the event queue can reasonably deliver.
const MAX_TAKEN: usize = 256;

/// Events for the device, and every outstanding group by its cookie.
///
/// Taken last: nothing else is locked while this is, and nobody is called.
pub(super) struct Book {
    inner: Mutex<Inner>,
    /// Readable exactly while `inner.queue` is not empty; changed under the lock.
    event: EventFd,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Queued>,
    /// How many of `queue` are faults.
    faults: usize,
    /// Indexed by cookie.
    groups: Vec<Option<Group>>,
    /// The cookies below `groups.len()` that are free.
    free: BTreeSet<usize>,
    /// Page requests in all groups.
    pages: usize,
}

enum Queued {
    Fault(Fault),
    /// An index of `Inner::groups`.
    Group(usize),
}

struct Group {
    requester: Requester,
    pages: Vec<PageRequest>,
    slot: Arc<Slot>,
}

/// Where an answer arrives.
struct Slot(Mutex<SlotState>);

enum SlotState {
    Waiting(Option<Waker>),
    Answered(PageResponseCode),
}

impl Slot {
    fn answer(&self, code: PageResponseCode) {
        let before = std::mem::replace(&mut *lock(&self.0), SlotState::Answered(code));
        if let SlotState::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// The answer to a page-request group: a future that is ready when the group is answered or withdrawn.
/// Dropping it withdraws nothing: the group stays outstanding.
pub struct PendingResponse(Arc<Slot>);

impl PendingResponse {
    /// A response that is there already.
    pub(super) fn ready(code: PageResponseCode) -> Self {
        Self(Arc::new(Slot(Mutex::new(SlotState::Answered(code)))))
    }
}

impl Future for PendingResponse {
    type Output = PageResponseCode;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<PageResponseCode> {
        match &mut *lock(&self.0.0) {
            SlotState::Answered(code) => Poll::Ready(*code),
            SlotState::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Book {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    pub(super) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Reports a fault, unless too many wait.
    pub(super) fn fault(&self, fault: Fault) {
        let mut inner = lock(&self.inner);
        if inner.faults < MAX_FAULTS {
            inner.faults += 1;
            self.enqueue(&mut inner, Queued::Fault(fault));
        }
    }

    /// Raises a group. Beyond the bounds it is answered INVALID_REQUEST at once.
    pub(super) fn raise(&self, requester: Requester, pages: Vec<PageRequest>) -> PendingResponse {
        let mut inner = lock(&self.inner);
        let outstanding = inner.groups.len() - inner.free.len();
        if outstanding >= MAX_GROUPS || pages.len() > MAX_PAGES - inner.pages {
            return PendingResponse::ready(PageResponseCode::InvalidRequest);
        }
        inner.pages += pages.len();
        let slot = Arc::new(Slot(Mutex::new(SlotState::Waiting(None))));
        let group = Group {
            requester,
            pages,
            slot: Arc::clone(&slot),
        };
        // Lowest first, like the kernel's: a cookie is used again as soon as it is free.
        let cookie = match inner.free.pop_first() {
            Some(cookie) => {
                inner.groups[cookie] = Some(group);
                cookie
            }
            None => {
                inner.groups.push(Some(group));
                inner.groups.len() - 1
            }
        };
        self.enqueue(&mut inner, Queued::Group(cookie));
        PendingResponse(slot)
    }

    /// Hands out what waits, oldest first, without holding the lock while it does.
    pub(super) fn take(&self, sink: &mut dyn FnMut(HostEvent)) {
        for _ in 0..MAX_TAKEN {
            let event = {
                let mut inner = lock(&self.inner);
                let event = inner.queue.pop_front();
                if matches!(event, Some(Queued::Fault(_))) {
                    inner.faults -= 1;
                }
                self.settle(&inner);
                match event {
                    None => return,
                    Some(Queued::Fault(fault)) => HostEvent::Fault(fault),
                    Some(Queued::Group(cookie)) => match inner.group_event(cookie) {
                        Some(event) => event,
                        None => continue,
                    },
                }
            };
            sink(event);
        }
    }

    /// Answers one group.
    pub(super) fn respond(&self, cookie: Cookie, code: PageResponseCode) -> Result<(), HostError> {
        let group = {
            let mut inner = lock(&self.inner);
            usize::try_from(cookie.0)
                .ok()
                .and_then(|index| inner.remove(index))
                .ok_or(HostError::NoGroup(cookie))?
        };
        group.slot.answer(code);
        Ok(())
    }

    /// Answers INVALID_REQUEST to every group of a requester, taken or not.
    pub(super) fn withdraw(&self, requester: Requester) {
        self.withdraw_where(|r| r == requester);
    }

    /// Answers INVALID_REQUEST to every group of an endpoint, and forgets its faults.
    pub(super) fn withdraw_endpoint(&self, endpoint: EndpointId) {
        self.withdraw_where(|r| r.endpoint == endpoint);
        let mut inner = lock(&self.inner);
        inner.queue.retain(
            |queued| !matches!(queued, Queued::Fault(fault) if fault.requester.endpoint == endpoint),
        );
        inner.faults = inner
            .queue
            .iter()
            .filter(|queued| matches!(queued, Queued::Fault(_)))
            .count();
        self.settle(&inner);
    }

    fn withdraw_where(&self, matching: impl Fn(Requester) -> bool) {
        let withdrawn: Vec<Group> = {
            let mut inner = lock(&self.inner);
            let cookies: Vec<usize> = inner
                .groups
                .iter()
                .enumerate()
                .filter(|(_, group)| group.as_ref().is_some_and(|g| matching(g.requester)))
                .map(|(cookie, _)| cookie)
                .collect();
            if cookies.is_empty() {
                return;
            }
            let groups = cookies.iter().filter_map(|&c| inner.remove(c)).collect();
            let Inner {
                queue,
                groups: left,
                ..
            } = &mut *inner;
            queue.retain(|queued| match queued {
                Queued::Group(cookie) => left.get(*cookie).is_some_and(Option::is_some),
                Queued::Fault(_) => true,
            });
            self.settle(&inner);
            groups
        };
        for group in withdrawn {
            group.slot.answer(PageResponseCode::InvalidRequest);
        }
    }

    fn enqueue(&self, inner: &mut Inner, queued: Queued) {
        inner.queue.push_back(queued);
        if inner.queue.len() == 1 {
            // Fails only if the counter is full, and then it is readable as it should be.
            let _ = self.event.write(1);
        }
    }

    fn settle(&self, inner: &Inner) {
        if inner.queue.is_empty() {
            // Fails only if it was not readable, as it should be.
            let _ = self.event.read();
        }
    }
}

impl Inner {
    fn group_event(&self, cookie: usize) -> Option<HostEvent> {
        let group = self.groups.get(cookie)?.as_ref()?;
        Some(HostEvent::PageRequest(PageRequestGroup {
            requester: group.requester,
            cookie: Cookie(cookie as u64),
            pages: group.pages.clone(),
        }))
    }

    fn remove(&mut self, cookie: usize) -> Option<Group> {
        let group = self.groups.get_mut(cookie)?.take()?;
        self.pages -= group.pages.len();
        self.free.insert(cookie);
        // Free cookies at the end are forgotten, so that the table shrinks after a storm.
        while matches!(self.groups.last(), Some(None)) {
            self.groups.pop();
            self.free.remove(&self.groups.len());
        }
        Some(group)
    }
}

/// Nothing panics while it holds one of these locks, and if something did, what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
