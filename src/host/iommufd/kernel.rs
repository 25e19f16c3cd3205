// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls to the kernel, as in `linux/iommufd.h` and `linux/vfio.h`.
//!
//! Every command is a structure of these headers that carries its own length; the kernel reads it and writes it
//! back. So the safe functions here take `&mut`, fix the pairing of number and structure, and check whatever pointer a
//! structure holds.
//!
//! All calls are made here. `unsafe` outside of this file is only the promise that goes with
//! [`map_user_memory`]: `context` passes it on, and `memory` makes it.
#![expect(unsafe_code, reason = "ioctl and its memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};

use iommufd_bindings as uapi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
    vfio_device_detach_iommufd_pt, vfio_pci_dependent_device, vfio_pci_hot_reset_info,
};

/// A command of the kernel's iommufd and VFIO interfaces.
///
/// # Safety
/// `NUMBER` is the command that takes this structure.
pub(super) unsafe trait Command {
    /// As in the kernel's header.
    const NAME: &'static str;
    /// The ioctl number.
    const NUMBER: u32;
}

/// A command without pointers: any values are safe to send.
///
/// # Safety
/// The kernel follows no pointer in the structure.
pub(super) unsafe trait Plain: Command {}

/// `_IO(IOMMUFD_TYPE, number)`; VFIO has the same type.
const fn io(number: u32) -> u32 {
    (uapi::IOMMUFD_TYPE as u32) << 8 | number
}

macro_rules! commands {
    ($($structure:ty: $name:literal = $number:expr;)*) => {$(
        // SAFETY: number and structure are paired as in the kernel's header.
        unsafe impl Command for $structure {
            const NAME: &'static str = $name;
            const NUMBER: u32 = io($number);
        }
    )*};
}

macro_rules! plain {
    ($($structure:ty),* $(,)?) => {$(
        // SAFETY: integers only, none of which the kernel takes for an address.
        unsafe impl Plain for $structure {}
    )*};
}

commands! {
    uapi::iommu_destroy: "IOMMU_DESTROY" = uapi::IOMMUFD_CMD_DESTROY;
    uapi::iommu_ioas_alloc: "IOMMU_IOAS_ALLOC" = uapi::IOMMUFD_CMD_IOAS_ALLOC;
    uapi::iommu_ioas_iova_ranges: "IOMMU_IOAS_IOVA_RANGES" = uapi::IOMMUFD_CMD_IOAS_IOVA_RANGES;
    uapi::iommu_ioas_map: "IOMMU_IOAS_MAP" = uapi::IOMMUFD_CMD_IOAS_MAP;
    uapi::iommu_ioas_map_file: "IOMMU_IOAS_MAP_FILE" = uapi::IOMMUFD_CMD_IOAS_MAP_FILE;
    uapi::iommu_ioas_copy: "IOMMU_IOAS_COPY" = uapi::IOMMUFD_CMD_IOAS_COPY;
    uapi::iommu_ioas_unmap: "IOMMU_IOAS_UNMAP" = uapi::IOMMUFD_CMD_IOAS_UNMAP;
    uapi::iommu_hwpt_alloc: "IOMMU_HWPT_ALLOC" = uapi::IOMMUFD_CMD_HWPT_ALLOC;
    uapi::iommu_hwpt_invalidate: "IOMMU_HWPT_INVALIDATE" = uapi::IOMMUFD_CMD_HWPT_INVALIDATE;
    uapi::iommu_hwpt_get_dirty_bitmap: "IOMMU_HWPT_GET_DIRTY_BITMAP" = uapi::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP;
    uapi::iommu_hw_info: "IOMMU_GET_HW_INFO" = uapi::IOMMUFD_CMD_GET_HW_INFO;
    uapi::iommu_fault_alloc: "IOMMU_FAULT_QUEUE_ALLOC" = uapi::IOMMUFD_CMD_FAULT_QUEUE_ALLOC;
    uapi::iommu_viommu_alloc: "IOMMU_VIOMMU_ALLOC" = uapi::IOMMUFD_CMD_VIOMMU_ALLOC;
    uapi::iommu_vdevice_alloc: "IOMMU_VDEVICE_ALLOC" = uapi::IOMMUFD_CMD_VDEVICE_ALLOC;
    HotResetInfo: "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO" = VFIO_BASE + 12;
    vfio_device_bind_iommufd: "VFIO_DEVICE_BIND_IOMMUFD" = VFIO_BASE + 18;
    vfio_device_attach_iommufd_pt: "VFIO_DEVICE_ATTACH_IOMMUFD_PT" = VFIO_BASE + 19;
    vfio_device_detach_iommufd_pt: "VFIO_DEVICE_DETACH_IOMMUFD_PT" = VFIO_BASE + 20;
}

plain! {
    uapi::iommu_destroy,
    uapi::iommu_ioas_alloc,
    uapi::iommu_ioas_map_file,
    uapi::iommu_ioas_copy,
    uapi::iommu_ioas_unmap,
    uapi::iommu_fault_alloc,
    uapi::iommu_vdevice_alloc,
    HotResetInfo,
    vfio_device_attach_iommufd_pt,
    vfio_device_detach_iommufd_pt,
}

#[cfg(feature = "iommufd-test")]
commands! { TestCommand: "IOMMU_TEST_CMD" = uapi::IOMMUFD_CMD_BASE + 32; }
#[cfg(feature = "iommufd-test")]
plain! { TestCommand }

/// `struct iommu_test_cmd` of `drivers/iommu/iommufd/iommufd_test.h`, for the commands that take no address of this
/// process.
#[cfg(feature = "iommufd-test")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    /// The union of the arguments of all commands.
    arguments: [u32; 12],
    last: u32,
    padding: u32,
}

#[cfg(feature = "iommufd-test")]
const _: () = assert!(size_of::<TestCommand>() == 72);

#[cfg(feature = "iommufd-test")]
impl TestCommand {
    /// Command `op` on the object `id`. `op` is one whose first two arguments, both of 32 bits, are no addresses.
    pub fn new(op: u32, id: u32, [first, second]: [u32; 2]) -> Self {
        let mut arguments = [0; 12];
        (arguments[0], arguments[1]) = (first, second);
        Self {
            size: size_of::<Self>() as u32,
            op,
            id,
            arguments,
            ..Self::default()
        }
    }
}

/// The most devices that a hot reset may concern.
const MAX_DEPENDENT: usize = 64;

/// `struct vfio_pci_hot_reset_info` with room for its devices.
#[repr(C)]
pub(super) struct HotResetInfo {
    head: vfio_pci_hot_reset_info,
    devices: [vfio_pci_dependent_device; MAX_DEPENDENT],
}

/// See [`super::kernel_calls`].
#[cfg(feature = "iommufd-test")]
pub(super) static CALLS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// A call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {}", io::Error::from_raw_os_error(*errno))]
pub(super) struct CallError {
    /// The command, as in the kernel's header.
    pub call: &'static str,
    /// Its `errno`.
    pub errno: i32,
}

impl CallError {
    /// What the last call of this thread left in `errno`.
    fn last(call: &'static str) -> Self {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        Self { call, errno }
    }
}

/// Carries out a command without pointers.
pub(super) fn call<C: Plain>(fd: BorrowedFd<'_>, command: &mut C) -> Result<(), CallError> {
    // SAFETY: the structure has no pointer (`Plain`).
    unsafe { call_with_pointers(fd, command) }
}

/// Carries out a command.
///
/// # Safety
/// The pointers in the structure are valid for what the kernel does with them.
unsafe fn call_with_pointers<C: Command>(
    fd: BorrowedFd<'_>,
    command: &mut C,
) -> Result<(), CallError> {
    #[cfg(feature = "iommufd-test")]
    CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: number and structure belong together (`Command`); the caller vouches for pointers.
    let result = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::c_ulong::from(C::NUMBER),
            std::ptr::from_mut(command),
        )
    };
    if result < 0 {
        return Err(CallError::last(C::NAME));
    }
    Ok(())
}

/// Maps memory of this process into an IOAS.
///
/// # Safety
/// The range stays mapped, and holds nothing but guest memory, for as long as the IOAS maps it: devices write
/// there.
pub(super) unsafe fn map_user_memory(
    fd: BorrowedFd<'_>,
    command: &mut uapi::iommu_ioas_map,
) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    unsafe { call_with_pointers(fd, command) }
}

/// Lists the addresses that an IOAS can map, and the alignment that it wants.
pub(super) fn iova_ranges(
    fd: BorrowedFd<'_>,
    ioas: u32,
) -> Result<(Vec<uapi::iommu_iova_range>, u64), CallError> {
    let mut ranges = vec![uapi::iommu_iova_range::default(); 16];
    loop {
        let mut command = uapi::iommu_ioas_iova_ranges {
            size: size_of::<uapi::iommu_ioas_iova_ranges>() as u32,
            ioas_id: ioas,
            num_iovas: ranges.len() as u32,
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the pointer leads to `num_iovas` elements that are ours to write.
        let result = unsafe { call_with_pointers(fd, &mut command) };
        match result {
            // Also when the array was longer than needed: the count is written back.
            Ok(()) => {
                ranges.truncate(command.num_iovas as usize);
                return Ok((ranges, command.out_iova_alignment));
            }
            Err(error) if error.errno == libc::EMSGSIZE => {
                // Ranges can become more between two calls.
                let wanted = (command.num_iovas as usize).max(ranges.len() + 1);
                ranges.resize(wanted, uapi::iommu_iova_range::default());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Data of an IOMMU driver's own: its number, and its structure as words of 64 bits, as all of them are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct DriverData<'a> {
    /// `enum iommu_hwpt_data_type`, `enum iommu_hwpt_invalidate_data_type`.
    pub number: u32,
    pub words: &'a [u64],
}

impl DriverData<'_> {
    /// `IOMMU_HWPT_DATA_NONE`
    pub const NONE: Self = Self {
        number: uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE,
        words: &[],
    };

    fn address(&self) -> u64 {
        match self.words {
            [] => 0,
            words => words.as_ptr() as u64,
        }
    }
}

/// Makes a page table for devices like `dev_id`: with the mappings of the IOAS `from` or, where there is data, with the
/// page table `from` below it.
pub(super) fn hwpt_alloc(
    fd: BorrowedFd<'_>,
    dev_id: u32,
    from: u32,
    flags: u32,
    fault_queue: u32,
    data: DriverData<'_>,
) -> Result<u32, CallError> {
    let mut command = uapi::iommu_hwpt_alloc {
        size: size_of::<uapi::iommu_hwpt_alloc>() as u32,
        flags,
        dev_id,
        pt_id: from,
        fault_id: fault_queue,
        data_type: data.number,
        data_len: size_of_val(data.words) as u32,
        data_uptr: data.address(),
        ..Default::default()
    };
    // SAFETY: the pointer leads to `data_len` bytes that the kernel reads, or is zero as that is. No structure of an IOMMU
    // driver has a pointer in it.
    unsafe { call_with_pointers(fd, &mut command) }?;
    Ok(command.out_hwpt_id)
}

/// Makes the guest's part of an IOMMU of the kind `number`, for devices like `dev_id`, over the page table `parent`.
pub(super) fn viommu_alloc(
    fd: BorrowedFd<'_>,
    number: u32,
    dev_id: u32,
    parent: u32,
) -> Result<u32, CallError> {
    let mut command = uapi::iommu_viommu_alloc {
        size: size_of::<uapi::iommu_viommu_alloc>() as u32,
        type_: number,
        dev_id,
        hwpt_id: parent,
        ..Default::default()
    };
    // SAFETY: without data of a driver's own: length and pointer are zero.
    unsafe { call_with_pointers(fd, &mut command) }?;
    Ok(command.out_viommu_id)
}

/// Has the hardware forget what it keeps of a page table of the driver. `data` has entries of `words` words, which are
/// carried out in order up to the first that fails.
pub(super) fn hwpt_invalidate(
    fd: BorrowedFd<'_>,
    hwpt: u32,
    words: usize,
    data: DriverData<'_>,
) -> Result<(), CallError> {
    let mut command = uapi::iommu_hwpt_invalidate {
        size: size_of::<uapi::iommu_hwpt_invalidate>() as u32,
        hwpt_id: hwpt,
        data_uptr: data.address(),
        data_type: data.number,
        entry_len: (words * size_of::<u64>()) as u32,
        entry_num: (data.words.len() / words) as u32,
        ..Default::default()
    };
    // SAFETY: the pointer leads to `entry_num` times `entry_len` bytes, which the kernel reads.
    unsafe { call_with_pointers(fd, &mut command) }
}

/// Whether it is a page table with mappings, and no nested one, whoever made it. Asks for dirty pages of a range that no
/// page table can have, which changes nothing, and looks at the kind of refusal: the kernel looks for the page table first.
/// Where the command is not known (before Linux 6.7) nothing is one.
pub(super) fn is_page_table(fd: BorrowedFd<'_>, id: u32) -> bool {
    let mut command = uapi::iommu_hwpt_get_dirty_bitmap {
        size: size_of::<uapi::iommu_hwpt_get_dirty_bitmap>() as u32,
        hwpt_id: id,
        flags: uapi::iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
        // Pages begin at even addresses.
        iova: 1,
        length: 1,
        ..Default::default()
    };
    // SAFETY: the range is refused before the pointer is followed, and it is zero.
    let result = unsafe { call_with_pointers(fd, &mut command) };
    !result.is_err_and(|error| [libc::ENOENT, libc::ENOTTY].contains(&error.errno))
}

/// What the IOMMU can do for a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct HwInfo {
    /// Width in bits of PASIDs; 0 without any.
    pub pasid_width: u8,
    /// `enum iommufd_hw_capabilities`
    pub capabilities: u64,
    /// `enum iommu_hw_info_type`: whose structure `data` is.
    pub data_type: u32,
    /// Zero beyond what the kernel has.
    pub data: [u64; 8],
}

impl HwInfo {
    /// The data as `struct iommu_hw_info_arm_smmuv3`, which has words of 32 bits.
    pub fn registers(&self) -> uapi::iommu_hw_info_arm_smmuv3 {
        let words: [u32; 16] = zerocopy::transmute!(self.data);
        let [flags, reserved, idr @ .., _, _, _, _, _, _, _, _] = words;
        uapi::iommu_hw_info_arm_smmuv3 {
            flags,
            __reserved: reserved,
            idr,
            iidr: words[8],
            aidr: words[9],
        }
    }
}

/// What the IOMMU can do for a device.
pub(super) fn hw_info(fd: BorrowedFd<'_>, dev_id: u32) -> Result<HwInfo, CallError> {
    let mut data = [0; 8];
    let mut command = uapi::iommu_hw_info {
        size: size_of::<uapi::iommu_hw_info>() as u32,
        dev_id,
        data_len: size_of_val(&data) as u32,
        data_uptr: data.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the pointer leads to `data_len` bytes that are ours to write.
    unsafe { call_with_pointers(fd, &mut command) }?;
    Ok(HwInfo {
        pasid_width: command.out_max_pasid_log2,
        capabilities: command.out_capabilities,
        // SAFETY: both fields of the union are the same integer.
        data_type: unsafe { command.__bindgen_anon_1.out_data_type },
        data,
    })
}

/// Makes a fault queue: its id, and its descriptor, which is non-blocking by nature.
pub(super) fn fault_queue_alloc(fd: BorrowedFd<'_>) -> Result<(u32, File), CallError> {
    let mut command = uapi::iommu_fault_alloc {
        size: size_of::<uapi::iommu_fault_alloc>() as u32,
        ..Default::default()
    };
    call(fd, &mut command)?;
    // SAFETY: the kernel has just made the descriptor for us.
    let queue = unsafe { File::from_raw_fd(command.out_fault_fd as RawFd) };
    Ok((command.out_fault_id, queue))
}

/// Ties a VFIO device to an iommufd context: the id of the device there.
pub(super) fn vfio_bind(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> Result<u32, CallError> {
    let mut command = vfio_device_bind_iommufd {
        // The structure's first version: a token's pointer is not part of it.
        argsz: std::mem::offset_of!(vfio_device_bind_iommufd, token_uuid_ptr) as u32,
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: without its flag the kernel does not follow the token's pointer, and it is zero.
    unsafe { call_with_pointers(device, &mut command) }?;
    Ok(command.out_devid)
}

/// A device that a hot reset of another concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dependent {
    /// Its PCI address: segment << 16 | bus << 8 | device << 3 | function.
    pub address: u32,
    /// Its id in our iommufd context; 0 and -1 say that it has none.
    pub dev_id: i32,
}

/// The devices that a hot reset of this one concerns, itself among them.
pub(super) fn hot_reset_info(device: BorrowedFd<'_>) -> Result<Vec<Dependent>, CallError> {
    // SAFETY: integers only, for which zero is a value.
    let mut command: HotResetInfo = unsafe { std::mem::zeroed() };
    command.head.argsz = size_of::<HotResetInfo>() as u32;
    call(device, &mut command)?;
    let count = (command.head.count as usize).min(MAX_DEPENDENT);
    Ok(command.devices[..count]
        .iter()
        .map(|d| Dependent {
            address: u32::from(d.segment) << 16 | u32::from(d.bus) << 8 | u32::from(d.devfn),
            // SAFETY: both members of the union are the same integer; any bytes are a value.
            dev_id: unsafe { d.__bindgen_anon_1.devid } as i32,
        })
        .collect())
}

/// Whether a file's pages are memory and nothing else, as IOMMU_IOAS_MAP_FILE needs it.
pub(super) fn is_memory_file(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|stat| [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&stat.f_type))
}

/// Bytes in a page of this machine.
pub(super) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Whether reading would give something, at this moment.
pub(super) fn is_readable(file: &File) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&Timespec::default()));
    ready == Ok(1) && fds[0].revents().contains(PollFlags::IN)
}
