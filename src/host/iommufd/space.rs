// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An address space with its page tables.
//!
//! ```text
//! AddressSpace ── IOAS (what is mapped)
//!     ├── HWPT, for devices of one IOMMU, without page requests ── devices
//!     ├── HWPT, for devices of one IOMMU, with page requests    ── devices
//!     └── ...
//! ```
//!
//! The kernel keeps all page tables of an IOAS alike, so attaching replays nothing. A page table lives as long as
//! something is attached to it: without one, an address space pins no memory.

use super::context::{Context, Ioas, Object};
use super::kernel::CallError;

/// What a device needs of a page table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// The device's id in the context.
    pub dev_id: u32,
    /// The device has PASIDs: all its page tables must be fit for that.
    pub pasid: bool,
    /// Its page requests arrive in this fault queue; `None`: it raises none.
    pub fault_queue: Option<u32>,
}

#[derive(Debug)]
struct Table {
    hwpt: Object,
    page_requests: bool,
    pasid: bool,
    users: usize,
}

/// Page tables that translate alike. No device may be attached to one when they are dropped.
#[derive(Debug, Default)]
pub(super) struct PageTables {
    tables: Vec<Table>,
    /// They stay without users: entering again cannot fail for want of memory.
    are_kept: bool,
}

impl PageTables {
    /// Attaches a device with `attach` to a page table that others use already, and returns it. `None`: the kernel agrees to
    /// none of them.
    pub fn join(
        &mut self,
        needs: Needs,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<Option<u32>, CallError> {
        let fits = |table: &&mut Table| {
            table.page_requests == needs.fault_queue.is_some() && (table.pasid || !needs.pasid)
        };
        for table in self.tables.iter_mut().filter(fits) {
            match attach(table.hwpt.id()) {
                Ok(()) => {
                    table.users += 1;
                    return Ok(Some(table.hwpt.id()));
                }
                // It is for another kind of IOMMU.
                Err(error) if error.errno == libc::EINVAL => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Attaches a device with `attach` to a new page table, which was made for its needs, and returns that.
    pub fn add(
        &mut self,
        needs: Needs,
        hwpt: Object,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<u32, CallError> {
        attach(hwpt.id())?;
        let id = hwpt.id();
        self.tables.push(Table {
            hwpt,
            page_requests: needs.fault_queue.is_some(),
            pasid: needs.pasid,
            users: 1,
        });
        Ok(id)
    }

    /// A device that was attached to a page table is elsewhere by now.
    pub fn leave(&mut self, hwpt: u32) {
        let Some(index) = self.tables.iter().position(|table| table.hwpt.id() == hwpt) else {
            return;
        };
        let table = &mut self.tables[index];
        table.users -= 1;
        if table.users == 0 && !self.are_kept {
            self.tables.swap_remove(index);
        }
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.tables.iter().map(|table| table.hwpt.id())
    }
}

/// An address space. No device may be attached to it when it is dropped.
#[derive(Debug)]
pub(super) struct AddressSpace {
    // Dropped before the IOAS, which they use.
    tables: PageTables,
    ioas: Ioas,
}

impl AddressSpace {
    pub fn new(context: &Context) -> Result<Self, CallError> {
        Ok(Self {
            tables: PageTables::default(),
            ioas: context.ioas()?,
        })
    }

    /// One that keeps its page tables when nothing is attached to them.
    pub fn permanent(context: &Context) -> Result<Self, CallError> {
        let mut space = Self::new(context)?;
        space.tables.are_kept = true;
        Ok(space)
    }

    pub fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    /// Attaches a device with `attach`, to a page table that others use already when the kernel agrees, else to a new
    /// one. Returns the page table for [`AddressSpace::leave`].
    pub fn enter(
        &mut self,
        context: &Context,
        needs: Needs,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<u32, CallError> {
        if let Some(hwpt) = self.tables.join(needs, &attach)? {
            return Ok(hwpt);
        }
        let hwpt = context.hwpt(needs.dev_id, &self.ioas, needs.fault_queue, needs.pasid)?;
        self.tables.add(needs, hwpt, attach)
    }

    /// A device that entered is attached elsewhere by now.
    pub fn leave(&mut self, hwpt: u32) {
        self.tables.leave(hwpt);
    }
}
