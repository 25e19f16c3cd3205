// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vfio-user: one front-end after another.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::os::eventfd;
use crate::os::poller::Poller;
use crate::os::thread::Thread;
use crate::soft_endpoint::guard;
use crate::soft_endpoint::interrupts::InterruptKind;
use crate::soft_endpoint::pci_function::{PciFunction, Region};

/// How long to wait before another front-end is accepted when that has just failed, perhaps for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const STOP: u64 = 1;

/// Serves a device, on a thread of its own, until it is dropped.
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
    /// Nobody is served any more.
    Stopped,
}

impl Shared {
    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock()
    }

    /// Makes the peer known to whoever stops us; not when that has happened.
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
        let fd = OwnedFd::from(listener);
        let server = vfio_user::Server::from_owned_fd(fd, true, irqs(), regions());
        // The guard lets only messages pass that the library expects. If the library panics all the same, that must not
        // end the IOMMU of a running guest. The device is unharmed: nothing of it is borrowed across a panic but locks,
        // which take care of themselves.
        catch_unwind(AssertUnwindSafe(|| server.run(&mut Backend { device })))
    });
    shared.disconnect();
    device.disconnect();
    match served? {
        Ok(Ok(())) => log::info!("endpoint {endpoint}: the front-end is gone"),
        Ok(Err(error)) => log::warn!("endpoint {endpoint}: the connection has ended: {error}"),
        Err(_) => log::error!("endpoint {endpoint}: the vfio-user library panicked"),
    }
    Ok(())
}

fn kind(index: u32) -> Option<InterruptKind> {
    // The order of vfio_pci: INTx, MSI, MSI-X.
    [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix]
        .get(index as usize)
        .copied()
}

fn irqs() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| {
            let (flags, count) = match kind(index) {
                Some(InterruptKind::Intx) => (
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                    1,
                ),
                Some(kind) => (
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                    kind.vectors().into(),
                ),
                // QEMU warns where it is missing. This function has no errors to signal.
                None if index == VFIO_PCI_ERR_IRQ_INDEX => (VFIO_IRQ_INFO_EVENTFD, 1),
                None => (0, 0),
            };
            IrqInfo {
                index,
                flags,
                count,
            }
        })
        .collect()
}

/// The region of an index: the BARs by their numbers, then the ROM that there is not, then configuration space.
fn place(index: u32) -> Option<Region> {
    match index {
        VFIO_PCI_CONFIG_REGION_INDEX => Some(Region::Config),
        0..=5 => Some(Region::Bar(index as usize)),
        _ => None,
    }
}

fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = place(index).map_or(0, PciFunction::length);
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: size_of::<vfio_region_info>() as u32,
                    index,
                    size,
                    flags: match size {
                        0 => 0,
                        _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
                    },
                    ..Default::default()
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

struct Backend<'a> {
    device: &'a PciFunction,
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

impl Backend<'_> {
    fn place(region: u32) -> io::Result<Region> {
        place(region).ok_or_else(|| invalid(format!("there is no region {region}")))
    }
}

impl ServerBackend for Backend<'_> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device
            .read(Self::place(region)?, offset, data)
            .map_err(invalid)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device
            .write(Self::place(region)?, offset, data)
            .map_err(invalid)
    }

    /// Not needed: guest memory is reached through the IOMMU, whose front-end shares it.
    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _fd: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.device.reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        if index == VFIO_PCI_ERR_IRQ_INDEX {
            return Ok(());
        }
        let kind = kind(index).ok_or_else(|| invalid(format!("there is no interrupt {index}")))?;
        let vectors = u32::from(kind.vectors());
        if start.checked_add(count).is_none_or(|end| end > vectors) {
            let desc = format!("{kind:?} has {vectors} vectors, not {start} and {count} more");
            return Err(invalid(desc));
        }
        let interrupts = self.device.function().interrupts();
        const NONE: u32 = VFIO_IRQ_SET_DATA_NONE;
        const TRIGGER: u32 = VFIO_IRQ_SET_ACTION_TRIGGER;
        match flags {
            _ if flags == TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD => {
                let triggers = match fds.len() {
                    0 => (0..count).map(|_| None).collect(),
                    given if given == count as usize => fds
                        .into_iter()
                        .map(|fd| eventfd::take(fd).map(Some))
                        .collect::<io::Result<_>>()?,
                    given => {
                        return Err(invalid(format!("{given} descriptors for {count} vectors")));
                    }
                };
                interrupts.set_triggers(kind, start as usize, triggers);
                interrupts.deliver();
                Ok(())
            }
            _ if flags == TRIGGER | NONE && count == 0 => {
                interrupts.disable(kind);
                Ok(())
            }
            _ if kind == InterruptKind::Intx && flags == VFIO_IRQ_SET_ACTION_MASK | NONE => {
                interrupts.mask_intx(true);
                Ok(())
            }
            _ if kind == InterruptKind::Intx && flags == VFIO_IRQ_SET_ACTION_UNMASK | NONE => {
                interrupts.mask_intx(false);
                interrupts.deliver();
                Ok(())
            }
            _ => Err(invalid(format!(
                "flags {flags:#x} are not supported for {kind:?}"
            ))),
        }
    }
}
