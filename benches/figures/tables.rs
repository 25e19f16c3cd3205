// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a table of the driver costs beside mappings: an access that hits, one that misses, and an INVALIDATE of nothing.
//!
//! An endpoint's PASID 1 is in a domain with 1,024 mappings of 4 KiB, PASID 2 in one with a table of four levels that has
//! the same pages.

use std::hint::black_box;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable};
use vhost_device_iommu::host::soft::{Access, Port, SoftHost, Transfer, default_properties};
use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::host::{Attachment, Host, PageRequests, Requester, Translations};
use vhost_device_iommu::spec::{
    DomainId, EndpointId, EventFlags, Gpa, Iova, MapFlags, Pasid, TableFormat,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Figure, median};

const PAGE: u64 = 4096;
/// Twice the slots of a cache: who goes round them all misses each.
const PAGES: u64 = 1024;
/// Where the tables are, behind the pages: a root, two levels, and two tables of pages.
const TABLES: u64 = PAGES * PAGE;
const MEMORY: u64 = TABLES + 16 * PAGE;
const ENDPOINT: EndpointId = EndpointId(0x28);
const MAPPINGS: u32 = 1;
const TABLE: u32 = 2;
/// Present, writable, of user mode, accessed, dirty.
const ENTRY: u64 = 0x67;

pub fn figures() -> Vec<Figure> {
    let host = host();
    vec![hit(&host), miss(&host), nothing_kept(&host)]
}

/// Each PASID is in the domain of its number.
fn host() -> SoftHost {
    let ranges = [(GuestAddress(0), MEMORY as usize)];
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
    let host = SoftHost::new().expect("host");
    host.add_endpoint(ENDPOINT, default_properties())
        .expect("endpoint");
    host.update_memory(&memory, &[], &[]).expect("memory");
    let mut mappings = MappingTable::new();
    for page in 0..PAGES {
        let first = page * PAGE;
        let mapping = Mapping {
            range: IovaRange::new(first, first + PAGE - 1).expect("range"),
            gpa: Gpa(first),
            flags: MapFlags::READ | MapFlags::WRITE,
        };
        mappings.insert(&mapping).expect("no overlap");
    }
    let root = write_table(&memory);
    let table = Table {
        format: TableFormat::X86_64,
        input_bits: 48,
        granule: 12,
        root: Gpa(root),
        attributes: 0,
    };
    for (number, by) in [
        (
            MAPPINGS,
            Translations::Mappings(Arc::new(RwLock::new(mappings))),
        ),
        (TABLE, Translations::Table(table)),
    ] {
        let domain = DomainId(number);
        host.create_domain(domain, by).expect("domain");
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: Some(Pasid(number)),
        };
        let to = Attachment::Domain {
            domain,
            page_requests: PageRequests::Unwanted,
        };
        host.attach(requester, to).expect("attach");
    }
    host
}

/// A table in which every page leads to its own address: where its root is.
fn write_table(memory: &GuestMemoryMmap) -> u64 {
    let store = |at: u64, entry: u64| {
        let stored = memory.write_obj(entry, GuestAddress(at));
        stored.expect("memory");
    };
    for level in 0..2 {
        store(TABLES + level * PAGE, (TABLES + (level + 1) * PAGE) | ENTRY);
    }
    let leaves = TABLES + 3 * PAGE;
    for table in 0..2 {
        store(
            TABLES + 2 * PAGE + table * 8,
            (leaves + table * PAGE) | ENTRY,
        );
    }
    for page in 0..PAGES {
        store(leaves + page * 8, (page * PAGE) | ENTRY);
    }
    TABLES
}

fn read(pasid: u32) -> Access {
    Access {
        pasid: Some(Pasid(pasid)),
        kinds: EventFlags::READ,
        translated: true,
    }
}

/// The middle time of one of `count` calls, in nanoseconds. Short runs: most of them are not interrupted.
fn time(count: u64, mut call: impl FnMut(u64)) -> f64 {
    let runs = (0..51).map(|_| {
        let begin = Instant::now();
        (0..count).for_each(&mut call);
        begin.elapsed().as_nanos() as f64 / count as f64
    });
    median(runs.collect())
}

fn read_line(port: &Port, pasid: u32, iova: u64) {
    let mut line = [0; 64];
    let mut transfer = Transfer::Read(&mut line);
    let moved = port.transfer(read(pasid), Iova(iova), &mut transfer, 0);
    assert_eq!(moved, Ok(64));
    black_box(&mut line);
}

fn hit(host: &SoftHost) -> Figure {
    let [table, mappings] = [TABLE, MAPPINGS].map(|pasid| {
        let port = host.port(ENDPOINT).expect("port");
        time(10_000, |index| read_line(&port, pasid, index % 64 * PAGE))
    });
    figure(
        "read of 64 bytes whose translation is in the cache, by a table of the driver",
        table,
        "by mappings",
        mappings,
        "<= 1.1 of it",
        1.1,
    )
}

fn miss(host: &SoftHost) -> Figure {
    let [table, mappings] = [TABLE, MAPPINGS].map(|pasid| {
        let port = host.port(ENDPOINT).expect("port");
        let before = port.counters().hits;
        let mut page = 0;
        let time = time(10_000, |_| {
            // The steps of a prime meet every page once.
            page = (page + 769) % PAGES;
            read_line(&port, pasid, page * PAGE);
        });
        assert_eq!(port.counters().hits, before, "every read misses");
        time
    });
    figure(
        "the same where it is not: a walk of four levels",
        table,
        "a look-up among 1,024 mappings",
        mappings,
        "<= 2 of it",
        2.0,
    )
}

fn nothing_kept(host: &SoftHost) -> Figure {
    // As many ports as the fault engine has engines; each was used.
    let ports: Vec<Port> = (0..8).map(|_| host.port(ENDPOINT).expect("port")).collect();
    for port in &ports {
        read_line(port, TABLE, 0);
    }
    let everything = IovaRange::ALL;
    let page = IovaRange::new(0, PAGE - 1).expect("range");
    let unmap = time(1000, |_| {
        host.unmap(DomainId(MAPPINGS), page, &[]).expect("unmap");
    });
    let invalidate = time(1000, |_| {
        host.invalidate(DomainId(TABLE), &[everything])
            .expect("invalidate");
    });
    figure(
        "INVALIDATE of everything with nothing kept, 8 engines",
        invalidate,
        "UNMAP of nothing",
        unmap,
        "<= 1 of it",
        1.0,
    )
}

fn figure(
    what: &str,
    ours: f64,
    other: &str,
    theirs: f64,
    goal: &'static str,
    at_most: f64,
) -> Figure {
    Figure {
        what: what.to_owned(),
        ours: format!("{ours:.0} ns"),
        beside: Some((format!("{other} {theirs:.0} ns"), ours / theirs)),
        goal,
        met: ours / theirs <= at_most,
    }
}
