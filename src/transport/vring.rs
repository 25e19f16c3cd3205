// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vring that its worker can watch for a long time without being in anybody's way.
//!
//! vhost-user-backend reads and changes a vring under its lock. Our workers hold that lock while they serve the
//! queue, polling included. So everybody else says that they want it before they wait for it, and a worker that
//! hears so lets go at once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;

use crate::transport::Memory;

/// A shared vring.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Memory>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many wait for the lock, other than the worker.
    wanted: AtomicU32,
    /// How often the ring was started.
    starts: AtomicU32,
    /// How often its addresses, its index or its state were changed.
    changes: AtomicU32,
}

type State<'a> = MutexGuard<'a, VringState<Memory>>;

impl Vring {
    /// The state, for the worker.
    pub fn serve(&self) -> State<'_> {
        self.inner.get_mut()
    }

    /// Whether somebody waits for the worker to let go.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::Relaxed) != 0
    }

    /// Lets those go first who waited when the worker let go.
    pub fn stand_back(&self) {
        while self.is_wanted() {
            std::thread::yield_now();
        }
    }

    /// Waits until the worker has let go, so that it begins anew with what is true by now.
    pub fn interrupt(&self) {
        drop(self.lock());
    }

    /// How often the ring was started. The same number: the same start.
    pub fn starts(&self) -> u32 {
        self.shared.starts.load(Ordering::Acquire)
    }

    /// A number that changes whenever the front-end sets something: what was wrong may be right by now.
    pub fn changes(&self) -> u32 {
        self.shared.changes.load(Ordering::Acquire)
    }

    fn lock(&self) -> State<'_> {
        self.shared.wanted.fetch_add(1, Ordering::SeqCst);
        let state = self.inner.get_mut();
        self.shared.wanted.fetch_sub(1, Ordering::SeqCst);
        state
    }

    /// Something is set under the lock.
    fn change<T>(&self, set: impl FnOnce(&VringMutex<Memory>) -> T) -> T {
        self.shared.wanted.fetch_add(1, Ordering::SeqCst);
        let result = set(&self.inner);
        self.shared.changes.fetch_add(1, Ordering::AcqRel);
        self.shared.wanted.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// A descriptor of the front-end's that must not block us: whoever holds the lock reads or writes it. An eventfd
/// from QEMU is non-blocking anyhow.
fn without_blocking(file: Option<File>) -> Option<File> {
    // The one safe way to FIONBIO, which is for any kind of descriptor.
    let any = UnixDatagram::from(OwnedFd::from(file?));
    if let Err(error) = any.set_nonblocking(true) {
        log::warn!("a descriptor of the front-end may block: {error}");
    }
    Some(File::from(OwnedFd::from(any)))
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = State<'a>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = State<'a>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            shared: Arc::default(),
        })
    }

    fn get_ref(&self) -> State<'_> {
        self.lock()
    }

    fn get_mut(&self) -> State<'_> {
        self.lock()
    }

    fn add_used(&self, index: u16, length: u32) -> Result<(), QueueError> {
        self.lock().add_used(index, length)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.lock().signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.lock().enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.lock().disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.lock().needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.change(|vring| vring.set_enabled(enabled));
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.change(|vring| vring.set_queue_info(table, available, used))
    }

    fn queue_next_avail(&self) -> u16 {
        virtio_queue::QueueT::next_avail(self.lock().get_queue())
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.change(|vring| vring.set_queue_next_avail(base));
    }

    fn set_queue_next_used(&self, index: u16) {
        self.change(|vring| vring.set_queue_next_used(index));
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.change(VringT::queue_used_idx)
    }

    fn set_queue_size(&self, size: u16) {
        self.change(|vring| vring.set_queue_size(size));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.change(|vring| vring.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.change(|vring| {
            if ready {
                self.shared.starts.fetch_add(1, Ordering::AcqRel);
            }
            vring.set_queue_ready(ready);
        });
    }

    fn set_kick(&self, file: Option<File>) {
        let file = without_blocking(file);
        self.change(|vring| vring.set_kick(file));
    }

    /// Never fails: an error would end the worker. A descriptor that cannot be read is let go of.
    fn read_kick(&self) -> io::Result<bool> {
        match self.inner.read_kick() {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                log::warn!("a kick descriptor cannot be read: {error}");
                self.inner.set_kick(None);
            }
            _ => {}
        }
        Ok(self.inner.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let file = without_blocking(file);
        self.change(|vring| vring.set_call(file));
    }

    fn set_err(&self, file: Option<File>) {
        self.change(|vring| vring.set_err(file));
    }
}
