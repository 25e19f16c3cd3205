// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains with a table of the driver. Mock devices walk no table: what they are attached to, and what becomes of
//! INVALIDATEs and page requests, is the kernel's own work, and is what is looked at here.
//!
//! The kernel keeps four numbers for each nested page table, which stand for what hardware keeps of it. The host makes them
//! the page number of the root; an INVALIDATE of everything makes them zero, one of page 0 to 3 makes that one zero, and
//! the kernel refuses one of any other page.

use super::failures::each_step_failing;
use super::*;
use crate::kernel::{READ, WRITE};
use vhost_device_iommu::host::Answer;
use vhost_device_iommu::host::table::{Table, TableSupport};
use vhost_device_iommu::spec::{Pasid, Status, TableFormat};

/// Where guest memory begins on a bench.
const BASE: u64 = 16 * MIB;

const LITTLE: u64 = 0x4000;

/// The page number of a domain's root.
fn root(domain: u32) -> u32 {
    (BASE >> 12) as u32 + domain
}

fn table_domain(bench: &Bench, id: u32) -> DomainId {
    let table = Table {
        format: TableFormat::X86_64,
        input_bits: 48,
        granule: 12,
        root: Gpa(u64::from(root(id)) << 12),
        attributes: 0,
    };
    let domain = DomainId(id);
    bench
        .host
        .create_domain(domain, Translations::Table(table))
        .unwrap();
    domain
}

fn to(domain: DomainId, page_requests: PageRequests) -> Attachment {
    Attachment::Domain {
        domain,
        page_requests,
    }
}

fn requester(endpoint: u32, pasid: Option<u32>) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: pasid.map(Pasid),
    }
}

fn pages(first: u64, count: u64) -> IovaRange {
    range(first << 12, count << 12)
}

/// Four pages of guest memory: the kernel makes an allocation or two for a page, each of which fails once.
fn with_little_memory() -> (Bench, MockDevice) {
    let bench = Bench::new();
    let region = bench.ram.region(BASE, 0, LITTLE);
    bench.update_memory(&[], &[region]).unwrap();
    let device = bench.endpoint(1);
    (bench, device)
}

/// An endpoint that is attached to the table of domain 1.
fn with_table(page_requests: PageRequests) -> (Bench, MockDevice, DomainId) {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let domain = table_domain(&bench, 1);
    bench.attach(1, to(domain, page_requests)).unwrap();
    (bench, device, domain)
}

impl Bench {
    /// What the kernel keeps of a nested page table is all there, that of the domain.
    fn keeps_all_of(&self, hwpt: u32, domain: u32) -> bool {
        (0..4).all(|number| self.kernel.keeps(hwpt, number, root(domain)))
    }

    fn keeps_nothing_of(&self, hwpt: u32) -> bool {
        (0..4).all(|number| self.kernel.keeps(hwpt, number, 0))
    }

    /// Page tables that lead to all of guest memory at its own addresses.
    fn parents(&self) -> Vec<u32> {
        self.parents_of(cases::RAM)
    }

    /// Those that lead to the first bytes of it.
    fn parents_of(&self, length: u64) -> Vec<u32> {
        self.kernel.tables_with(BASE, length, self.ram.at(0))
    }
}

#[test]
fn an_endpoint_says_which_tables_it_can_have__x76() {
    let bench = Bench::new();
    bench.endpoint(1);
    let properties = bench.host.properties(EndpointId(1)).unwrap();
    let expected = TableSupport {
        format: TableFormat::X86_64,
        input_bits: 57,
        // The second stage has no addresses beyond 2 GiB.
        output_bits: 31,
        page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
    };
    assert_eq!(properties.tables, [expected]);
}

#[test]
fn a_table_stands_on_a_page_table_with_guest_memory_as_it_comes_and_goes() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let domain = table_domain(&bench, 1);
    bench.attach(1, to(domain, PageRequests::Unwanted)).unwrap();
    assert!(bench.keeps_all_of(bench.kernel.page_table(device), 1));
    assert!(bench.parents().is_empty());
    let region = bench.ram.region(BASE, 0, cases::RAM);
    bench
        .update_memory(&[], std::slice::from_ref(&region))
        .unwrap();
    assert_eq!(bench.parents().len(), 1);
    bench.update_memory(&[region], &[]).unwrap();
    assert!(bench.parents().is_empty());
}

#[test]
fn tables_of_all_domains_stand_on_one_page_table() {
    let (bench, _, domain) = with_table(PageRequests::Unwanted);
    bench.endpoint(2);
    let other = table_domain(&bench, 2);
    bench.attach(2, to(other, PageRequests::Reported)).unwrap();
    let parents = bench.parents();
    assert_eq!(parents.len(), 1);
    // It is kept when nothing stands on it: making it again would pin all of guest memory again.
    for (endpoint, domain) in [(1, domain), (2, other)] {
        bench.attach(endpoint, Attachment::Blocked).unwrap();
        bench.host.destroy_domain(domain);
    }
    assert_eq!(bench.parents(), parents);
    bench.attach(1, Attachment::Bypass).unwrap();
    assert_eq!(bench.parents().len(), 2);
}

#[test]
fn endpoints_and_pasids_of_a_table_share_a_nested_page_table() {
    let (bench, device, domain) = with_table(PageRequests::Reported);
    bench.endpoint(2);
    let hwpt = bench.kernel.page_table(device);
    let others = [
        requester(1, Some(5)),
        requester(1, Some(6)),
        requester(2, None),
    ];
    for other in others {
        let reported = to(domain, PageRequests::Reported);
        bench.host.attach(other, reported).unwrap();
        assert_eq!(bench.page_table(other), Some(hwpt));
    }
    // An attachment without page requests needs another one, which hears of INVALIDATEs as well.
    bench
        .host
        .attach(requester(2, Some(5)), to(domain, PageRequests::Off))
        .unwrap();
    let quiet = bench.page_table(requester(2, Some(5))).unwrap();
    assert_ne!(quiet, hwpt);
    assert!(bench.keeps_all_of(quiet, 1));
    bench.host.invalidate(domain, &[IovaRange::ALL]).unwrap();
    assert!(bench.keeps_nothing_of(hwpt) && bench.keeps_nothing_of(quiet));
    // Another domain has its own.
    let second = table_domain(&bench, 2);
    bench
        .host
        .attach(others[0], to(second, PageRequests::Reported))
        .unwrap();
    let moved = bench.page_table(others[0]).unwrap();
    assert_ne!(moved, hwpt);
    assert!(bench.keeps_all_of(moved, 2));
    assert_eq!(bench.page_table(others[1]), Some(hwpt));
}

#[test]
fn an_endpoint_moves_between_a_table_and_anything_else() {
    let (bench, device, domain) = with_table(PageRequests::Unwanted);
    let nested = bench.kernel.page_table(device);
    let mappings = bench.domain(3);
    bench.map(&mappings, IOVA, MIB, BASE).unwrap();
    for other in [Attachment::Bypass, unwanted(&mappings), Attachment::Blocked] {
        bench.attach(1, other).unwrap();
        assert_ne!(bench.kernel.page_table(device), nested);
        bench.attach(1, to(domain, PageRequests::Unwanted)).unwrap();
        assert!(bench.keeps_all_of(bench.kernel.page_table(device), 1));
    }
    bench.attach(1, unwanted(&mappings)).unwrap();
    assert!(bench.reaches(device, IOVA, MIB, 0));
    let Bench { host, kernel, .. } = bench;
    drop(host);
    assert!(kernel.is_clean());
}

#[test]
fn an_invalidate_concerns_its_pages_and_its_domain_alone__x103() {
    let (bench, device, domain) = with_table(PageRequests::Unwanted);
    bench.endpoint(2);
    let other = table_domain(&bench, 2);
    bench.attach(2, to(other, PageRequests::Unwanted)).unwrap();
    let hwpt = bench.kernel.page_table(device);
    let theirs = bench.page_table(requester(2, None)).unwrap();
    bench.host.invalidate(domain, &[pages(1, 1)]).unwrap();
    for number in 0..4 {
        let left = if number == 1 { 0 } else { root(1) };
        assert!(bench.kernel.keeps(hwpt, number, left), "{number}");
    }
    bench
        .host
        .invalidate(domain, &[pages(3, 1), pages(0, 1)])
        .unwrap();
    assert!(bench.kernel.keeps(hwpt, 2, root(1)));
    assert!([0, 1, 3].iter().all(|&n| bench.kernel.keeps(hwpt, n, 0)));
    assert!(bench.keeps_all_of(theirs, 2));
}

#[test]
fn joined_invalidates_stop_at_the_first_that_the_kernel_refuses() {
    let (bench, device, domain) = with_table(PageRequests::Unwanted);
    let hwpt = bench.kernel.page_table(device);
    let error = bench
        .host
        .invalidate(domain, &[pages(1, 1), pages(9, 1), pages(2, 1)])
        .unwrap_err();
    assert_eq!(error.status(), Status::DevErr, "{error}");
    assert!(bench.kernel.keeps(hwpt, 1, 0));
    assert!(bench.kernel.keeps(hwpt, 2, root(1)));
    bench.host.invalidate(domain, &[pages(2, 1)]).unwrap();
    assert!(bench.kernel.keeps(hwpt, 2, 0));
}

#[test]
fn a_refused_invalidate_of_one_page_table_reaches_the_others() {
    let (bench, device, domain) = with_table(PageRequests::Reported);
    bench.endpoint(2);
    bench.attach(2, to(domain, PageRequests::Off)).unwrap();
    let tables = [
        bench.kernel.page_table(device),
        bench.page_table(requester(2, None)).unwrap(),
    ];
    let refused = bench.host.invalidate(domain, &[pages(1, 1), pages(9, 1)]);
    assert!(refused.is_err());
    assert!(tables.iter().all(|&hwpt| bench.kernel.keeps(hwpt, 1, 0)));
}

#[test]
fn a_table_without_attachments_has_nothing_to_invalidate() {
    let bench = Bench::new();
    let domain = table_domain(&bench, 1);
    bench.host.invalidate(domain, &[IovaRange::ALL]).unwrap();
    let nobody = bench.host.invalidate(DomainId(9), &[IovaRange::ALL]);
    assert!(nobody.is_err());
}

#[test]
fn page_requests_come_from_a_table_with_their_pasid_and_are_answered() {
    let (bench, device, domain) = with_table(PageRequests::Reported);
    let other = table_domain(&bench, 2);
    for pasid in [5, 6] {
        let reported = to(domain, PageRequests::Reported);
        bench
            .host
            .attach(requester(1, Some(pasid)), reported)
            .unwrap();
    }
    for pasid in [0, 5, 6] {
        bench.kernel.page_request(device, pasid, 1, WRITE, IOVA);
    }
    let groups = bench.groups();
    let from: Vec<_> = groups.iter().map(|group| group.requester).collect();
    let [plain, five, six] = [None, Some(5), Some(6)].map(|pasid| requester(1, pasid));
    assert_eq!(from, [plain, five, six]);
    // An INVALIDATE waits for none of them (X105), and a move ends those of the one that moves.
    bench.host.invalidate(domain, &[IovaRange::ALL]).unwrap();
    bench
        .host
        .attach(five, to(other, PageRequests::Reported))
        .unwrap();
    assert!(bench.is_dead(groups[1].cookie));
    for group in [&groups[0], &groups[2]] {
        bench.host.respond(group.cookie, Answer::Success).unwrap();
    }
}

#[test]
fn a_pasid_that_is_attached_nowhere_asks_through_the_table_of_its_endpoint() {
    // A driver with a table of PASIDs of its own could have meant it, thinks the kernel. Here there is none, and the device
    // refuses the group as that of a PASID without attachment.
    let (bench, device, _) = with_table(PageRequests::Reported);
    bench.kernel.page_request(device, 7, 1, READ, IOVA);
    let groups = bench.groups();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].requester, requester(1, Some(7)));
    bench
        .host
        .respond(groups[0].cookie, Answer::Invalid)
        .unwrap();
    // A move of the endpoint ends such a group too.
    bench.kernel.page_request(device, 7, 1, READ, IOVA);
    let cookie = bench.groups()[0].cookie;
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(bench.is_dead(cookie));
}

#[test]
fn an_attach_to_a_table_that_fails_anywhere_leaves_the_old_attachment() {
    for page_requests in [PageRequests::Unwanted, PageRequests::Reported] {
        each_step_failing(
            || {
                let (bench, device) = with_little_memory();
                let mappings = bench.domain(2);
                bench.attach(1, unwanted(&mappings)).unwrap();
                bench.map(&mappings, IOVA, 4096, BASE).unwrap();
                let domain = table_domain(&bench, 1);
                (bench, device, domain)
            },
            |(bench, _, domain)| bench.attach(1, to(*domain, page_requests)),
            |(bench, device, _)| bench.reaches(*device, IOVA, 4096, 0),
            |(bench, device, _)| {
                bench.keeps_all_of(bench.kernel.page_table(*device), 1)
                    && bench.parents_of(LITTLE).len() == 1
            },
        );
    }
}

#[test]
fn an_attach_of_a_pasid_to_a_table_that_fails_anywhere_attaches_nothing() {
    let pasid = requester(1, Some(7));
    each_step_failing(
        || {
            let (bench, _) = with_little_memory();
            let domain = table_domain(&bench, 1);
            (bench, domain)
        },
        |(bench, domain)| {
            bench
                .host
                .attach(pasid, to(*domain, PageRequests::Reported))
        },
        |(bench, _)| bench.page_table(pasid).is_none(),
        |(bench, _)| {
            let hwpt = bench.page_table(pasid);
            hwpt.is_some_and(|hwpt| bench.keeps_all_of(hwpt, 1))
        },
    );
}

#[test]
fn an_attach_to_a_table_that_failed_leaves_nothing_behind() {
    let fail = crate::injection::FailNth::of_this_thread();
    for nth in 1.. {
        let (bench, _) = with_little_memory();
        let domain = table_domain(&bench, 1);
        let attach = || bench.attach(1, to(domain, PageRequests::Reported));
        let (_, injected) = fail.during(nth, attach);
        let Bench { host, kernel, .. } = bench;
        drop(host);
        assert!(kernel.is_clean(), "after step {nth}");
        if injected != Some(true) {
            break;
        }
    }
}

#[test]
fn an_invalidate_that_fails_anywhere_can_be_sent_again() {
    each_step_failing(
        || {
            let (bench, device) = with_little_memory();
            let domain = table_domain(&bench, 1);
            bench.attach(1, to(domain, PageRequests::Unwanted)).unwrap();
            (bench, device, domain)
        },
        |(bench, _, domain)| bench.host.invalidate(*domain, &[IovaRange::ALL]),
        |(bench, device, _)| bench.keeps_all_of(bench.kernel.page_table(*device), 1),
        |(bench, device, _)| bench.keeps_nothing_of(bench.kernel.page_table(*device)),
    );
}
