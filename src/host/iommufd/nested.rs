// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of the driver on hardware: which ones an IOMMU reads, and a domain with one.
//!
//! ```text
//! IOAS of bypass: guest memory at its own addresses
//!     └── HWPT, the parent ── HWPT, nested: the driver's table ── endpoints of the domain
//! ```
//!
//! The hardware walks the table in guest memory by itself. The parent translates every address that it finds there, so a
//! table can lead to guest memory and to nothing else, whatever the guest writes into it. On Arm there is more between the two
//! page tables: see `guest_smmu`.

use iommufd_bindings as uapi;

use super::context::{Context, Object};
use super::endpoint::is_refusal;
use super::guest_smmu::Described;
use super::kernel::{CallError, DriverData, HwInfo};
#[cfg(feature = "iommufd-test")]
use super::mock;
use super::smmuv3::Smmu;
use super::space::{Needs, PageTables};
use super::state::Bypass;
use super::vtd;
use crate::host::HostError;
use crate::host::mapping::IovaRange;
use crate::host::table::{Table, TableSupport};
use crate::spec::Gpa;

/// How a device is attached to a table.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The kernel is told of the table.
    Told(Language),
    /// It is told of a context descriptor, which leads to the table: see `guest_smmu`.
    Described(Smmu),
}

/// How the kernel is told of tables: each driver of IOMMUs has structures of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Vtd,
    #[cfg(feature = "iommufd-test")]
    Mock,
}

impl Language {
    fn table(self, table: &Table) -> (u32, Vec<u64>) {
        match self {
            Self::Vtd => {
                let number = uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1;
                (number, vtd::table(table).to_vec())
            }
            #[cfg(feature = "iommufd-test")]
            Self::Mock => (mock::TABLE, mock::table(table).to_vec()),
        }
    }

    /// The number, the words of an entry, and an entry for each range.
    fn invalidation(self, ranges: &[IovaRange]) -> (u32, usize, Vec<u64>) {
        match self {
            Self::Vtd => {
                let number =
                    uapi::iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
                let entries = ranges.iter().flat_map(|&range| vtd::invalidation(range));
                (number, 3, entries.collect())
            }
            #[cfg(feature = "iommufd-test")]
            Self::Mock => {
                let entries = ranges.iter().map(|&range| mock::invalidation(range));
                (mock::INVALIDATION, 1, entries.collect())
            }
        }
    }
}

/// The tables that a device can be attached to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nesting {
    way: Way,
    pub support: TableSupport,
}

impl Nesting {
    /// What the IOMMU says of itself, and the kernel confirms: a page table of each kind is made. `None`: the device can be
    /// attached to no table of a driver.
    pub fn find(
        context: &Context,
        dev_id: u32,
        pasid: bool,
        info: &HwInfo,
    ) -> Result<Option<Self>, CallError> {
        let Some(told) = Self::told(info) else {
            return Ok(None);
        };
        match told.confirmed(context, dev_id, pasid) {
            Ok(found) => Ok(Some(found)),
            // The kernel has no vIOMMUs (before 6.13), or another process has the device in one.
            Err(error) if [libc::ENOTTY, libc::EEXIST].contains(&error.errno) => Ok(None),
            Err(error) if is_refusal(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn told(info: &HwInfo) -> Option<Self> {
        let (way, support) = match info.data_type {
            uapi::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD => {
                // `struct iommu_hw_info_vtd`: flags, `cap_reg`, `ecap_reg`.
                let [_, capability, extended, ..] = info.data;
                (Way::Told(Language::Vtd), vtd::tables(capability, extended)?)
            }
            uapi::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3 => {
                let smmu = Smmu::new(&info.registers())?;
                (Way::Described(smmu), smmu.tables())
            }
            #[cfg(feature = "iommufd-test")]
            mock::HW_INFO => (Way::Told(Language::Mock), mock::TABLES),
            _ => return None,
        };
        Some(Self { way, support })
    }

    fn confirmed(self, context: &Context, dev_id: u32, pasid: bool) -> Result<Self, CallError> {
        let ioas = context.ioas()?;
        let parent = context.parent(dev_id, &ioas)?;
        let table = Table {
            format: self.support.format,
            input_bits: self.support.input_bits,
            granule: self.support.page_sizes.trailing_zeros() as u8,
            root: Gpa(0),
            attributes: 0,
        };
        match self.way {
            Way::Told(language) => {
                let (number, words) = language.table(&table);
                let words = &words;
                context.nested(dev_id, &parent, None, pasid, DriverData { number, words })?;
            }
            // The kernel has looked at all that matters when it makes these.
            Way::Described(_) => {
                let viommu = context.viommu(dev_id, &parent)?;
                context.vdevice(&viommu, dev_id)?;
            }
        }
        // Guest memory lies where the parent has addresses for it.
        let (allowed, _) = ioas.allowed()?;
        let last = allowed.last().map_or(0, |range| range.last.0);
        let width = (u64::BITS - last.leading_zeros()) as u8;
        let output_bits = self.support.output_bits.min(width);
        let support = TableSupport {
            output_bits,
            ..self.support
        };
        Ok(Self { support, ..self })
    }
}

/// A domain with a table of the driver.
#[derive(Debug)]
pub(super) struct NestedDomain {
    table: Table,
    /// One for each kind of IOMMU that its endpoints have, and for what they need of it. They stand on parents, which
    /// `Bypass` has.
    page_tables: PageTables,
    /// As the first endpoint had it.
    language: Option<Language>,
    /// One for each SMMU that its endpoints are behind, on Arm.
    described: Vec<Described>,
}

impl NestedDomain {
    pub fn new(table: Table) -> Self {
        Self {
            table,
            page_tables: PageTables::default(),
            language: None,
            described: Vec::new(),
        }
    }

    /// Attaches a device with `attach`, to a page table that others use already when the kernel agrees, else to a new one,
    /// which stands on a parent of `bypass`. Returns the page table for [`NestedDomain::leave`].
    pub fn enter(
        &mut self,
        context: &Context,
        bypass: &mut Bypass,
        nesting: Option<Nesting>,
        needs: Needs,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<u32, CallError> {
        let refusal = CallError {
            call: "attach to a table of the driver",
            errno: libc::EOPNOTSUPP,
        };
        let language = match nesting.ok_or(refusal)?.way {
            Way::Told(language) => language,
            Way::Described(smmu) => {
                let (ioas, smmus) = bypass.smmus();
                let smmu = smmus.of(context, ioas, needs.dev_id, smmu)?;
                return Described::enter(&mut self.described, &self.table, smmu, needs, attach);
            }
        };
        if *self.language.get_or_insert(language) != language {
            return Err(refusal);
        }
        if let Some(hwpt) = self.page_tables.join(needs, &attach)? {
            return Ok(hwpt);
        }
        let (number, words) = language.table(&self.table);
        let data = DriverData {
            number,
            words: &words,
        };
        let page_tables = &mut self.page_tables;
        let mut stand_on = |parent: &Object| {
            let queue = needs.fault_queue;
            let hwpt = context.nested(needs.dev_id, parent, queue, needs.pasid, data)?;
            page_tables.add(needs, hwpt, &attach)
        };
        for parent in bypass.parents() {
            match stand_on(parent) {
                // It is for another kind of IOMMU.
                Err(error) if error.errno == libc::EINVAL => {}
                result => return result,
            }
        }
        let parent = bypass.new_parent(context, needs.dev_id)?;
        let hwpt = stand_on(&parent)?;
        bypass.keep_parent(parent);
        Ok(hwpt)
    }

    /// A device that entered is attached elsewhere by now.
    pub fn leave(&mut self, hwpt: u32) {
        self.page_tables.leave(hwpt);
        for described in &mut self.described {
            described.leave(hwpt);
        }
    }

    /// See [`crate::host::Host::invalidate`]. The kernel waits for the hardware, and for the devices that keep translations.
    pub fn invalidate(&self, context: &Context, ranges: &[IovaRange]) -> Result<(), HostError> {
        let mut result = Ok(());
        if let Some(language) = self.language {
            let (number, entry, words) = language.invalidation(ranges);
            let data = DriverData {
                number,
                words: &words,
            };
            for hwpt in self.page_tables.ids() {
                result = result.and(context.invalidate(hwpt, entry, data));
            }
        }
        for described in &self.described {
            result = result.and(described.forget(&self.table, ranges));
        }
        result.map_err(|error| HostError::Internal(error.to_string()))
    }
}
