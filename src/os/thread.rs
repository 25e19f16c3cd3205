// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that can be ended although a system call blocks them.
//!
//! A worker writes to descriptors that a peer shares, and the peer can make such a write block: O_NONBLOCK belongs to all
//! holders of a descriptor, so no check holds for longer than the check. A signal interrupts the write instead.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// How long a thread has to end by itself before it is interrupted, each time.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// A thread that is interrupted until it ends. Dropping it detaches the thread.
pub(crate) struct Thread<T> {
    handle: JoinHandle<T>,
    /// Disconnected when the thread has ended.
    running: Receiver<Infallible>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts a thread. System calls in it can fail with EINTR once it is to end.
    ///
    /// # Errors
    /// The system has no memory or no room for another thread.
    pub fn spawn(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        prepare()?;
        let (alive, running) = channel();
        let handle = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _alive: Sender<Infallible> = alive;
                body()
            })?;
        Ok(Self { handle, running })
    }

    /// Interrupts the system call that the thread is in, if there is one.
    pub fn interrupt(&self) {
        // It fails for a thread that has ended.
        let _ = self.handle.kill(SIGRTMIN());
    }

    /// Wakes the thread if it is parked.
    pub fn unpark(&self) {
        self.handle.thread().unpark();
    }

    /// Waits for the end of the thread for a short time. Returns whether it has ended.
    pub fn ends_soon(&self) -> bool {
        self.running.recv_timeout(GRACE) == Err(RecvTimeoutError::Disconnected)
    }

    /// Waits for the end of the thread, which has been told to end, and interrupts it for as long as it does not.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn join(self) -> Result<T, Box<dyn Any + Send>> {
        while !self.ends_soon() {
            self.interrupt();
        }
        self.handle.join()
    }
}

/// Makes the signal interrupt system calls and do nothing else.
fn prepare() -> io::Result<()> {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static PREPARED: OnceLock<()> = OnceLock::new();
    if PREPARED.get().is_none() {
        register_signal_handler(SIGRTMIN(), nothing)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // Another thread may have done the same.
        let _ = PREPARED.set(());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::event::{EventfdFlags, eventfd};

    use super::Thread;

    #[test]
    #[cfg_attr(miri, ignore = "sends signals")]
    fn a_thread_that_blocks_in_a_system_call_ends() {
        let ending = Arc::new(AtomicBool::new(false));
        let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        let thread = {
            let ending = Arc::clone(&ending);
            Thread::spawn("blocks", move || {
                while !ending.load(Ordering::Acquire) {
                    rustix::io::write(&full, &1_u64.to_ne_bytes()).expect_err("it is full");
                }
            })
            .expect("a thread")
        };
        ending.store(true, Ordering::Release);
        thread.join().expect("no panic");
    }

    #[test]
    fn a_panic_is_an_error() {
        let thread = Thread::spawn("panics", || panic!("on purpose")).expect("a thread");
        assert!(thread.join().is_err());
    }
}
