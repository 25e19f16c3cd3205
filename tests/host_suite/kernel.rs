// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's test interface (`drivers/iommu/iommufd/iommufd_test.h`): mock devices, what their page tables map,
//! page requests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use vhost_device_iommu::host::MemoryRegion;

/// `_IO(';', n)`
pub const fn io(number: u64) -> u64 {
    (b';' as u64) << 8 | number
}

const IOMMU_DESTROY: u64 = io(0x80);
const IOMMU_IOAS_ALLOC: u64 = io(0x81);
const IOMMU_IOAS_IOVA_RANGES: u64 = io(0x84);
const IOMMU_IOAS_UNMAP: u64 = io(0x86);
const IOMMU_HWPT_ALLOC: u64 = io(0x89);
const IOMMU_HWPT_SET_DIRTY_TRACKING: u64 = io(0x8b);
const IOMMU_IOAS_MAP_FILE: u64 = io(0x8f);
const IOMMU_TEST_CMD: u64 = io(0xa0);

/// FIXED_IOVA, WRITEABLE and READABLE.
const MAP_FLAGS: u32 = 7;

const OP_ADD_RESERVED: u32 = 1;
const OP_MD_CHECK_MAP: u32 = 3;
const OP_CREATE_ACCESS: u32 = 5;
const OP_ACCESS_RW: u32 = 8;
const OP_MOCK_DOMAIN_REPLACE: u32 = 10;
const OP_MOCK_DOMAIN_FLAGS: u32 = 12;
const OP_DIRTY: u32 = 13;
const OP_MD_CHECK_IOTLB: u32 = 14;
const OP_TRIGGER_IOPF: u32 = 15;
const OP_PASID_CHECK_HWPT: u32 = 21;

/// A mock device that attaches to no page table with [`DIRTY_TRACKING`].
const DEVICE_NO_DIRTY: u32 = 1;
const DEVICE_PASID: u32 = 1 << 2;
const ACCESS_RW_WRITE: u32 = 1;

/// Objects have the lowest free ids: none of a test is beyond this one.
const MAX_ID: u32 = 128;

/// First address that a mock device can use.
pub const APERTURE_FIRST: u64 = 16 << 20;
/// Last address that a mock device can use.
pub const APERTURE_LAST: u64 = (2 << 30) - 1;

/// `IOMMU_PGFAULT_PERM_READ`
pub const READ: u32 = 1;
/// `IOMMU_PGFAULT_PERM_WRITE`
pub const WRITE: u32 = 2;

/// `IOMMU_HWPT_ALLOC_DIRTY_TRACKING`
pub const DIRTY_TRACKING: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    arguments: [u64; 6],
    last: u32,
    padding: u32,
}

#[repr(C)]
struct MapFile {
    size: u32,
    flags: u32,
    ioas: u32,
    fd: i32,
    start: u64,
    length: u64,
    iova: u64,
}

/// An iommufd context of a test, shared with the host under test.
pub struct Kernel {
    file: File,
    /// The address space where mock devices are born.
    pub nursery: u32,
}

/// A mock device.
#[derive(Clone, Copy, Debug)]
pub struct MockDevice {
    /// The object that stands for it.
    pub stdev: u32,
    /// Its id as a device of the context.
    pub dev: u32,
}

impl Kernel {
    /// A fresh context.
    pub fn open() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/iommu")
            .unwrap_or_else(|error| {
                panic!(
                    "/dev/iommu: {error}: the host suite runs as root in the lab kernel: qemu-scripts/test host"
                )
            });
        let nursery = new_address_space(&file);
        Self { file, nursery }
    }

    /// Makes another address space that is not the host's.
    pub fn address_space(&self) -> u32 {
        new_address_space(&self.file)
    }

    /// A descriptor for the host.
    pub fn descriptor(&self) -> OwnedFd {
        self.file.try_clone().unwrap().into()
    }

    /// Carries out a command of the test interface; returns its arguments as the kernel left them.
    fn test(&self, op: u32, id: u32, arguments: [u64; 6]) -> io::Result<[u64; 6]> {
        let mut command = TestCommand {
            size: size_of::<TestCommand>() as u32,
            op,
            id,
            arguments,
            ..Default::default()
        };
        ioctl(&self.file, IOMMU_TEST_CMD, &mut command)?;
        Ok(command.arguments)
    }

    /// A new mock device with PASIDs of 20 bits.
    pub fn mock_device(&self) -> MockDevice {
        self.mock_device_with(DEVICE_PASID)
    }

    /// The same, for page tables without dirty tracking only.
    pub fn mock_device_without_dirty_tracking(&self) -> MockDevice {
        self.mock_device_with(DEVICE_PASID | DEVICE_NO_DIRTY)
    }

    fn mock_device_with(&self, flags: u32) -> MockDevice {
        let flags = pair(0, flags);
        let out = self
            .test(OP_MOCK_DOMAIN_FLAGS, self.nursery, [0, flags, 0, 0, 0, 0])
            .unwrap_or_else(|error| panic!("no mock device (CONFIG_IOMMUFD_TEST): {error}"));
        MockDevice {
            stdev: out[0] as u32,
            dev: out[1] as u32,
        }
    }

    /// Ends a mock device, if it has not ended.
    pub fn end(&self, device: MockDevice) {
        self.destroy(device.stdev);
    }

    /// Destroys an object, if it is there.
    pub fn destroy(&self, id: u32) {
        if let Err(error) = self.try_destroy(id) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        }
    }

    /// Destroys an object, unless something uses it.
    pub fn try_destroy(&self, id: u32) -> io::Result<()> {
        ioctl(&self.file, IOMMU_DESTROY, &mut [8u32, id])
    }

    /// A page table of an address space, for devices like this one, which is named by its id as a device.
    pub fn new_page_table(&self, dev: u32, ioas: u32, flags: u32) -> u32 {
        let mut command = [48u32, flags, dev, ioas, 0, 0, 0, 0, 0, 0, 0, 0];
        ioctl(&self.file, IOMMU_HWPT_ALLOC, &mut command).unwrap();
        command[4]
    }

    /// Attaches a device to a page table, or to one that the kernel finds or makes for an address space.
    pub fn attach(&self, device: MockDevice, hwpt: u32) {
        let arguments = [u64::from(hwpt), 0, 0, 0, 0, 0];
        self.test(OP_MOCK_DOMAIN_REPLACE, device.stdev, arguments)
            .unwrap();
    }

    /// Has the kernel note from now on what devices write through a page table.
    pub fn track_writes(&self, hwpt: u32) {
        let mut command = [16u32, 1, hwpt, 0];
        ioctl(&self.file, IOMMU_HWPT_SET_DIRTY_TRACKING, &mut command).unwrap();
    }

    /// Whether it does: the device writes to a page then.
    pub fn tracks_writes(&self, hwpt: u32, iova: u64) -> bool {
        let bit = [1u8];
        let arguments = [0, iova, 4096, 4096, bit.as_ptr() as u64, 0];
        self.test(OP_DIRTY, hwpt, arguments).is_ok()
    }

    /// Maps a region of guest memory at its own addresses, readable and writable.
    pub fn map_file(&self, ioas: u32, region: &MemoryRegion) {
        let (file, offset) = region.file.as_ref().unwrap();
        let mut command = MapFile {
            size: size_of::<MapFile>() as u32,
            flags: MAP_FLAGS,
            ioas,
            fd: file.as_raw_fd(),
            start: *offset,
            length: region.length,
            iova: region.gpa.0,
        };
        ioctl(&self.file, IOMMU_IOAS_MAP_FILE, &mut command).unwrap();
    }

    /// Takes what is mapped in a range out of an address space.
    pub fn unmap(&self, ioas: u32, iova: u64, length: u64) {
        let mut command = [u64::from(ioas) << 32 | 24, iova, length];
        ioctl(&self.file, IOMMU_IOAS_UNMAP, &mut command).unwrap();
    }

    /// The page table that a device is attached to.
    pub fn page_table(&self, device: MockDevice) -> u32 {
        self.page_table_of(device, 0)
            .expect("a device has a page table")
    }

    /// The page table that a PASID of a device is attached to.
    pub fn page_table_of(&self, device: MockDevice, pasid: u32) -> Option<u32> {
        (1..MAX_ID).find(|&hwpt| {
            let arguments = [pair(pasid, hwpt), 0, 0, 0, 0, 0];
            self.test(OP_PASID_CHECK_HWPT, device.stdev, arguments)
                .is_ok()
        })
    }

    /// Whether a page table maps every page from `iova` to the page at `address` of this process and on.
    pub fn maps(&self, hwpt: u32, iova: u64, length: u64, address: *const u8) -> bool {
        let arguments = [iova, length, address as u64, 0, 0, 0];
        match self.test(OP_MD_CHECK_MAP, hwpt, arguments) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => panic!("MD_CHECK_MAP: {error}"),
        }
    }

    /// Whether no page of the range leads to its page from `address` on.
    pub fn maps_none(&self, hwpt: u32, iova: u64, length: u64, address: *const u8) -> bool {
        (0..length).step_by(4096).all(|offset| {
            !self.maps(
                hwpt,
                iova + offset,
                4096,
                address.wrapping_add(offset as usize),
            )
        })
    }

    /// Whether one of the four numbers that stand for what hardware keeps of a nested page table has this value.
    pub fn keeps(&self, hwpt: u32, number: u32, value: u32) -> bool {
        match self.test(
            OP_MD_CHECK_IOTLB,
            hwpt,
            [pair(number, value), 0, 0, 0, 0, 0],
        ) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => panic!("MD_CHECK_IOTLB: {error}"),
        }
    }

    /// The page tables that lead from every page from `iova` on to the page at `address` of this process and on.
    pub fn tables_with(&self, iova: u64, length: u64, address: *const u8) -> Vec<u32> {
        let arguments = [iova, length, address as u64, 0, 0, 0];
        (1..MAX_ID)
            .filter(|&id| self.test(OP_MD_CHECK_MAP, id, arguments).is_ok())
            .collect()
    }

    /// Makes a hole in an address space.
    pub fn reserve(&self, ioas: u32, first: u64, length: u64) {
        self.test(OP_ADD_RESERVED, ioas, [first, length, 0, 0, 0, 0])
            .unwrap();
    }

    /// The device asks for a page, in a group of one.
    pub fn page_request(&self, device: MockDevice, pasid: u32, group: u32, access: u32, iova: u64) {
        let arguments = [pair(device.dev, pasid), pair(group, access), iova, 0, 0, 0];
        self.test(OP_TRIGGER_IOPF, 0, arguments).unwrap();
    }

    /// Ids of all address spaces but the one where devices are born.
    pub fn address_spaces(&self) -> Vec<u32> {
        (1..MAX_ID)
            .filter(|&id| id != self.nursery)
            .filter(|&id| {
                let mut command = [32u32, id, 0, 0, 0, 0, 0, 0];
                let result = ioctl(&self.file, IOMMU_IOAS_IOVA_RANGES, &mut command);
                matches!(result, Ok(()))
                    || result.is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE))
            })
            .collect()
    }

    /// Whether any object but the nursery and the devices given is left.
    pub fn is_clean(&self) -> bool {
        // The kernel refuses to destroy what is in use; everything else is left-over.
        (1..MAX_ID).filter(|&id| id != self.nursery).all(|id| {
            let mut command = [8u32, id];
            let result = ioctl(&self.file, IOMMU_DESTROY, &mut command);
            result.is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT))
        })
    }

    /// Opens an address space for accesses by the processor that obey its protection.
    pub fn access(&self, ioas: u32) -> Access<'_> {
        let out = self.test(OP_CREATE_ACCESS, ioas, [0; 6]).unwrap();
        let fd = out[0] as u32;
        Access { kernel: self, fd }
    }
}

/// See [`Kernel::access`].
pub struct Access<'a> {
    kernel: &'a Kernel,
    fd: u32,
}

impl Access<'_> {
    fn carry_out(&self, iova: u64, data: &mut [u8], flags: u32) -> bool {
        let arguments = [
            iova,
            data.len() as u64,
            data.as_mut_ptr() as u64,
            flags.into(),
            0,
            0,
        ];
        self.kernel.test(OP_ACCESS_RW, self.fd, arguments).is_ok()
    }

    /// Reads; whether that was allowed.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> bool {
        self.carry_out(iova, data, 0)
    }

    /// Writes; whether that was allowed.
    pub fn write(&self, iova: u64, data: &mut [u8]) -> bool {
        self.carry_out(iova, data, ACCESS_RW_WRITE)
    }
}

impl Drop for Access<'_> {
    fn drop(&mut self) {
        // SAFETY: the kernel made the descriptor for this value, and nothing else closes it.
        unsafe { libc::close(self.fd as i32) };
    }
}

fn new_address_space(context: &File) -> u32 {
    let mut command = [12u32, 0, 0];
    ioctl(context, IOMMU_IOAS_ALLOC, &mut command).unwrap();
    command[2]
}

/// Two 32-bit fields side by side.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(second) << 32 | u64::from(first)
}

/// Carries out a command whose structure is a number of integers.
pub fn ioctl<T>(file: &File, number: u64, command: &mut T) -> io::Result<()> {
    // SAFETY: each caller pairs a number with its structure, whose addresses belong to memory that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(command)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
