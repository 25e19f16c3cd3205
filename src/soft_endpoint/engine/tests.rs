// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine through its registers, with a driver, a function and a device that are played by the test.

mod misuse;
mod page_requests;
mod tables;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, RwLock, mpsc};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::host::mapping::{IovaRange, Mapping, MappingTable, SharedMappings};
use crate::host::soft::default_properties;
use crate::host::{
    Answer, Attachment, Fault, Host, HostEvent, PageRequestGroup, PageRequests, Requester,
    Translations,
};
use crate::soft_endpoint::pri::{self, PageRequestInterface};
use crate::spec::{DomainId, EventFlags, Gpa, MapFlags, Pasid, Reason};

const RAM: u64 = 0x20_0000;
const DOMAIN: DomainId = DomainId(1);
const ENDPOINT: EndpointId = EndpointId(0x28);
/// Where descriptors and scatter lists are: mapped at the same address.
const CHAIN: u64 = 0x1000;
const LIST: u64 = 0x4000;
/// Guest memory for data.
const DATA: u64 = 0x10_0000;
const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);
const LONG: Duration = Duration::from_secs(20);

struct TestFunction {
    enabled: AtomicU32,
    page_requests: Arc<PageRequestInterface>,
    raised: Mutex<mpsc::Sender<u16>>,
}

impl Function for TestFunction {
    fn enabled(&self) -> Enabled {
        Enabled::from_bits_truncate(self.enabled.load(Ordering::Relaxed))
    }

    fn page_requests(&self) -> &Arc<PageRequestInterface> {
        &self.page_requests
    }

    fn raise(&self, vector: u16) {
        let _ = self.raised.lock().expect("raised").send(vector);
    }
}

/// An endpoint in a domain, everything enabled, with the first 64 KiB mapped at the same addresses.
struct Fixture {
    host: Arc<SoftHost>,
    memory: GuestMemoryMmap,
    table: SharedMappings,
    function: Arc<TestFunction>,
    interrupts: mpsc::Receiver<u16>,
    block: FaultEngine,
}

impl Fixture {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), RAM as usize)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
        let host = Arc::new(SoftHost::new().expect("host"));
        host.add_endpoint(ENDPOINT, default_properties())
            .expect("endpoint");
        host.update_memory(&memory, &[], &[]).expect("memory");
        let table = Arc::new(RwLock::new(MappingTable::default()));
        host.create_domain(DOMAIN, Translations::Mappings(Arc::clone(&table)))
            .expect("domain");
        let page_requests = Arc::new(PageRequestInterface::default());
        page_requests.set_allocation(128);
        page_requests.set_control(pri::Control::ENABLE);
        let (raised, interrupts) = mpsc::channel();
        let function = Arc::new(TestFunction {
            enabled: AtomicU32::new(Enabled::all().bits()),
            page_requests,
            raised: Mutex::new(raised),
        });
        let shared: Arc<dyn Function> = Arc::clone(&function) as _;
        let block = FaultEngine::new(&shared, &host, ENDPOINT).expect("engines");
        let fixture = Self {
            host,
            memory,
            table,
            function,
            interrupts,
            block,
        };
        fixture.attach(None, PageRequests::Reported);
        fixture.map(0, 0xffff, 0, RW);
        fixture
    }

    fn attach(&self, pasid: Option<u32>, page_requests: PageRequests) {
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: pasid.map(Pasid),
        };
        let to = Attachment::Domain {
            domain: DOMAIN,
            page_requests,
        };
        self.host.attach(requester, to).expect("attach");
    }

    fn map(&self, first: u64, last: u64, gpa: u64, flags: MapFlags) {
        let mapping = Mapping {
            range: IovaRange::new(first, last).expect("range"),
            gpa: Gpa(gpa),
            flags,
        };
        let mut table = self.table.write().expect("table");
        table.insert(&mapping).expect("no overlap");
        drop(table);
        self.host.map(DOMAIN, &mapping).expect("map");
    }

    fn unmap(&self, first: u64, last: u64) {
        let range = IovaRange::new(first, last).expect("range");
        let mut table = self.table.write().expect("table");
        table.remove(&range, |_| ()).expect("no split");
        drop(table);
        self.host.unmap(DOMAIN, range, &[]).expect("unmap");
    }

    fn disable(&self, what: Enabled) {
        self.function
            .enabled
            .fetch_and(!what.bits(), Ordering::Relaxed);
    }

    fn register(&self, engine: usize, register: u64) -> u32 {
        let mut data = [0; 4];
        self.block.read(at(engine, register), &mut data);
        u32::from_le_bytes(data)
    }

    fn register64(&self, engine: usize, register: u64) -> u64 {
        let mut data = [0; 8];
        self.block.read(at(engine, register), &mut data);
        u64::from_le_bytes(data)
    }

    fn set(&self, engine: usize, register: u64, value: u32) {
        self.block.write(at(engine, register), &value.to_le_bytes());
    }

    /// Puts a chain into memory, one descriptor behind the other from `address` on.
    fn store(&self, address: u64, chain: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(chain) {
            let mut descriptor = *descriptor;
            if index + 1 < chain.len() as u64 && descriptor.next.get() == 0 {
                descriptor.next = (address + (index + 1) * 64).into();
            }
            let at = GuestAddress(address + index * 64);
            self.memory
                .write_slice(descriptor.as_bytes(), at)
                .expect("chain");
        }
    }

    /// Starts an engine on the chain at an address; its number is its interrupt vector.
    fn start(&self, engine: usize, address: u64) {
        self.set(engine, engine::CONTROL, 2);
        self.set(engine, engine::VECTOR, engine as u32);
        self.block
            .write(at(engine, engine::HEAD), &address.to_le_bytes());
        self.set(engine, engine::DOORBELL, 1);
    }

    /// Waits for an interrupt: its vector.
    fn interrupt(&self) -> u16 {
        self.interrupts.recv_timeout(LONG).expect("an interrupt")
    }

    /// Runs a chain on the first engine to its end: what came of its last descriptor.
    fn run(&self, chain: &[Descriptor]) -> Completion {
        self.store(CHAIN, chain);
        self.start(0, CHAIN);
        self.interrupt();
        self.completion(CHAIN + 64 * (chain.len() as u64 - 1))
    }

    fn completion(&self, address: u64) -> Completion {
        let mut completion = Completion::new_zeroed();
        self.memory
            .read_slice(completion.as_mut_bytes(), GuestAddress(address + 40))
            .expect("completion");
        completion
    }

    fn outcome(&self, engine: usize) -> u32 {
        self.register(engine, engine::STATUS) >> 8
    }

    fn fill(&self, gpa: u64, length: usize, seed: u8) {
        self.memory
            .write_slice(&pattern(length, seed), GuestAddress(gpa))
            .expect("fill");
    }

    fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory
            .read_slice(&mut data, GuestAddress(gpa))
            .expect("bytes");
        data
    }

    fn events(&self) -> Vec<HostEvent> {
        let mut events = Vec::new();
        self.host.take_events(&mut |event| events.push(event));
        events
    }

    /// Waits for one group.
    fn group(&self) -> PageRequestGroup {
        let epoll = Epoll::new().expect("epoll");
        for fd in self.host.event_fds() {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
                .expect("epoll");
        }
        let timeout = LONG.as_millis() as i32;
        let count = epoll
            .wait(timeout, &mut [EpollEvent::default()])
            .expect("epoll");
        assert_eq!(count, 1, "no page request came");
        match self.events().as_slice() {
            [HostEvent::PageRequest(group)] => group.clone(),
            other => panic!("expected a group, got {other:?}"),
        }
    }

    fn answer(&self, group: &PageRequestGroup, answer: Answer) {
        self.host.respond(group.cookie, answer).expect("answer");
    }

    fn faults(&self) -> Vec<(Reason, u64)> {
        let events = self.events().into_iter();
        events
            .map(|event| match event {
                HostEvent::Fault(Fault {
                    reason, address, ..
                }) => (reason, address.expect("address").0),
                other => panic!("expected a fault, got {other:?}"),
            })
            .collect()
    }
}

fn at(engine: usize, register: u64) -> u64 {
    engine::FIRST + engine as u64 * engine::STRIDE + register
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| {
            (i as u8)
                .wrapping_mul(31)
                .wrapping_add((i >> 8) as u8)
                .wrapping_add(seed)
        })
        .collect()
}

fn descriptor(operation: Operation, flags: Flags, address: u64, length: u32) -> Descriptor {
    Descriptor {
        operation: operation as u8,
        flags: flags.bits().into(),
        address: address.into(),
        length: length.into(),
        ..Descriptor::new_zeroed()
    }
}

fn copy(flags: Flags, from: u64, to: u64, length: u32) -> Descriptor {
    Descriptor {
        other: to.into(),
        ..descriptor(Operation::Copy, flags, from, length)
    }
}

fn status(outcome: Outcome) -> u32 {
    outcome as u32
}

#[test]
fn the_identification_and_the_reset_values_are_as_documented() {
    let f = Fixture::new();
    let word = |offset| {
        let mut data = [0; 4];
        f.block.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(word(global::ID).to_le_bytes(), *b"FLTE");
    assert_eq!(word(global::VERSION), 1);
    assert_eq!(word(global::ENGINES), 8);
    assert_eq!(word(global::ENABLED), Enabled::all().bits());
    for engine in 0..registers::ENGINES {
        for register in (0..engine::STRIDE).step_by(4) {
            let reset = match register {
                engine::LIMIT => engine::LIMIT_RESET,
                _ => 0,
            };
            assert_eq!(
                f.register(engine, register),
                reset,
                "{engine} {register:#x}"
            );
        }
    }
    // Any width and alignment; nothing behind the last engine.
    let mut odd = [0xff; 5];
    f.block.read(1, &mut odd);
    assert_eq!(odd, *b"LTE\x01\0");
    assert_eq!(word(at(registers::ENGINES, 0)), 0);
    assert_eq!(word(u64::MAX - 7), 0);
}

#[test]
fn a_copy_moves_its_bytes_and_tells_by_memory_register_and_interrupt() {
    let f = Fixture::new();
    f.fill(DATA, 0x8000, 3);
    f.map(0x10_0000, 0x10_7fff, DATA, MapFlags::READ);
    f.map(0x20_0000, 0x20_7fff, DATA + 0x1_0000, MapFlags::WRITE);
    // Over pages, and off their ends.
    let done = f.run(&[copy(Flags::empty(), 0x10_0123, 0x20_0456, 0x7654)]);
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.done.get(), 0x7654);
    assert_eq!(
        f.bytes(DATA + 0x1_0456, 0x7654),
        f.bytes(DATA + 0x123, 0x7654)
    );
    assert_eq!(f.outcome(0), status(Outcome::Done));
    assert_eq!(f.register(0, engine::STATUS) & 0xff, 0);
    assert_eq!(f.register(0, engine::COMPLETED), 1);
    assert_eq!(f.register(0, engine::INTERRUPT), Cause::CHAIN.bits());
    f.set(0, engine::INTERRUPT, u32::MAX);
    assert_eq!(f.register(0, engine::INTERRUPT), 0);
    assert_eq!(f.events(), []);
}

#[test]
fn of_a_copy_that_fails_only_what_was_written_counts() {
    let f = Fixture::new();
    f.map(0x10_0000, 0x10_0fff, DATA, MapFlags::READ);
    f.map(0x20_0000, 0x20_07ff, DATA + 0x1000, MapFlags::WRITE);
    let target = f.run(&[copy(Flags::empty(), 0x10_0000, 0x20_0000, 0x1000)]);
    assert_eq!(target.status.get(), status(Outcome::Translation));
    assert_eq!(
        (target.done.get(), target.address.get()),
        (0x800, 0x20_0800)
    );
    let source = f.run(&[copy(Flags::empty(), 0x10_0800, 0x20_0000, 0x1000)]);
    assert_eq!(source.status.get(), status(Outcome::Translation));
    assert_eq!((source.done.get(), source.address.get()), (0, 0x10_1000));
}

#[test]
fn what_is_read_into_the_buffer_is_what_is_written_from_it() {
    let f = Fixture::new();
    f.fill(0x8000, 0x1000, 9);
    let read = Descriptor {
        other: 0x100.into(),
        ..descriptor(Operation::Read, Flags::empty(), 0x8000, 0x1000)
    };
    let write = Descriptor {
        other: 0x200.into(),
        ..descriptor(Operation::Write, Flags::empty(), 0xa000, 0x800)
    };
    let done = f.run(&[read, write]);
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(f.bytes(0xa000, 0x800), pattern(0x1000, 9)[0x100..0x900]);
    // A reset leaves nothing of it.
    f.set(0, engine::CONTROL, 1);
    assert_eq!(f.run(&[write]).status.get(), status(Outcome::Done));
    assert_eq!(f.bytes(0xa000, 0x800), vec![0; 0x800]);
}

#[test]
fn a_scatter_list_is_followed_in_order() {
    let f = Fixture::new();
    let mut list = Vec::new();
    for piece in 0..40u64 {
        let address = 0x8000 + (39 - piece) * 0x100;
        f.fill(address, 0x80, piece as u8);
        let piece = Piece {
            address: address.into(),
            length: 0x80.into(),
            reserved: 0.into(),
        };
        list.extend_from_slice(piece.as_bytes());
    }
    f.memory
        .write_slice(&list, GuestAddress(LIST))
        .expect("list");
    let gather = Descriptor {
        pieces: 40.into(),
        ..copy(Flags::empty(), LIST, 0xc000, 0)
    };
    let done = f.run(&[gather]);
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.done.get(), 40 * 0x80);
    for piece in 0..40 {
        let bytes = f.bytes(0xc000 + piece * 0x80, 0x80);
        assert_eq!(bytes, pattern(0x80, piece as u8));
    }
}

#[test]
fn a_descriptor_raises_its_interrupt_before_the_next_is_done() {
    let f = Fixture::new();
    let nop = descriptor(Operation::Nop, Flags::INTERRUPT, 0, 0);
    let last = descriptor(Operation::Nop, Flags::empty(), 0, 0);
    f.store(CHAIN, &[nop, last]);
    f.start(3, CHAIN);
    assert_eq!((f.interrupt(), f.interrupt()), (3, 3));
    let both = Cause::DESCRIPTOR | Cause::CHAIN;
    assert_eq!(f.register(3, engine::INTERRUPT), both.bits());
    assert_eq!(f.register(3, engine::COMPLETED), 2);
}

#[test]
fn engines_work_at_the_same_time() {
    let f = Fixture::new();
    for engine in 0..registers::ENGINES {
        let address = CHAIN + 0x200 * engine as u64;
        let (from, to) = (0x4000, 0x8000 + 0x400 * engine as u64);
        f.fill(from, 0x400, 1);
        f.store(address, &vec![copy(Flags::empty(), from, to, 0x400); 8]);
    }
    for engine in 0..registers::ENGINES {
        f.start(engine, CHAIN + 0x200 * engine as u64);
    }
    let mut vectors: Vec<u16> = (0..registers::ENGINES).map(|_| f.interrupt()).collect();
    vectors.sort_unstable();
    assert_eq!(vectors, [0, 1, 2, 3, 4, 5, 6, 7]);
    for engine in 0..registers::ENGINES {
        assert_eq!(f.outcome(engine), status(Outcome::Done));
        let to = 0x8000 + 0x400 * engine as u64;
        assert_eq!(f.bytes(to, 0x400), pattern(0x400, 1));
    }
}

#[test]
fn with_ats_translations_are_kept_and_without_they_are_not() {
    let f = Fixture::new();
    let twice = [copy(Flags::empty(), 0x8000, 0x9000, 16); 2];
    f.disable(Enabled::ATS);
    f.run(&twice);
    assert_eq!(f.register(0, engine::CACHED), 0);
    assert_eq!(f.register(0, engine::HITS), 0);
    f.function
        .enabled
        .store(Enabled::all().bits(), Ordering::Relaxed);
    f.run(&[copy(Flags::UNTRANSLATED, 0x8000, 0x9000, 16)]);
    // The descriptor alone.
    assert_eq!(f.register(0, engine::CACHED), 1);
    f.run(&twice);
    assert_eq!(f.register(0, engine::CACHED), 3);
    let hits = f.register(0, engine::HITS);
    assert!(hits >= 2, "{hits}");
    f.disable(Enabled::ATS);
    f.run(&twice);
    assert_eq!(f.register(0, engine::CACHED), 0);
    assert_eq!(f.register(0, engine::HITS), hits);
    f.function
        .enabled
        .store(Enabled::all().bits(), Ordering::Relaxed);
    f.run(&twice);
    f.unmap(0, 0xffff);
    assert_eq!(f.register(0, engine::CACHED), 0);
    assert_eq!(f.register(0, engine::INVALIDATED), 3);
}

#[test]
fn a_translation_request_fills_the_cache_and_is_no_fault_where_there_is_none() {
    let f = Fixture::new();
    let flags = Flags::FOR_READ | Flags::FOR_WRITE;
    let done = f.run(&[descriptor(Operation::Translate, flags, 0x8000, 0x3000)]);
    assert_eq!(done.status.get(), status(Outcome::Done));
    assert_eq!(done.done.get(), 3);
    assert_eq!(f.register(0, engine::CACHED), 4);
    let none = f.run(&[descriptor(Operation::Translate, flags, 0xf000, 0x2000)]);
    assert_eq!(none.status.get(), status(Outcome::Translation));
    assert_eq!(none.address.get(), 0x1_0000);
    assert_eq!(f.events(), []);
    f.run(&[descriptor(Operation::Flush, Flags::empty(), 0, 0)]);
    // What wrote the completion is back.
    assert_eq!(f.register(0, engine::CACHED), 1);
    f.disable(Enabled::ATS);
    let off = f.run(&[descriptor(Operation::Translate, flags, 0x8000, 1)]);
    assert_eq!(off.status.get(), status(Outcome::AtsDisabled));
}

#[test]
fn the_picture_shows_registers_requests_and_the_cache() {
    let f = Fixture::new();
    f.run(&[copy(Flags::empty(), 0x8000, 0x9000, 16)]);
    let picture = f.block.describe();
    let engines = picture["engines"].as_array().expect("engines");
    assert_eq!(engines.len(), registers::ENGINES);
    let (first, second) = (&engines[0], &engines[1]);
    assert_eq!(first["state"], "idle");
    assert_eq!(first["outcome"], "done");
    assert_eq!(first["completed"], 1);
    assert_eq!(first["head"], CHAIN);
    // The chain, the source, the target.
    assert_eq!(first["cache"]["translations"], 3);
    assert_eq!(first["cache"]["first"][0]["domain"], DOMAIN.0);
    assert!(second["outcome"].is_null());
    assert_eq!(second["page-requests"]["groups"], 0);
}
