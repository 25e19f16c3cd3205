// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract between the device and what carries translations out.
//!
//! A [`Host`] knows endpoints, holds an address space per domain, and raises page requests and faults. The
//! device decides; the host does, and tells the truth about what happened. Two hosts keep the contract:
//! `iommufd` (Linux, VFIO devices) and `soft` (a software IOMMU in this process).
//!
//! # Calls and locks
//! The device calls every method that changes attachments, domains, mappings or memory under one lock of its
//! own ("state"), so these never run at the same time as each other. [`Host::take_events`],
//! [`Host::respond`] and, in addition, [`Host::attach`] and [`Host::remove_endpoint`] run under the lock of
//! the page-request book, so that a cookie never changes its meaning between being read and being answered.
//! A host takes its own locks inside and never calls back into the device.

pub mod iommufd;
pub mod mapping;
mod per_pasid;
pub mod soft;
pub mod table;

use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping, SharedMappings};
use crate::host::table::{Table, TableSupport};
pub use per_pasid::PerPasid;

use crate::spec::{
    DomainId, EndpointId, EventFlags, Gpa, Iova, Pasid, PasidFlags, Reason, ResvMemSubtype, Status,
};

/// The source of an access: an endpoint, or one of its process address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requester {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The address space; `None` for accesses without a PASID.
    pub pasid: Option<Pasid>,
}

impl Requester {
    /// From the first requester of an endpoint to the last.
    pub fn all_of(endpoint: EndpointId) -> RangeInclusive<Self> {
        let requester = |pasid| Self { endpoint, pasid };
        requester(None)..=requester(Some(Pasid(u32::MAX)))
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pasid {
            None => write!(f, "endpoint {}", self.endpoint),
            Some(pasid) => write!(f, "endpoint {} PASID {pasid}", self.endpoint),
        }
    }
}

/// Where a requester's accesses go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Every access is aborted and reported with reason DOMAIN.
    Blocked,
    /// Identity: guest-physical addresses, all access kinds (B25).
    Bypass,
    /// Through what a domain translates by.
    Domain {
        /// The domain; created before with [`Host::create_domain`].
        domain: DomainId,
        /// What happens to accesses that find no translation.
        page_requests: PageRequests,
    },
}

/// What a domain translates by, for as long as it exists.
#[derive(Clone)]
pub enum Translations {
    /// Mappings. The table is empty at first; the device keeps it up to date, and a host may read it whenever it needs, and
    /// never writes to it.
    Mappings(SharedMappings),
    /// A page table in guest memory, which the driver changes at any time and says afterwards: [`Host::invalidate`]. The
    /// device has checked that its fields are possible, and that each endpoint attached to it supports it.
    Table(Table),
}

/// What happens to accesses that find no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRequests {
    /// The driver did not ask for page requests: the access is aborted and reported. A host that is told of
    /// such an access only through a page request raises that; the device answers it INVALID_REQUEST and
    /// reports the fault (X43).
    Unwanted,
    /// The driver asked for them: a page request is raised, and the access waits for the answer.
    Reported,
    /// After RESPONSE_FAILURE: the endpoint can raise none (X70).
    Off,
}

/// A range of virtual addresses that must not be mapped for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: IovaRange,
    /// Why.
    pub subtype: ResvMemSubtype,
}

/// What an endpoint can do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EndpointProperties {
    /// It can raise page requests.
    pub page_requests: bool,
    /// Width in bits of its PASIDs, at most 20; 0 when it has none.
    pub pasid_width: u8,
    /// What it distinguishes in accesses with a PASID.
    pub pasid_flags: PasidFlags,
    /// Holes in its address space, ascending and disjoint.
    pub reserved: Vec<ReservedRegion>,
    /// Formats of tables that it can be attached to, each once (X76).
    pub tables: Vec<TableSupport>,
    /// The process that has its device.
    pub owner: Owner,
}

/// The process that has the device of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    /// This process's alone.
    #[default]
    Host,
    /// The front-end's, which shares it. Without a front-end the endpoint is blocked: it must not reach the memory of a
    /// guest that is gone.
    FrontEnd {
        /// The endpoint's bypass is the front-end's own mapping of all of guest memory, which is there from the start.
        maps_memory: bool,
    },
}

/// What all endpoints of a host have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Page sizes, a bit each; the lowest is the granule.
    pub page_size_mask: u64,
    /// Addresses that every endpoint can put on the bus: the smallest aperture.
    pub input_range: IovaRange,
}

/// A piece of guest memory, as the front-end announced it.
#[derive(Clone, Debug)]
pub struct MemoryRegion {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes; never 0.
    pub length: u64,
    /// Where this process has it mapped.
    pub user_address: usize,
    /// The file behind it and the offset of the first byte in the file.
    pub file: Option<(Arc<File>, u64)>,
}

/// The host's name for an outstanding page-request group. A name is used again as soon as its group is
/// answered or withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// One page request of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The address wanted; not necessarily aligned.
    pub address: Iova,
    /// Access kinds: a subset of [`EventFlags::ACCESS`].
    pub access: EventFlags,
    /// Bytes that the requester expects to need from `address`; 0 without a hint.
    pub length: u32,
}

/// A complete group: it gets exactly one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequestGroup {
    /// The source of the requests.
    pub requester: Requester,
    /// The host's name for the group.
    pub cookie: Cookie,
    /// The requests, in order; at least one.
    pub pages: Vec<PageRequest>,
}

/// An unrecoverable fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The source of the access.
    pub requester: Requester,
    /// Why it failed.
    pub reason: Reason,
    /// The first failing byte, where known.
    pub address: Option<Iova>,
    /// Access kinds: a subset of [`EventFlags::ACCESS`].
    pub access: EventFlags,
}

/// What a host has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A page request group that wants an answer.
    PageRequest(PageRequestGroup),
    /// A fault that is over already.
    Fault(Fault),
    /// So many faults that the host had no room for, or whose endpoint went away before they were taken. The device counts
    /// them with the reports that it drops itself.
    FaultsDropped(u64),
    /// An access that the IOMMU refused, as the host's log tells it. It does not say whether there was a domain: with
    /// [`Reason::Mapping`] the device finds out.
    LoggedFault(Fault),
    /// So many lines of the host's log were overwritten before they were read. Some of them may have told of faults.
    LogLinesLost(u64),
}

/// What the host does with an answered group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Retry.
    Success,
    /// Give up.
    Invalid,
    /// Give up, as the endpoint's page requests are off. A host that cannot say so takes it as
    /// [`Answer::Invalid`]; that none follow is the attachment's matter ([`PageRequests::Off`]).
    ResponseFailure,
}

/// What a host can fail with. Each maps to exactly one virtio status.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The host does not know the endpoint.
    #[error("endpoint {0} is unknown to the host")]
    NoEndpoint(EndpointId),
    /// The endpoint cannot do what was asked, or not together with the others of the domain.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// No outstanding group has this cookie: it was withdrawn.
    #[error("no outstanding page-request group has cookie {0:?}")]
    NoGroup(Cookie),
    /// Memory, pinned-page limit or another resource is exhausted.
    #[error("out of resources: {0}")]
    NoMemory(String),
    /// The address range is not usable on the host: outside the aperture or over a reserved region.
    #[error("address range refused: {0}")]
    Range(String),
    /// A mapping leads to guest memory that the host could not take: where that begins, and why.
    #[error("guest memory at {0} is out of reach of endpoints: {1}")]
    Unreachable(Gpa, String),
    /// What was to be unmapped was not all mapped, so accesses failed that should not have: nothing of it is mapped now.
    #[error("{0}")]
    Missing(String),
    /// Anything else: the message has the call and the error.
    #[error("{0}")]
    Internal(String),
}

impl HostError {
    /// The one status that the guest sees.
    pub fn status(&self) -> Status {
        match self {
            Self::NoEndpoint(_) | Self::NoGroup(_) => Status::NoEnt,
            Self::Unsupported(_) => Status::Unsupp,
            Self::NoMemory(_) => Status::NoMem,
            Self::Range(_) => Status::Range,
            Self::Unreachable(..) | Self::Missing(_) | Self::Internal(_) => Status::DevErr,
        }
    }
}

/// A region of guest memory that a host could not take, or not give back.
#[derive(Debug, thiserror::Error)]
#[error("guest memory at {gpa} of {length:#x} bytes: {error}")]
pub struct MemoryError {
    /// Its first address.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub length: u64,
    /// Why.
    #[source]
    pub error: HostError,
}

/// Carries the device's decisions out. See the module's page for the locks.
pub trait Host: Send + Sync {
    /// What all endpoints have in common. Fixed once the device exists.
    fn limits(&self) -> Limits;

    /// Whether the host has an endpoint.
    fn has_endpoint(&self, endpoint: EndpointId) -> bool;

    /// What an endpoint can do, as found out when it was added; `None` when the host does not have it.
    fn properties(&self, endpoint: EndpointId) -> Option<EndpointProperties>;

    /// Makes an address space for a new domain.
    ///
    /// # Errors
    /// [`HostError::Unsupported`] for a table that the host cannot have, [`HostError::NoMemory`] where memory or a limit is
    /// exhausted, [`HostError::Internal`] otherwise. The domain does not exist then.
    fn create_domain(&self, domain: DomainId, by: Translations) -> Result<(), HostError>;

    /// Drops the address space of a domain that no requester is attached to, with its mappings.
    fn destroy_domain(&self, domain: DomainId);

    /// Moves a requester, atomically: every access sees the old attachment or the new one. A new endpoint
    /// is [`Attachment::Blocked`]; so is a PASID that was never attached.
    ///
    /// Guarantees: on error the previous attachment stays in force. On success no access through the
    /// previous attachment is in flight, and when the attachment changed its domain or its `page_requests`,
    /// every page-request group of the previous attachment is answered [`Answer::Invalid`] and its cookie is
    /// dead. Attaching to what it is attached to already changes nothing.
    ///
    /// # Errors
    /// [`HostError::NoEndpoint`] where the host does not have the endpoint, [`HostError::Unsupported`] where its device
    /// cannot do it, or not together with what is in the domain, [`HostError::NoMemory`] where memory or a limit is
    /// exhausted, [`HostError::Internal`] otherwise.
    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError>;

    /// Maps, so far as the target is guest memory; the rest appears with [`Host::update_memory`]. The range
    /// overlaps no other mapping of the domain. The table has the mapping already, and loses it again when this
    /// fails: a host that translates from the table has nothing to do.
    ///
    /// Guarantee: on error nothing of the mapping is in force.
    ///
    /// # Errors
    /// [`HostError::Range`] where an endpoint of the domain cannot use the addresses, [`HostError::Unreachable`] where the
    /// target is guest memory that the host could not take, [`HostError::NoMemory`] where memory or the limit of pinned
    /// memory is exhausted, [`HostError::Internal`] otherwise.
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError>;

    /// Unmaps everything in the range. No mapping crosses its ends, and the table has lost the mappings, which are
    /// `removed`, already: a host that translates from the table has nothing to do.
    ///
    /// Guarantee: after success, and after [`HostError::Missing`], no access through a removed translation is in flight.
    /// On any other error all of them are in force.
    ///
    /// # Errors
    /// [`HostError::Missing`]: the host had less mapped than the table.
    fn unmap(
        &self,
        domain: DomainId,
        range: IovaRange,
        removed: &[Mapping],
    ) -> Result<(), HostError>;

    /// Forgets what the host and the endpoints keep of the table of a domain for each of the ranges, which need not be
    /// aligned: the driver has changed entries for them.
    ///
    /// Guarantee (X103): after success no translation of an address of a range is kept, nor of a page that overlaps it;
    /// no access through one is in flight; and no walk is in flight that has read an entry for a range before. The call
    /// waits for no answer of the driver (X105).
    ///
    /// # Errors
    /// [`HostError::Internal`]: the host's hardware refused, and may keep what it had.
    fn invalidate(&self, domain: DomainId, ranges: &[IovaRange]) -> Result<(), HostError>;

    /// Stops accesses through tables of the driver where they are, until [`Host::release_tables`]: the queues stand still, and
    /// the driver may be gone and its memory used for something else. A second call changes nothing.
    ///
    /// Guarantee: when this returns, and until the release, no table is read or written, nothing of one is kept, and no access
    /// through one is in flight. Such an access waits: it is not aborted, not reported, and no page is asked for. It goes on
    /// as it finds things then when its attachment changes, its endpoint is removed, or tables are released. Other accesses
    /// are not concerned. A host whose hardware reads tables cannot make it wait, and does nothing.
    fn hold_tables(&self);

    /// Lets the accesses that [`Host::hold_tables`] stopped go on. Before the tables of a driver that is gone are released,
    /// their attachments have ended.
    fn release_tables(&self);

    /// Whether one [`Host::unmap`] over several mappings is cheaper than several, and one [`Host::invalidate`] of several
    /// ranges: the device then joins consecutive UNMAP requests, and consecutive INVALIDATE requests.
    fn joins_requests(&self) -> bool;

    /// Takes over a new map of guest memory. `removed` regions leave every translation, bypass included,
    /// before this returns, errors or not; then `added` ones enter bypass and every mapping that points to
    /// them.
    ///
    /// The new map is described twice, and both descriptions are true: `memory` is all of it, for a host that accesses
    /// memory itself (`soft`); `removed` and `added` are the difference to the map before, with the files, for a host
    /// that has others access it (`iommufd`). A host may use either.
    ///
    /// # Errors
    /// One for each region that failed, in the terms of [`Host::map`]. The parts of `added` that failed are not accessible
    /// to endpoints; everything else is. Until a region that failed as a whole is removed, a [`Host::map`] that leads to
    /// it fails.
    fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>>;

    /// Descriptors that are readable while [`Host::take_events`] has something to give. Fixed for the life
    /// of the host.
    fn event_fds(&self) -> Vec<RawFd>;

    /// Hands out what has come, at most a bounded number per call, oldest first.
    fn take_events(&self, sink: &mut dyn FnMut(HostEvent));

    /// Answers a group.
    ///
    /// # Errors
    /// [`HostError::NoGroup`] where it was withdrawn meanwhile. On [`HostError::NoMemory`] and [`HostError::Internal`] the
    /// group still waits for its answer.
    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError>;

    /// Lets go of an endpoint: blocked, its groups answered, its device closed. Unknown ones are ignored.
    fn remove_endpoint(&self, endpoint: EndpointId);
}
