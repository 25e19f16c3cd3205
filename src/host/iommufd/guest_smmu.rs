// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's parts of SMMUs, where endpoints behind them are attached to tables of the driver.
//!
//! ```text
//! IOAS of bypass: guest memory, and our context descriptors
//!     └── HWPT, the parent
//!           └── vIOMMU ── vDEVICEs, one for each device
//!                 └── HWPT, nested: a descriptor ── endpoints of a domain
//! ```
//!
//! On Arm the kernel takes no table, but a context descriptor that leads to one, in memory that the parent maps. So the
//! descriptors are ours: in a file of this process, which the parent maps for reading. A table of the driver can lead there,
//! and a device can read what is in it: where tables are, which the guest knows. It can write nothing there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommufd_bindings as uapi;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::context::{Context, Ioas, Object, READ};
use super::kernel::{CallError, DriverData};
use super::smmuv3::{self, Asid, Command, DESCRIPTOR_BYTES, Smmu};
use super::space::{Needs, PageTables};
use crate::host::mapping::IovaRange;
use crate::host::table::Table;
use crate::spec::Iova;

/// Bytes of the file: a page of each size that Arm machines have.
const FILE_BYTES: u64 = 1 << 16;

/// How many descriptors it has room for: that many domains with tables an SMMU can have.
const MOST_DESCRIPTORS: u32 = (FILE_BYTES / DESCRIPTOR_BYTES) as u32;

/// How many places are tried for the file.
const PLACES: u64 = 64;

/// The guest's parts of the SMMUs that one set of endpoints is behind.
#[derive(Debug, Default)]
pub(super) struct GuestSmmus(Vec<Arc<GuestSmmu>>);

impl GuestSmmus {
    /// The one that a device is behind; it is made when there is none. `ioas` has guest memory at its own addresses, and
    /// lives longer.
    pub fn of(
        &mut self,
        context: &Context,
        ioas: &Ioas,
        dev_id: u32,
        smmu: Smmu,
    ) -> Result<Arc<GuestSmmu>, CallError> {
        for one in &self.0 {
            match one.take(dev_id) {
                Ok(()) => return Ok(one.clone()),
                // The device is behind another.
                Err(error) if error.errno == libc::EINVAL => {}
                Err(error) => return Err(error),
            }
        }
        let one = GuestSmmu::new(context, ioas, dev_id, smmu)?;
        if let Err(error) = one.take(dev_id) {
            one.descriptors.lock().unmap(ioas);
            return Err(error);
        }
        let one = Arc::new(one);
        self.0.push(one.clone());
        Ok(one)
    }

    /// A device goes. It is attached to no table.
    pub fn forget(&self, dev_id: u32) {
        for one in &self.0 {
            one.devices.lock().retain(|&(id, _)| id != dev_id);
        }
    }
}

/// The guest's part of an SMMU. Locks are held for a moment: everything here is done under the host's *state*.
#[derive(Debug)]
pub(super) struct GuestSmmu {
    /// By the device's id in the context, which is its number here too.
    // Each field is dropped before those after it, which it stands on.
    devices: Mutex<Vec<(u32, Object)>>,
    viommu: Object,
    _parent: Object,
    descriptors: Mutex<Descriptors>,
    context: Context,
    smmu: Smmu,
}

/// Context descriptors. One has its number as ASID.
#[derive(Debug)]
struct Descriptors {
    file: MmapRegion,
    /// Where it is for the SMMU.
    address: u64,
    used: BTreeSet<Asid>,
}

impl GuestSmmu {
    fn new(context: &Context, ioas: &Ioas, dev_id: u32, smmu: Smmu) -> Result<Self, CallError> {
        let parent = context.parent(dev_id, ioas)?;
        let viommu = context.viommu(dev_id, &parent)?;
        // With the parent its limits are those of the address space.
        let (allowed, _) = ioas.allowed()?;
        let last = allowed.last().map_or(0, |range| range.last.0);
        let descriptors = Descriptors::new(ioas, last)?;
        Ok(Self {
            devices: Mutex::default(),
            viommu,
            _parent: parent,
            descriptors: Mutex::new(descriptors),
            context: context.clone(),
            smmu,
        })
    }

    /// Has a device be one of the guest's here. `EINVAL`: it is behind another SMMU.
    fn take(&self, dev_id: u32) -> Result<(), CallError> {
        let mut devices = self.devices.lock();
        if devices.iter().all(|&(id, _)| id != dev_id) {
            let device = self.context.vdevice(&self.viommu, dev_id)?;
            devices.push((dev_id, device));
        }
        Ok(())
    }

    /// Gives commands to the SMMU, and waits for them.
    fn give(&self, commands: &[Command]) -> Result<(), CallError> {
        if commands.is_empty() {
            return Ok(());
        }
        let words: Vec<u64> = commands.iter().flat_map(|command| command.cmd).collect();
        let data = DriverData {
            number: uapi::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
            words: &words,
        };
        let give = || self.context.invalidate(self.viommu.id(), 2, data);
        give()?;
        match self.smmu.repeats {
            true => give(),
            false => Ok(()),
        }
    }
}

impl Descriptors {
    /// Maps an empty file at the end of the addresses that there are, away from guest memory.
    fn new(ioas: &Ioas, last: u64) -> Result<Self, CallError> {
        let memory = |error: io::Error| CallError {
            call: "memory for context descriptors",
            errno: error.raw_os_error().unwrap_or(libc::ENOMEM),
        };
        let file = Arc::new(zeros().map_err(memory)?);
        let offset = FileOffset::from_arc(file.clone(), 0);
        let mapped = MmapRegion::from_file(offset, FILE_BYTES as usize)
            .map_err(|error| memory(io::Error::other(error)))?;
        let end = last & !(FILE_BYTES - 1);
        let mut places = (1..=PLACES).filter_map(|place| end.checked_sub(place * FILE_BYTES));
        let mut refusal = CallError {
            call: "a place for context descriptors",
            errno: libc::ENOSPC,
        };
        let address = loop {
            let address = places.next().ok_or(refusal)?;
            match ioas.map_file(address, &file, 0, FILE_BYTES, READ) {
                Ok(()) => break address,
                // Guest memory is there, or a hole.
                Err(error) if [libc::EEXIST, libc::EINVAL].contains(&error.errno) => {
                    refusal.call = error.call;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            file: mapped,
            address,
            used: BTreeSet::new(),
        })
    }

    fn unmap(&self, ioas: &Ioas) {
        let range = IovaRange {
            first: Iova(self.address),
            last: Iova(self.address + FILE_BYTES - 1),
        };
        if let Err(error) = ioas.unmap(range, FILE_BYTES) {
            log::warn!("memory for context descriptors stays: {error}");
        }
    }

    /// Writes a descriptor that no entry of the stream table leads to.
    fn write(&self, asid: Asid, words: [u64; 8]) -> Result<(), vm_memory::VolatileMemoryError> {
        let place = usize::from(asid) * DESCRIPTOR_BYTES as usize;
        for (index, word) in words.into_iter().enumerate() {
            let at = place + index * size_of::<u64>();
            let slot = self.file.get_atomic_ref::<AtomicU64>(at)?;
            slot.store(word, Ordering::Release);
        }
        Ok(())
    }
}

fn zeros() -> io::Result<File> {
    let file = File::from(memfd_create("context-descriptors", MemfdFlags::CLOEXEC)?);
    file.set_len(FILE_BYTES)?;
    Ok(file)
}

/// A table of the driver for one SMMU, with the page tables of the endpoints behind it. Nothing is attached to them when it
/// is dropped, and the SMMU keeps nothing of the table afterwards.
#[derive(Debug)]
pub(super) struct Described {
    /// Dropped before the descriptor, which it leads to.
    page_tables: PageTables,
    descriptor: Descriptor,
}

/// A context descriptor in use.
#[derive(Debug)]
struct Descriptor {
    smmu: Arc<GuestSmmu>,
    asid: Asid,
}

impl Descriptor {
    fn new(smmu: Arc<GuestSmmu>, table: &Table) -> Result<Self, CallError> {
        let error = |errno| CallError {
            call: "context descriptor",
            errno,
        };
        let mut descriptors = smmu.descriptors.lock();
        let count = MOST_DESCRIPTORS.min(1 << smmu.smmu.asid_bits) as Asid;
        let free = (0..count).find(|asid| !descriptors.used.contains(asid));
        let asid = free.ok_or(error(libc::ENOSPC))?;
        let words = smmuv3::context_descriptor(table, asid);
        let written = descriptors.write(asid, words);
        written.map_err(|_| error(libc::EIO))?;
        descriptors.used.insert(asid);
        drop(descriptors);
        Ok(Self { smmu, asid })
    }

    /// Where it is for the SMMU.
    fn address(&self) -> u64 {
        self.smmu.descriptors.lock().address + u64::from(self.asid) * DESCRIPTOR_BYTES
    }
}

impl Drop for Descriptor {
    /// The next table with this ASID must find nothing of this one. The descriptor itself the SMMU forgets with the entry of
    /// the stream table that led to it.
    fn drop(&mut self) {
        match self.smmu.give(&[smmuv3::forget_all()]) {
            Ok(()) => drop(self.smmu.descriptors.lock().used.remove(&self.asid)),
            Err(error) => log::error!(
                "a table of the driver has ended, and the SMMU may keep some of it; its ASID {} is not used again: {error}",
                self.asid
            ),
        }
    }
}

impl Described {
    /// Attaches a device with `attach`: to a page table of `all` that stands on the guest's part of its SMMU, else to a new
    /// one. Returns the page table for [`Described::leave`].
    pub fn enter(
        all: &mut Vec<Self>,
        table: &Table,
        smmu: Arc<GuestSmmu>,
        needs: Needs,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<u32, CallError> {
        // No flag goes with such a page table: the device cannot use PASIDs, nor raise page requests.
        let needs = Needs {
            pasid: false,
            fault_queue: None,
            ..needs
        };
        // Some of its PASIDs have page tables of their own.
        let attach = |hwpt| {
            attach(hwpt).map_err(|error| match error.errno {
                libc::EBUSY => CallError {
                    errno: libc::EOPNOTSUPP,
                    ..error
                },
                _ => error,
            })
        };
        let found = all
            .iter_mut()
            .find(|described| Arc::ptr_eq(&described.descriptor.smmu, &smmu));
        if let Some(described) = found {
            return match described.page_tables.join(needs, attach)? {
                Some(hwpt) => Ok(hwpt),
                None => described.add(needs, attach),
            };
        }
        let mut described = Self {
            page_tables: PageTables::default(),
            descriptor: Descriptor::new(smmu, table)?,
        };
        let hwpt = described.add(needs, attach)?;
        all.push(described);
        Ok(hwpt)
    }

    fn add(
        &mut self,
        needs: Needs,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<u32, CallError> {
        let entry = smmuv3::stream_table_entry(self.descriptor.address());
        let data = DriverData {
            number: uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
            words: &entry.ste,
        };
        let smmu = &self.descriptor.smmu;
        let hwpt = (smmu.context).nested(needs.dev_id, &smmu.viommu, None, false, data)?;
        self.page_tables.add(needs, hwpt, attach)
    }

    /// A device that entered is attached elsewhere by now.
    pub fn leave(&mut self, hwpt: u32) {
        self.page_tables.leave(hwpt);
    }

    /// Has the SMMU forget what it keeps of ranges of the table. The kernel waits for it.
    pub fn forget(&self, table: &Table, ranges: &[IovaRange]) -> Result<(), CallError> {
        let commands = smmuv3::forget_ranges(table, self.descriptor.asid, ranges);
        self.descriptor.smmu.give(&commands)
    }
}
