// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events of the software host for the device: faults, and page-request groups with their answers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::{Cookie, Fault, HostError, HostEvent, PageRequest, PageRequestGroup, Requester};
use crate::spec::{EndpointId, PageResponseCode};

/// Faults that wait to be taken. The device holds 64 in turn; of more, the newest are dropped and counted, as a guest
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
/// Its lock is taken last: no other is taken while it is held, and nothing is called.
pub(super) struct EventSource {
    inner: Mutex<Inner>,
    /// Readable exactly while `inner` has something to take; changed under the lock.
    event: EventFd,
}

#[derive(Default)]
struct Inner {
    /// In the order of arrival.
    queue: BTreeMap<u64, Queued>,
    /// The next key of `queue`.
    next: u64,
    /// How many of `queue` are faults.
    faults: usize,
    /// Faults that were not put into `queue`, or left it without being taken; not yet told.
    dropped: u64,
    /// `event` is readable.
    readable: bool,
    /// Indexed by cookie.
    groups: Vec<Option<Group>>,
    /// The cookies of every requester's groups.
    by_requester: BTreeSet<(Requester, usize)>,
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
    /// Its key in `Inner::queue`; `None` when the device has taken it, and knows the cookie.
    queued: Option<u64>,
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
        let before = std::mem::replace(&mut *self.0.lock(), SlotState::Answered(code));
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
        match &mut *self.0.0.lock() {
            SlotState::Answered(code) => Poll::Ready(*code),
            SlotState::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl EventSource {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Events that wait, groups, free cookies, and page requests.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        let inner = self.inner.lock();
        let Inner {
            queue,
            groups,
            free,
            pages,
            ..
        } = &*inner;
        [queue.len(), groups.len(), free.len(), *pages]
    }

    pub(super) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Reports a fault, or counts it as dropped if too many wait.
    pub(super) fn fault(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        if inner.faults < MAX_FAULTS {
            inner.faults += 1;
            inner.enqueue(Queued::Fault(fault));
        } else {
            inner.dropped += 1;
        }
        self.signal(&mut inner);
    }

    /// Raises a group. Beyond the bounds it is answered INVALID_REQUEST at once.
    pub(super) fn raise(&self, requester: Requester, pages: Vec<PageRequest>) -> PendingResponse {
        let mut inner = self.inner.lock();
        let outstanding = inner.groups.len() - inner.free.len();
        if outstanding >= MAX_GROUPS || pages.len() > MAX_PAGES - inner.pages {
            return PendingResponse::ready(PageResponseCode::InvalidRequest);
        }
        inner.pages += pages.len();
        let slot = Arc::new(Slot(Mutex::new(SlotState::Waiting(None))));
        // Lowest first, like the kernel's: a cookie is used again as soon as it is free.
        let cookie = match inner.free.pop_first() {
            Some(cookie) => cookie,
            None => {
                inner.groups.push(None);
                inner.groups.len() - 1
            }
        };
        let queued = inner.enqueue(Queued::Group(cookie));
        inner.groups[cookie] = Some(Group {
            requester,
            pages,
            queued: Some(queued),
            slot: Arc::clone(&slot),
        });
        inner.by_requester.insert((requester, cookie));
        self.signal(&mut inner);
        PendingResponse(slot)
    }

    /// Hands out what waits, oldest first, without holding the lock while it does. The count of dropped faults comes last:
    /// the newest are dropped.
    pub(super) fn take(&self, sink: &mut dyn FnMut(HostEvent)) {
        for _ in 0..MAX_TAKEN {
            let event = {
                let mut inner = self.inner.lock();
                let event = match inner.queue.pop_first().map(|(_, queued)| queued) {
                    None => match std::mem::take(&mut inner.dropped) {
                        0 => None,
                        dropped => Some(HostEvent::FaultsDropped(dropped)),
                    },
                    Some(Queued::Fault(fault)) => {
                        inner.faults -= 1;
                        Some(HostEvent::Fault(fault))
                    }
                    Some(Queued::Group(cookie)) => inner.take_group(cookie),
                };
                self.signal(&mut inner);
                event
            };
            let Some(event) = event else {
                return;
            };
            sink(event);
        }
    }

    /// Answers one group.
    ///
    /// # Errors
    /// [`HostError::NoGroup`] if no group that was taken has the cookie.
    pub(super) fn respond(&self, cookie: Cookie, code: PageResponseCode) -> Result<(), HostError> {
        let group = {
            let mut inner = self.inner.lock();
            usize::try_from(cookie.0)
                .ok()
                .filter(|&index| inner.is_taken(index))
                .and_then(|index| inner.remove(index))
                .ok_or(HostError::NoGroup(cookie))?
        };
        group.slot.answer(code);
        Ok(())
    }

    /// Answers INVALID_REQUEST to every group of a requester, taken or not.
    pub(super) fn withdraw(&self, requester: Requester) {
        self.withdraw_all(requester..=requester);
    }

    /// Answers INVALID_REQUEST to every group of an endpoint, and drops its faults.
    pub(super) fn withdraw_endpoint(&self, endpoint: EndpointId) {
        self.withdraw_all(Requester::all_of(endpoint));
        let mut inner = self.inner.lock();
        let before = inner.queue.len();
        inner.queue.retain(|_, queued| {
            !matches!(queued, Queued::Fault(fault) if fault.requester.endpoint == endpoint)
        });
        let dropped = before - inner.queue.len();
        inner.dropped += dropped as u64;
        inner.faults -= dropped;
        self.signal(&mut inner);
    }

    fn withdraw_all(&self, requesters: RangeInclusive<Requester>) {
        let withdrawn: Vec<Group> = {
            let mut inner = self.inner.lock();
            let (first, last) = requesters.into_inner();
            let of_them = inner.by_requester.range((first, 0)..=(last, usize::MAX));
            let cookies: Vec<usize> = of_them.map(|&(_, cookie)| cookie).collect();
            let groups = cookies.iter().filter_map(|&c| inner.remove(c)).collect();
            self.signal(&mut inner);
            groups
        };
        for group in withdrawn {
            group.slot.answer(PageResponseCode::InvalidRequest);
        }
    }

    /// Makes the descriptor readable exactly if there is something to take.
    fn signal(&self, inner: &mut Inner) {
        let readable = !inner.queue.is_empty() || inner.dropped != 0;
        if readable == inner.readable {
            return;
        }
        inner.readable = readable;
        // A counter of 0 takes a 1, and a counter of 1 can be read.
        let _ = match readable {
            true => self.event.write(1),
            false => self.event.read().map(drop),
        };
    }
}

impl Inner {
    fn enqueue(&mut self, queued: Queued) -> u64 {
        let key = self.next;
        self.next += 1;
        self.queue.insert(key, queued);
        key
    }

    fn is_taken(&self, cookie: usize) -> bool {
        let group = self.groups.get(cookie).and_then(Option::as_ref);
        group.is_some_and(|group| group.queued.is_none())
    }

    /// A group that is queued is outstanding: one that is withdrawn leaves the queue.
    fn take_group(&mut self, cookie: usize) -> Option<HostEvent> {
        let group = self.groups.get_mut(cookie)?.as_mut()?;
        group.queued = None;
        Some(HostEvent::PageRequest(PageRequestGroup {
            requester: group.requester,
            cookie: Cookie(cookie as u64),
            pages: group.pages.clone(),
        }))
    }

    fn remove(&mut self, cookie: usize) -> Option<Group> {
        let group = self.groups.get_mut(cookie)?.take()?;
        self.pages -= group.pages.len();
        self.by_requester.remove(&(group.requester, cookie));
        if let Some(key) = group.queued {
            self.queue.remove(&key);
        }
        self.free.insert(cookie);
        // Free cookies at the end are forgotten, so that the table shrinks after a storm.
        while matches!(self.groups.last(), Some(None)) {
            self.groups.pop();
            self.free.remove(&self.groups.len());
        }
        if self.groups.is_empty() {
            self.groups.shrink_to(MAX_TAKEN);
        }
        Some(group)
    }
}
