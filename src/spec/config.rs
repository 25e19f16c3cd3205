// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device configuration space (§ Device configuration layout).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A range of 64-bit addresses; `last` is inclusive.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Range64 {
    /// First address.
    pub first: U64,
    /// Last address.
    pub last: U64,
}

/// A range of 32-bit numbers; `last` is inclusive.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Range32 {
    /// First number.
    pub first: U32,
    /// Last number.
    pub last: U32,
}

/// `struct virtio_iommu_config`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Config {
    /// Supported page sizes, a bit each; the lowest is the granule (R24).
    pub page_size_mask: U64,
    /// Virtual addresses that MAP accepts.
    pub input_range: Range64,
    /// Domain IDs that ATTACH accepts.
    pub domain_range: Range32,
    /// Size in bytes of the properties in the answer to PROBE.
    pub probe_size: U32,
    /// Whether unattached endpoints are in bypass: 0 or 1.
    pub bypass: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<Config>() == 40);
    assert!(offset_of!(Config, input_range) == 8);
    assert!(offset_of!(Config, domain_range) == 24);
    assert!(offset_of!(Config, probe_size) == 32);
    assert!(offset_of!(Config, bypass) == 36);
};
