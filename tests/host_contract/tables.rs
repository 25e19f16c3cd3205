// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains with a table of the driver, which the software host walks. Below the iommufd host the hardware would, and the
//! kernel's mock devices do not: what can be seen there, `host_suite` has.

use vhost_device_iommu::host::mapping::IovaRange;
use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::host::{Answer, Attachment, PageRequests, Requester, Translations};
use vhost_device_iommu::spec::{DomainId, EndpointId, EventFlags, Gpa, TableFormat};

use crate::cases::{Bench, IOVA, MIB, plain, unwanted, with_pasid};
use crate::soft::SoftBench;

/// Where [`Bench::ram`] begins in guest-physical memory.
const BASE: u64 = 16 * MIB;
/// Where tables are, from there on: each has a MiB.
const TABLES: u64 = 8 * MIB;
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const READABLE: u64 = PRESENT | USER;
const READ_AND_WRITE: u64 = READABLE | WRITABLE;

/// A domain with a table: x86-64 with four levels, in the memory of a bench.
struct TableDomain<'a> {
    bench: &'a SoftBench,
    id: DomainId,
    root: u64,
}

/// A domain with a table, which an endpoint can be attached to.
fn table_domain(bench: &SoftBench, endpoint: u32, id: u32) -> TableDomain<'_> {
    let properties = bench.host().properties(EndpointId(endpoint)).unwrap();
    let domain = TableDomain {
        bench,
        id: DomainId(id),
        root: TABLES + u64::from(id) * MIB,
    };
    let table = Table {
        format: TableFormat::X86_64,
        input_bits: 48,
        granule: 12,
        root: Gpa(BASE + domain.root),
        attributes: 0,
    };
    assert!(
        properties
            .tables
            .iter()
            .any(|support| support.allows(&table))
    );
    bench
        .host()
        .create_domain(domain.id, Translations::Table(table))
        .unwrap();
    domain
}

impl TableDomain<'_> {
    /// Where the entry of an address is in the memory of the bench. Its tables are the second to fourth page behind the
    /// root: every address of a case has the same.
    fn entry_at(&self, iova: u64, height: u64) -> u64 {
        for above in (height + 1..4).rev() {
            let next = self.root + (4 - above) * 4096;
            let at = self.root + (3 - above) * 4096 + index(iova, above);
            let entry = (BASE + next) | READ_AND_WRITE;
            self.bench.ram().write(at, &entry.to_le_bytes());
        }
        self.root + (3 - height) * 4096 + index(iova, height)
    }

    fn store(&self, iova: u64, height: u64, entry: u64) {
        let at = self.entry_at(iova, height);
        self.bench.ram().write(at, &entry.to_le_bytes());
    }

    /// Lets a page lead to an offset in the memory of the bench.
    fn set(&self, iova: u64, offset: u64, flags: u64) {
        self.store(iova, 0, (BASE + offset) | flags);
    }

    fn entry(&self, iova: u64) -> u64 {
        let mut entry = [0; 8];
        let at = self.entry_at(iova, 0);
        self.bench.ram().read(at, &mut entry);
        u64::from_le_bytes(entry)
    }

    fn invalidate(&self, first: u64, last: u64) {
        let range = IovaRange::new(first, last).unwrap();
        self.bench.host().invalidate(self.id, &[range]).unwrap();
    }

    fn attach(&self, requester: Requester, page_requests: PageRequests) {
        let to = Attachment::Domain {
            domain: self.id,
            page_requests,
        };
        self.bench.host().attach(requester, to).unwrap();
    }

    fn reaches(&self, requester: Requester, iova: u64, offset: u64) -> bool {
        self.bench.is_reached(requester, iova, 4096, offset)
    }

    fn misses(&self, requester: Requester, iova: u64, offset: u64) -> bool {
        self.bench.is_out_of_reach(requester, iova, 4096, offset)
    }
}

fn index(iova: u64, height: u64) -> u64 {
    ((iova >> (12 + 9 * height)) & 511) * 8
}

#[test]
fn a_table_translates_as_it_is_and_an_invalidate_takes_the_rest__x81_x103() {
    let bench = SoftBench::with_memory();
    bench.add_endpoint(1);
    let domain = table_domain(&bench, 1, 1);
    domain.attach(plain(1), PageRequests::Unwanted);
    assert!(domain.misses(plain(1), IOVA, 0));
    domain.set(IOVA, 0, READ_AND_WRITE);
    assert!(domain.reaches(plain(1), IOVA, 0));
    for (first, last) in [(IOVA, IOVA), (IOVA + 7, IOVA + 0x1000), (0, u64::MAX)] {
        domain.set(IOVA, MIB, READ_AND_WRITE);
        domain.invalidate(first, last);
        assert!(domain.reaches(plain(1), IOVA, MIB));
        domain.set(IOVA, 0, 0);
        domain.invalidate(first, last);
        assert!(domain.misses(plain(1), IOVA, MIB));
    }
    domain.store(IOVA, 1, BASE | READ_AND_WRITE | LARGE);
    domain.invalidate(IOVA, IOVA);
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
    domain.store(IOVA, 1, 0);
    domain.invalidate(IOVA + MIB, IOVA + MIB);
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 0));
}

#[test]
fn endpoints_and_pasids_of_a_table_see_the_same_and_others_do_not__x103() {
    let bench = SoftBench::with_memory();
    bench.add_endpoint(1);
    bench.add_endpoint(2);
    let (domain, other) = (table_domain(&bench, 1, 1), table_domain(&bench, 1, 2));
    let all = [plain(1), plain(2), with_pasid(1, 5)];
    let theirs = with_pasid(2, 5);
    for requester in all {
        domain.attach(requester, PageRequests::Unwanted);
    }
    other.attach(theirs, PageRequests::Unwanted);
    domain.set(IOVA, 0, READ_AND_WRITE);
    other.set(IOVA, MIB, READ_AND_WRITE);
    assert!(all.iter().all(|&one| domain.reaches(one, IOVA, 0)));
    assert!(other.reaches(theirs, IOVA, MIB));
    domain.set(IOVA, 0, 0);
    domain.invalidate(0, u64::MAX);
    assert!(all.iter().all(|&one| domain.misses(one, IOVA, 0)));
    assert!(other.reaches(theirs, IOVA, MIB));
}

#[test]
fn a_table_is_left_alone_when_its_last_attachment_has_ended__x87() {
    let bench = SoftBench::with_memory();
    bench.add_endpoint(1);
    let domain = table_domain(&bench, 1, 1);
    let mappings = bench.domain(3);
    for end in [Attachment::Blocked, Attachment::Bypass, unwanted(&mappings)] {
        domain.attach(plain(1), PageRequests::Unwanted);
        domain.set(IOVA, 0, READ_AND_WRITE);
        assert!(domain.reaches(plain(1), IOVA, 0));
        assert_eq!(domain.entry(IOVA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        bench.attach(1, end).unwrap();
        domain.set(IOVA, 0, READ_AND_WRITE);
        assert!(domain.misses(plain(1), IOVA, 0));
        assert_eq!(domain.entry(IOVA), BASE | READ_AND_WRITE);
    }
    domain.attach(plain(1), PageRequests::Unwanted);
    assert!(domain.reaches(plain(1), IOVA, 0));
    bench.host().remove_endpoint(EndpointId(1));
    domain.set(IOVA, 0, READ_AND_WRITE);
    assert!(domain.misses(plain(1), IOVA, 0));
    assert_eq!(domain.entry(IOVA), BASE | READ_AND_WRITE);
}

#[test]
fn an_invalidate_waits_for_no_answer__x105() {
    let bench = SoftBench::with_memory();
    bench.add_endpoint(1);
    let domain = table_domain(&bench, 1, 1);
    domain.attach(plain(1), PageRequests::Reported);
    bench.raise(plain(1), EventFlags::WRITE, IOVA);
    let groups = bench.groups();
    domain.invalidate(0, u64::MAX);
    domain.set(IOVA, 0, READ_AND_WRITE);
    let answered = bench.host().respond(groups[0].cookie, Answer::Success);
    answered.unwrap();
    assert!(domain.reaches(plain(1), IOVA, 0));
}
