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

/// An address space. No device may be attached to it when it is dropped.
#[derive(Debug)]
pub(super) struct AddressSpace {
    // Dropped before the IOAS, which they use.
    tables: Vec<Table>,
    ioas: Ioas,
    /// Page tables stay without users: entering again cannot fail for want of memory.
    keeps_tables: bool,
}

impl AddressSpace {
    pub fn new(context: &Context) -> Result<Self, CallError> {
        Ok(Self {
            tables: Vec::new(),
            ioas: context.ioas()?,
            keeps_tables: false,
        })
    }

    /// One that keeps its page tables when nothing is attached to them.
    pub fn permanent(context: &Context) -> Result<Self, CallError> {
        Ok(Self {
            keeps_tables: true,
            ..Self::new(context)?
        })
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
        let fits = |table: &&mut Table| {
            table.page_requests == needs.fault_queue.is_some() && (table.pasid || !needs.pasid)
        };
        for table in self.tables.iter_mut().filter(fits) {
            match attach(table.hwpt.id()) {
                Ok(()) => {
                    table.users += 1;
                    return Ok(table.hwpt.id());
                }
                // It is for another kind of IOMMU.
                Err(error) if error.errno == libc::EINVAL => {}
                Err(error) => return Err(error),
            }
        }
        let hwpt = context.hwpt(needs.dev_id, &self.ioas, needs.fault_queue, needs.pasid)?;
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

    /// A device that entered is attached elsewhere by now.
    pub fn leave(&mut self, hwpt: u32) {
        let Some(index) = self.tables.iter().position(|table| table.hwpt.id() == hwpt) else {
            return;
        };
        let table = &mut self.tables[index];
        table.users -= 1;
        if table.users == 0 && !self.keeps_tables {
            self.tables.swap_remove(index);
        }
    }
}
