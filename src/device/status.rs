// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of the device, for people and for the control socket.

use std::time::Instant;

use parking_lot::MutexGuard;
use serde::Serialize;

use crate::device::domain::{Domain, DomainKind};
use crate::device::endpoint::{Endpoint, Residence};
use crate::device::{Device, State};
use crate::host::mapping::{IovaRange, Mapping};
use crate::host::table::Table;
use crate::host::{Owner, PageRequests};
use crate::spec::{DomainId, EndpointId, Iova, MapFlags, Pasid, TableFormat};

/// A picture of the device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceStatus {
    /// Every endpoint, ascending.
    pub endpoints: Vec<EndpointStatus>,
    /// Every domain, ascending.
    pub domains: Vec<DomainStatus>,
    /// Names of the negotiated features.
    pub features: Vec<String>,
    /// Whether a front-end is connected.
    pub connected: bool,
    /// Guest memory, ascending.
    pub memory: Vec<MemoryStatus>,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// Its ID.
    pub id: u32,
    /// `bypass`; `front-end`, which is bypass by the front-end's own mapping of guest memory; `blocked`; or `attached`.
    pub state: &'static str,
    /// The domain it is attached to.
    pub domain: Option<u32>,
    /// Its PASID attachments, ascending.
    pub pasids: Vec<PasidStatus>,
    /// Whether its plain attachment reports page requests.
    pub page_requests: bool,
}

/// A PASID attachment.
#[derive(Clone, Debug, Serialize)]
pub struct PasidStatus {
    /// The PASID.
    pub pasid: u32,
    /// Its domain.
    pub domain: u32,
}

/// A domain.
#[derive(Clone, Debug, Serialize)]
pub struct DomainStatus {
    /// Its ID.
    pub id: u32,
    /// `paging`, `bypass` or `table`.
    pub kind: &'static str,
    /// The driver's table; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableStatus>,
    /// The endpoints in it, ascending, each once.
    pub endpoints: Vec<u32>,
    /// Number of mappings.
    pub mappings: usize,
    /// Bytes mapped.
    pub bytes: u64,
}

/// A table of the driver.
#[derive(Clone, Debug, Serialize)]
pub struct TableStatus {
    /// `X86_64` or `ARM64`.
    pub format: &'static str,
    /// Bits of a virtual address.
    pub input_bits: u8,
    /// The logarithm to base two of the smallest page, in bytes.
    pub granule: u8,
    /// Guest-physical address of its root.
    pub root: u64,
}

/// How much there is of what a guest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Domains.
    pub domains: usize,
    /// Mappings, over all domains.
    pub mappings: usize,
    /// PASID attachments, over all endpoints.
    pub pasids: usize,
}

/// Page-request groups of an endpoint that wait for the guest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WaitingStatus {
    /// The endpoint's ID.
    pub endpoint: u32,
    /// How many; at least one.
    pub groups: usize,
    /// For how long the oldest one waits, in seconds.
    pub oldest_seconds: f64,
}

/// A mapping.
#[derive(Clone, Debug, Serialize)]
pub struct MappingStatus {
    /// First virtual address.
    pub iova: u64,
    /// Last virtual address.
    pub last: u64,
    /// First guest-physical address.
    pub gpa: u64,
    /// Access: of "r", "w" and "m" (MMIO); may be empty.
    pub flags: String,
}

/// A region of guest memory.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryStatus {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub length: u64,
    /// Why endpoints do not reach it, or not all of it; absent when they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Device {
    /// A picture of the device. It is taken in pieces, between which requests go on: where a guest has many domains or
    /// PASIDs, not all are of one moment. For those, [`Device::outline`] and the functions below take less memory.
    pub fn status(&self) -> DeviceStatus {
        let mut status = self.outline();
        for endpoint in &mut status.endpoints {
            endpoint.pasids = collect_pieces(
                Pasid(0),
                |from, at_most| {
                    self.pasids_from(EndpointId(endpoint.id), from, at_most)
                        .unwrap_or_default()
                },
                |last| last.pasid.checked_add(1).map(Pasid),
            );
        }
        status.domains = collect_pieces(
            DomainId(0),
            |from, at_most| self.domains_from(from, at_most),
            |last| last.id.checked_add(1).map(DomainId),
        );
        status
    }

    /// A picture of the device without domains and PASID attachments, of which a guest can make many.
    pub fn outline(&self) -> DeviceStatus {
        outline(&self.state())
    }

    /// How much there is of what a guest makes.
    pub fn sizes(&self) -> Sizes {
        let state = self.state();
        Sizes {
            domains: state.domains.len(),
            mappings: state.mappings,
            pasids: state.pasids,
        }
    }

    /// The page-request groups that wait for the guest, by endpoint, ascending. Endpoints without any are not there.
    pub fn waiting(&self, now: Instant) -> Vec<WaitingStatus> {
        let waiting = self.book().groups.waiting(now);
        waiting
            .into_iter()
            .map(|(endpoint, (groups, oldest))| WaitingStatus {
                endpoint: endpoint.0,
                groups,
                oldest_seconds: oldest.as_secs_f64(),
            })
            .collect()
    }

    /// The first `at_most` domains whose ID is `from` or more, ascending.
    pub fn domains_from(&self, from: DomainId, at_most: usize) -> Vec<DomainStatus> {
        let state = self.state();
        let domains = domains_from(&state, from, at_most);
        MutexGuard::unlock_fair(state);
        domains
    }

    /// The first `at_most` attached PASIDs of an endpoint that are `from` or more, ascending; `None` when there is no
    /// such endpoint.
    pub fn pasids_from(
        &self,
        endpoint: EndpointId,
        from: Pasid,
        at_most: usize,
    ) -> Option<Vec<PasidStatus>> {
        let state = self.state();
        let pasids = pasids_from(state.endpoints.get(&endpoint)?, from, at_most);
        MutexGuard::unlock_fair(state);
        Some(pasids)
    }

    /// The first `at_most` mappings of a domain that end at `from` or behind it, ascending; `None` when there is no such
    /// domain. The next ones are behind the last address of the last of these.
    pub fn mappings_from(
        &self,
        domain: DomainId,
        from: Iova,
        at_most: usize,
    ) -> Option<Vec<MappingStatus>> {
        let state = self.state();
        let mappings = mappings_from(state.domains.get(&domain)?, from, at_most);
        // A request that waits comes before the next piece.
        MutexGuard::unlock_fair(state);
        Some(mappings)
    }

    /// All mappings of a domain, ascending, taken in pieces; `None` when there is no such domain. That can be a million:
    /// [`Device::mappings_from`] takes less memory.
    pub fn mappings(&self, domain: DomainId) -> Option<Vec<MappingStatus>> {
        self.mappings_from(domain, Iova(0), 0)?;
        Some(collect_pieces(
            Iova(0),
            |from, at_most| {
                self.mappings_from(domain, from, at_most)
                    .unwrap_or_default()
            },
            |last| last.last.checked_add(1).map(Iova),
        ))
    }
}

/// How many domains, PASIDs or mappings are looked at before the state's lock is let go: a request waits for no more.
const PIECE: usize = 1024;

/// What there is few of: all but domains and PASID attachments.
fn outline(state: &State) -> DeviceStatus {
    DeviceStatus {
        endpoints: state
            .endpoints
            .iter()
            .map(|(&id, endpoint)| endpoint_status(id, endpoint))
            .collect(),
        domains: Vec::new(),
        features: state
            .features
            .iter_names()
            .map(|(name, _)| name.to_owned())
            .collect(),
        connected: state.connected,
        memory: state.memory.clone(),
    }
}

fn domains_from(state: &State, from: DomainId, at_most: usize) -> Vec<DomainStatus> {
    state
        .domains
        .range(from..)
        .take(at_most)
        .map(|(&id, domain)| domain_status(id, domain))
        .collect()
}

fn pasids_from(endpoint: &Endpoint, from: Pasid, at_most: usize) -> Vec<PasidStatus> {
    endpoint
        .residence
        .pasids_from(from)
        .filter_map(|(pasid, residence)| {
            Some(PasidStatus {
                pasid: pasid.0,
                domain: residence.membership()?.domain.0,
            })
        })
        .take(at_most)
        .collect()
}

/// Collects pieces, each of which begins at the key that `next` makes of the last one of the piece before.
fn collect_pieces<T, K>(
    first: K,
    mut piece: impl FnMut(K, usize) -> Vec<T>,
    next: impl Fn(&T) -> Option<K>,
) -> Vec<T> {
    let mut all = Vec::new();
    let mut from = Some(first);
    while let Some(first) = from {
        let mut more = piece(first, PIECE);
        from = more.last().filter(|_| more.len() == PIECE).and_then(&next);
        all.append(&mut more);
    }
    all
}

fn endpoint_status(id: EndpointId, endpoint: &Endpoint) -> EndpointStatus {
    let (state, membership) = match endpoint.residence.plain {
        Residence::Blocked => ("blocked", None),
        Residence::Bypass => (bypass(endpoint.properties.owner), None),
        Residence::Attached(membership) => ("attached", Some(membership)),
    };
    EndpointStatus {
        id: id.0,
        state,
        domain: membership.map(|membership| membership.domain.0),
        pasids: Vec::new(),
        page_requests: membership
            .is_some_and(|membership| membership.page_requests == PageRequests::Reported),
    }
}

fn bypass(owner: Owner) -> &'static str {
    match owner {
        Owner::FrontEnd { maps_memory: true } => "front-end",
        Owner::FrontEnd { maps_memory: false } | Owner::Host => "bypass",
    }
}

fn domain_status(id: DomainId, domain: &Domain) -> DomainStatus {
    let (kind, table, mappings, bytes) = match &domain.kind {
        DomainKind::Bypass => ("bypass", None, 0, 0),
        DomainKind::Paging(paging) => {
            let mappings = paging.read();
            ("paging", None, mappings.len(), mappings.bytes())
        }
        DomainKind::Table(table) => ("table", Some(TableStatus::from(table)), 0, 0),
    };
    DomainStatus {
        id: id.0,
        kind,
        table,
        endpoints: domain.endpoints().map(|id| id.0).collect(),
        mappings,
        bytes,
    }
}

impl From<&Table> for TableStatus {
    fn from(table: &Table) -> Self {
        Self {
            format: match table.format {
                TableFormat::X86_64 => "X86_64",
                TableFormat::Arm64 => "ARM64",
            },
            input_bits: table.input_bits,
            granule: table.granule,
            root: table.root.0,
        }
    }
}

fn mappings_from(domain: &Domain, from: Iova, at_most: usize) -> Vec<MappingStatus> {
    let DomainKind::Paging(paging) = &domain.kind else {
        return Vec::new();
    };
    let range = IovaRange {
        first: from,
        last: Iova(u64::MAX),
    };
    let table = paging.read();
    let mappings = table.overlapping(range).take(at_most);
    mappings.map(MappingStatus::from).collect()
}

impl From<Mapping> for MappingStatus {
    fn from(mapping: Mapping) -> Self {
        let letters = [
            (MapFlags::READ, 'r'),
            (MapFlags::WRITE, 'w'),
            (MapFlags::MMIO, 'm'),
        ];
        Self {
            iova: mapping.range.first.0,
            last: mapping.range.last.0,
            gpa: mapping.gpa.0,
            flags: letters
                .iter()
                .filter(|(flag, _)| mapping.flags.contains(*flag))
                .map(|(_, letter)| letter)
                .collect(),
        }
    }
}
