// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host of real devices: Linux iommufd.
//!
//! ```text
//! guest memory ── IOAS at guest-physical addresses (pins nothing)
//!                   │ COPY of parts
//!                   ├── IOAS of a domain ── HWPTs ── endpoints of the domain
//!                   ├── IOAS of bypass   ── HWPTs ── endpoints in bypass
//!                   │                    └─ HWPT   ── HWPTs, nested ── endpoints of a domain with a table of the driver
//!                   └   IOAS without anything ────── an endpoint that is blocked
//!
//! page requests ── fault queue ── groups and their cookies ── device
//! ```
//!
//! A virtio domain with mappings is one IOAS; every endpoint of it is attached to a page table (HWPT) of that IOAS, which
//! the kernel keeps up to date. Moving an endpoint is one replace in the kernel: at every moment it is in one place.
//!
//! Files: `kernel` (the calls), `context` (objects in an iommufd), `device`, `vfio`, `mock` (devices), `group` (IOMMU
//! groups), `isolation` (devices without an IOMMU), `lender` (the owner of a shared device), `space` (an address space and
//! its page tables), `nested` (tables of the driver), `vtd` (what VT-d says of them), `guest_smmu` and `smmuv3` (the same on
//! Arm: objects, and words), `memory` (guest memory), `endpoint`, `fault` (page requests), `kernel_log` (refused accesses of
//! devices without them), `state` (attachments, and what concerns several address spaces), `startup` (what can be wrong at
//! the start), `error`.
//!
//! # Locks
//! *state* (domains, endpoints, memory) is held across every call to the kernel that changes them, however long it
//! takes. The fault queue has a lock of its own, taken after *state* or alone: reading and answering page requests
//! waits for no mapping.

mod context;
mod device;
mod endpoint;
mod error;
mod fault;
mod group;
mod guest_smmu;
mod isolation;
mod kernel;
mod kernel_log;
mod lender;
mod memory;
#[cfg(feature = "iommufd-test")]
mod mock;
mod nested;
pub mod smmuv3;
mod space;
mod startup;
mod state;
mod vfio;
pub(crate) mod vtd;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};
use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping};
use crate::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Requester, Translations,
};
use crate::spec::{DomainId, EndpointId, Iova};

pub use isolation::{is_group_without_iommu, is_without_iommu};
pub use kernel_log::KernelLog;
pub use startup::{GroupMate, SetupError, open_iommufd, pinning_limit};

use context::{Context, access_flags};
use device::Attach;
use endpoint::Endpoint;
use error::is_exhausted;
use fault::FaultQueue;
use lender::Lender;
use memory::GuestMemory;
use nested::NestedDomain;
use state::{Bypass, Domain, MappedDomain};
use vfio::VfioDevice;

/// Commands given to iommufd and VFIO by this process so far, for benchmarks.
#[cfg(feature = "iommufd-test")]
pub fn kernel_calls() -> u64 {
    kernel::CALLS.load(std::sync::atomic::Ordering::Relaxed)
}

/// The smallest granule offered: no driver has smaller pages.
const SMALLEST_GRANULE: u64 = 4096;

/// Where the device of an endpoint comes from.
#[derive(Debug)]
pub enum EndpointSource {
    /// The path of a VFIO character device that no other process uses (`/dev/vfio/devices/vfioN`).
    VfioPath(PathBuf),
    /// A duplicate of a VFIO device that another process has bound to the same iommufd.
    VfioFd(OwnedFd),
    /// A device on the kernel's mock bus.
    #[cfg(feature = "iommufd-test")]
    Mock {
        /// The id in the iommufd of the object that stands for it: `out_stdev_id` of `struct iommu_test_cmd`.
        stdev_id: u32,
    },
    /// The same, of another process: as [`EndpointSource::VfioFd`] is.
    #[cfg(feature = "iommufd-test")]
    LentMock {
        /// As above.
        stdev_id: u32,
    },
}

/// Abilities of iommufd that some kernels lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSupport {
    /// Fault queues (`IOMMU_FAULT_QUEUE_ALLOC`, Linux 6.11). Without them there are no page requests.
    pub fault_queue: bool,
    /// Mappings of files (`IOMMU_IOAS_MAP_FILE`, Linux 6.14). Without them guest memory is mapped by address.
    pub map_file: bool,
}

/// The iommufd host: VFIO devices as endpoints, through `linux/iommufd.h` and `linux/vfio.h`.
pub struct IommufdHost {
    limits: OnceLock<Limits>,
    // Lock order: `state`, then what is in `faults`. Dropped first: page tables use the fault queue.
    state: Mutex<State>,
    /// `None` on kernels without (before 6.11).
    faults: Option<FaultQueue>,
    /// Of endpoints that can raise no page requests; `None`: it was not asked for.
    kernel_log: Option<KernelLog>,
    context: Context,
}

struct State {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    domains: HashMap<DomainId, Domain>,
    /// One for each set of addresses that endpoints can use; nearly always one.
    bypass: Vec<Bypass>,
    memory: GuestMemory,
}

impl IommufdHost {
    /// A host without endpoints and memory, over an open iommufd.
    ///
    /// # Errors
    /// * [`SetupError::NotIommufd`]: the descriptor is none of `/dev/iommu`, or the kernel is older than Linux 6.2.
    /// * [`SetupError::NoMemory`].
    pub fn new(iommufd: OwnedFd) -> Result<Self, SetupError> {
        let context = Context::new(iommufd);
        let memory = GuestMemory::new(&context)
            .map_err(|error| error.of_setup(|error| SetupError::NotIommufd(error.to_string())))?;
        let faults = match FaultQueue::new(&context) {
            Ok(queue) => Some(queue),
            Err(error) if is_exhausted(error.errno) => {
                return Err(SetupError::NoMemory(error.to_string()));
            }
            Err(error) => {
                log::warn!("no page requests from devices, they need Linux 6.11 or newer: {error}");
                None
            }
        };
        startup::warn_of_memlock();
        Ok(Self {
            limits: OnceLock::new(),
            state: Mutex::new(State {
                endpoints: BTreeMap::new(),
                domains: HashMap::new(),
                bypass: Vec::new(),
                memory,
            }),
            faults,
            kernel_log: None,
            context,
        })
    }

    /// Has accesses that the IOMMU refused reported from the kernel's log, for endpoints that can raise no page requests:
    /// those of the others are told already.
    #[must_use]
    pub fn with_kernel_log(mut self, log: KernelLog) -> Self {
        self.kernel_log = Some(log);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What the kernel has.
    pub fn kernel_support(&self) -> KernelSupport {
        KernelSupport {
            fault_queue: self.faults.is_some(),
            map_file: self.context.has_map_file(),
        }
    }

    /// Adds an endpoint; it is blocked. `dev_id` is the id of its device in the iommufd (`out_devid` of
    /// `struct vfio_device_bind_iommufd`); `None`: it is found out. What the endpoint can do is found out here, and told
    /// by [`Host::properties`] afterwards.
    ///
    /// # Errors
    /// The device of a VFIO path is closed again. A device that another process shares is where it was, or blocked.
    /// * [`SetupError::Exists`], [`SetupError::DeviceInUse`]: the endpoint or the device is there already.
    /// * [`SetupError::NoIommu`]: no IOMMU is in front of the device. It is not bound.
    /// * [`SetupError::Open`], [`SetupError::Bind`]: the file cannot be opened, or the kernel does not give the device away.
    /// * [`SetupError::NoDeviceId`], [`SetupError::MockWithoutDeviceId`]: `dev_id` is needed.
    /// * [`SetupError::SharesGroup`]: another device of its IOMMU group is in use.
    /// * [`SetupError::Attach`]: the kernel refuses a step of the set-up.
    /// * [`SetupError::Incompatible`]: it does not go with [`Host::limits`], which are fixed by now.
    /// * [`SetupError::NoMemory`]: the same can succeed later.
    pub fn add_endpoint(
        &self,
        id: EndpointId,
        source: EndpointSource,
        dev_id: Option<u32>,
    ) -> Result<(), SetupError> {
        let mut state = self.state();
        if state.endpoints.contains_key(&id) {
            return Err(SetupError::Exists(id));
        }
        let owner = |wanted: u32| {
            state
                .endpoints
                .iter()
                .find(|(_, endpoint)| endpoint.dev_id == wanted)
                .map(|(&id, _)| id)
        };
        let mut lender = None;
        let (device, dev_id): (Box<dyn Attach>, u32) = match source {
            EndpointSource::VfioPath(path) => {
                let (device, dev_id) = VfioDevice::open(&self.context, &path)?;
                (Box::new(device), dev_id)
            }
            EndpointSource::VfioFd(fd) => {
                let taken = |id| owner(id).is_some();
                let (device, dev_id) = VfioDevice::shared(&self.context, fd, dev_id, &taken)?;
                lender = Some(Lender::find(&self.context, id)?);
                (Box::new(device), dev_id)
            }
            #[cfg(feature = "iommufd-test")]
            EndpointSource::Mock { stdev_id } => mock::device(&self.context, stdev_id, dev_id)?,
            #[cfg(feature = "iommufd-test")]
            EndpointSource::LentMock { stdev_id } => {
                lender = Some(Lender::find(&self.context, id)?);
                mock::device(&self.context, stdev_id, dev_id)?
            }
        };
        if let Some(other) = owner(dev_id) {
            return Err(SetupError::DeviceInUse(dev_id, other));
        }
        state.check_group(id, &*device)?;
        let mut endpoint = Endpoint::new(&self.context, self.faults.as_ref(), device, dev_id)
            .map_err(|error| error.of_setup(|error| SetupError::Attach(id, error.to_string())))?;
        endpoint.lender = lender;
        if let Err(why) = self.check_limits(&endpoint) {
            let _ = endpoint.device.release();
            return Err(SetupError::Incompatible(id, why));
        }
        if let Some(faults) = &self.faults {
            faults.add(dev_id, id);
        }
        if let Some(log) = &self.kernel_log
            && !endpoint.page_requests
            && let Some(address) = endpoint.device.pci_address()
        {
            log.add(address, id);
        }
        state.endpoints.insert(id, endpoint);
        Ok(())
    }

    /// Whether an endpoint goes with the limits that the device has been told, if it has.
    fn check_limits(&self, endpoint: &Endpoint) -> Result<(), String> {
        let aperture = endpoint.aperture().ok_or("it can address nothing at all")?;
        let Some(limits) = self.limits.get() else {
            return Ok(());
        };
        if aperture.intersection(&limits.input_range).is_none() {
            return Err(format!(
                "it addresses {}-{}, the others {}-{}",
                aperture.first, aperture.last, limits.input_range.first, limits.input_range.last
            ));
        }
        if endpoint.alignment > 1 << limits.page_size_mask.trailing_zeros() {
            return Err(format!(
                "its pages have {} bytes or more",
                endpoint.alignment
            ));
        }
        Ok(())
    }
}

impl Drop for IommufdHost {
    /// A device must be off a page table before that can go; and a process that shares the iommufd lives on.
    fn drop(&mut self) {
        let ids: Vec<_> = self.state().endpoints.keys().copied().collect();
        for id in ids {
            self.remove_endpoint(id);
        }
    }
}

impl Host for IommufdHost {
    fn limits(&self) -> Limits {
        *self.limits.get_or_init(|| {
            // The kernel cannot map the last address of all; the range ends on a page.
            let mut input_range = IovaRange {
                first: Iova(0),
                last: Iova(u64::MAX - SMALLEST_GRANULE),
            };
            let mut granule = SMALLEST_GRANULE;
            for (id, endpoint) in &self.state().endpoints {
                granule = granule.max(endpoint.alignment);
                let common = endpoint
                    .aperture()
                    .and_then(|aperture| aperture.intersection(&input_range));
                match common {
                    Some(common) => input_range = common,
                    None => log::error!(
                        "endpoint {id} and the others have no address in common: it will have no mapping"
                    ),
                }
            }
            Limits {
                page_size_mask: !(granule - 1),
                input_range,
            }
        })
    }

    fn has_endpoint(&self, endpoint: EndpointId) -> bool {
        self.state().endpoints.contains_key(&endpoint)
    }

    fn properties(&self, endpoint: EndpointId) -> Option<EndpointProperties> {
        let state = self.state();
        let endpoint = state.endpoints.get(&endpoint)?;
        let input_range = self
            .limits
            .get()
            .map(|limits| limits.input_range)
            .or_else(|| endpoint.aperture())
            .unwrap_or(IovaRange::ALL);
        Some(EndpointProperties {
            page_requests: endpoint.page_requests,
            pasid_width: endpoint.pasid_width,
            pasid_flags: endpoint.pasid_flags,
            reserved: endpoint.reserved(input_range),
            tables: endpoint.nesting.iter().map(|has| has.support).collect(),
            owner: endpoint.owner(),
        })
    }

    fn create_domain(&self, domain: DomainId, by: Translations) -> Result<(), HostError> {
        let made = match by {
            Translations::Mappings(mappings) => Domain::Mapped(
                MappedDomain::new(&self.context, mappings).map_err(|error| error.of_making())?,
            ),
            // Page tables come with endpoints.
            Translations::Table(table) => Domain::Nested(NestedDomain::new(table)),
        };
        self.state().domains.insert(domain, made);
        Ok(())
    }

    fn destroy_domain(&self, domain: DomainId) {
        self.state().domains.remove(&domain);
    }

    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        self.state()
            .attach(&self.context, self.faults.as_ref(), requester, to)
    }

    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        // The kernel knows no mapping without access: it is in the device's table only.
        let Some(access) = access_flags(mapping.flags) else {
            return Ok(());
        };
        let state = self.state();
        let ioas = state.mapped(domain)?.ioas();
        let (gpa, iova) = (mapping.gpa.0, mapping.range.first.0);
        let last = mapping.last_gpa();
        state.memory.check_refused(gpa, last)?;
        let mut copied = 0;
        for (from, to) in state.memory.parts(gpa, last) {
            let result = ioas.copy(
                iova + (from - gpa),
                state.memory.ioas(),
                from,
                to - from + 1,
                access,
            );
            if let Err(error) = result {
                if copied > 0 {
                    roll_back(ioas, mapping.range, copied);
                }
                return Err(error.of_range(iova, mapping.range.last.0));
            }
            copied += to - from + 1;
        }
        Ok(())
    }

    fn unmap(
        &self,
        domain: DomainId,
        range: IovaRange,
        removed: &[Mapping],
    ) -> Result<(), HostError> {
        self.state().unmap(domain, range, removed)
    }

    fn invalidate(&self, domain: DomainId, ranges: &[IovaRange]) -> Result<(), HostError> {
        self.state()
            .nested(domain)?
            .invalidate(&self.context, ranges)
    }

    /// Nothing that could be done: the hardware reads tables by itself, and an access that is not let through is lost.
    fn hold_tables(&self) {}

    fn release_tables(&self) {}

    fn joins_requests(&self) -> bool {
        // One call flushes the hardware's buffers once.
        true
    }

    fn update_memory(
        &self,
        _memory: &GuestMemoryMmap,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        let mut state = self.state();
        let mut errors = Vec::new();
        let mut note = |region: &MemoryRegion, result: Result<(), HostError>| {
            errors.extend(result.err().map(|error| MemoryError {
                gpa: region.gpa,
                length: region.length,
                error,
            }));
        };
        for region in removed {
            note(region, state.remove_memory(region));
        }
        for region in added {
            note(region, state.add_memory(region));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    fn event_fds(&self) -> Vec<RawFd> {
        let faults = self.faults.iter().map(FaultQueue::fd);
        faults
            .chain(self.kernel_log.iter().map(KernelLog::fd))
            .collect()
    }

    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        if let Some(faults) = &self.faults {
            faults.take(sink);
        }
        if let Some(log) = &self.kernel_log {
            log.take(sink);
        }
    }

    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        match &self.faults {
            Some(faults) => faults.respond(cookie, answer),
            None => Err(HostError::NoGroup(cookie)),
        }
    }

    fn remove_endpoint(&self, endpoint: EndpointId) {
        self.state().remove_endpoint(self.faults.as_ref(), endpoint);
        if let Some(log) = &self.kernel_log {
            log.remove(endpoint);
        }
    }
}

/// Takes back the bytes that were mapped of a mapping that failed. Nothing else is mapped in its range.
fn roll_back(ioas: &context::Ioas, range: IovaRange, bytes: u64) {
    if let Err(error) = ioas.unmap(range, bytes) {
        log::error!("a part of a failed mapping stays: {error}");
    }
}
