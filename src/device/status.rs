// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of the device, for people and for the control socket.

use serde::Serialize;

use crate::device::State;
use crate::device::domain::{Domain, DomainKind};
use crate::device::endpoint::{Endpoint, Residence};
use crate::host::mapping::Mapping;
use crate::host::{Owner, PageRequests};
use crate::spec::{DomainId, EndpointId, MapFlags};

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
    /// `paging` or `bypass`.
    pub kind: &'static str,
    /// The endpoints in it, ascending, each once.
    pub endpoints: Vec<u32>,
    /// Number of mappings.
    pub mappings: usize,
    /// Bytes mapped.
    pub bytes: u64,
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

pub(super) fn picture(state: &State) -> DeviceStatus {
    DeviceStatus {
        endpoints: state
            .endpoints
            .iter()
            .map(|(&id, endpoint)| endpoint_status(id, endpoint))
            .collect(),
        domains: state
            .domains
            .iter()
            .map(|(&id, domain)| domain_status(id, domain))
            .collect(),
        features: state
            .features
            .iter_names()
            .map(|(name, _)| name.to_owned())
            .collect(),
        connected: state.connected,
        memory: state.memory.clone(),
    }
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
        pasids: endpoint
            .memberships()
            .filter_map(|(pasid, membership)| {
                Some(PasidStatus {
                    pasid: pasid?.0,
                    domain: membership.domain.0,
                })
            })
            .collect(),
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
    let (kind, mappings, bytes) = match &domain.kind {
        DomainKind::Bypass => ("bypass", 0, 0),
        DomainKind::Paging(paging) => {
            let table = paging.read();
            ("paging", table.len(), table.bytes())
        }
    };
    DomainStatus {
        id: id.0,
        kind,
        endpoints: domain.endpoints().map(|id| id.0).collect(),
        mappings,
        bytes,
    }
}

pub(super) fn mappings(domain: &Domain) -> Option<Vec<MappingStatus>> {
    let mappings = match &domain.kind {
        DomainKind::Bypass => Vec::new(),
        DomainKind::Paging(paging) => paging.read().iter().map(mapping_status).collect(),
    };
    Some(mappings)
}

fn mapping_status(mapping: Mapping) -> MappingStatus {
    let letters = [
        (MapFlags::READ, 'r'),
        (MapFlags::WRITE, 'w'),
        (MapFlags::MMIO, 'm'),
    ];
    MappingStatus {
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
