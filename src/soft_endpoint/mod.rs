// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI function in software, served over vfio-user: what stands behind `--endpoint ID,soft=SOCKET`.
//!
//! ```text
//! front-end ── guard ── library ── backend ── PciFunction ─┬─ config ── FunctionState (what is enabled, interrupts)
//!                                                          └─ RegisterBlock per BAR ── agent ── software IOMMU
//! ```
//!
//! * [`function`]: what all parts of the function share, and the contract of a block of registers.
//! * `config`: configuration space, and what a write to it means.
//! * `interrupts`: MSI-X, MSI or INTx.
//! * [`pri`]: the Page Request Interface.
//! * `pci_function`: BARs and resets.
//! * `agent`: accesses to memory, on a thread, as configuration space permits them.
//! * `test_block`: BAR 0, compatible with Linux's pci-epf-test; `transfer`: its DMA. `scratch`: BAR 1.
//! * [`engine`]: BAR 2, the fault engine.
//! * `server`: one front-end after another. `guard`: the messages that it may send. `backend`: what they mean.
//!
//! Guest memory is reached through [`crate::host::soft::Port`] and in no other way: what the front-end shares
//! over vfio-user is closed unseen. `docs/soft-endpoint.md` is the data sheet.
#![forbid(unsafe_code)]

mod agent;
mod backend;
mod config;
pub mod engine;
pub mod function;
mod guard;
mod interrupts;
pub(crate) mod pci_function;
pub mod pri;
mod scratch;
mod server;
mod test_block;
mod transfer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;

use crate::host::soft::SoftHost;
use crate::os::socket_file::{ListenError, SocketFile};
use crate::spec::EndpointId;

pub use function::{Enabled, Function, FunctionState, RegisterBlock};
pub use interrupts::{InterruptKind, Interrupts};
pub use pci_function::{NoSuchRegister, PciFunction, Region};
pub use pri::PageRequestInterface;

use server::Server;

/// Why a function cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket for front-ends.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A thread or a descriptor cannot be made.
    #[error("cannot serve endpoint {0} over vfio-user: {1}")]
    Start(EndpointId, #[source] std::io::Error),
}

/// A function that is served on a socket, until it is dropped.
pub struct SoftEndpoint {
    device: Arc<PciFunction>,
    /// Dropped before its socket file is: no front-end is accepted any more when the file goes.
    server: Server,
    _file: SocketFile,
}

impl SoftEndpoint {
    /// Serves a new function of the endpoint on a socket at `path`, whose file has the permissions of
    /// [`SocketFile::for_front_ends`].
    ///
    /// # Errors
    /// [`ServeError::Listen`] if there can be no socket at `path`, [`ServeError::Start`] if the kernel has no thread or
    /// descriptor to give, or the host does not have the endpoint.
    pub fn start(
        id: EndpointId,
        host: &Arc<SoftHost>,
        path: &Path,
        mode: Option<u32>,
    ) -> Result<Self, ServeError> {
        let file = SocketFile::for_front_ends(path, mode)?;
        let start = || {
            let device = Arc::new(PciFunction::new(id, host)?);
            let listener = file.listener().try_clone()?;
            let server = Server::start(listener, Arc::clone(&device))?;
            Ok((device, server))
        };
        let (device, server) = start().map_err(|error| ServeError::Start(id, error))?;
        log::info!("endpoint {id} waits for vfio-user on {}", path.display());
        Ok(Self {
            device,
            server,
            _file: file,
        })
    }

    /// Registers, interrupts and counters, for people.
    pub fn describe(&self) -> Value {
        let mut description = self.device.describe();
        description["connected"] = self.server.is_connected().into();
        description["refused"] = self.server.refused().into();
        description
    }
}

/// The functions of a process.
#[derive(Default)]
pub struct SoftEndpoints {
    functions: Mutex<BTreeMap<EndpointId, SoftEndpoint>>,
    /// The permissions of socket files; without it, those of [`SocketFile::for_front_ends`].
    mode: Option<u32>,
}

impl SoftEndpoints {
    /// None yet. `mode` is what the permissions of their socket files are to be, if they are given.
    pub fn new(mode: Option<u32>) -> Self {
        Self {
            functions: Mutex::default(),
            mode,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EndpointId, SoftEndpoint>> {
        self.functions.lock()
    }

    /// Serves a function of the endpoint, which has none yet, on a socket at `path`.
    ///
    /// # Errors
    /// Those of [`SoftEndpoint::start`].
    pub fn add(&self, id: EndpointId, host: &Arc<SoftHost>, path: &Path) -> Result<(), ServeError> {
        let endpoint = SoftEndpoint::start(id, host, path, self.mode)?;
        self.lock().insert(id, endpoint);
        Ok(())
    }

    /// Ends the function of the endpoint, if it has one: its DMA, its connection, its socket.
    pub fn remove(&self, id: EndpointId) {
        // Not dropped with the lock held: it waits for threads.
        let removed = self.lock().remove(&id);
        drop(removed);
    }

    /// Ends all of them.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// What the function of the endpoint shows, if it has one.
    pub fn describe(&self, id: EndpointId) -> Option<Value> {
        self.lock().get(&id).map(SoftEndpoint::describe)
    }
}
