// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The iommufd host on an SMMUv3: an endpoint in domains with tables of the driver.

use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::host::mapping::{IovaRange, Mapping, SharedMappings};
use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::host::{
    Attachment, Host, HostError, MemoryRegion, PageRequests, Requester, Translations,
};
use vhost_device_iommu::spec::{DomainId, EndpointId, Gpa, Iova, MapFlags, Pasid, TableFormat};
use vm_memory::GuestMemoryMmap;

use crate::edu::{self, Edu};
use crate::kernel::Kernel;
use crate::table::{BASE, BYTES, Guest, LEAF, PAGE};

const ENDPOINT: EndpointId = EndpointId(0x28);
const FROM: u64 = 0x40_0000;
const TO: u64 = 0x60_0000;
const OTHER: u64 = 0x80_0000;

const UNTOUCHED: u64 = 0x7777_7777_7777_7777;
/// What is in the pages for data, 0 and 2.
const FIRST: u64 = 0x1111_2222_3333_4444;
const SECOND: u64 = 0x5555_6666_7777_8888;
/// What a test puts into another.
const THIRD: u64 = 0x9999_aaaa_bbbb_cccc;

/// A host with one endpoint, and the memory of its guest.
struct Bench {
    // Dropped first: it lets go of the device.
    host: IommufdHost,
    edu: Edu,
    guest: Guest,
}

impl Bench {
    fn new() -> Self {
        let kernel = Kernel::open();
        let edu = Edu::open(&kernel);
        let bench = Self {
            host: IommufdHost::new(kernel.descriptor()).unwrap(),
            edu,
            guest: Guest::new(),
        };
        bench.update_memory(&[], &[bench.region()]);
        bench.add_endpoint();
        bench.guest.fill(0, FIRST);
        bench.guest.fill(2, SECOND);
        bench
    }

    fn add_endpoint(&self) {
        let source = EndpointSource::VfioFd(self.edu.descriptor());
        let dev = Some(self.edu.dev);
        self.host.add_endpoint(ENDPOINT, source, dev).unwrap();
    }

    /// All of the guest's memory.
    fn region(&self) -> MemoryRegion {
        MemoryRegion {
            gpa: Gpa(BASE),
            length: self.guest.memory.length(),
            user_address: self.guest.memory.start() as usize,
            file: None,
        }
    }

    fn update_memory(&self, removed: &[MemoryRegion], added: &[MemoryRegion]) {
        let unused = GuestMemoryMmap::new();
        self.host.update_memory(&unused, removed, added).unwrap();
    }

    /// A domain with a table that leads from FROM to a page for data, and from TO to page 1.
    fn domain(&mut self, id: u32, page: u64) -> (DomainId, Table) {
        let table = self.guest.table(12, 48);
        self.lead(&table, FROM, page);
        self.lead(&table, TO, 1);
        (self.create(id, table), table)
    }

    fn create(&self, id: u32, table: Table) -> DomainId {
        let by = Translations::Table(table);
        self.host.create_domain(DomainId(id), by).unwrap();
        DomainId(id)
    }

    fn lead(&mut self, table: &Table, address: u64, page: u64) {
        let entry = self.guest.page(page) | LEAF;
        self.guest.set(table, address, entry);
    }

    fn attach(&self, to: Attachment) -> Result<(), HostError> {
        self.host.attach(requester(None), to)
    }

    fn enter(&self, domain: DomainId) {
        self.attach(of(domain)).unwrap();
    }

    fn invalidate(&self, domain: DomainId, first: u64, last: u64) {
        let range = IovaRange {
            first: Iova(first),
            last: Iova(last),
        };
        self.host.invalidate(domain, &[range]).unwrap();
    }

    /// What arrives in page 1 when the device copies from one address to another.
    fn copies(&self, from: u64, to: u64) -> u64 {
        self.guest.fill(1, UNTOUCHED);
        self.edu.read(from, BYTES);
        self.edu.write(to, BYTES);
        let words = self.guest.words(1);
        assert!(words.iter().all(|&word| word == words[0]), "{words:x?}");
        words[0]
    }

    fn arrives(&self) -> u64 {
        self.copies(FROM, TO)
    }
}

fn requester(pasid: Option<Pasid>) -> Requester {
    Requester {
        endpoint: ENDPOINT,
        pasid,
    }
}

fn of(domain: DomainId) -> Attachment {
    Attachment::Domain {
        domain,
        page_requests: PageRequests::Unwanted,
    }
}

#[test]
fn an_endpoint_has_the_property_of_its_smmu() {
    let bench = Bench::new();
    let properties = bench.host.properties(ENDPOINT).unwrap();
    let [support] = properties.tables[..] else {
        panic!("{:?}", properties.tables);
    };
    assert_eq!(support.format, TableFormat::Arm64);
    assert_eq!(support.input_bits, 48);
    assert!((32..=48).contains(&support.output_bits));
    for granule in [12, 14, 16] {
        assert_ne!(support.page_sizes & 1 << granule, 0, "{granule}");
    }
}

#[test]
fn a_device_that_another_process_has_in_a_viommu_has_no_tables() {
    let kernel = Kernel::open();
    let edu = Edu::open(&kernel);
    let parent = kernel.parent(edu.dev, kernel.address_space());
    let viommu = kernel.viommu(edu.dev, parent);
    kernel.vdevice(viommu, edu.dev, 0);
    let host = IommufdHost::new(kernel.descriptor()).unwrap();
    let source = EndpointSource::VfioFd(edu.descriptor());
    host.add_endpoint(ENDPOINT, source, Some(edu.dev)).unwrap();
    assert_eq!(host.properties(ENDPOINT).unwrap().tables, []);
}

#[test]
fn dma_walks_the_table_of_the_domain_and_no_other() {
    let mut bench = Bench::new();
    let (first, _) = bench.domain(1, 0);
    let (second, _) = bench.domain(2, 2);
    bench.enter(first);
    assert_eq!(bench.arrives(), FIRST);
    bench.enter(second);
    assert_eq!(bench.arrives(), SECOND);
    bench.enter(first);
    assert_eq!(bench.arrives(), FIRST);
    bench.attach(Attachment::Blocked).unwrap();
    assert_eq!(bench.arrives(), UNTOUCHED);
}

#[test]
fn a_changed_entry_is_in_force_after_invalidate() {
    let mut bench = Bench::new();
    let (domain, table) = bench.domain(1, 0);
    bench.enter(domain);
    assert_eq!(bench.arrives(), FIRST);
    // Kept, so what follows proves something.
    bench.lead(&table, FROM, 2);
    assert_eq!(bench.arrives(), FIRST);
    bench.invalidate(domain, FROM, FROM + 0xfff);
    assert_eq!(bench.arrives(), SECOND);
    bench.lead(&table, FROM, 0);
    bench.invalidate(domain, 0, u64::MAX);
    assert_eq!(bench.arrives(), FIRST);
    bench.guest.set(&table, TO, 0);
    bench.invalidate(domain, TO, TO);
    assert_eq!(bench.arrives(), UNTOUCHED);
    // An entry that was absent needs no INVALIDATE.
    bench.lead(&table, TO, 1);
    assert_eq!(bench.arrives(), FIRST);
}

#[test]
fn nothing_of_a_table_is_kept_when_its_domain_has_ended() {
    let mut bench = Bench::new();
    bench.guest.fill(3, THIRD);
    let (first, _) = bench.domain(1, 0);
    let (second, _) = bench.domain(2, 2);
    bench.enter(first);
    assert_eq!(bench.arrives(), FIRST);
    // The kernel forgets when the last device leaves the parent: this one does not leave it.
    bench.enter(second);
    assert_eq!(bench.arrives(), SECOND);
    bench.host.destroy_domain(first);
    // The SMMU has the same number for it.
    let (third, _) = bench.domain(3, 3);
    bench.enter(third);
    assert_eq!(bench.arrives(), THIRD);
    bench.enter(second);
    assert_eq!(bench.arrives(), SECOND);
}

#[test]
fn mappings_bypass_and_tables_follow_each_other() {
    let mut bench = Bench::new();
    let (domain, _) = bench.domain(1, 0);
    let mapped = DomainId(2);
    let by = Translations::Mappings(SharedMappings::default());
    bench.host.create_domain(mapped, by).unwrap();
    for (iova, page) in [(FROM, 2), (TO, 1)] {
        let range = IovaRange {
            first: Iova(iova),
            last: Iova(iova + PAGE - 1),
        };
        let mapping = Mapping {
            range,
            gpa: Gpa(bench.guest.page(page)),
            flags: MapFlags::READ | MapFlags::WRITE,
        };
        bench.host.map(mapped, &mapping).unwrap();
    }
    for _ in 0..2 {
        bench.enter(domain);
        assert_eq!(bench.arrives(), FIRST);
        bench.enter(mapped);
        assert_eq!(bench.arrives(), SECOND);
        bench.attach(Attachment::Bypass).unwrap();
        let (from, to) = (bench.guest.page(0), bench.guest.page(1));
        assert_eq!(bench.copies(from, to), FIRST);
        assert_eq!(bench.arrives(), UNTOUCHED);
    }
}

#[test]
fn a_table_leads_nowhere_when_its_memory_has_gone() {
    let mut bench = Bench::new();
    let (domain, _) = bench.domain(1, 0);
    bench.enter(domain);
    assert_eq!(bench.arrives(), FIRST);
    let region = bench.region();
    bench.update_memory(std::slice::from_ref(&region), &[]);
    assert_eq!(bench.arrives(), UNTOUCHED);
    bench.update_memory(&[], &[region]);
    assert_eq!(bench.arrives(), FIRST);
}

#[test]
fn a_root_outside_of_memory_is_harmless() {
    let mut bench = Bench::new();
    let table = bench.guest.table(12, 48);
    // Below memory; at the end of the addresses, where the host has descriptors.
    for (id, root) in (1..).zip([0, BASE - 0x1000, (1 << 44) - 0x2_0000, (1 << 48) - 0x1000]) {
        let root = Gpa(root);
        let domain = bench.create(id, Table { root, ..table });
        bench.enter(domain);
        assert_eq!(bench.arrives(), UNTOUCHED, "{root}");
    }
    let (domain, _) = bench.domain(9, 0);
    bench.enter(domain);
    assert_eq!(bench.arrives(), FIRST);
}

#[test]
fn an_endpoint_that_went_comes_again() {
    let mut bench = Bench::new();
    let (domain, _) = bench.domain(1, 0);
    for _ in 0..3 {
        bench.enter(domain);
        assert_eq!(bench.arrives(), FIRST);
        bench.host.remove_endpoint(ENDPOINT);
        assert_eq!(bench.arrives(), UNTOUCHED);
        bench.add_endpoint();
    }
}

#[test]
fn a_device_that_was_closed_comes_again() {
    let kernel = Kernel::open();
    let host = IommufdHost::new(kernel.descriptor()).unwrap();
    let mut guest = Guest::new();
    let table = guest.table(12, 48);
    host.create_domain(DomainId(1), Translations::Table(table))
        .unwrap();
    for _ in 0..2 {
        let source = EndpointSource::VfioPath(edu::path());
        host.add_endpoint(ENDPOINT, source, None).unwrap();
        host.attach(requester(None), of(DomainId(1))).unwrap();
        host.remove_endpoint(ENDPOINT);
    }
}

#[test]
fn a_device_can_read_where_its_table_is_and_not_change_it() {
    let kernel = Kernel::open();
    let edu = Edu::open(&kernel);
    let end = kernel.end_of_parent(edu.dev);
    drop((edu, kernel));
    let mut bench = Bench::new();
    let (domain, table) = bench.domain(1, 0);
    // The first descriptor, at the end of the addresses.
    let place = (end & !(PAGE - 1)) - PAGE;
    bench.guest.set(&table, OTHER, place | LEAF);
    bench.enter(domain);
    bench.edu.read(OTHER, BYTES);
    bench.edu.write(TO, BYTES);
    let descriptor = bench.guest.words(1);
    assert_eq!(descriptor[1], table.root.0);
    bench.edu.read(FROM, BYTES);
    bench.edu.write(OTHER, BYTES);
    bench.edu.read(OTHER, BYTES);
    bench.edu.write(TO, BYTES);
    assert_eq!(bench.guest.words(1), descriptor);
}

#[test]
fn a_pasid_is_attached_to_no_table() {
    let mut bench = Bench::new();
    let (domain, _) = bench.domain(1, 0);
    let refused = bench.host.attach(requester(Some(Pasid(1))), of(domain));
    assert!(
        matches!(refused, Err(HostError::Unsupported(_))),
        "{refused:?}"
    );
    bench.enter(domain);
    assert_eq!(bench.arrives(), FIRST);
}

#[test]
fn domains_can_be_as_many_as_the_smmu_has_numbers() {
    let mut bench = Bench::new();
    let (first, table) = bench.domain(1, 0);
    bench.enter(first);
    let mut refused = None;
    let mut made = vec![first];
    // A domain has a number from its first attachment on.
    for id in 2..=2000 {
        let domain = bench.create(id, table);
        match bench.attach(of(domain)) {
            Ok(()) => made.push(domain),
            Err(error) => {
                refused = Some(error);
                bench.host.destroy_domain(domain);
                break;
            }
        }
    }
    assert!(
        matches!(refused, Some(HostError::NoMemory(_))),
        "{refused:?}"
    );
    // At least those of 8 bits.
    assert!(made.len() >= 256, "{}", made.len());
    assert_eq!(bench.arrives(), FIRST);
    bench.host.destroy_domain(made[1]);
    let again = bench.create(2, table);
    bench.enter(again);
    assert_eq!(bench.arrives(), FIRST);
}
