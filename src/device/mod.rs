// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the specification says the device does.
//!
//! [`Device`] is the whole of it, for any number of threads. Inside there are two locks, taken in this order:
//!
//! 1. *state*: endpoints, domains, mappings, configuration. The request worker holds it for a batch
//!    ([`Device::requests`]); it may be held across a long host call.
//! 2. *book*: page-request groups, held events, what the driver is ready for. Never held across MAP or UNMAP, so
//!    a page request does not wait for a mapping of many gigabytes.
//!
//! Files: `request` (bytes to validated requests), `batch` (what each request does), `attach` (where endpoints are),
//! `joined` (requests in one host call), `endpoint`, `domain`, `probe`, `book` (page requests), `groups` (those that
//! wait), `events` (what goes into the event queue), `counters`, `histogram`, `status`, `setup`.
//!
//! # Example
//! A device over the software host, and a driver that attaches an endpoint and maps a page for it:
//!
//! ```
//! use std::sync::Arc;
//!
//! use vhost_device_iommu::device::{Device, DeviceConfig, Reply};
//! use vhost_device_iommu::host::soft::{SoftHost, default_properties};
//! use vhost_device_iommu::spec::{
//!     Attach, AttachFlags, DomainId, EndpointId, Gpa, Iova, Map, MapFlags, Pasid, Status, TAIL_LEN,
//! };
//! use zerocopy::IntoBytes;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = EndpointId(0x28);
//! let host = Arc::new(SoftHost::new()?);
//! host.add_endpoint(endpoint, default_properties())?;
//! let device = Device::new(DeviceConfig::default(), host, &[endpoint])?;
//!
//! // A front-end connects, and its guest's driver accepts every feature.
//! device.connect();
//! device.negotiate(device.offered_features().bits());
//!
//! let domain = DomainId(1);
//! let attach = Attach::new(domain, endpoint, AttachFlags::empty(), Pasid(0));
//! let map = Map::new(domain, Iova(0x1000), Iova(0x1fff), Gpa(0x8000), MapFlags::READ);
//! let mut batch = device.requests();
//! for request in [attach.as_bytes(), map.as_bytes()] {
//!     let step = batch.execute(request, request.len(), TAIL_LEN);
//!     assert_eq!(step.reply, Reply::Status(Status::Ok));
//! }
//! batch.finish();
//! assert_eq!(device.mappings(domain).map_or(0, |mappings| mappings.len()), 1);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod attach;
mod batch;
mod book;
pub mod counters;
mod domain;
mod endpoint;
pub mod events;
mod groups;
pub mod histogram;
mod joined;
mod probe;
mod request;
mod setup;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::device::book::{PageRequestBook, Rules};
use crate::device::counters::Counters;
use crate::device::domain::Domain;
use crate::device::endpoint::Endpoint;
use crate::device::events::EventQueue;
use crate::device::histogram::Histogram;
use crate::device::joined::{JoinedInvalidates, JoinedUnmaps};
use crate::device::status::MemoryStatus;
use crate::host::mapping::IovaRange;
use crate::host::{Host, MemoryError, MemoryRegion};
use crate::spec::{Config, DomainId, EndpointId, Features, Range32, Range64};

pub use batch::{Batch, Finished, Reply, Step};
pub use request::MAX_READABLE;
pub use setup::{DeviceConfig, SetupError};

/// The device. See the module's page for its locks.
pub struct Device {
    config: DeviceConfig,
    host: Arc<dyn Host>,
    page_size_mask: u64,
    input_range: IovaRange,
    probe_size: usize,
    counters: Counters,
    page_request_times: Histogram,
    // Lock order: `state`, then `book`.
    state: Mutex<State>,
    book: Mutex<PageRequestBook>,
}

/// What requests work on.
struct State {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    domains: BTreeMap<DomainId, Domain>,
    /// Mappings over all domains.
    mappings: usize,
    /// PASID attachments over all endpoints.
    pasids: usize,
    /// Negotiated.
    features: Features,
    /// `bypass` in the config space.
    bypass: bool,
    /// The driver has sent a request since the last reset.
    driver_ready: bool,
    connected: bool,
    /// An endpoint that is attached to nothing is not where the config space says, as the host refused. It is tried again
    /// at the next request, reset or connection.
    move_owed: bool,
    /// An endpoint is still attached after a reset, as the host refused: it is tried again at the next one, and before
    /// the next driver's first request.
    detach_owed: bool,
    memory: Vec<MemoryStatus>,
    /// Empty between batches. Kept for its allocation.
    joined: JoinedUnmaps,
    invalidates: JoinedInvalidates,
    /// The answer to the last PROBE. Kept for its allocation.
    properties: Vec<u8>,
}

impl Device {
    /// A device over `host` with the endpoints named, each of which the host has. None is attached; they are
    /// in bypass or blocked as `boot_bypass` says.
    ///
    /// # Errors
    /// [`SetupError::PageSizes`] and [`SetupError::InputRange`] where the configuration and [`Host::limits`] have nothing in
    /// common, and what [`Device::add_endpoint`] says.
    pub fn new(
        config: DeviceConfig,
        host: Arc<dyn Host>,
        endpoints: &[EndpointId],
    ) -> Result<Self, SetupError> {
        let limits = host.limits();
        let page_size_mask = setup::page_sizes(limits.page_size_mask, config.page_size_mask)?;
        let input_range = limits.input_range.intersection(&config.input_range).ok_or_else(|| {
            SetupError::InputRange(format!(
                "the input range {}-{} has no address of the host's {}-{}: choose another --input-range",
                config.input_range.first,
                config.input_range.last,
                limits.input_range.first,
                limits.input_range.last
            ))
        })?;
        let rules = Rules {
            max_groups: config.max_page_requests,
            timeout: config.page_response_timeout,
            // C8: there is a lowest bit.
            granule: 1 << page_size_mask.trailing_zeros(),
        };
        let state = State {
            endpoints: BTreeMap::new(),
            domains: BTreeMap::new(),
            mappings: 0,
            pasids: 0,
            features: Features::empty(),
            // C9
            bypass: config.boot_bypass,
            driver_ready: false,
            connected: false,
            move_owed: false,
            detach_owed: false,
            memory: Vec::new(),
            joined: JoinedUnmaps::default(),
            invalidates: JoinedInvalidates::default(),
            properties: Vec::new(),
        };
        let mut device = Self {
            config,
            host,
            page_size_mask,
            input_range,
            probe_size: usize::MAX,
            counters: Counters::default(),
            page_request_times: Histogram::default(),
            state: Mutex::new(state),
            book: Mutex::new(PageRequestBook::new(rules)),
        };
        for &endpoint in endpoints {
            device.add_endpoint(endpoint)?;
        }
        let largest = device
            .state()
            .endpoints
            .values()
            .map(probe::size)
            .max()
            .unwrap_or(0);
        device.probe_size = largest.max(probe::MIN_PROBE_SIZE);
        Ok(device)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn book(&self) -> MutexGuard<'_, PageRequestBook> {
        self.book.lock()
    }

    /// The device-specific feature bits to offer. The transport adds its own.
    ///
    /// MMIO is not offered: a host maps guest memory only. A build for tests of drivers (`--cfg odd_bits`) does offer it.
    pub fn offered_features(&self) -> Features {
        // F2, F3, F4, X3, X73. What endpoints can do is said by their properties, also of those that are plugged in later.
        let mut features = Features::INPUT_RANGE
            | Features::DOMAIN_RANGE
            | Features::MAP_UNMAP
            | Features::PROBE
            | Features::BYPASS_CONFIG
            | Features::PAGE_REQUEST
            | Features::PASID
            | Features::ATTACH_TABLE;
        features.set(Features::MMIO, cfg!(odd_bits));
        features
    }

    /// Takes the features that the driver accepted. Bits that are not the device's are ignored.
    pub fn negotiate(&self, accepted: u64) {
        let features = Features::from_bits_truncate(accepted) & self.offered_features();
        let mut state = self.state();
        state.features = features;
        self.book().negotiate(features);
    }

    /// The config space (§ Device configuration layout), as the driver reads it: little-endian.
    pub fn config_space(&self) -> [u8; 40] {
        let (first_domain, last_domain) = self.config.domain_range;
        let config = Config {
            page_size_mask: U64::new(self.page_size_mask),
            input_range: Range64 {
                first: U64::new(self.input_range.first.0),
                last: U64::new(self.input_range.last.0),
            },
            domain_range: Range32 {
                first: U32::new(first_domain),
                last: U32::new(last_domain),
            },
            probe_size: U32::new(self.probe_size as u32),
            // C11
            bypass: u8::from(self.state().bypass),
            reserved: [0; 3],
        };
        let mut bytes = [0; 40];
        bytes.copy_from_slice(config.as_bytes());
        bytes
    }

    /// A write to the config space: acts on `bypass`, ignores the rest (C5 to C7, C11). It may come before the
    /// features are negotiated, and may carry old values in the fields that a driver cannot write.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        let bypass = offset_of!(Config, bypass)
            .checked_sub(offset)
            .and_then(|index| data.get(index));
        match bypass {
            Some(0) => self.set_bypass(&mut self.state(), false),
            Some(1) => self.set_bypass(&mut self.state(), true),
            _ => {}
        }
    }

    /// Begins a batch of requests: locks the state until the value is finished or dropped.
    pub fn requests(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Takes over a new map of guest memory: see [`Host::update_memory`].
    ///
    /// # Errors
    /// The regions that the host could not take, or not give back. They are in the map nevertheless: the guest believes
    /// them to be there, and [`Device::status`] says what is wrong with them.
    pub fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        let mut state = self.state();
        let removed_from = |region: &MemoryStatus| {
            removed
                .iter()
                .any(|gone| gone.gpa.0 == region.gpa && gone.length == region.length)
        };
        state.memory.retain(|region| !removed_from(region));
        state.memory.extend(added.iter().map(|region| MemoryStatus {
            gpa: region.gpa.0,
            length: region.length,
            error: None,
        }));
        state.memory.sort_by_key(|region| region.gpa);
        let result = self.host.update_memory(memory, removed, added);
        for failed in result.as_ref().err().into_iter().flatten() {
            self.counters.host_errors.increment();
            let region = state
                .memory
                .iter_mut()
                .find(|region| (region.gpa, region.length) == (failed.gpa.0, failed.length));
            if let Some(region) = region {
                region.error = Some(failed.error.to_string());
            }
        }
        result
    }

    /// A front-end connected. Faults and page requests from before are not for its guest: they are counted as dropped,
    /// and answered.
    pub fn connect(&self) {
        self.counters.connections.increment();
        let mut state = self.state();
        state.connected = true;
        self.book().connect(&*self.host, &self.counters);
        self.place_all_unattached(&mut state);
    }

    /// The front-end is gone: a system reset, after which no feature is negotiated. Devices that are the front-end's are
    /// blocked. The transport takes the memory away with [`Device::update_memory`].
    pub fn disconnect(&self) {
        let mut state = self.state();
        // First, as it says where the front-end's devices belong.
        state.connected = false;
        self.system_reset_state(&mut state);
        state.features = Features::empty();
        self.book().disconnect();
    }

    /// A device reset: no attachment, no domain, no group, no event is left; `bypass` stays (I12, C10).
    pub fn reset(&self) {
        self.reset_state(&mut self.state());
    }

    /// A system reset with the front-end still there: a device reset, then `bypass` has its initial value again (C10).
    /// Features stay: the next driver's may be negotiated already.
    pub fn system_reset(&self) {
        self.system_reset_state(&mut self.state());
    }

    fn system_reset_state(&self, state: &mut State) {
        state.bypass = self.config.boot_bypass;
        self.reset_state(state);
    }

    /// The queues stopped, perhaps for a pause. Attachments and groups stay, events are held, and the time-outs of page
    /// requests stand still from `now` on, until [`Device::resume`] or a reset. From its return until then no table of the
    /// driver is read or written either, where the host can see to it: the driver may be gone, and its memory used for
    /// something else (X87).
    pub fn suspend(&self, now: Instant) {
        let _state = self.state();
        self.host.hold_tables();
        self.book().suspend(now);
    }

    /// The queues run again, with the same driver: accesses through its tables go on, and what was left of each time-out
    /// begins at `now`.
    pub fn resume(&self, now: Instant) {
        let _state = self.state();
        self.book().resume(now);
        self.host.release_tables();
    }

    /// What serves the queues is replaced, and the driver goes on meanwhile: events are held, and the time-outs of page requests
    /// stand still, until [`Device::restart_time`] or a reset. Returns whether they stood still already, as they do while the
    /// queues are stopped.
    pub fn stop_time(&self, now: Instant) -> bool {
        self.book().suspend(now)
    }

    /// The queues are served again.
    pub fn restart_time(&self, now: Instant) {
        self.book().resume(now);
    }

    /// The driver has ended. The reset follows when the next driver starts, or with the machine's. Until then no driver
    /// answers page requests: held and outstanding groups are answered INVALID_REQUEST, and endpoints raise no more.
    /// Mappings stay, as a driver may reset the IOMMU before it shuts down the devices behind it. Tables do not: they are
    /// memory that something else uses from now on (X87).
    pub fn end_driver(&self) {
        let mut state = self.state();
        for id in attach::ids(&state) {
            self.turn_page_requests_off(&mut state, id);
        }
        self.end_tables(&mut state);
    }

    /// Takes the host's events, answers the groups that have waited too long, and puts into `queue` what fits. `queue` is
    /// `None` while no event queue runs.
    ///
    /// Returns the time of the next call at the latest; `None` when no group has a time-out, or while time stands still
    /// ([`Device::suspend`]). A call is also wanted when a descriptor of [`Host::event_fds`] is readable, when the driver
    /// has added event buffers, after [`Device::resume`], and when [`Finished::events_wanted`] says so.
    pub fn service_events(
        &self,
        queue: Option<&mut dyn EventQueue>,
        now: Instant,
    ) -> Option<Instant> {
        self.book().service(&*self.host, &self.counters, queue, now)
    }

    /// Adds an endpoint that the host has by now. It is in bypass or blocked, as the config space says.
    ///
    /// # Errors
    /// [`SetupError::EndpointExists`]; [`SetupError::NoEndpoint`] where the host does not have it;
    /// [`SetupError::ReservedRegions`] where the regions that are reserved for it overlap each other, are more than one for
    /// doorbells, or take more room than PROBE was promised when the device was made.
    pub fn add_endpoint(&self, endpoint: EndpointId) -> Result<(), SetupError> {
        let mut state = self.state();
        if state.endpoints.contains_key(&endpoint) {
            return Err(SetupError::EndpointExists(endpoint));
        }
        let properties = self
            .host
            .properties(endpoint)
            .ok_or(SetupError::NoEndpoint(endpoint))?;
        let new = Endpoint::new(endpoint, properties, &self.config.reserved_regions)?;
        if probe::size(&new) > self.probe_size {
            return Err(SetupError::ReservedRegions(format!(
                "endpoint {endpoint} has {} reserved regions, more than the {} bytes of properties that the driver \
                 was promised: name it on the command line",
                new.reserved.len(),
                self.probe_size
            )));
        }
        state.endpoints.insert(endpoint, new);
        self.book().add_endpoint(endpoint);
        self.place_unattached(&mut state, endpoint);
        Ok(())
    }

    /// Removes an endpoint: its groups answered, its domains left, the host let go of it.
    ///
    /// # Errors
    /// [`SetupError::NoEndpoint`].
    pub fn remove_endpoint(&self, endpoint: EndpointId) -> Result<(), SetupError> {
        let mut state = self.state();
        let gone = state
            .endpoints
            .remove(&endpoint)
            .ok_or(SetupError::NoEndpoint(endpoint))?;
        {
            let mut book = self.book();
            self.host.remove_endpoint(endpoint);
            let (groups, reports) = book.remove_endpoint(endpoint);
            self.counters.page_request_withdrawn.add(groups);
            self.counters.fault_reports_dropped.add(reports);
        }
        for (pasid, membership) in gone.memberships() {
            state.pasids -= usize::from(pasid.is_some());
            self.leave(&mut state, membership.domain, endpoint);
        }
        Ok(())
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How long page-request groups waited, from the host to the driver's answer. Noted by batches that have a clock.
    pub fn page_request_times(&self) -> &Histogram {
        &self.page_request_times
    }
}
