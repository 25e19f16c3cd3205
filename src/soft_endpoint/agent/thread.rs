// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread of an agent.
//!
//! ```text
//!           begin            the work is done
//!  asleep ─────────▶ busy ─────────────────────▶ asleep
//!                     │ stop: the work is told, and the caller waits until it is done
//!                     └ waits for the guest: parked, woken by an answer or by stop
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::os::thread::{GRACE, Thread};

/// The thread of an agent.
pub(crate) struct AgentThread {
    name: String,
    life: Mutex<Life>,
    /// `life` has changed.
    changed: Condvar,
    /// The work must stop where it is.
    stopping: AtomicBool,
}

#[derive(Default)]
struct Life {
    /// There is work that was not begun.
    wanted: bool,
    /// The thread works.
    busy: bool,
    ended: bool,
    thread: Option<Thread<()>>,
}

impl Life {
    fn is_busy(&self) -> bool {
        self.wanted || self.busy
    }
}

impl AgentThread {
    /// A thread of this name, not started.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            life: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Starts the thread, if it is not there yet. `body` calls [`Self::serve`].
    ///
    /// # Errors
    /// The kernel's, if it has no thread to give.
    pub(crate) fn start(&self, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut life = self.life.lock();
        if life.thread.is_none() && !life.ended {
            life.thread = Some(Thread::spawn(&self.name, body)?);
        }
        Ok(())
    }

    /// There is work: the thread does it, after the work that it is at.
    pub(crate) fn begin(&self) {
        self.life.lock().wanted = true;
        self.changed.notify_all();
    }

    /// There is work, unless the thread works already: whether it did not. `on_begin` is called before it begins. If what
    /// it is at is `over` but for its last steps, they are waited for.
    pub(crate) fn begin_if_idle(&self, over: impl Fn() -> bool, on_begin: impl FnOnce()) -> bool {
        let mut life = self.life.lock();
        while life.is_busy() && over() {
            self.changed.wait(&mut life);
        }
        if life.is_busy() || life.ended {
            return false;
        }
        on_begin();
        life.wanted = true;
        self.changed.notify_all();
        true
    }

    /// The body of the thread: calls `work` whenever there is some, until the end.
    pub(crate) fn serve(&self, mut work: impl FnMut()) {
        // Also if the work panics.
        let _gone = Gone(self);
        let mut life = self.life.lock();
        while !life.ended {
            if !life.wanted {
                self.changed.wait(&mut life);
                continue;
            }
            life.wanted = false;
            life.busy = true;
            MutexGuard::unlocked(&mut life, &mut work);
            life.busy = false;
            self.changed.notify_all();
        }
    }

    /// Whether there is work that is not done.
    pub(crate) fn is_busy(&self) -> bool {
        self.life.lock().is_busy()
    }

    /// Whether the work must stop where it is.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Stops the work where it is, and calls `then`. From there on no access is in flight, and none follows until there
    /// is new work.
    ///
    /// The thread's lock is held while `then` runs: whoever holds a lock that `then` takes calls nothing of the thread.
    pub(crate) fn stop(&self, then: impl FnOnce()) {
        let mut life = self.life.lock();
        self.stop_locked(&mut life);
        then();
        self.stopping.store(false, Ordering::Relaxed);
    }

    fn stop_locked(&self, life: &mut MutexGuard<'_, Life>) {
        life.wanted = false;
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = &life.thread {
            thread.unpark();
        }
        while life.busy {
            let waited = self.changed.wait_for(life, GRACE);
            // A front-end has made the write to an event descriptor block.
            if waited.timed_out()
                && let Some(thread) = &life.thread
            {
                thread.interrupt();
            }
        }
    }

    /// Stops the work, and ends the thread.
    pub(crate) fn end(&self) {
        let mut life = self.life.lock();
        life.ended = true;
        self.changed.notify_all();
        self.stop_locked(&mut life);
        let thread = life.thread.take();
        drop(life);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("thread '{}' panicked", self.name);
        }
    }

    /// Waits, on the agent's thread, until `poll` has something; `None` if the work must stop.
    pub(crate) fn wait_until<T>(
        &self,
        waker: &Waker,
        mut poll: impl FnMut(&mut Context<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut context = Context::from_waker(waker);
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(value) = poll(&mut context) {
                return Some(value);
            }
            thread::park();
        }
    }
}

/// The end of the thread: nothing waits for its work any more.
struct Gone<'a>(&'a AgentThread);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut life = self.0.life.lock();
        life.ended = true;
        life.wanted = false;
        life.busy = false;
        self.0.changed.notify_all();
    }
}

/// A waker for [`AgentThread::wait_until`] on this thread. One is enough for the thread's life.
pub(crate) fn waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
