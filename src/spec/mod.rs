// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wire types of the virtio-iommu device: layouts and numbers, nothing else.
//!
//! "§" refers to the section of the virtio specification, device-types/iommu; "draft 1" and "draft 2" to the page-request
//! extension and to tables of the driver, in `virtio-spec/`. Everything is little-endian, and every structure's size and
//! offsets are asserted at compile time.
#![forbid(unsafe_code)]

mod config;
mod event;
mod features;
mod ids;
mod probe;
mod request;
mod table;

pub use config::{Config, Range32, Range64};
pub use event::{EVENT_LEN, Event, EventFlags, FAULT_REPORT_LEN, FaultReport, Reason};
pub use features::Features;
pub use ids::{DomainId, EndpointId, Gpa, GroupId, Iova, ParseEndpointError, Pasid};
pub use probe::{
    PageRequestProperty, PasidFlags, PasidProperty, PropertyHead, PropertyType, ResvMemProperty,
    ResvMemSubtype, TableProperty,
};
pub use request::{
    Attach, AttachFlags, Detach, DetachFlags, Head, Map, MapFlags, PageResponse, PageResponseCode,
    PageResponseFlags, Probe, RequestType, Status, TAIL_LEN, Tail, Unmap,
};
pub use table::{AttachTable, Invalidate, TableFormat};

/// The virtio device ID of the IOMMU device (§ Device ID).
pub const VIRTIO_ID_IOMMU: u32 = 23;

/// Index of the request virtqueue (§ Virtqueues).
pub const REQUEST_QUEUE: u16 = 0;
/// Index of the event virtqueue (§ Virtqueues).
pub const EVENT_QUEUE: u16 = 1;
/// Number of virtqueues.
pub const NUM_QUEUES: usize = 2;
