// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device: a PCI function that copies between memory and a buffer of its own.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::common::wait_until;
use crate::kernel::{Kernel, io, ioctl};

const VFIO_DEVICE_GET_REGION_INFO: u64 = io(108);
const VFIO_DEVICE_BIND_IOMMUFD: u64 = io(118);
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u64 = io(119);

const BAR0_REGION: u32 = 0;
const CONFIG_REGION: u32 = 7;
const PCI_COMMAND: u64 = 4;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;

const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Its buffer, in its own addresses.
const BUFFER: u64 = 0x4_0000;
const BAR0_LENGTH: usize = 1 << 20;

/// The device, bound to an iommufd context by this test, as a virtual machine monitor binds what it passes through.
pub struct Edu {
    file: File,
    /// Its id in the context.
    pub dev: u32,
    registers: *mut u8,
}

/// The character device of the `edu` device, bound to vfio-pci.
pub fn path() -> PathBuf {
    let device = fs::read_dir("/sys/bus/pci/devices")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let id = |name| fs::read_to_string(path.join(name)).unwrap();
            id("vendor").trim() == "0x1234" && id("device").trim() == "0x11e8"
        })
        .expect("an `edu` device behind an IOMMU: qemu-scripts/lab run-host --iommu");
    let class = device.join("vfio-dev");
    if !class.exists() {
        fs::write(device.join("driver_override"), "vfio-pci").unwrap();
        let name = device.file_name().unwrap().to_str().unwrap();
        fs::write("/sys/bus/pci/drivers_probe", name).unwrap();
    }
    let entry = fs::read_dir(class).unwrap().next().unwrap().unwrap();
    PathBuf::from("/dev/vfio/devices").join(entry.file_name())
}

impl Edu {
    /// Opens it, binds it and lets it reach memory.
    pub fn open(kernel: &Kernel) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path())
            .unwrap();
        let context = kernel.descriptor();
        let mut bind = [16u32, 0, context.as_raw_fd() as u32, 0];
        ioctl(&file, VFIO_DEVICE_BIND_IOMMUFD, &mut bind).unwrap();
        let config = region(&file, CONFIG_REGION);
        file.write_at(&MEMORY_AND_BUS_MASTER.to_le_bytes(), config + PCI_COMMAND)
            .unwrap();
        let offset = region(&file, BAR0_REGION);
        // SAFETY: a new mapping of the device's registers, at no fixed address.
        let registers = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BAR0_LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        assert_ne!(registers, libc::MAP_FAILED);
        Self {
            file,
            dev: bind[3],
            registers: registers.cast(),
        }
    }

    /// Puts it into an address space, or on a page table.
    pub fn attach(&self, id: u32) {
        let mut attach = [12u32, 0, id];
        ioctl(&self.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach).unwrap();
    }

    /// A duplicate for the host.
    pub fn descriptor(&self) -> OwnedFd {
        self.file.try_clone().unwrap().into()
    }

    /// Copies so many bytes from an address on the bus into its buffer.
    pub fn read(&self, iova: u64, length: u64) {
        self.copy(iova, BUFFER, length, START);
    }

    /// Copies so many bytes from its buffer to an address on the bus.
    pub fn write(&self, iova: u64, length: u64) {
        self.copy(BUFFER, iova, length, START | TO_MEMORY);
    }

    fn copy(&self, source: u64, destination: u64, length: u64, command: u64) {
        self.set(DMA_SOURCE, source);
        self.set(DMA_DESTINATION, destination);
        self.set(DMA_COUNT, length);
        self.set(DMA_COMMAND, command);
        wait_until("the end of a copy", || self.get(DMA_COMMAND) & START == 0);
    }

    fn register(&self, offset: usize) -> *mut u64 {
        assert!(offset + 8 <= BAR0_LENGTH);
        self.registers.wrapping_add(offset).cast()
    }

    fn set(&self, offset: usize, value: u64) {
        // SAFETY: a register in the mapping, aligned.
        unsafe { self.register(offset).write_volatile(value) };
    }

    fn get(&self, offset: usize) -> u64 {
        // SAFETY: a register in the mapping, aligned.
        unsafe { self.register(offset).read_volatile() }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, whose registers are used no more.
        unsafe { libc::munmap(self.registers.cast(), BAR0_LENGTH) };
    }
}

/// Where a region begins in the file.
fn region(file: &File, index: u32) -> u64 {
    let mut info = [32u32, 0, index, 0, 0, 0, 0, 0];
    ioctl(file, VFIO_DEVICE_GET_REGION_INFO, &mut info).unwrap();
    u64::from(info[7]) << 32 | u64::from(info[6])
}
