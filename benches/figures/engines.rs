// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses of software endpoints: what a translation costs, and how several engines share the machine.
//!
//! Each engine has a port, and copies 1 MiB from one range of 4 KiB mappings to another, 16 KiB at a time as the fault
//! engine does; the mappings go to pages all over memory. The plain copy moves the same bytes between the same pages.

use std::hint::black_box;
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::Instant;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable};
use vhost_device_iommu::host::soft::{Access, Port, SoftHost, Transfer, default_properties};
use vhost_device_iommu::host::{Attachment, Host, PageRequests, Requester, Translations};
use vhost_device_iommu::spec::{DomainId, EndpointId, EventFlags, Gpa, Iova, MapFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Figure, median};

const PAGE: u64 = 4096;
const COPY: u64 = 1 << 20;
const STEP: usize = 16 << 10;
const ENGINES: u64 = 4;
const DOMAIN: DomainId = DomainId(1);
const ENDPOINT: EndpointId = EndpointId(0x28);
const PAGES: u64 = ENGINES * 2 * COPY / PAGE;

pub fn figures() -> Vec<Figure> {
    let iommu = Iommu::new();
    let mut figures = vec![iommu.hit()];
    for threads in 1..=ENGINES as usize {
        figures.push(iommu.curve(threads, true));
    }
    for threads in 1..=ENGINES as usize {
        figures.push(iommu.curve(threads, false));
    }
    figures
}

/// Where a page of the mapped range goes: the steps of a prime meet every page once.
fn page_of(index: u64) -> u64 {
    index * 769 % PAGES * PAGE
}

struct Iommu {
    host: Arc<SoftHost>,
    memory: GuestMemoryMmap,
}

impl Iommu {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), (PAGES * PAGE) as usize)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
        let mut table = MappingTable::new();
        for index in 0..PAGES {
            let first = index * PAGE;
            let mapping = Mapping {
                range: IovaRange::new(first, first + PAGE - 1).expect("range"),
                gpa: Gpa(page_of(index)),
                flags: MapFlags::READ | MapFlags::WRITE,
            };
            table.insert(&mapping).expect("no overlap");
            memory
                .write_slice(&[index as u8; PAGE as usize], GuestAddress(first))
                .expect("memory");
        }
        let host = Arc::new(SoftHost::new().expect("host"));
        host.add_endpoint(ENDPOINT, default_properties())
            .expect("endpoint");
        host.update_memory(&memory, &[], &[]).expect("memory");
        host.create_domain(DOMAIN, Translations::Mappings(Arc::new(RwLock::new(table))))
            .expect("domain");
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: None,
        };
        let to = Attachment::Domain {
            domain: DOMAIN,
            page_requests: PageRequests::Unwanted,
        };
        host.attach(requester, to).expect("attach");
        Self { host, memory }
    }

    /// Bytes a second that engines copy together, each on a thread.
    fn curve(&self, threads: usize, translated: bool) -> Figure {
        let ours = rate(threads, |engine| {
            let port = self.host.port(ENDPOINT).expect("port");
            let mut buffer = vec![0; STEP];
            move || copy(&port, engine, translated, &mut buffer)
        });
        let memory = &self.memory;
        let plain = rate(threads, |engine| {
            let mut buffer = vec![0; STEP];
            move || copy_plain(memory, engine, &mut buffer)
        });
        let kind = if translated { "ATS on" } else { "ATS off" };
        let engines = if threads == 1 { "engine" } else { "engines" };
        Figure {
            what: format!(
                "1 MiB copies through 4 KiB mappings, {threads} {engines} at once, {kind}"
            ),
            ours: format!("{:.1} GB/s", ours / 1e9),
            beside: Some((format!("plain copy {:.1} GB/s", plain / 1e9), ours / plain)),
            goal: ">= 0.5 of the copy",
            met: ours >= plain / 2.0,
        }
    }

    /// What an access of 64 bytes costs that hits, beside the same bytes without a translation.
    fn hit(&self) -> Figure {
        // Short runs: most of them are not interrupted.
        const ACCESSES: u64 = 10_000;
        let port = self.host.port(ENDPOINT).expect("port");
        let mut line = [0; 64];
        let mut time = |access: &mut dyn FnMut(u64, &mut [u8])| {
            let runs = (0..51).map(|_| {
                let begin = Instant::now();
                for index in 0..ACCESSES {
                    access(index % 64, &mut line);
                    black_box(&mut line);
                }
                begin.elapsed().as_nanos() as f64 / ACCESSES as f64
            });
            median(runs.collect())
        };
        let ours = time(&mut |page, line| {
            let mut transfer = Transfer::Read(line);
            let moved = port.transfer(READ, Iova(page * PAGE), &mut transfer, 0);
            assert_eq!(moved, Ok(64));
        });
        let bare = time(&mut |page, line| {
            let at = GuestAddress(page_of(page));
            self.memory.read_slice(line, at).expect("memory");
        });
        Figure {
            what: "read of 64 bytes whose translation is in the cache".to_owned(),
            ours: format!("{ours:.0} ns"),
            beside: Some((format!("without translation {bare:.0} ns"), ours / bare)),
            goal: "<= 50 ns more",
            met: ours - bare <= 50.0,
        }
    }
}

const READ: Access = Access {
    pasid: None,
    kinds: EventFlags::READ,
    translated: true,
};

/// Bytes a second of so many threads together: the median of some runs.
fn rate<F: FnMut() + Send>(threads: usize, make: impl Fn(u64) -> F) -> f64 {
    const ROUNDS: u64 = 500;
    let runs = (0..5)
        .map(|_| {
            let barrier = Barrier::new(threads);
            let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
                let workers: Vec<_> = (0..threads as u64)
                    .map(|engine| {
                        let mut work = make(engine);
                        let barrier = &barrier;
                        scope.spawn(move || {
                            // Fills the cache.
                            work();
                            barrier.wait();
                            let begin = Instant::now();
                            for _ in 0..ROUNDS {
                                work();
                            }
                            (begin, Instant::now())
                        })
                    })
                    .collect();
                let times = workers.into_iter().map(|worker| worker.join());
                times.map(|time| time.expect("a worker")).collect()
            });
            // By the workers' own clocks: where they take all processors, another thread is late to look at its.
            let begin = times.iter().map(|time| time.0).min().expect("a worker");
            let end = times.iter().map(|time| time.1).max().expect("a worker");
            (threads as u64 * ROUNDS * COPY) as f64 / (end - begin).as_secs_f64()
        })
        .collect();
    median(runs)
}

/// The steps of an engine's copy: where from, and where to.
fn steps(engine: u64) -> impl Iterator<Item = (u64, u64)> {
    let from = engine * 2 * COPY;
    (0..COPY)
        .step_by(STEP)
        .map(move |at| (from + at, from + COPY + at))
}

fn copy(port: &Port, engine: u64, translated: bool, buffer: &mut [u8]) {
    let read = Access { translated, ..READ };
    let write = Access {
        kinds: EventFlags::WRITE,
        ..read
    };
    for (from, to) in steps(engine) {
        move_all(port, read, from, &mut Transfer::Read(buffer));
        move_all(port, write, to, &mut Transfer::Write(buffer));
    }
}

fn move_all(port: &Port, access: Access, iova: u64, transfer: &mut Transfer<'_>) {
    let mut done = 0;
    while done < STEP {
        let at = Iova(iova + done as u64);
        done += port.transfer(access, at, transfer, done).expect("mapped");
    }
}

fn copy_plain(memory: &GuestMemoryMmap, engine: u64, buffer: &mut [u8]) {
    for (from, to) in steps(engine) {
        for (index, part) in (0..).zip(buffer.chunks_exact_mut(PAGE as usize)) {
            let at = GuestAddress(page_of(from / PAGE + index));
            memory.read_slice(part, at).expect("memory");
        }
        for (index, part) in (0..).zip(buffer.chunks_exact(PAGE as usize)) {
            let at = GuestAddress(page_of(to / PAGE + index));
            memory.write_slice(part, at).expect("memory");
        }
    }
}
