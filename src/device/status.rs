// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of the device, for people and for the control socket.

use serde::Serialize;

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
    /// `bypass`, `blocked` or `attached`.
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
}
