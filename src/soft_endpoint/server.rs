// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vfio-user: one front-end after another. The trouble of a connection ends that connection, with a line in the log.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use vfio_user::ServerBackend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::os::poller::Poller;
use crate::os::thread::Thread;
use crate::soft_endpoint::backend::{Backend, irqs, regions};
use crate::soft_endpoint::guard;
use crate::soft_endpoint::pci_function::PciFunction;

/// How long to wait before another front-end is accepted when that has just failed, perhaps for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const STOP: u64 = 1;

/// The thread that serves a function, until this is dropped.
pub(super) struct Server {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread<()>>>,
}

struct Shared {
    stop: EventFd,
    peer: Mutex<Peer>,
    refusals: Arc<guard::Refusals>,
}

enum Peer {
    None,
    Connected(UnixStream),
    /// No front-end is served any more.
    Stopped,
}

impl Shared {
    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock()
    }

    /// Notes the connection, for [`Server::drop`] to end it. Says whether it is to be served: not if the server ends.
    fn connect(&self, stream: &UnixStream) -> io::Result<bool> {
        let stream = stream.try_clone()?;
        let mut peer = self.peer();
        let stopped = matches!(*peer, Peer::Stopped);
        if !stopped {
            *peer = Peer::Connected(stream);
        }
        Ok(!stopped)
    }

    fn disconnect(&self) {
        let mut peer = self.peer();
        if matches!(*peer, Peer::Connected(_)) {
            *peer = Peer::None;
        }
    }
}

impl Server {
    pub(super) fn start(listener: UnixListener, device: Arc<PciFunction>) -> io::Result<Self> {
        // A front-end that went away before it was accepted must not keep us from the next.
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            stop: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            peer: Mutex::new(Peer::None),
            refusals: Arc::new(guard::Refusals::new(device.function().endpoint())),
        });
        let poller = Poller::new()?;
        poller.add(listener.as_raw_fd(), LISTENER)?;
        poller.add(shared.stop.as_raw_fd(), STOP)?;
        let name = format!("pci {}", device.function().endpoint());
        let serving = Arc::clone(&shared);
        let thread = Thread::spawn(&name, move || {
            if let Err(error) = run(&listener, &poller, &serving, &device) {
                let endpoint = device.function().endpoint();
                log::error!("endpoint {endpoint} is no longer served over vfio-user: {error}");
            }
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// How many messages of front-ends were refused.
    pub(super) fn refused(&self) -> u64 {
        self.shared.refusals.count()
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(*self.shared.peer(), Peer::Connected(_))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is not full, and the lock is not held across it.
        let _ = self.shared.stop.write(1);
        let before = std::mem::replace(&mut *self.shared.peer(), Peer::Stopped);
        if let Peer::Connected(stream) = before {
            // It may have gone by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.get_mut().take()
            && thread.join().is_err()
        {
            log::error!("a vfio-user thread panicked");
        }
    }
}

fn run(
    listener: &UnixListener,
    poller: &Poller,
    shared: &Shared,
    device: &PciFunction,
) -> io::Result<()> {
    loop {
        let mut stop = false;
        poller.wait(None, |token| stop |= token == STOP)?;
        if stop {
            return Ok(());
        }
        let result = match listener.accept() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                continue;
            }
            Err(error) => Err(error),
            Ok((stream, _)) => serve(stream, shared, device),
        };
        if let Err(error) = result {
            let endpoint = device.function().endpoint();
            log::warn!("endpoint {endpoint}: a front-end cannot be accepted: {error}");
            pause(&shared.stop)?;
        }
    }
}

/// Waits a while, or until told to stop.
fn pause(stop: &EventFd) -> io::Result<()> {
    let stopping = Poller::new()?;
    stopping.add(stop.as_raw_fd(), STOP)?;
    stopping.wait(Some(Instant::now() + ACCEPT_PAUSE), |_| {})
}

/// Serves a front-end until it goes, or cannot be understood.
fn serve(stream: UnixStream, shared: &Shared, device: &PciFunction) -> io::Result<()> {
    if !shared.connect(&stream)? {
        return Ok(());
    }
    let endpoint = device.function().endpoint();
    let served = guard::listen(stream, &shared.refusals).map(|listener| {
        log::info!("endpoint {endpoint}: a front-end is connected");
        run_library(listener, &mut Backend { device })
    });
    shared.disconnect();
    device.disconnect();
    match served? {
        Ended::Closed => log::info!("endpoint {endpoint}: the front-end is gone"),
        Ended::Broken(error) => {
            log::warn!("endpoint {endpoint}: the connection has ended: {error}");
        }
        Ended::Panicked => log::error!("endpoint {endpoint}: the vfio-user library panicked"),
    }
    Ok(())
}

/// How a connection has ended.
#[derive(Debug)]
enum Ended {
    Closed,
    Broken(vfio_user::Error),
    Panicked,
}

/// Lets the library serve the connection that waits at a listener.
///
/// The guard lets only messages pass that the library expects. If the library panics all the same, that must not end the
/// IOMMU of a running guest. The function is unharmed: nothing of it is borrowed across a panic but locks, which are let go.
fn run_library(listener: UnixListener, backend: &mut dyn ServerBackend) -> Ended {
    let fd = OwnedFd::from(listener);
    let server = vfio_user::Server::from_owned_fd(fd, true, irqs(), regions());
    match catch_unwind(AssertUnwindSafe(|| server.run(backend))) {
        Ok(Ok(())) => Ended::Closed,
        Ok(Err(error)) => Ended::Broken(error),
        Err(_) => Ended::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags};

    use super::*;
    use crate::os::seccomp;
    use crate::spec::EndpointId;

    /// Set in the process that panics.
    const CHILD: &str = "VHOST_DEVICE_IOMMU_TEST_PANICS";

    /// Panics at a reset.
    struct Panics;

    impl ServerBackend for Panics {
        fn region_read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn dma_map(
            &mut self,
            _: DmaMapFlags,
            _: u64,
            _: u64,
            _: u64,
            _: Option<File>,
        ) -> io::Result<()> {
            Ok(())
        }
        fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn reset(&mut self) -> io::Result<()> {
            panic!("on purpose")
        }
        fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
            Ok(())
        }
    }

    /// Serves a client that resets at once, on a thread with a name.
    fn serve_a_reset(path: PathBuf) -> Ended {
        let listener = UnixListener::bind(&path).expect("a listener");
        let client = std::thread::spawn(move || {
            let mut client = Client::new(&path).expect("a connection");
            // The connection ends before there is an answer.
            client.reset().expect_err("no answer");
        });
        let (stream, _) = listener.accept().expect("a connection");
        let refusals = Arc::new(guard::Refusals::new(EndpointId(1)));
        let listener = guard::listen(stream, &refusals).expect("a guard");
        let thread = Thread::spawn("pci", move || run_library(listener, &mut Panics));
        let ended = thread.expect("a thread").join().expect("survived");
        client.join().expect("no panic");
        ended
    }

    /// The filter ends the process at a system call that it does not know, so this is tried in another process.
    #[test]
    #[cfg_attr(miri, ignore = "processes")]
    fn a_panic_ends_its_connection_and_not_the_process_that_is_confined() {
        const NAME: &str = "soft_endpoint::server::tests::\
            a_panic_ends_its_connection_and_not_the_process_that_is_confined";
        if let Some(directory) = std::env::var_os(CHILD) {
            seccomp::install(seccomp::Seccomp::Kill).expect("a filter");
            for socket in ["first", "second"] {
                let path = Path::new(&directory).join(socket);
                assert!(matches!(serve_a_reset(path), Ended::Panicked));
            }
            return;
        }
        for backtrace in ["0", "1", "full"] {
            let directory = tempfile::tempdir().expect("a directory");
            let child = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, directory.path())
                .env("RUST_BACKTRACE", backtrace)
                .output()
                .expect("a process");
            let said = String::from_utf8_lossy(&child.stderr);
            assert!(
                child.status.success(),
                "{backtrace}: {:?}\n{said}",
                child.status
            );
            assert_eq!(said.matches("on purpose").count(), 2, "{said}");
        }
    }
}
