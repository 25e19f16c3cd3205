// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature bits.

bitflags::bitflags! {
    /// Device-specific feature bits (§ Feature bits; draft 1 for PAGE_REQUEST and PASID, draft 2 for ATTACH_TABLE).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// VIRTIO_IOMMU_F_INPUT_RANGE: `input_range` in the config space is meaningful.
        const INPUT_RANGE = 1 << 0;
        /// VIRTIO_IOMMU_F_DOMAIN_RANGE: `domain_range` in the config space is meaningful.
        const DOMAIN_RANGE = 1 << 1;
        /// VIRTIO_IOMMU_F_MAP_UNMAP: MAP and UNMAP requests exist.
        const MAP_UNMAP = 1 << 2;
        /// VIRTIO_IOMMU_F_BYPASS: legacy; never offered (F3).
        const BYPASS = 1 << 3;
        /// VIRTIO_IOMMU_F_PROBE: PROBE requests exist.
        const PROBE = 1 << 4;
        /// VIRTIO_IOMMU_F_MMIO: the MMIO flag of MAP exists.
        const MMIO = 1 << 5;
        /// VIRTIO_IOMMU_F_BYPASS_CONFIG: `bypass` in the config space and the BYPASS flag of ATTACH exist.
        const BYPASS_CONFIG = 1 << 6;
        /// VIRTIO_IOMMU_F_PAGE_REQUEST: page requests are reported and answered.
        const PAGE_REQUEST = 1 << 16;
        /// VIRTIO_IOMMU_F_PASID: attachments per PASID.
        const PASID = 1 << 17;
        /// VIRTIO_IOMMU_F_ATTACH_TABLE: domains can be tables of the driver.
        const ATTACH_TABLE = 1 << 18;
    }
}
