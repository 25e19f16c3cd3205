// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between attachments, and in and out of guest memory: what concerns several address spaces.

use super::State;
use super::context::{Context, Ioas, Object, READ_WRITE, access_flags};
use super::device::Attach;
use super::endpoint::{Attached, Endpoint, LENT};
use super::fault::FaultQueue;
use super::guest_smmu::GuestSmmus;
use super::kernel::CallError;
use super::memory::{GuestMemory, Region};
use super::nested::NestedDomain;
use super::space::AddressSpace;
use super::startup::{GroupMate, SetupError};
use crate::host::mapping::{IovaRange, Mapping, SharedMappings};
use crate::host::{Attachment, HostError, MemoryRegion, Requester};
use crate::spec::{DomainId, EndpointId, Iova};

/// What a domain translates by.
pub(super) enum Domain {
    Mapped(MappedDomain),
    Nested(NestedDomain),
}

impl Domain {
    fn mapped(&self) -> Option<&MappedDomain> {
        match self {
            Self::Mapped(domain) => Some(domain),
            Self::Nested(_) => None,
        }
    }

    /// A device that entered is attached elsewhere by now.
    fn leave(&mut self, hwpt: u32) {
        match self {
            Self::Mapped(domain) => domain.space.leave(hwpt),
            Self::Nested(domain) => domain.leave(hwpt),
        }
    }
}

/// A domain with mappings.
pub(super) struct MappedDomain {
    space: AddressSpace,
    mappings: SharedMappings,
    /// Memory came that could not be mapped where mappings lead to it: they lack parts.
    incomplete: bool,
}

/// Guest memory at identity, where a set of endpoints can reach it.
pub(super) struct Bypass {
    /// Page tables that nested ones stand on. They stay, whatever stands on them: to make one pins all of guest memory, and
    /// processes of the guest come and go.
    // Dropped before the IOAS, which they use.
    parents: Vec<Object>,
    /// The same on Arm.
    smmus: GuestSmmus,
    pub(super) space: AddressSpace,
    /// What these endpoints can address: a hole of theirs must not keep them out.
    allowed: Vec<IovaRange>,
}

impl Bypass {
    fn new(
        context: &Context,
        allowed: &[IovaRange],
        memory: &GuestMemory,
    ) -> Result<Self, CallError> {
        let bypass = Self {
            parents: Vec::new(),
            smmus: GuestSmmus::default(),
            space: AddressSpace::new(context)?,
            allowed: allowed.to_vec(),
        };
        for &region in memory.regions() {
            bypass.add(memory, region)?;
        }
        Ok(bypass)
    }

    /// Page tables that nested ones can stand on.
    pub fn parents(&self) -> &[Object] {
        &self.parents
    }

    /// A new one, for devices like `dev_id`.
    pub fn new_parent(&self, context: &Context, dev_id: u32) -> Result<Object, CallError> {
        context.parent(dev_id, self.space.ioas())
    }

    /// What they stand on where devices are behind SMMUs.
    pub fn smmus(&mut self) -> (&Ioas, &mut GuestSmmus) {
        (self.space.ioas(), &mut self.smmus)
    }

    /// Others can stand on it too.
    pub fn keep_parent(&mut self, parent: Object) {
        self.parents.push(parent);
    }

    fn add(&self, memory: &GuestMemory, region: Region) -> Result<(), CallError> {
        let ioas = self.space.ioas();
        for (first, last) in self.parts(region) {
            ioas.copy(first, memory.ioas(), first, last - first + 1, READ_WRITE)?;
        }
        Ok(())
    }

    /// The parts of a region that these endpoints can reach, ascending: first and last addresses.
    fn parts(&self, region: Region) -> impl Iterator<Item = (u64, u64)> + '_ {
        let allowed = self.allowed.iter();
        allowed.filter_map(move |range| region.intersection(range.first.0, range.last.0))
    }

    /// Bytes of them.
    fn bytes(&self, region: Region) -> u64 {
        self.parts(region)
            .map(|(first, last)| last - first + 1)
            .sum()
    }
}

impl State {
    /// Refuses a device that would not move alone: another of its IOMMU group is an endpoint, or in the iommufd.
    pub(super) fn check_group(
        &self,
        id: EndpointId,
        device: &dyn Attach,
    ) -> Result<(), SetupError> {
        let Some(group) = device.group() else {
            return Ok(());
        };
        let in_group = |other: &Endpoint| other.device.group().is_some_and(|g| g.id == group.id);
        if let Some((&other, _)) = self.endpoints.iter().find(|(_, e)| in_group(e)) {
            let mate = GroupMate::Endpoint(other);
            return Err(SetupError::SharesGroup(id, group.id, mate));
        }
        for mate in &group.mates {
            if mate.bound {
                let mate = GroupMate::Device(mate.name.clone());
                return Err(SetupError::SharesGroup(id, group.id, mate));
            }
            log::warn!(
                "endpoint {id}: {} is in its IOMMU group {} too: give it to no other process, as the kernel would move \
                 the two together",
                mate.name,
                group.id
            );
        }
        Ok(())
    }

    fn mapped_domains(&self) -> impl Iterator<Item = &MappedDomain> {
        self.domains.values().filter_map(Domain::mapped)
    }

    /// A domain with mappings.
    pub(super) fn mapped(&self, id: DomainId) -> Result<&MappedDomain, HostError> {
        let domain = self.domains.get(&id).and_then(Domain::mapped);
        domain.ok_or_else(|| HostError::Internal(format!("no domain {id} with mappings was made")))
    }

    /// A domain with a table.
    pub(super) fn nested(&self, id: DomainId) -> Result<&NestedDomain, HostError> {
        match self.domains.get(&id) {
            Some(Domain::Nested(domain)) => Ok(domain),
            _ => Err(HostError::Internal(format!(
                "no domain {id} with a table was made"
            ))),
        }
    }

    /// See [`crate::host::Host::attach`].
    pub(super) fn attach(
        &mut self,
        context: &Context,
        faults: Option<&FaultQueue>,
        requester: Requester,
        to: Attachment,
    ) -> Result<(), HostError> {
        let id = requester.endpoint;
        let endpoint = self.endpoints.get(&id).ok_or(HostError::NoEndpoint(id))?;
        let old = endpoint.attached_of(requester);
        if old.map_or(Attachment::Blocked, |attached| attached.to) == to {
            return Ok(());
        }
        if let Some(old) = old
            && stays_on_its_page_table(endpoint, faults, old.to, to)
        {
            // For the kernel nothing changes, so it answers nothing.
            if let Some(faults) = faults {
                faults.refuse(requester);
            }
            self.set_attached(requester, Some(Attached { to, ..old }));
            return Ok(());
        }
        if requester.pasid.is_some() && to != Attachment::Blocked {
            self.leave_lender(context, faults, id)
                .map_err(|error| error.of_attach(requester))?;
        }
        let new = self
            .enter(context, faults, requester, old.is_some(), to)
            .map_err(|error| error.of_attach(requester))?;
        if let Some(old) = old {
            self.leave(id, old);
        }
        self.set_attached(requester, new);
        // The kernel has answered what the old attachment had raised.
        if let Some(faults) = faults {
            faults.withdraw(requester);
        }
        Ok(())
    }

    /// See [`crate::host::Host::unmap`].
    pub(super) fn unmap(
        &self,
        id: DomainId,
        range: IovaRange,
        removed: &[Mapping],
    ) -> Result<(), HostError> {
        let domain = self.mapped(id)?;
        let accessible = removed.iter().filter(|m| access_flags(m.flags).is_some());
        let expected: u64 = accessible.map(|mapping| self.memory.bytes(mapping)).sum();
        let unmapped = domain.space.ioas().unmap(range, expected);
        let complete = unmapped.map_err(|error| error.of_range(range.first.0, range.last.0))?;
        if complete || domain.incomplete {
            return Ok(());
        }
        Err(HostError::Missing(format!(
            "{}-{} in domain {id}: less than {expected:#x} bytes were mapped in the kernel; no other process may unmap in \
             an iommufd that it shares",
            range.first, range.last
        )))
    }

    /// Moves a requester in the kernel. `None`: a PASID that is blocked is attached to nothing.
    fn enter(
        &mut self,
        context: &Context,
        faults: Option<&FaultQueue>,
        requester: Requester,
        attached: bool,
        to: Attachment,
    ) -> Result<Option<Attached>, CallError> {
        let missing = CallError {
            call: "attach",
            errno: libc::ENOENT,
        };
        let endpoint = self.endpoints.get_mut(&requester.endpoint).ok_or(missing)?;
        let needs = endpoint.needs(to, faults);
        let device = &*endpoint.device;
        let attach = |hwpt| match requester.pasid {
            None => device.attach(hwpt),
            Some(pasid) if attached => device.replace_pasid(pasid.0, hwpt),
            Some(pasid) => device.attach_pasid(pasid.0, hwpt),
        };
        let hwpt = match (to, requester.pasid) {
            (Attachment::Blocked, Some(pasid)) => {
                device.detach_pasid(pasid.0)?;
                return Ok(None);
            }
            (Attachment::Blocked, None) => endpoint.blocked.enter(context, needs, attach),
            (Attachment::Domain { domain, .. }, _) => {
                match self.domains.get_mut(&domain).ok_or(missing)? {
                    Domain::Mapped(domain) => domain.space.enter(context, needs, attach),
                    Domain::Nested(domain) => {
                        let allowed = &endpoint.allowed;
                        let bypass = find_bypass(&mut self.bypass, context, allowed, &self.memory)?;
                        domain.enter(context, bypass, endpoint.nesting, needs, attach)
                    }
                }
            }
            (Attachment::Bypass, None) if let Some(lent) = endpoint.lent_bypass() => {
                lent.enter(context, attach).map(|()| LENT)
            }
            (Attachment::Bypass, _) => {
                let allowed = &endpoint.allowed;
                let bypass = find_bypass(&mut self.bypass, context, allowed, &self.memory)?;
                bypass.space.enter(context, needs, attach)
            }
        }?;
        Ok(Some(Attached { to, hwpt }))
    }

    /// Counts a requester out of a page table that it is not attached to any more.
    fn leave(&mut self, id: EndpointId, old: Attached) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        match old.to {
            Attachment::Blocked => endpoint.blocked.leave(old.hwpt),
            Attachment::Domain { domain, .. } => {
                if let Some(domain) = self.domains.get_mut(&domain) {
                    domain.leave(old.hwpt);
                }
            }
            // Whichever it was in; none when it was the lender's.
            Attachment::Bypass => {
                for bypass in &mut self.bypass {
                    bypass.space.leave(old.hwpt);
                }
            }
        }
    }

    fn set_attached(&mut self, requester: Requester, attached: Option<Attached>) {
        let Some(endpoint) = self.endpoints.get_mut(&requester.endpoint) else {
            return;
        };
        match (requester.pasid, attached) {
            (Some(pasid), Some(attached)) => drop(endpoint.pasids.insert(pasid, attached)),
            (Some(pasid), None) => drop(endpoint.pasids.remove(&pasid)),
            (None, Some(attached)) => endpoint.attached = attached,
            (None, None) => {}
        }
    }

    /// See [`crate::host::Host::remove_endpoint`].
    pub(super) fn remove_endpoint(&mut self, faults: Option<&FaultQueue>, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let pasids = std::mem::take(&mut endpoint.pasids);
        for pasid in pasids.keys() {
            if let Err(error) = endpoint.device.detach_pasid(pasid.0) {
                log::error!("endpoint {id} PASID {pasid}: {error}");
            }
        }
        if let Err(error) = endpoint.device.release() {
            log::error!("endpoint {id}: {error}");
        }
        let (attached, dev_id) = (endpoint.attached, endpoint.dev_id);
        for attached in pasids.into_values().chain([attached]) {
            self.leave(id, attached);
        }
        for bypass in &self.bypass {
            bypass.smmus.forget(dev_id);
        }
        if let Some(endpoint) = self.endpoints.remove(&id)
            && let Some(faults) = faults
        {
            faults.remove(endpoint.dev_id, id);
        }
    }

    /// Places a region and maps it wherever a mapping or bypass leads to it.
    pub(super) fn add_memory(&mut self, region: &MemoryRegion) -> Result<(), HostError> {
        let region = self.memory.add(region)?;
        let mut result = Ok(());
        for bypass in &self.bypass {
            let added = bypass.add(&self.memory, region);
            result = result.and(added.map_err(|error| error.of_range(region.first, region.last)));
        }
        for domain in self.domains.values_mut() {
            let Domain::Mapped(domain) = domain else {
                continue;
            };
            let added = domain.add_memory(&self.memory, region);
            domain.incomplete |= added.is_err();
            result = result.and(added);
        }
        result
    }

    /// Takes a region out of every translation.
    pub(super) fn remove_memory(&mut self, region: &MemoryRegion) -> Result<(), HostError> {
        let Some(region) = self.memory.forget(region) else {
            return Ok(());
        };
        let mut result = Ok(());
        // Where memory could not be mapped when it came, less than this is there.
        let mut unmap = |ioas: &Ioas, range: IovaRange, expected: u64| {
            let removed = ioas.unmap(range, expected).map(drop);
            let removed = removed.map_err(|error| error.of_range(range.first.0, range.last.0));
            result = std::mem::replace(&mut result, Ok(())).and(removed);
        };
        for bypass in &self.bypass {
            // Its pieces lie in the region, so the range cuts none.
            unmap(bypass.space.ioas(), region.range(), bypass.bytes(region));
        }
        for domain in self.mapped_domains() {
            let ioas = domain.ioas();
            // The kernel has an area for each region of a mapping, and this is one of them.
            domain.for_parts_in(region, |mapping, iova, _| {
                if access_flags(mapping.flags).is_some() {
                    unmap(ioas, iova, iova.last.0 - iova.first.0 + 1);
                }
            });
        }
        result.and(self.memory.unmap(region))
    }
}

impl MappedDomain {
    pub fn new(context: &Context, mappings: SharedMappings) -> Result<Self, CallError> {
        Ok(Self {
            space: AddressSpace::new(context)?,
            mappings,
            incomplete: false,
        })
    }

    pub fn ioas(&self) -> &Ioas {
        self.space.ioas()
    }

    /// Maps a region wherever a mapping leads to it. On error the first one is told, and the other parts are mapped.
    fn add_memory(&self, memory: &GuestMemory, region: Region) -> Result<(), HostError> {
        let ioas = self.space.ioas();
        let mut result = Ok(());
        self.for_parts_in(region, |mapping, iova, first| {
            if let Some(access) = access_flags(mapping.flags) {
                let length = iova.last.0 - iova.first.0 + 1;
                let added = ioas.copy(iova.first.0, memory.ioas(), first, length, access);
                let added = added.map_err(|e| e.of_range(iova.first.0, iova.last.0));
                result = std::mem::replace(&mut result, Ok(())).and(added);
            }
        });
        result
    }

    /// The parts of mappings that lead into a region: the mapping, the part's virtual addresses, and its first
    /// guest-physical one.
    fn for_parts_in(&self, region: Region, mut part: impl FnMut(&Mapping, IovaRange, u64)) {
        let mappings = self
            .mappings
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for mapping in mappings.iter() {
            let (gpa, iova) = (mapping.gpa.0, mapping.range.first.0);
            if let Some((first, last)) = region.intersection(gpa, mapping.last_gpa()) {
                let range = IovaRange {
                    first: Iova(iova + (first - gpa)),
                    last: Iova(iova + (last - gpa)),
                };
                part(&mapping, range, first);
            }
        }
    }
}

impl Endpoint {
    /// Where a requester of this endpoint is; `None` for a PASID that is attached to nothing.
    fn attached_of(&self, requester: Requester) -> Option<Attached> {
        match requester.pasid {
            None => Some(self.attached),
            Some(pasid) => self.pasids.get(&pasid).copied(),
        }
    }
}

/// Guest memory for endpoints that can reach what is `allowed`. It is made when there is none.
pub(super) fn find_bypass<'a>(
    all: &'a mut Vec<Bypass>,
    context: &Context,
    allowed: &[IovaRange],
    memory: &GuestMemory,
) -> Result<&'a mut Bypass, CallError> {
    let index = match all.iter().position(|bypass| bypass.allowed == allowed) {
        Some(index) => index,
        None => {
            all.push(Bypass::new(context, allowed, memory)?);
            all.len() - 1
        }
    };
    Ok(&mut all[index])
}

/// Whether two attachments are to the same domain and differ only in what the device does with page requests.
fn stays_on_its_page_table(
    endpoint: &Endpoint,
    faults: Option<&FaultQueue>,
    old: Attachment,
    new: Attachment,
) -> bool {
    match (old, new) {
        (Attachment::Domain { domain: a, .. }, Attachment::Domain { domain: b, .. }) => {
            a == b
                && endpoint.needs(old, faults).fault_queue
                    == endpoint.needs(new, faults).fault_queue
        }
        _ => false,
    }
}
