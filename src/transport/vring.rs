// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vring: what the front-end has said of a queue, shared with the worker that serves it.
//!
//! The worker holds the lock while it serves the queue, and watches the queue for a while then. So another thread says
//! that it wants the vring before it waits for the lock, and a worker that sees this lets go at once.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use virtio_queue::{Queue, QueueT};

use crate::os::eventfd;
use crate::os::poller::Poller;
use crate::transport::MAX_QUEUE_SIZE;

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
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    /// The poller has `kick`.
    watched: bool,
}

impl Vring {
    /// A vring whose kicks `poller` reports as `token`.
    ///
    /// # Errors
    /// The library does not take the size of the queue.
    pub fn new(poller: Arc<Poller>, token: u64) -> io::Result<Self> {
        let queue = Queue::new(MAX_QUEUE_SIZE as u16).map_err(io::Error::other)?;
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(State {
                queue,
                enabled: false,
                starts: 0,
                broken: false,
                kick: None,
                call: None,
                watched: false,
            }),
            wanted: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            poller,
            token,
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
        watched.map(|()| result)
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

    /// The ring is stopped: its descriptors go, its indices stay.
    ///
    /// # Errors
    /// None: nothing is left to wait for.
    pub fn stop(&self) -> io::Result<()> {
        self.change(|state| {
            self.forget_kick(state);
            state.call = None;
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd as new_eventfd};
    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;

    const TOKEN: u64 = 7;

    /// An eventfd that blocks, as its other holder has it.
    fn event() -> OwnedFd {
        new_eventfd(0, EventfdFlags::empty()).expect("an eventfd")
    }

    /// As a message brings it.
    fn duplicate(fd: &OwnedFd) -> Option<File> {
        Some(File::from(fd.try_clone().expect("a duplicate")))
    }

    fn kick(fd: &OwnedFd) {
        rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("a kick");
    }

    fn enabled() -> (Arc<Poller>, Vring) {
        let poller = Arc::new(Poller::new().expect("a poller"));
        let vring = Vring::new(Arc::clone(&poller), TOKEN).expect("a vring");
        vring
            .change(|state| state.enabled = true)
            .expect("a change");
        (poller, vring)
    }

    fn was_kicked(poller: &Poller) -> bool {
        let mut kicked = false;
        poller
            .wait(Some(Instant::now()), |token| kicked |= token == TOKEN)
            .expect("a wait");
        kicked
    }

    #[test]
    #[cfg_attr(miri, ignore = "no epoll")]
    fn a_kick_descriptor_that_is_replaced_is_not_waited_for() {
        let (poller, vring) = enabled();
        let (first, second) = (event(), event());
        vring.set_kick(duplicate(&first)).expect("an eventfd");
        kick(&first);
        assert!(was_kicked(&poller));
        vring.set_kick(duplicate(&second)).expect("an eventfd");
        kick(&first);
        assert!(!was_kicked(&poller));
        kick(&second);
        assert!(was_kicked(&poller));
        assert!(!was_kicked(&poller), "once, though it is not read");
        vring.stop().expect("a stop");
        kick(&second);
        assert!(!was_kicked(&poller));
    }

    #[test]
    #[cfg_attr(miri, ignore = "no epoll")]
    fn a_vring_that_goes_away_is_not_waited_for() {
        let (poller, vring) = enabled();
        let event = event();
        vring.set_kick(duplicate(&event)).expect("an eventfd");
        drop(vring);
        kick(&event);
        assert!(!was_kicked(&poller));
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads /proc")]
    fn only_eventfds_are_taken_and_their_flags_are_left_alone() {
        let (_, vring) = enabled();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let reader = File::from(OwnedFd::from(reader));
        let writer = File::from(OwnedFd::from(writer));
        assert!(vring.set_kick(Some(reader)).is_err());
        assert!(vring.set_call(Some(writer)).is_err());
        let event = event();
        vring.set_kick(duplicate(&event)).expect("an eventfd");
        vring.set_call(duplicate(&event)).expect("an eventfd");
        vring.notify(&vring.serve());
        let flags = fcntl_getfl(&event).expect("flags");
        assert!(!flags.contains(OFlags::NONBLOCK));
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("a notification");
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "no epoll")]
    fn whatever_changes_may_mend_a_broken_ring() {
        let (_, vring) = enabled();
        vring.serve().broken = true;
        assert!(vring.look(|state| state.broken));
        vring.change(|_| ()).expect("a change");
        assert!(!vring.look(|state| state.broken));
    }
}
