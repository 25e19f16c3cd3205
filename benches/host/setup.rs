// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device over the iommufd host, with mock devices as endpoints 1, 2, ... and memory at guest-physical address 0.

use std::sync::Arc;

use vhost_device_iommu::device::{Device, DeviceConfig};
use vhost_device_iommu::host::MemoryRegion;
use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::spec::{EndpointId, Gpa};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::common::ram;
use crate::kernel::Kernel;

pub struct Setup {
    // Dropped before the context that it is in.
    pub device: Device,
    /// The address space that guest memory is placed in.
    pub placed: u32,
    pub kernel: Kernel,
}

impl Setup {
    pub fn new(endpoints: u32, memory: u64) -> Self {
        let kernel = Kernel::open();
        let host = IommufdHost::new(kernel.descriptor()).expect("a host");
        // The first that a host makes.
        let placed = kernel.address_spaces()[0];
        let ids: Vec<_> = (1..=endpoints).map(EndpointId).collect();
        for &id in &ids {
            let device = kernel.mock_device();
            let mock = EndpointSource::Mock {
                stdev_id: device.stdev,
            };
            host.add_endpoint(id, mock, Some(device.dev))
                .expect("an endpoint");
        }
        let config = DeviceConfig {
            boot_bypass: false,
            ..Default::default()
        };
        let device = Device::new(config, Arc::new(host), &ids).expect("a device");
        device.negotiate(u64::MAX);
        let memory = GuestMemoryMmap::from_regions(vec![ram::region(0, memory)]).expect("memory");
        let region = memory.iter().next().map(announced).expect("a region");
        device
            .update_memory(&memory, &[], &[region])
            .expect("memory");
        Self {
            device,
            placed,
            kernel,
        }
    }
}

fn announced(region: &impl GuestMemoryRegion) -> MemoryRegion {
    let file = region.file_offset().expect("a file");
    MemoryRegion {
        gpa: Gpa(region.start_addr().0),
        length: region.len(),
        user_address: 0,
        file: Some((Arc::clone(file.arc()), file.start())),
    }
}

/// Carries requests out as one batch.
pub fn execute(device: &Device, requests: &[Vec<u8>]) {
    let mut batch = device.requests();
    for request in requests {
        batch.execute(request, request.len(), 4);
    }
    batch.finish();
}
