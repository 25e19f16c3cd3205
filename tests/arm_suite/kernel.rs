// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! iommufd as it is: one IOMMU of a guest with one device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use iommufd_bindings as uapi;
use vhost_device_iommu::host::iommufd::smmuv3::Command;

/// `_IO(';', n)`
pub const fn io(number: u64) -> u64 {
    (b';' as u64) << 8 | number
}

const IOMMU_IOAS_ALLOC: u64 = io(0x81);
const IOMMU_IOAS_IOVA_RANGES: u64 = io(0x84);
const IOMMU_IOAS_MAP: u64 = io(0x85);
const IOMMU_HWPT_ALLOC: u64 = io(0x89);
const IOMMU_GET_HW_INFO: u64 = io(0x8a);
const IOMMU_HWPT_INVALIDATE: u64 = io(0x8d);
const IOMMU_VIOMMU_ALLOC: u64 = io(0x90);
const IOMMU_VDEVICE_ALLOC: u64 = io(0x91);

const SMMUV3: u32 = uapi::iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3;

/// Carries out a command.
pub fn ioctl<T>(file: &File, number: u64, command: &mut T) -> io::Result<()> {
    // SAFETY: each caller pairs a number with its structure, whose addresses belong to memory that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as _, std::ptr::from_mut(command)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An iommufd context.
pub struct Kernel {
    file: File,
}

impl Kernel {
    /// A fresh one.
    pub fn open() -> Self {
        let file = OpenOptions::new().read(true).write(true).open("/dev/iommu");
        let file = file.unwrap_or_else(|error| {
            panic!(
                "/dev/iommu: {error}: this suite runs on Arm: qemu-scripts/test guest -k ArmNesting"
            )
        });
        Self { file }
    }

    /// Another descriptor of it.
    pub fn descriptor(&self) -> OwnedFd {
        self.file.try_clone().unwrap().into()
    }

    fn run<T>(&self, number: u64, command: &mut T) {
        ioctl(&self.file, number, command).unwrap();
    }

    /// What the SMMU of a device says of itself.
    pub fn smmu(&self, dev: u32) -> uapi::iommu_hw_info_arm_smmuv3 {
        let mut info = uapi::iommu_hw_info_arm_smmuv3::default();
        let mut command = uapi::iommu_hw_info {
            size: size_of::<uapi::iommu_hw_info>() as u32,
            dev_id: dev,
            data_len: size_of_val(&info) as u32,
            data_uptr: std::ptr::from_mut(&mut info) as u64,
            ..Default::default()
        };
        self.run(IOMMU_GET_HW_INFO, &mut command);
        let kind = uapi::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
        // SAFETY: both members of the union are the same integer.
        assert_eq!(unsafe { command.__bindgen_anon_1.out_data_type }, kind);
        info
    }

    /// A new address space.
    pub fn address_space(&self) -> u32 {
        let mut command = [12u32, 0, 0];
        self.run(IOMMU_IOAS_ALLOC, &mut command);
        command[2]
    }

    /// Maps memory of this process; devices can write there if it `is_writable`.
    pub fn map(&self, ioas: u32, address: u64, memory: *mut u8, length: u64, is_writable: bool) {
        let mut flags = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
            | uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        if is_writable {
            flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        }
        let mut command = uapi::iommu_ioas_map {
            size: size_of::<uapi::iommu_ioas_map>() as u32,
            flags,
            ioas_id: ioas,
            user_va: memory as u64,
            length,
            iova: address,
            ..Default::default()
        };
        self.run(IOMMU_IOAS_MAP, &mut command);
    }

    /// A page table of an address space that others nest on.
    pub fn parent(&self, dev: u32, ioas: u32) -> u32 {
        self.page_table(uapi::iommu_hwpt_alloc {
            flags: uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
            dev_id: dev,
            pt_id: ioas,
            ..Default::default()
        })
    }

    /// The last address that a parent for a device maps.
    pub fn end_of_parent(&self, dev: u32) -> u64 {
        let ioas = self.address_space();
        self.parent(dev, ioas);
        let mut ranges = [uapi::iommu_iova_range::default(); 16];
        let mut command = uapi::iommu_ioas_iova_ranges {
            size: size_of::<uapi::iommu_ioas_iova_ranges>() as u32,
            ioas_id: ioas,
            num_iovas: ranges.len() as u32,
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        self.run(IOMMU_IOAS_IOVA_RANGES, &mut command);
        ranges.iter().map(|range| range.last).max().unwrap()
    }

    /// A nested page table.
    pub fn nested(&self, dev: u32, viommu: u32, entry: &uapi::iommu_hwpt_arm_smmuv3) -> u32 {
        self.page_table(uapi::iommu_hwpt_alloc {
            dev_id: dev,
            pt_id: viommu,
            data_type: uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
            data_len: size_of_val(entry) as u32,
            data_uptr: std::ptr::from_ref(entry) as u64,
            ..Default::default()
        })
    }

    fn page_table(&self, command: uapi::iommu_hwpt_alloc) -> u32 {
        let size = size_of::<uapi::iommu_hwpt_alloc>() as u32;
        let mut command = uapi::iommu_hwpt_alloc { size, ..command };
        self.run(IOMMU_HWPT_ALLOC, &mut command);
        command.out_hwpt_id
    }

    /// The guest's part of an SMMU, over a parent.
    pub fn viommu(&self, dev: u32, parent: u32) -> u32 {
        let mut command = uapi::iommu_viommu_alloc {
            size: size_of::<uapi::iommu_viommu_alloc>() as u32,
            type_: SMMUV3,
            dev_id: dev,
            hwpt_id: parent,
            ..Default::default()
        };
        self.run(IOMMU_VIOMMU_ALLOC, &mut command);
        command.out_viommu_id
    }

    /// Gives a device its number there.
    pub fn vdevice(&self, viommu: u32, dev: u32, stream: u32) {
        let mut command = uapi::iommu_vdevice_alloc {
            size: size_of::<uapi::iommu_vdevice_alloc>() as u32,
            viommu_id: viommu,
            dev_id: dev,
            virt_id: stream.into(),
            ..Default::default()
        };
        self.run(IOMMU_VDEVICE_ALLOC, &mut command);
    }

    /// Gives commands to the SMMU, and waits until they are carried out.
    pub fn give(&self, viommu: u32, commands: &[Command]) {
        let mut command = uapi::iommu_hwpt_invalidate {
            size: size_of::<uapi::iommu_hwpt_invalidate>() as u32,
            hwpt_id: viommu,
            data_uptr: commands.as_ptr() as u64,
            data_type:
                uapi::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
            entry_len: size_of::<Command>() as u32,
            entry_num: commands.len() as u32,
            ..Default::default()
        };
        self.run(IOMMU_HWPT_INVALIDATE, &mut command);
        assert_eq!(command.entry_num as usize, commands.len());
    }
}
