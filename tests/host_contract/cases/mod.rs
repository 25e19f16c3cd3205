// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `Host` contract as cases that every host is held to.
//!
//! A host comes with a [`Bench`]: guest memory, endpoints that can be made to ask for pages, and a way to find out what
//! they reach. The bench plays the device above the host.
//! [`held_to_the_contract!`] makes a test of each case.

pub mod groups;
pub mod maps;
pub mod moves;
mod ram;

use std::sync::{Arc, RwLock};

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable, SharedMappings};
use vhost_device_iommu::host::{
    Answer, Attachment, Cookie, Host, HostError, HostEvent, MemoryError, MemoryRegion,
    PageRequestGroup, PageRequests, Requester, Translations,
};
use vhost_device_iommu::spec::{DomainId, EndpointId, EventFlags, Gpa, MapFlags, Pasid};

pub use ram::Ram;

pub const MIB: u64 = 1 << 20;
/// Bytes of guest memory on a bench.
pub const RAM: u64 = 16 * MIB;
/// Beyond the guest memory of most cases.
pub const IOVA: u64 = 0x4000_0000;
pub const READ_WRITE: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

/// A domain as the device has it.
pub struct Domain {
    pub id: DomainId,
    pub table: SharedMappings,
}

impl Domain {
    /// One that no host knows of.
    pub fn new(id: u32) -> Self {
        Self {
            id: DomainId(id),
            table: Arc::new(RwLock::new(MappingTable::new())),
        }
    }
}

/// A host, the hardware below it, and guest memory.
pub trait Bench: Sized {
    /// No endpoint, and no guest memory that the host knows of.
    fn new() -> Self;

    fn host(&self) -> &dyn Host;

    /// [`RAM`] bytes, of which regions of guest memory are made.
    fn ram(&self) -> &Ram;

    /// An endpoint that raises page requests and has PASIDs of 20 bits.
    fn add_endpoint(&self, id: u32);

    fn update_memory(
        &self,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>>;

    /// Whether every page of a range of virtual addresses leads to its page of [`Bench::ram`] from `offset` on.
    fn is_reached(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool;

    /// Whether no page of it does.
    fn is_out_of_reach(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool;

    /// Whether a requester in the domain may read, and write, at an address.
    fn allows(&self, domain: &Domain, requester: Requester, iova: u64) -> (bool, bool);

    /// The requester asks for a page, in a group of one, and waits for the answer.
    fn raise(&self, requester: Requester, access: EventFlags, iova: u64);

    fn domain(&self, id: u32) -> Domain {
        let domain = Domain::new(id);
        let table = domain.table.clone();
        self.host()
            .create_domain(domain.id, Translations::Mappings(table))
            .unwrap();
        domain
    }

    /// With all of the memory at guest-physical address 16 MiB, where every endpoint can reach it in bypass.
    fn with_memory() -> Self {
        let bench = Self::new();
        let region = bench.ram().region(16 * MIB, 0, RAM);
        bench.update_memory(&[], &[region]).unwrap();
        bench
    }

    fn attach(&self, endpoint: u32, to: Attachment) -> Result<(), HostError> {
        self.host().attach(plain(endpoint), to)
    }

    fn map(&self, domain: &Domain, iova: u64, length: u64, gpa: u64) -> Result<(), HostError> {
        self.map_with(domain, iova, length, gpa, READ_WRITE)
    }

    /// As the device does it: first the table, then the host.
    fn map_with(
        &self,
        domain: &Domain,
        iova: u64,
        length: u64,
        gpa: u64,
        flags: MapFlags,
    ) -> Result<(), HostError> {
        let mapping = Mapping {
            range: range(iova, length),
            gpa: Gpa(gpa),
            flags,
        };
        domain.table.write().unwrap().insert(&mapping).unwrap();
        self.host().map(domain.id, &mapping).inspect_err(|_| {
            let mut table = domain.table.write().unwrap();
            table.remove(&mapping.range, |_| ()).unwrap();
        })
    }

    fn unmap(&self, domain: &Domain, iova: u64, length: u64) -> Result<(), HostError> {
        self.unmap_range(domain, range(iova, length))
    }

    fn unmap_range(&self, domain: &Domain, range: IovaRange) -> Result<(), HostError> {
        let mut removed = Vec::new();
        let mut table = domain.table.write().unwrap();
        table
            .remove(&range, |mapping| removed.push(mapping))
            .unwrap();
        drop(table);
        self.host().unmap(domain.id, range, &removed)
    }

    /// The page requests that have come.
    fn groups(&self) -> Vec<PageRequestGroup> {
        let mut groups = Vec::new();
        loop {
            let before = groups.len();
            self.host().take_events(&mut |event| {
                if let HostEvent::PageRequest(group) = event {
                    groups.push(group);
                }
            });
            if groups.len() == before {
                return groups;
            }
        }
    }

    /// Whether the host knows no group by this name.
    fn is_dead(&self, cookie: Cookie) -> bool {
        matches!(
            self.host().respond(cookie, Answer::Success),
            Err(HostError::NoGroup(dead)) if dead == cookie
        )
    }
}

pub fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::new(first, first + (length - 1)).unwrap()
}

pub fn plain(endpoint: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: None,
    }
}

pub fn with_pasid(endpoint: u32, pasid: u32) -> Requester {
    Requester {
        pasid: Some(Pasid(pasid)),
        ..plain(endpoint)
    }
}

pub fn reported(domain: &Domain) -> Attachment {
    in_domain(domain, PageRequests::Reported)
}

pub fn unwanted(domain: &Domain) -> Attachment {
    in_domain(domain, PageRequests::Unwanted)
}

pub fn in_domain(domain: &Domain, page_requests: PageRequests) -> Attachment {
    Attachment::Domain {
        domain: domain.id,
        page_requests,
    }
}

/// Makes a test of each case for a [`Bench`].
macro_rules! held_to_the_contract {
    ($bench:ty) => {
        $crate::cases::held_to_the_contract! { $bench;
            maps:
                a_mapping_is_in_force_and_gone_after_unmap,
                one_unmap_takes_several_mappings_and_gaps,
                unmapping_nothing_and_everything_works,
                the_same_memory_can_be_mapped_twice,
                what_is_not_memory_is_left_out_and_what_is_memory_is_mapped,
                a_mapping_spans_memory_regions_in_any_order,
                memory_added_later_appears_in_mappings_that_lead_to_it,
                memory_removed_leaves_every_address_space,
                a_mapping_gives_the_access_it_says_and_no_other__m45;
            moves:
                a_new_endpoint_is_blocked_and_an_unknown_one_is_refused,
                an_endpoint_that_moves_leaves_everything_behind,
                endpoints_of_a_domain_see_the_same,
                a_domain_made_again_under_its_number_is_empty__d39,
                a_pasid_has_an_address_space_of_its_own,
                an_endpoint_that_is_removed_can_be_added_again;
            groups:
                a_page_request_is_told_and_its_answer_accepted_once,
                groups_are_answered_in_any_order,
                a_move_ends_the_groups_of_the_requester_and_no_others,
                a_group_that_was_not_read_before_the_move_never_comes,
                page_requests_that_are_no_longer_wanted_are_answered,
                attaching_to_what_it_is_attached_to_keeps_the_groups,
                an_endpoint_that_is_off_or_in_bypass_raises_none,
                a_group_carries_its_pasid,
                removing_an_endpoint_ends_its_groups,
                a_descriptor_is_readable_while_there_is_something;
        }
    };
    ($bench:ty; $($file:ident: $($case:ident),*;)*) => {
        $(mod $file {
            $(#[test]
            fn $case() {
                $crate::cases::$file::$case::<$bench>();
            })*
        })*
    };
}
pub(crate) use held_to_the_contract;
