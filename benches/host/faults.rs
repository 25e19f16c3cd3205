// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests of a mock device through iommufd, beside a bare loop over a fault queue.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::spec::EndpointId;

use crate::bare::{self, Queue};
use crate::hops::{Course, OUTSTANDING};
use crate::kernel::{self, Kernel, MockDevice, io, ioctl};

const IOMMU_IOAS_ALLOC: u64 = io(0x81);
const IOMMU_HWPT_ALLOC: u64 = io(0x89);
const IOMMU_FAULT_QUEUE_ALLOC: u64 = io(0x8e);
const IOMMU_TEST_CMD: u64 = io(0xa0);
const OP_MOCK_DOMAIN_REPLACE: u32 = 10;
const HWPT_FAULT_ID_VALID: u32 = 4;
/// `struct iommu_hwpt_pgfault`, with its cookie last.
const FAULT: usize = 40;
const COOKIE: usize = 36;

const ENDPOINT: u32 = 1;
const IOVA: u64 = 0x4000_0000;
const GROUP: u32 = 7;
const ROUNDS: usize = 400;
const GROUPS: usize = 10_000;

/// A fault queue of the kernel with a mock device.
struct FaultQueue {
    kernel: Kernel,
    device: MockDevice,
    file: File,
}

impl FaultQueue {
    fn new() -> Self {
        let kernel = Kernel::open();
        let context = File::from(kernel.descriptor());
        let device = kernel.mock_device();
        let mut space = [12u32, 0, 0];
        ioctl(&context, IOMMU_IOAS_ALLOC, &mut space).expect("IOMMU_IOAS_ALLOC");
        let mut queue = [16u32, 0, 0, 0];
        ioctl(&context, IOMMU_FAULT_QUEUE_ALLOC, &mut queue).expect("IOMMU_FAULT_QUEUE_ALLOC");
        let [_, _, fault, fd] = queue;
        let mut table = [0u32; 12];
        table[..4].copy_from_slice(&[48, HWPT_FAULT_ID_VALID, device.dev, space[2]]);
        table[10] = fault;
        ioctl(&context, IOMMU_HWPT_ALLOC, &mut table).expect("IOMMU_HWPT_ALLOC");
        let mut replace = [0u32; 18];
        replace[..3].copy_from_slice(&[72, OP_MOCK_DOMAIN_REPLACE, device.stdev]);
        replace[4] = table[4];
        ioctl(&context, IOMMU_TEST_CMD, &mut replace).expect("MOCK_DOMAIN_REPLACE");
        // SAFETY: the kernel made the descriptor for this value, and nothing else closes it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        Self {
            kernel,
            device,
            file,
        }
    }
}

impl Queue for FaultQueue {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn raise(&self) {
        self.kernel
            .page_request(self.device, 0, GROUP, kernel::READ, IOVA);
    }

    fn serve(&self) -> usize {
        let mut faults = [0; FAULT * OUTSTANDING];
        let read = (&self.file).read(&mut faults).expect("page requests");
        let answers: Vec<u8> = faults[..read]
            .chunks(FAULT)
            .flat_map(|fault| [fault[COOKIE..].try_into().expect("a cookie"), [0; 4]].concat())
            .collect();
        (&self.file).write_all(&answers).expect("answers");
        read / FAULT
    }
}

pub fn measure() {
    let bare = bare::measure(&FaultQueue::new(), ROUNDS, GROUPS);

    let kernel = Kernel::open();
    let host = IommufdHost::new(kernel.descriptor()).expect("a host");
    let device = kernel.mock_device();
    let mock = EndpointSource::Mock {
        stdev_id: device.stdev,
    };
    host.add_endpoint(EndpointId(ENDPOINT), mock, Some(device.dev))
        .expect("an endpoint");
    let raise = || kernel.page_request(device, 0, GROUP, kernel::READ, IOVA);
    // Microseconds of an emulated processor are held against nothing but others of it.
    Course::new(Arc::new(host), ENDPOINT, raise).figures(
        "iommufd host, mock device",
        &bare,
        None,
        ROUNDS,
        GROUPS,
    );
}
