// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes in any ring: queue parsing, the device and the software host, without sockets and threads.
//!
//! The input is a set-up and a series of actions; see [`ring`]. `fuzz/` has the libFuzzer target, and
//! `fuzz/seeds/` inputs that come far, which the unit tests run as well.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::{Device, DeviceConfig};
use crate::fuzzing::Input;
use crate::host::soft::{SoftHost, Transfer, default_properties};
use crate::host::{PageRequest, Requester};
use crate::spec::{DomainId, EndpointId, EventFlags, Features, Iova, Pasid};
use crate::transport::MAX_QUEUE_SIZE;
use crate::transport::batch::DeviceBatch;
use crate::transport::event_queue::EventRing;
use crate::transport::polling::Polling;
use crate::transport::request_worker::Service;
use crate::transport::ring::Ring;

/// Two adjacent regions.
const REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0xc000), (GuestAddress(0xc000), 0x4000)];

/// The endpoints that there are.
const ENDPOINTS: [EndpointId; 2] = [EndpointId(1), EndpointId(2)];

/// The quota of mappings.
const MAX_MAPPINGS: usize = 100;

/// The most actions of one input.
const MAX_ACTIONS: usize = 64;

/// Runs one input.
///
/// It begins with a byte of flags (1: EVENT_IDX, 2: no PAGE_REQUEST, 4: no PASID, 8: boot in bypass), then for both
/// queues the logarithm of the size, and where the table and the rings are (3 × u16). Actions follow, a byte each:
/// 0 writes memory (u16 address, u8 length, bytes), 1 serves requests, 2 serves events, 3 raises a fault (u8
/// requester, u16 address), 4 raises a page request group (u8 requester, u16 address, u8 pages), 5 suspends, 6
/// resumes, 7 resets, 8 changes bypass.
pub fn ring(input: &[u8]) {
    // An input that ends early is complete.
    let _ = run(&mut Input(input));
}

impl Input<'_> {
    fn queue(&mut self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(MAX_QUEUE_SIZE as u16).ok()?;
        queue.set_size(1 << (self.u8()? % 11));
        let mut address = || self.u16().map(|address| GuestAddress(u64::from(address)));
        queue.try_set_desc_table_address(address()?).ok()?;
        queue.try_set_avail_ring_address(address()?).ok()?;
        queue.try_set_used_ring_address(address()?).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }

    fn requester(&mut self) -> Option<Requester> {
        let byte = self.u8()?;
        Some(Requester {
            endpoint: EndpointId(u32::from(byte % 4)),
            pasid: (byte & 0x80 != 0).then_some(Pasid(u32::from(byte >> 4 & 7))),
        })
    }
}

/// What an input works on.
struct Run {
    memory: GuestMemoryMmap,
    host: Arc<SoftHost>,
    device: Device,
    requests: Queue,
    events: Queue,
    now: Instant,
}

/// The number of requests that succeeded; `None` when the set-up is none.
fn run(input: &mut Input<'_>) -> Option<u64> {
    let mut run = Run::new(input)?;
    for _ in 0..MAX_ACTIONS {
        if run.act(input).is_none() {
            break;
        }
        check(&run.device);
    }
    run.device.disconnect();
    let status = run.device.status();
    assert!(status.domains.is_empty(), "nothing survives a disconnect");
    let counters = run.device.counters();
    let unhappy = counters.requests_failed.get() + counters.requests_unwritten.get();
    Some(counters.requests.get() - unhappy)
}

impl Run {
    fn new(input: &mut Input<'_>) -> Option<Self> {
        let flags = input.u8()?;
        let requests = input.queue(flags & 1 != 0)?;
        let events = input.queue(flags & 1 != 0)?;
        let memory = GuestMemoryMmap::from_ranges(&REGIONS).ok()?;
        let host = Arc::new(SoftHost::new().ok()?);
        for endpoint in ENDPOINTS {
            host.add_endpoint(endpoint, default_properties()).ok()?;
        }
        let config = DeviceConfig {
            boot_bypass: flags & 8 != 0,
            max_mappings: MAX_MAPPINGS,
            max_domains: 8,
            max_page_requests: 16,
            page_response_timeout: Some(Duration::from_secs(1)),
            ..DeviceConfig::default()
        };
        let device = Device::new(config, Arc::clone(&host) as _, &ENDPOINTS).ok()?;
        device.update_memory(&memory, &[], &[]).ok()?;
        let mut features = Features::all();
        features.set(Features::PAGE_REQUEST, flags & 2 == 0);
        features.set(Features::PASID, flags & 4 == 0);
        device.connect();
        device.negotiate(features.bits());
        Some(Self {
            memory,
            host,
            device,
            requests,
            events,
            now: Instant::now(),
        })
    }

    /// `None` when the input has no more.
    fn act(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.u8()? % 9 {
            0 => {
                let address = GuestAddress(u64::from(input.u16()?));
                let length = input.u8()?;
                // What goes beyond the end is not written.
                let _ = self
                    .memory
                    .write(input.bytes(usize::from(length))?, address);
            }
            1 => serve_requests(&self.device, &self.memory, &mut self.requests),
            2 => {
                self.now += Duration::from_millis(100);
                serve_events(&self.device, &self.memory, &mut self.events, self.now);
            }
            3 => {
                let requester = input.requester()?;
                let address = Iova(u64::from(input.u16()?));
                let mut bytes = [0; 16];
                let transfer = Transfer::Read(&mut bytes);
                let Ok(port) = self.host.port(requester.endpoint) else {
                    return Some(());
                };
                // Polled once: it may wait for an answer that nobody gives.
                let access = pin!(port.access(requester.pasid, address, transfer));
                let _ = access.poll(&mut Context::from_waker(Waker::noop()));
            }
            4 => {
                let requester = input.requester()?;
                let address = u64::from(input.u16()?);
                let pages = (0..u64::from(input.u8()? % 32)).map(|page| PageRequest {
                    address: Iova(address + 0x1000 * page),
                    access: EventFlags::READ,
                    length: 0,
                });
                if let Ok(port) = self.host.port(requester.endpoint) {
                    // An unknown PASID is refused.
                    let _ = port.page_request(requester.pasid, pages.collect());
                }
            }
            5 => self.device.suspend(self.now),
            6 => self.device.resume(self.now),
            7 => self.device.reset(),
            _ => self.device.write_config(36, &[input.u8()? % 3]),
        }
        Some(())
    }
}

fn serve_requests(device: &Device, memory: &GuestMemoryMmap, queue: &mut Queue) {
    let Ok(mut ring) = Ring::new(memory, queue) else {
        return;
    };
    let mut held = Vec::new();
    let mut polling = Polling::new(Duration::ZERO);
    let mut service = Service {
        held: &mut held,
        polling: &mut polling,
        notify: || {},
        // Rings may lie over each other, and what is written to one be available in the other, for ever.
        interrupted: || true,
    };
    service.run(&mut ring, || DeviceBatch::new(device), || {});
    assert!(held.is_empty(), "every request is answered");
    ring.saved().restore(queue);
}

fn serve_events(device: &Device, memory: &GuestMemoryMmap, queue: &mut Queue, now: Instant) {
    let Ok(mut ring) = Ring::new(memory, queue) else {
        device.service_events(None, now);
        return;
    };
    let mut events = EventRing::new(&mut ring);
    device.service_events(Some(&mut events), now);
    let seen = events.pending();
    ring.wants_interrupt();
    // What is wrong is found out again.
    let _ = ring.enable_kicks(seen);
    ring.saved().restore(queue);
}

/// What holds whatever the guest does.
fn check(device: &Device) {
    let mut total = 0;
    for domain in device.status().domains {
        let mappings = device.mappings(DomainId(domain.id)).unwrap_or_default();
        total += mappings.len();
        assert!(
            mappings
                .windows(2)
                .all(|pair| matches!(pair, [one, next] if one.last < next.iova)),
            "mappings do not overlap"
        );
    }
    assert!(total <= MAX_MAPPINGS, "quotas hold");
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Input, run};

    fn seeds() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/ring")
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads files")]
    fn the_seeds_of_the_fuzzer_run() {
        for entry in std::fs::read_dir(seeds()).expect("fuzz/seeds/ring") {
            let path = entry.expect("an entry").path();
            let seed = std::fs::read(&path).expect("a seed");
            // All but the PAGE_RESPONSE, or more.
            let succeeded = run(&mut Input(&seed)).expect("a set-up");
            assert!(succeeded >= 5, "{path:?}: {succeeded} requests succeeded");
        }
    }

    const TABLE: u16 = 0x1000;
    const AVAILABLE: u16 = 0x2000;
    const USED: u16 = 0x3000;
    const BUFFERS: u16 = 0x4000;
    /// Where the driver's table is.
    const ROOT: u16 = 0x6000;
    /// The event queue's parts are this much further on.
    const EVENTS: u16 = 0x800;

    struct Seed(Vec<u8>);

    impl Seed {
        fn new(flags: u8) -> Self {
            let mut seed = Self(vec![flags]);
            for further in [0, EVENTS] {
                seed.0.push(6);
                for address in [TABLE, AVAILABLE, USED] {
                    seed.0.extend((address + further).to_le_bytes());
                }
            }
            seed
        }

        fn write(&mut self, address: u16, bytes: &[u8]) {
            self.0.push(0);
            self.0.extend(address.to_le_bytes());
            self.0.push(bytes.len() as u8);
            self.0.extend(bytes);
        }

        fn descriptor(
            &mut self,
            table: u16,
            index: u16,
            address: u16,
            length: u32,
            rest: [u16; 2],
        ) {
            let mut bytes = u64::from(address).to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(rest.iter().flat_map(|word| word.to_le_bytes()));
            self.write(table + 16 * index, &bytes);
        }

        /// Request `index`, through its own two descriptors or a table.
        fn request(&mut self, index: u16, request: &[u8], writable: u32, indirect: bool) {
            let buffer = BUFFERS + 0x200 * index;
            self.write(buffer, request);
            let (table, first) = if indirect {
                self.descriptor(TABLE, 2 * index, buffer + 0x100, 32, [4, 0]);
                (buffer + 0x100, 0)
            } else {
                (TABLE, 2 * index)
            };
            let length = request.len() as u32;
            self.descriptor(table, first, buffer, length, [1, first + 1]);
            self.descriptor(table, first + 1, buffer + 0x180, writable, [2, 0]);
            self.write(AVAILABLE + 4 + 2 * index, &(2 * index).to_le_bytes());
            self.write(AVAILABLE + 2, &(index + 1).to_le_bytes());
        }

        fn event_buffers(&mut self, count: u16, length: u32) {
            for index in 0..count {
                let buffer = 0xc000 - 0x10 + 0x40 * index;
                self.descriptor(TABLE + EVENTS, index, buffer, length, [2, 0]);
                self.write(AVAILABLE + EVENTS + 4 + 2 * index, &index.to_le_bytes());
            }
            self.write(AVAILABLE + EVENTS + 2, &count.to_le_bytes());
        }
    }

    /// ATTACH_TABLE to domain 2.
    fn attach_table(flags: u32, pasid: u32) -> Vec<u8> {
        let (format, input_bits, granule) = (0x10, 48, 12);
        let shape = format | input_bits << 16 | granule << 24;
        let mut request = words(6, &[2, 1, flags, pasid, shape, u32::from(ROOT)]);
        request.resize(60, 0);
        request
    }

    /// INVALIDATE of a page in domain 2.
    fn invalidate() -> Vec<u8> {
        words(7, &[2, 0x9000, 0, 0x9fff, 0, 0])
    }

    /// Page requests through a table of the driver, whose entries change.
    fn seed_with_a_table(flags: u8, indirect: bool) -> Vec<u8> {
        let mut seed = Seed::new(flags);
        seed.event_buffers(6, 32);
        // The entry of each level; address 0x8000 leads to 0xa000.
        for (table, entry) in [
            (ROOT, ROOT + 0x1007),
            (ROOT + 0x1000, ROOT + 0x2007),
            (ROOT + 0x2000, ROOT + 0x3007),
            (ROOT + 0x3040, 0xa007),
        ] {
            seed.write(table, &u64::from(entry).to_le_bytes());
        }
        let access = [3, 0x81 | 3 << 4];
        seed.request(0, &attach_table(4 | 2, 3), 4, indirect);
        seed.request(1, &attach_table(0, 0), 4, indirect);
        seed.0.push(1);
        seed.0.extend(access);
        seed.0.extend(0x8000_u16.to_le_bytes());
        // One that is missing, until the driver answers.
        seed.0.extend(access);
        seed.0.extend(0x9000_u16.to_le_bytes());
        seed.0.push(2);
        seed.write(ROOT + 0x3048, &0xb007_u64.to_le_bytes());
        seed.request(2, &words(8, &[1, 1, 3, 0, 0, 0]), 4, indirect);
        seed.0.push(1);
        seed.0.extend(access);
        seed.0.extend(0x9000_u16.to_le_bytes());
        seed.write(ROOT + 0x3048, &[0; 8]);
        seed.request(3, &invalidate(), 4, indirect);
        seed.request(4, &words(2, &[2, 1, 3, 4]), 4, indirect);
        seed.request(5, &words(7, &[2, 0, 0, u32::MAX, u32::MAX, 0]), 4, indirect);
        seed.0.extend([1, 7]);
        seed.0
    }

    fn words(kind: u8, words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    /// Makes the seeds anew: `cargo test --lib make_the_seeds -- --ignored`.
    #[test]
    #[ignore = "writes to fuzz/seeds"]
    fn make_the_seeds() {
        let map = words(3, &[1, 0x1000, 0, 0x1fff, 0, 0x5000, 0, 3]);
        let unmap = words(4, &[1, 0x1000, 0, 0x1fff, 0, 0]);
        let mut probe = words(5, &[1]);
        probe.resize(72, 0);
        std::fs::create_dir_all(seeds()).expect("a directory");
        for flags in 0..16 {
            for indirect in [false, true] {
                let mut seed = Seed::new(flags);
                let page_request = if flags & 2 == 0 { 2 } else { 0 };
                seed.event_buffers(6, if flags & 8 == 0 { 32 } else { 24 });
                seed.request(0, &words(1, &[1, 1, page_request, 0]), 4, indirect);
                seed.request(1, &map, 4, indirect);
                seed.0.push(1);
                seed.request(2, &probe, 516, indirect);
                // A fault, a group of pages.
                seed.0.extend([3, 1, 0, 0x80, 2, 4, 1, 0, 0x90, 3, 2]);
                seed.request(3, &words(8, &[1, 0, 0, 0, 0, 0]), 4, indirect);
                seed.request(4, &unmap, 4, indirect);
                seed.request(5, &words(2, &[1, 1, 0, 0]), 4, indirect);
                seed.0.extend([1, 2, 5, 6, 8, 1, 7]);
                let name = format!(
                    "{flags:02}-{}",
                    if indirect { "indirect" } else { "direct" }
                );
                std::fs::write(seeds().join(name), &seed.0).expect("a seed");
            }
        }
        for (flags, name) in [(0, "table-direct"), (1, "table-indirect")] {
            let seed = seed_with_a_table(flags, flags == 1);
            std::fs::write(seeds().join(name), seed).expect("a seed");
        }
    }
}
