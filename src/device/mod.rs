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
//! Files: `mapping` (the table), `request` (bytes to validated requests), `requests` (what each request does),
//! `endpoint`, `domain`, `probe`, `book` (page requests), `events` (what waits for the event queue), `counters`,
//! `status`.
#![forbid(unsafe_code)]

pub mod counters;
pub mod events;
pub mod mapping;
mod requests;
pub mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use crate::device::counters::Counters;
use crate::device::events::EventQueue;
use crate::device::mapping::IovaRange;
use crate::device::status::{DeviceStatus, MappingStatus};
use crate::host::{Host, HostError, MemoryRegion, ReservedRegion};
use crate::spec::{DomainId, EndpointId, Features};

pub use requests::{Finished, MAX_READABLE, Reply, Requests, Step};

/// How a device is set up.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// `bypass` in the config space at start, and again after a disconnect.
    pub boot_bypass: bool,
    /// Page sizes to offer, of those that the host has; `None` for all of them.
    pub page_size_mask: Option<u64>,
    /// Virtual addresses to offer, of those that the host has.
    pub input_range: IovaRange,
    /// First and last domain ID.
    pub domain_range: (u32, u32),
    /// Regions reserved for every endpoint, in addition to the host's. They win where both overlap.
    pub reserved_regions: Vec<ReservedRegion>,
    /// The most mappings, over all domains.
    pub max_mappings: usize,
    /// The most domains.
    pub max_domains: usize,
    /// The most page-request groups held or outstanding, over all endpoints.
    pub max_page_requests: usize,
    /// How long a group waits for the driver; `None` for ever.
    pub page_response_timeout: Option<Duration>,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            boot_bypass: true,
            page_size_mask: None,
            input_range: IovaRange::ALL,
            domain_range: (0, u32::MAX),
            reserved_regions: Vec::new(),
            max_mappings: 1 << 20,
            max_domains: 1 << 16,
            max_page_requests: 4096,
            page_response_timeout: Some(Duration::from_secs(10)),
        }
    }
}

/// Why a device or one of its endpoints cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No page size is left of what the host has and what was asked for, or one is too small.
    #[error("{0}")]
    PageSizes(String),
    /// The host's addresses and the ones asked for have nothing in common.
    #[error("{0}")]
    InputRange(String),
    /// Reserved regions overlap each other.
    #[error("{0}")]
    ReservedRegions(String),
    /// The endpoint exists.
    #[error("endpoint {0} exists already")]
    EndpointExists(EndpointId),
    /// The endpoint does not exist.
    #[error("endpoint {0} does not exist")]
    NoEndpoint(EndpointId),
    /// The host refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The device. See the module's page for its locks.
pub struct Device {
    _host: Arc<dyn Host>,
}

impl Device {
    /// A device over `host` with the endpoints named, each of which the host has. None is attached; they are
    /// in bypass or blocked as `boot_bypass` says.
    pub fn new(
        _config: DeviceConfig,
        _host: Arc<dyn Host>,
        _endpoints: &[EndpointId],
    ) -> Result<Self, SetupError> {
        todo!()
    }

    /// The device-specific feature bits to offer. The transport adds its own.
    pub fn offered_features(&self) -> Features {
        todo!()
    }

    /// Takes the features that the driver accepted. Bits that are not the device's are ignored.
    pub fn negotiate(&self, _accepted: u64) {
        todo!()
    }

    /// The config space.
    pub fn config_space(&self) -> [u8; 40] {
        todo!()
    }

    /// A write to the config space: acts on `bypass`, ignores the rest (C5 to C7, C11).
    pub fn write_config(&self, _offset: usize, _data: &[u8]) {
        todo!()
    }

    /// Begins a batch of requests: locks the state until the value is finished or dropped.
    pub fn requests(&self) -> Requests<'_> {
        todo!()
    }

    /// Takes over a new map of guest memory: see [`Host::update_memory`].
    pub fn update_memory(
        &self,
        _memory: &GuestMemoryMmap,
        _removed: &[MemoryRegion],
        _added: &[MemoryRegion],
    ) -> Result<(), HostError> {
        todo!()
    }

    /// A front-end connected.
    pub fn connect(&self) {
        todo!()
    }

    /// The front-end is gone: a system reset. A device reset, then `bypass` is as at start (C10) and no
    /// feature is negotiated. The transport takes the memory away with [`Device::update_memory`].
    pub fn disconnect(&self) {
        todo!()
    }

    /// A device reset: no attachment, no domain, no group, no held event; `bypass` stays (I12, C10).
    pub fn reset(&self) {
        todo!()
    }

    /// The queues stopped, perhaps for a pause: attachments and groups stay, events are held.
    pub fn suspend(&self) {
        todo!()
    }

    /// The queues run again.
    pub fn resume(&self) {
        todo!()
    }

    /// Takes what the host has to tell, answers what has waited too long, and puts into `queue` what fits.
    /// `queue` is `None` while there is no running event queue. Returns when it wants to be called again at the
    /// latest; it also wants a call when a descriptor of [`Host::event_fds`] is readable, when the driver
    /// added event buffers, and when [`Finished::events_wanted`] says so.
    pub fn service_events(
        &self,
        _queue: Option<&mut dyn EventQueue>,
        _now: Instant,
    ) -> Option<Instant> {
        todo!()
    }

    /// Adds an endpoint that the host has by now.
    pub fn add_endpoint(&self, _endpoint: EndpointId) -> Result<(), SetupError> {
        todo!()
    }

    /// Removes an endpoint: its groups answered, its domains left, the host let go of it.
    pub fn remove_endpoint(&self, _endpoint: EndpointId) -> Result<(), SetupError> {
        todo!()
    }

    /// A picture of the device.
    pub fn status(&self) -> DeviceStatus {
        todo!()
    }

    /// The mappings of a domain, ascending; `None` when there is no such domain.
    pub fn mappings(&self, _domain: DomainId) -> Option<Vec<MappingStatus>> {
        todo!()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        todo!()
    }
}
