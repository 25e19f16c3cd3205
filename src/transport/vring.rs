// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vring: what the front-end has said of a queue, shared with the worker that serves it. Crate vhost-user-backend changes
//! it, through [`VringT`].
//!
//! The worker holds the lock while it serves the queue, and watches the queue for a while then. So another thread says
//! that it wants the vring before it waits for the lock, and a worker that sees this lets go at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use crate::os::eventfd;
use crate::os::poller::Poller;
use crate::transport::{MAX_QUEUE_SIZE, Memory};

/// A shared vring.
#[derive(Clone)]
pub(super) struct Vring(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// How many threads wait for the lock, other than the worker.
    wanted: AtomicU32,
    /// The connection ends.
    closed: AtomicBool,
    /// Waits for kicks, and reports them with `token`.
    poller: Arc<Poller>,
    token: u64,
    /// Written after each change: the worker looks at the vring again.
    wake: Arc<EventFd>,
    /// The front-end's connection, to end it if a message cannot be carried out.
    line: Arc<UnixStream>,
    memory: Memory,
    /// For the library alone, which looks whether there is a kick descriptor to wait for. There never is.
    empty: VringMutex<Memory>,
}

/// The state of a vring.
pub(super) struct State {
    /// Addresses, indices and size.
    pub queue: Queue,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// How often the ring was started. The same number: the same start.
    pub starts: u32,
    /// The worker found that it cannot serve the ring as it is. Whatever changes may mend that.
    pub broken: bool,
    /// A notification of the driver may have been lost with the vring before: the worker notifies first.
    pub unsure: bool,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    /// The poller has `kick`.
    watched: bool,
}

/// What a queue has come to, on its way from one vring to another of the same connection.
pub(super) struct RingState {
    queue: Queue,
    enabled: bool,
    starts: u32,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
}

impl Vring {
    /// A vring of the connection `line`, in guest memory. `poller` reports its kicks as `token`. Each change of it writes
    /// `wake`.
    ///
    /// # Errors
    /// The library does not take the size of the queue.
    pub fn new(
        memory: Memory,
        poller: Arc<Poller>,
        token: u64,
        wake: Arc<EventFd>,
        line: Arc<UnixStream>,
    ) -> io::Result<Self> {
        let empty =
            VringMutex::new(memory.clone(), MAX_QUEUE_SIZE as u16).map_err(io::Error::other)?;
        let queue = Queue::new(MAX_QUEUE_SIZE as u16).map_err(io::Error::other)?;
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(State {
                queue,
                enabled: false,
                starts: 0,
                broken: false,
                unsure: false,
                kick: None,
                call: None,
                watched: false,
            }),
            wanted: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            poller,
            token,
            wake,
            line,
            memory,
            empty,
        })))
    }

    /// The state, for the worker.
    pub fn serve(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// Whether the worker has to let go: another thread waits, or the connection ends.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.0.wanted.load(Ordering::Relaxed) != 0 || self.is_closed()
    }

    /// Lets the threads go first that waited when the worker let go.
    pub fn stand_back(&self) {
        while self.0.wanted.load(Ordering::Relaxed) != 0 {
            std::thread::yield_now();
        }
    }

    /// The connection ends: the worker leaves the vring alone from now on.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Whether the connection ends.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Relaxed)
    }

    /// Waits a short time for the worker to let go. Returns whether it has.
    pub fn is_free_soon(&self) -> bool {
        self.0
            .state
            .try_lock_for(Duration::from_millis(100))
            .is_some()
    }

    /// Looks at the state, from another thread than the worker's.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.0.wanted.fetch_add(1, Ordering::SeqCst);
        let result = look(&self.0.state.lock());
        self.0.wanted.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Changes the state, from another thread than the worker's. The worker begins again with what is true by now.
    ///
    /// # Errors
    /// Kicks cannot be waited for.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        self.0.wanted.fetch_add(1, Ordering::SeqCst);
        let mut state = self.0.state.lock();
        let result = change(&mut state);
        state.broken = false;
        let watched = self.watch(&mut state);
        drop(state);
        self.0.wanted.fetch_sub(1, Ordering::SeqCst);
        // It fails only when the counter is full, and then the worker is awake.
        let _ = self.0.wake.write(1);
        watched.map(|()| result)
    }

    /// For the library, which takes no error here: the connection ends instead. What is wrong with a message, `guard` has
    /// found before; what is left is a want of memory or descriptors.
    fn taken<T>(&self, changed: io::Result<T>) -> Option<T> {
        changed
            .inspect_err(|error| {
                log::warn!("the front-end is disconnected: a queue cannot be set up: {error}");
                // It may have gone by itself.
                let _ = self.0.line.shutdown(Shutdown::Both);
            })
            .ok()
    }

    /// Sets the descriptor for kicks. The first one starts the ring.
    ///
    /// # Errors
    /// It is not an eventfd, or cannot be waited for.
    pub fn set_kick(&self, kick: Option<File>) -> io::Result<()> {
        let kick = kick.map(eventfd::take).transpose()?;
        self.change(|state| {
            self.forget_kick(state);
            state.kick = kick;
            state.start();
        })
    }

    /// Sets the descriptor for notifications of the driver.
    ///
    /// # Errors
    /// It is not an eventfd, or kicks cannot be waited for.
    pub fn set_call(&self, call: Option<File>) -> io::Result<()> {
        let call = call.map(eventfd::take).transpose()?;
        self.change(|state| {
            state.call = call;
            state.start();
        })
    }

    /// Gives the queue up to another vring: this one is closed, and its worker has let go of it.
    pub fn give_up(&self) -> RingState {
        let mut state = self.0.state.lock();
        let state = &mut *state;
        if let Some(kick) = &state.kick
            && std::mem::take(&mut state.watched)
        {
            self.0.poller.remove(kick);
        }
        RingState {
            enabled: std::mem::take(&mut state.enabled),
            starts: state.starts,
            kick: state.kick.take(),
            call: state.call.take(),
            queue: std::mem::take(&mut state.queue),
        }
    }

    /// Takes the queue of another vring over. The ring goes on where it was, with one notification that the driver may not
    /// need.
    ///
    /// # Errors
    /// Kicks cannot be waited for.
    pub fn take_over(&self, ring: RingState) -> io::Result<()> {
        self.change(|state| {
            self.forget_kick(state);
            state.queue = ring.queue;
            state.enabled = ring.enabled;
            state.starts = ring.starts;
            state.kick = ring.kick;
            state.call = ring.call;
            state.unsure = true;
        })
    }

    /// Waits for kicks if the ring runs, and else does not.
    fn watch(&self, state: &mut State) -> io::Result<()> {
        let watch = state.runs();
        match (&state.kick, watch) {
            (Some(kick), true) if !state.watched => {
                // Never read: a read may block, and the other holders decide whether it does.
                self.0.poller.add_edge(kick.as_raw_fd(), self.0.token)?;
                state.watched = true;
            }
            (Some(kick), false) if state.watched => {
                self.0.poller.remove(kick);
                state.watched = false;
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_kick(&self, state: &mut State) {
        if let Some(kick) = state.kick.take()
            && std::mem::take(&mut state.watched)
        {
            self.0.poller.remove(&kick);
        }
    }

    /// Notifies the driver. The write blocks if the front-end has filled the counter and made it blocking: then until
    /// [`Vring::close`] and an interruption of the thread.
    pub fn notify(&self, state: &State) {
        let Some(call) = &state.call else {
            return;
        };
        loop {
            match rustix::io::write(call, &1_u64.to_ne_bytes()) {
                // A full counter is readable too.
                Ok(_) | Err(Errno::AGAIN) => return,
                Err(Errno::INTR) if !self.is_closed() => {}
                Err(error) => {
                    log::debug!("the driver cannot be notified: {error}");
                    return;
                }
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(kick) = &state.kick
            && state.watched
        {
            self.poller.remove(kick);
        }
    }
}

impl State {
    /// Whether the ring is to be served, or would be if it were not broken.
    pub fn runs(&self) -> bool {
        self.enabled && self.queue.ready()
    }

    /// vhost-user: a ring starts when its kick descriptor comes.
    fn start(&mut self) {
        if self.kick.is_some() && !self.queue.ready() {
            self.queue.set_ready(true);
            self.starts = self.starts.wrapping_add(1);
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

thread_local! {
    /// Vrings for the handler that this thread is making; see [`handing_over`].
    static HANDED_OVER: RefCell<VecDeque<Vring>> = const { RefCell::new(VecDeque::new()) };
}

/// Makes something of vhost-user-backend (0.24) that makes vrings, and lets it have these. The crate makes them itself and
/// hands them only to threads of its own.
pub(super) fn handing_over<T>(vrings: &[Vring], make: impl FnOnce() -> T) -> T {
    HANDED_OVER.set(vrings.iter().cloned().collect());
    let made = make();
    HANDED_OVER.take();
    made
}

/// What messages say. The library's own workers are not used, and so are neither the methods that only these call.
impl VringT<Memory> for Vring {
    fn new(_memory: Memory, _size: u16) -> Result<Self, QueueError> {
        let vring = HANDED_OVER.with_borrow_mut(VecDeque::pop_front);
        vring.ok_or(QueueError::InvalidMaxSize)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.empty.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.empty.get_mut()
    }

    fn add_used(&self, _head: u16, _length: u32) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn set_enabled(&self, enabled: bool) {
        self.taken(self.change(|state| state.enabled = enabled));
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), QueueError> {
        let changed = self.change(|State { queue, .. }| {
            queue.try_set_desc_table_address(GuestAddress(descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(available))?;
            queue.try_set_used_ring_address(GuestAddress(used))
        });
        self.taken(changed).unwrap_or(Ok(()))
    }

    fn queue_next_avail(&self) -> u16 {
        self.look(|state| state.queue.next_avail())
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.taken(self.change(|state| state.queue.set_next_avail(base)));
    }

    fn set_queue_next_used(&self, index: u16) {
        self.taken(self.change(|state| state.queue.set_next_used(index)));
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        let memory = self.0.memory.memory();
        self.look(|state| state.queue.used_idx(&*memory, Ordering::Relaxed))
            .map(|index| index.0)
    }

    fn set_queue_size(&self, size: u16) {
        self.taken(self.change(|state| state.queue.set_size(size)));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.taken(self.change(|state| state.queue.set_event_idx(enabled)));
    }

    /// Only at a stop: a ring starts with its kick descriptor.
    fn set_queue_ready(&self, ready: bool) {
        self.taken(self.change(|state| state.queue.set_ready(ready)));
    }

    fn set_kick(&self, kick: Option<File>) {
        self.taken(self.set_kick(kick));
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_call(&self, call: Option<File>) {
        self.taken(self.set_call(call));
    }

    /// Errors of a ring are logged and counted; the descriptor for them is closed.
    fn set_err(&self, _error: Option<File>) {}
}

#[cfg(test)]
mod tests;
