// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An iommufd context and what lives in it: objects that are destroyed when their owner lets go of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings as uapi;
use parking_lot::Mutex;

use super::error::is_exhausted;
use super::kernel::{self, CallError, DriverData};
use super::startup::SetupError;
use crate::host::mapping::IovaRange;
use crate::spec::MapFlags;

/// Flags of MAP_FILE, MAP and COPY that give this access; `None` when it is no access at all, which the
/// kernel does not know.
pub(super) fn access_flags(flags: MapFlags) -> Option<u32> {
    let mut bits = 0;
    if flags.contains(MapFlags::READ) {
        bits |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if flags.contains(MapFlags::WRITE) {
        bits |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    (bits != 0).then_some(bits)
}

pub(super) const READ: u32 = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
pub(super) const READ_WRITE: u32 = READ | uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;

const FIXED: u32 = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;

/// The size that a command carries in its first field.
macro_rules! size {
    ($structure:ident) => {
        size_of::<uapi::$structure>() as u32
    };
}

/// Where to look for objects of another process that shares a context: ids are handed out from 1, lowest first, and no
/// virtual machine monitor has so many before its devices and its address space.
const FIRST_IDS: RangeInclusive<u32> = 1..=4096;

/// The first two objects for which `ask` succeeds, where it asks at all.
///
/// # Errors
/// [`SetupError::NoMemory`]: whether there is such an object cannot be found out.
pub(super) fn objects(
    ask: impl Fn(u32) -> Option<Result<(), CallError>>,
) -> Result<(Option<u32>, Option<u32>), SetupError> {
    let mut found = (None, None);
    for id in FIRST_IDS {
        match ask(id) {
            Some(Ok(())) if found.0.is_none() => found.0 = Some(id),
            Some(Ok(())) => {
                found.1 = Some(id);
                break;
            }
            Some(Err(error)) if is_exhausted(error.errno) => {
                return Err(SetupError::NoMemory(error.to_string()));
            }
            // It is another kind of object, or none.
            Some(Err(_)) | None => {}
        }
    }
    Ok(found)
}

/// An open iommufd, shared by the objects in it.
#[derive(Clone, Debug)]
pub(super) struct Context {
    fd: Arc<OwnedFd>,
    /// The ids of the objects that we have made: others are in it too.
    made: Arc<Mutex<BTreeSet<u32>>>,
}

impl Context {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            made: Arc::default(),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether this object is one of ours.
    pub fn has_made(&self, id: u32) -> bool {
        self.made.lock().contains(&id)
    }

    fn object(&self, id: u32) -> Object {
        self.made.lock().insert(id);
        Object {
            context: self.clone(),
            id,
        }
    }

    /// An empty address space.
    pub fn ioas(&self) -> Result<Ioas, CallError> {
        let mut command = uapi::iommu_ioas_alloc {
            size: size!(iommu_ioas_alloc),
            ..Default::default()
        };
        kernel::call(self.fd(), &mut command)?;
        Ok(Ioas(self.object(command.out_ioas_id)))
    }

    /// A page table with the mappings of `ioas` for devices like `dev_id`. With a fault queue, page requests of the
    /// devices attached to it arrive there.
    pub fn hwpt(
        &self,
        dev_id: u32,
        ioas: &Ioas,
        fault_queue: Option<u32>,
        pasid: bool,
    ) -> Result<Object, CallError> {
        self.page_table(dev_id, ioas.id(), fault_queue, pasid, DriverData::NONE)
    }

    /// A page table with the mappings of `ioas` for devices like `dev_id`, for nested ones to stand on.
    pub fn parent(&self, dev_id: u32, ioas: &Ioas) -> Result<Object, CallError> {
        // No other flag goes with it: what is attached is the nested one.
        let flags = uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        let none = DriverData::NONE;
        let id = kernel::hwpt_alloc(self.fd(), dev_id, ioas.id(), flags, 0, none)?;
        Ok(self.object(id))
    }

    /// A page table that the guest's driver keeps, as `data` describes it, for devices like `dev_id`: each address that
    /// comes out of it is translated once more by `parent`, which goes after it.
    pub fn nested(
        &self,
        dev_id: u32,
        parent: &Object,
        fault_queue: Option<u32>,
        pasid: bool,
        data: DriverData<'_>,
    ) -> Result<Object, CallError> {
        self.page_table(dev_id, parent.id(), fault_queue, pasid, data)
    }

    fn page_table(
        &self,
        dev_id: u32,
        from: u32,
        fault_queue: Option<u32>,
        pasid: bool,
        data: DriverData<'_>,
    ) -> Result<Object, CallError> {
        let mut flags = 0;
        if fault_queue.is_some() {
            flags |= uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
        }
        if pasid {
            flags |= uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;
        }
        let queue = fault_queue.unwrap_or(0);
        let id = kernel::hwpt_alloc(self.fd(), dev_id, from, flags, queue, data)?;
        Ok(self.object(id))
    }

    /// The guest's part of the SMMU that a device is behind: nested page tables stand on it, and it on `parent`.
    pub fn viommu(&self, dev_id: u32, parent: &Object) -> Result<Object, CallError> {
        let number = uapi::iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3;
        let id = kernel::viommu_alloc(self.fd(), number, dev_id, parent.id())?;
        Ok(self.object(id))
    }

    /// A device there, which has its id for a number.
    pub fn vdevice(&self, viommu: &Object, dev_id: u32) -> Result<Object, CallError> {
        let mut command = uapi::iommu_vdevice_alloc {
            size: size!(iommu_vdevice_alloc),
            viommu_id: viommu.id(),
            dev_id,
            virt_id: dev_id.into(),
            ..Default::default()
        };
        kernel::call(self.fd(), &mut command)?;
        Ok(self.object(command.out_vdevice_id))
    }

    /// Has the hardware forget what it keeps of a nested page table: see [`kernel::hwpt_invalidate`].
    pub fn invalidate(
        &self,
        hwpt: u32,
        words: usize,
        data: DriverData<'_>,
    ) -> Result<(), CallError> {
        kernel::hwpt_invalidate(self.fd(), hwpt, words, data)
    }

    /// A fault queue and its descriptor.
    pub fn fault_queue(&self) -> Result<(Object, File), CallError> {
        let (id, queue) = kernel::fault_queue_alloc(self.fd())?;
        Ok((self.object(id), queue))
    }

    /// Whether the kernel has IOMMU_IOAS_MAP_FILE (6.14).
    pub fn has_map_file(&self) -> bool {
        // No object has the id 0, so this cannot succeed.
        let mut command = uapi::iommu_ioas_map_file {
            size: size!(iommu_ioas_map_file),
            ..Default::default()
        };
        !matches!(kernel::call(self.fd(), &mut command), Err(error) if error.errno == libc::ENOTTY)
    }
}

/// An object in a context. It is destroyed with this value; whatever uses it must be gone before.
#[derive(Debug)]
pub(super) struct Object {
    context: Context,
    id: u32,
}

impl Object {
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // The kernel can give the number away again at once: who gets it here waits to enter it.
        let mut made = self.context.made.lock();
        match destroy(&self.context, self.id) {
            Ok(()) => drop(made.remove(&self.id)),
            Err(error) => log::warn!("iommufd object {} stays behind: {error}", self.id),
        }
    }
}

/// Destroys an object that another process made.
pub(super) fn destroy(context: &Context, id: u32) -> Result<(), CallError> {
    let mut command = uapi::iommu_destroy {
        size: size!(iommu_destroy),
        id,
    };
    kernel::call(context.fd(), &mut command)
}

/// An I/O address space: which address means which memory. Without a page table it pins nothing.
#[derive(Debug)]
pub(super) struct Ioas(Object);

impl Ioas {
    pub fn id(&self) -> u32 {
        self.0.id
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.context.fd()
    }

    /// Maps a part of a file that is memory, with access of [`access_flags`].
    pub fn map_file(
        &self,
        iova: u64,
        file: &File,
        offset: u64,
        length: u64,
        access: u32,
    ) -> Result<(), CallError> {
        let mut command = uapi::iommu_ioas_map_file {
            size: size!(iommu_ioas_map_file),
            flags: FIXED | access,
            ioas_id: self.id(),
            fd: file.as_raw_fd(),
            start: offset,
            length,
            iova,
        };
        kernel::call(self.fd(), &mut command)
    }

    /// Maps memory of this process.
    ///
    /// # Safety
    /// The range stays mapped, and holds nothing but guest memory, until it is unmapped here.
    #[expect(unsafe_code, reason = "hands an address of this process to the kernel")]
    pub unsafe fn map_user_memory(
        &self,
        iova: u64,
        address: usize,
        length: u64,
    ) -> Result<(), CallError> {
        let mut command = uapi::iommu_ioas_map {
            size: size!(iommu_ioas_map),
            flags: FIXED | READ_WRITE,
            ioas_id: self.id(),
            user_va: address as u64,
            length,
            iova,
            ..Default::default()
        };
        // SAFETY: the caller's promise.
        unsafe { kernel::map_user_memory(self.fd(), &mut command) }
    }

    /// Maps at `iova` what `source` maps at `source_iova`, with access of [`access_flags`].
    pub fn copy(
        &self,
        iova: u64,
        source: &Self,
        source_iova: u64,
        length: u64,
        access: u32,
    ) -> Result<(), CallError> {
        let mut command = uapi::iommu_ioas_copy {
            size: size!(iommu_ioas_copy),
            flags: FIXED | access,
            dst_ioas_id: self.id(),
            src_ioas_id: source.id(),
            length,
            dst_iova: iova,
            src_iova: source_iova,
        };
        kernel::call(self.fd(), &mut command)
    }

    /// Unmaps everything in the range, which cuts no mapping and has `expected` bytes mapped or less. Whether they all
    /// were; afterwards nothing is.
    pub fn unmap(&self, range: IovaRange, expected: u64) -> Result<bool, CallError> {
        let mut unmapped = self.unmap_once(range)?;
        if unmapped < expected {
            // ENOENT can also mean that the kernel did not come as far as the mappings.
            unmapped += self.unmap_once(range)?;
        }
        Ok(unmapped >= expected)
    }

    /// Unmaps everything in the range, and returns the number of bytes.
    fn unmap_once(&self, range: IovaRange) -> Result<u64, CallError> {
        // The last address of all cannot be mapped, and the kernel takes this length to mean everything.
        let last = range.last.0.min(u64::MAX - 1);
        let length = match (range.first.0, last) {
            (0, last) if last == u64::MAX - 1 => u64::MAX,
            (u64::MAX, _) => return Ok(0),
            (first, last) => last - first + 1,
        };
        let mut command = uapi::iommu_ioas_unmap {
            size: size!(iommu_ioas_unmap),
            ioas_id: self.id(),
            iova: range.first.0,
            length,
        };
        match kernel::call(self.fd(), &mut command) {
            Ok(()) => Ok(command.length),
            Err(error) if error.errno == libc::ENOENT => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// What can be mapped for the devices attached, ascending, and the alignment that they want.
    pub fn allowed(&self) -> Result<(Vec<IovaRange>, u64), CallError> {
        let (ranges, alignment) = kernel::iova_ranges(self.fd(), self.id())?;
        let mut ranges: Vec<_> = ranges
            .iter()
            .filter_map(|range| IovaRange::new(range.start, range.last))
            .collect();
        ranges.sort_by_key(|range| range.first);
        Ok((ranges, alignment))
    }
}
