// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device is set up, and why it cannot be.

use std::time::Duration;

use crate::host::mapping::{IovaRange, MIN_GRANULE};
use crate::host::{HostError, ReservedRegion};
use crate::spec::EndpointId;

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
    /// The most PASID attachments, over all endpoints: ATTACH is answered NOMEM beyond.
    pub max_pasids: usize,
    /// The most page-request groups held or outstanding, over all endpoints.
    pub max_page_requests: usize,
    /// How long a group waits for the driver; `None` for ever.
    pub page_response_timeout: Option<Duration>,
}

/// What the command line and [`DeviceConfig::default`] take when nothing is said.
impl DeviceConfig {
    /// [`DeviceConfig::max_mappings`]: 4 GiB in pages of 4 KiB, and some 32 MiB of table.
    pub const MAX_MAPPINGS: u32 = 1 << 20;
    /// [`DeviceConfig::max_domains`].
    pub const MAX_DOMAINS: u32 = 1 << 16;
    /// [`DeviceConfig::max_pasids`]: as many as there can be domains for them.
    pub const MAX_PASIDS: u32 = 1 << 16;
    /// [`DeviceConfig::max_page_requests`].
    pub const MAX_PAGE_REQUESTS: u32 = 4096;
    /// [`DeviceConfig::page_response_timeout`] in seconds.
    pub const PAGE_RESPONSE_TIMEOUT: u64 = 10;
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            boot_bypass: true,
            page_size_mask: None,
            input_range: IovaRange::ALL,
            domain_range: (0, u32::MAX),
            reserved_regions: Vec::new(),
            max_mappings: Self::MAX_MAPPINGS as usize,
            max_domains: Self::MAX_DOMAINS as usize,
            max_pasids: Self::MAX_PASIDS as usize,
            max_page_requests: Self::MAX_PAGE_REQUESTS as usize,
            page_response_timeout: Some(Duration::from_secs(Self::PAGE_RESPONSE_TIMEOUT)),
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

/// The page sizes of the host that were also asked for.
pub(super) fn page_sizes(host: u64, asked: Option<u64>) -> Result<u64, SetupError> {
    let asked = asked.unwrap_or(host);
    let mask = host & asked;
    if mask == 0 {
        return Err(SetupError::PageSizes(format!(
            "no page size of --page-size-mask {asked:#x} is one of the host's {host:#x}"
        )));
    }
    if asked.trailing_zeros() < host.trailing_zeros() {
        return Err(SetupError::PageSizes(format!(
            "--page-size-mask {asked:#x} has pages of {} bytes, and the host's smallest have {}: leave smaller ones out \
             (--page-size-mask {mask:#x})",
            1u64 << asked.trailing_zeros(),
            1u64 << host.trailing_zeros()
        )));
    }
    let granule = 1u64 << mask.trailing_zeros();
    if granule < MIN_GRANULE {
        return Err(SetupError::PageSizes(format!(
            "the granule of --page-size-mask is {granule} bytes: the smallest supported is {MIN_GRANULE}"
        )));
    }
    Ok(mask)
}
