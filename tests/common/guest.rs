// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with its front-end.

use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use zerocopy::FromBytes;

use vhost_device_iommu::spec::{Event, FAULT_REPORT_LEN, FaultReport};

use super::queue::{Layout, Segment, VirtQueue};
use super::ram::Ram;
use super::wait_until;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device's own feature bits.
pub const DEVICE_FEATURES: u64 = 0xff_ffff;

pub const REQUESTS: usize = 0;
pub const EVENTS: usize = 1;

const TAIL: usize = 4;
/// Room for a request's readable or writable part.
const HALF_SLOT: u64 = 2048;

/// What a guest has and accepts.
#[derive(Clone)]
pub struct GuestOptions {
    /// Of what is offered.
    pub features: u64,
    pub queue_size: u16,
    /// Guest-physical address and length of each region; the first has the rings.
    pub ram: Vec<(u64, u64)>,
    pub layout: Layout,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            features: u64::MAX,
            queue_size: 64,
            ram: vec![(0x1_0000, 32 << 20)],
            layout: Layout::Direct,
        }
    }
}

/// A guest.
pub struct Guest {
    pub frontend: Frontend,
    pub ram: Ram,
    pub queues: [VirtQueue; 2],
    /// What was accepted.
    pub features: u64,
    layout: Layout,
    slots: u64,
    event_buffers: Vec<(u16, u64, usize)>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The used length.
    pub written: u32,
    /// The writable part, which was filled with 0xee before.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The status in the tail. Panics when the used length is not the whole writable part.
    pub fn status(&self) -> u8 {
        assert_eq!(
            self.written as usize,
            self.bytes.len(),
            "the used length is the whole writable part"
        );
        let tail = &self.bytes[self.bytes.len() - TAIL..];
        assert_eq!(&tail[1..], [0; 3], "reserved bytes of the tail");
        tail[0]
    }

    /// Whether the buffer came back as it was.
    pub fn is_unwritten(&self) -> bool {
        self.written == 0 && self.bytes.iter().all(|&byte| byte == FILL)
    }
}

const FILL: u8 = 0xee;

impl Guest {
    /// Connects, waiting for the socket to be there, and starts the queues.
    pub fn connect(path: &Path, options: &GuestOptions) -> Self {
        let mut stream = None;
        wait_until("a listening socket", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        Self::on(stream.expect("a connection"), options)
    }

    /// Starts on a connected socket.
    pub fn on(stream: UnixStream, options: &GuestOptions) -> Self {
        let mut guest = Self::prepare(stream, options);
        guest.send_memory();
        guest.start([0, 0]);
        guest
    }

    /// What a front-end does at realize: features and owner. No memory, no queue.
    pub fn prepare(stream: UnixStream, options: &GuestOptions) -> Self {
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner().expect("SET_OWNER");
        let offered = frontend.get_features().expect("GET_FEATURES");
        let features = offered & (options.features | PROTOCOL_FEATURES);
        // The library wants the bit acknowledged before protocol features.
        let protocol = {
            frontend.set_features(features).expect("SET_FEATURES");
            frontend
                .get_protocol_features()
                .expect("GET_PROTOCOL_FEATURES")
        };
        frontend
            .set_protocol_features(
                protocol
                    & (VhostUserProtocolFeatures::CONFIG
                        | VhostUserProtocolFeatures::REPLY_ACK
                        | VhostUserProtocolFeatures::MQ
                        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                        | VhostUserProtocolFeatures::RESET_DEVICE),
            )
            .expect("SET_PROTOCOL_FEATURES");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let mut ram = Ram::new(&options.ram);
        let event_idx = features & EVENT_IDX != 0;
        let queues = [
            VirtQueue::new(&mut ram, options.queue_size, event_idx),
            VirtQueue::new(&mut ram, options.queue_size, event_idx),
        ];
        let slots = ram.allocate(2 * HALF_SLOT * u64::from(options.queue_size));
        Self {
            frontend,
            ram,
            queues,
            features,
            layout: options.layout,
            slots,
            event_buffers: Vec::new(),
        }
    }

    /// SET_MEM_TABLE with all regions.
    pub fn send_memory(&self) {
        self.frontend
            .set_mem_table(&self.ram.infos())
            .expect("SET_MEM_TABLE");
    }

    /// What a front-end does when the driver is ready: features, then both queues from their bases.
    pub fn start(&mut self, bases: [u16; 2]) {
        self.frontend
            .set_features(self.features)
            .expect("SET_FEATURES");
        for (index, base) in bases.into_iter().enumerate() {
            self.start_queue(index, base);
        }
    }

    /// Starts and enables a queue.
    pub fn start_queue(&mut self, index: usize, base: u16) {
        self.set_up_queue(index, base);
        self.frontend
            .set_vring_enable(index, true)
            .expect("SET_VRING_ENABLE");
    }

    /// Starts a queue, and does not enable it.
    pub fn set_up_queue(&mut self, index: usize, base: u16) {
        let queue = &self.queues[index];
        let frontend = &mut self.frontend;
        let config = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: self.ram.user_address(queue.descriptors),
            used_ring_addr: self.ram.user_address(queue.used),
            avail_ring_addr: self.ram.user_address(queue.available),
            log_addr: None,
        };
        frontend
            .set_vring_num(index, queue.size)
            .expect("SET_VRING_NUM");
        frontend
            .set_vring_base(index, base)
            .expect("SET_VRING_BASE");
        frontend
            .set_vring_addr(index, &config)
            .expect("SET_VRING_ADDR");
        frontend
            .set_vring_kick(index, &queue.kick)
            .expect("SET_VRING_KICK");
        frontend
            .set_vring_call(index, &queue.call)
            .expect("SET_VRING_CALL");
    }

    /// What a front-end does for a pause and for a reset alike. Returns the bases.
    pub fn stop(&mut self) -> [u16; 2] {
        [REQUESTS, EVENTS].map(|index| {
            self.frontend
                .set_vring_enable(index, false)
                .expect("SET_VRING_ENABLE");
            self.frontend.get_vring_base(index).expect("GET_VRING_BASE") as u16
        })
    }

    /// Starts a new driver: empty rings from 0.
    pub fn start_anew(&mut self) {
        for queue in &mut self.queues {
            queue.reset();
        }
        self.event_buffers.clear();
        self.start([0, 0]);
    }

    /// Reads the whole config space.
    pub fn config(&mut self) -> [u8; 40] {
        let (_, bytes) = self
            .frontend
            .get_config(0, 40, VhostUserConfigFlags::WRITABLE, &[0; 40])
            .expect("GET_CONFIG");
        bytes.try_into().expect("40 bytes")
    }

    /// Sends a request with the given device-readable part and room for `writable` bytes, and waits for it.
    pub fn send(&mut self, readable: &[u8], writable: usize) -> Answer {
        let queued = self.queue(readable, writable);
        self.queues[REQUESTS].submit();
        let (head, written) = self.queues[REQUESTS].wait();
        assert_eq!(head, queued.head, "one request at a time");
        self.collect(queued, written)
    }

    /// The status of a request.
    pub fn request(&mut self, readable: &[u8]) -> u8 {
        self.send(readable, TAIL).status()
    }

    /// Queues a request, for [`VirtQueue::submit`] later.
    pub fn queue(&mut self, readable: &[u8], writable: usize) -> Queued {
        let queue = &mut self.queues[REQUESTS];
        let slot = u64::from(queue.available_index % queue.size);
        let readable_at = self.slots + 2 * HALF_SLOT * slot;
        let writable_at = readable_at + HALF_SLOT;
        assert!(readable.len() as u64 <= HALF_SLOT && writable as u64 <= HALF_SLOT);
        self.ram.write(readable_at, readable);
        self.ram.write(writable_at, &vec![FILL; writable]);
        let mut segments = Vec::new();
        if !readable.is_empty() {
            segments.push(Segment::readable(readable_at, readable.len()));
        }
        if writable != 0 {
            segments.push(Segment::writable(writable_at, writable));
        }
        let head = queue.push(&segments, self.layout);
        Queued {
            head,
            writable_at,
            writable,
        }
    }

    /// What became of a queued request that is used by now.
    pub fn collect(&mut self, queued: Queued, written: u32) -> Answer {
        self.queues[REQUESTS].recycle(queued.head);
        Answer {
            written,
            bytes: self.ram.read_vec(queued.writable_at, queued.writable),
        }
    }

    /// Sends several requests as one batch; their statuses in order.
    pub fn batch(&mut self, requests: &[Vec<u8>]) -> Vec<u8> {
        let queued: Vec<_> = requests
            .iter()
            .map(|request| self.queue(request, TAIL))
            .collect();
        self.queues[REQUESTS].submit();
        let used = self.queues[REQUESTS].wait_all();
        queued
            .into_iter()
            .map(|queued| {
                let (_, written) = *used
                    .iter()
                    .find(|(head, _)| *head == queued.head)
                    .expect("every request is used");
                self.collect(queued, written).status()
            })
            .collect()
    }

    /// Gives the device `count` event buffers of `length` bytes. Kicks only if `kick` and the device wants it: Linux
    /// fills the queue without a kick.
    pub fn post_events(&mut self, count: usize, length: usize, kick: bool) {
        for _ in 0..count {
            let address = self.ram.allocate(length as u64);
            self.post_event_at(address, length);
        }
        self.queues[EVENTS].publish();
        if kick && self.queues[EVENTS].wants_kick() {
            self.queues[EVENTS].kick.write(1).expect("a kick");
        }
    }

    fn post_event_at(&mut self, address: u64, length: usize) {
        self.ram.write(address, &vec![FILL; length]);
        let head = self.queues[EVENTS].push(&[Segment::writable(address, length)], Layout::Direct);
        self.event_buffers.push((head, address, length));
    }

    /// The next event, if there is one: as many bytes as were written.
    pub fn poll_event(&mut self) -> Option<Vec<u8>> {
        let (head, written) = self.queues[EVENTS].poll()?;
        let position = self
            .event_buffers
            .iter()
            .position(|(known, ..)| *known == head)
            .expect("a buffer of ours");
        let (_, address, length) = self.event_buffers.remove(position);
        assert!(written as usize <= length);
        let bytes = self.ram.read_vec(address, written as usize);
        self.queues[EVENTS].recycle(head);
        Some(bytes)
    }

    /// Waits for the next event.
    pub fn event_bytes(&mut self) -> Vec<u8> {
        let mut event = None;
        wait_until("an event", || {
            event = self.poll_event();
            event.is_some()
        });
        event.expect("an event")
    }

    /// Waits for the next event, which is a page request.
    pub fn page_request(&mut self) -> Event {
        let bytes = self.event_bytes();
        Event::read_from_bytes(&bytes).expect("32 bytes")
    }

    /// Waits for the next event, which is a fault report.
    pub fn fault(&mut self) -> FaultReport {
        let bytes = self.event_bytes();
        assert_eq!(bytes.len(), FAULT_REPORT_LEN);
        FaultReport::read_from_bytes(&bytes).expect("24 bytes")
    }
}

/// A request in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Queued {
    pub head: u16,
    pub writable_at: u64,
    pub writable: usize,
}
