// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process without its front-end, and clients of its control socket. The test plays the guest's driver.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vhost_device_iommu::control::metrics::Label;
use vhost_device_iommu::control::{Context, Control};
use vhost_device_iommu::device::events::{Buffers, EventQueue};
use vhost_device_iommu::device::{Device, DeviceConfig, Reply};
use vhost_device_iommu::endpoints::Endpoints;
use vhost_device_iommu::endpoints::host::AnyHost;
use vhost_device_iommu::host::MemoryRegion;
use vhost_device_iommu::host::soft::SoftHost;
use vhost_device_iommu::spec::{Gpa, Status};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The endpoint that there is.
pub const ENDPOINT: u32 = 0x28;

/// A process without its front-end: the device, its host, the control socket.
pub struct Daemon {
    pub device: Arc<Device>,
    pub host: Arc<SoftHost>,
    pub memory: GuestMemoryMmap,
    pub path: std::path::PathBuf,
    stop: EventFd,
    control: Option<Control>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    pub fn new() -> Self {
        Self::with_labels(&[])
    }

    /// One whose samples have labels.
    pub fn with_labels(labels: &[Label]) -> Self {
        let host = Arc::new(SoftHost::new().expect("host"));
        let endpoint = (format!("{ENDPOINT}").parse().expect("endpoint"), None);
        let endpoints = Endpoints::new(
            AnyHost::Soft(Arc::clone(&host), Arc::default()),
            DeviceConfig::default(),
            [endpoint],
        )
        .expect("endpoints");
        let endpoints = Arc::new(endpoints);
        let device = Arc::clone(endpoints.device());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let region = MemoryRegion {
            gpa: Gpa(0),
            length: 1 << 20,
            user_address: 0,
            file: None,
        };
        device.connect();
        device.negotiate(u64::MAX);
        device
            .update_memory(&memory, &[], &[region])
            .expect("memory");
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).expect("bind");
        let stop = EventFd::new(0).expect("eventfd");
        let context = Context {
            endpoints,
            reattach: Arc::default(),
            labels: labels.into(),
        };
        let control = Control::start(listener, context, &stop).expect("start");
        Self {
            device,
            host,
            memory,
            path,
            stop,
            control: Some(control),
            _directory: directory,
        }
    }

    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("timeout");
        Client(BufReader::new(stream))
    }

    pub fn request(&self, readable: &[u8]) -> Status {
        let mut requests = self.device.requests().timed(Instant::now);
        let step = requests.execute(readable, readable.len(), 4);
        requests.finish();
        match step.reply {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// ATTACH with PAGE_REQUEST.
    pub fn attach(&self, domain: u32) {
        let mut bytes = vec![1, 0, 0, 0];
        for field in [domain, ENDPOINT, 2, 0] {
            bytes.extend(field.to_le_bytes());
        }
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    pub fn map(&self, domain: u32, iova: u64, last: u64, gpa: u64, flags: u32) {
        let mut bytes = vec![3, 0, 0, 0];
        bytes.extend(domain.to_le_bytes());
        for field in [iova, last, gpa] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(flags.to_le_bytes());
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    pub fn unmap(&self, domain: u32, iova: u64, last: u64) {
        let mut bytes = vec![4, 0, 0, 0];
        bytes.extend(domain.to_le_bytes());
        for field in [iova, last] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend([0; 4]);
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    pub fn respond(&self, group: u16, code: u16) {
        let mut bytes = vec![8, 0, 0, 0];
        for field in [ENDPOINT, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(group.to_le_bytes());
        bytes.extend(code.to_le_bytes());
        bytes.extend([0; 8]);
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    /// Serves the event queue until `count` groups were reported; their numbers.
    pub fn groups(&self, count: usize) -> Vec<u16> {
        let mut queue = Events(Vec::new());
        let deadline = Instant::now() + Duration::from_secs(20);
        while queue.0.len() < count {
            self.device.service_events(Some(&mut queue), Instant::now());
            assert!(Instant::now() < deadline, "the groups never came");
            std::thread::yield_now();
        }
        let group = |event: &Vec<u8>| u16::from_le_bytes([event[24], event[25]]);
        queue.0.iter().map(group).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.write(1).expect("stop");
        if let Some(control) = self.control.take() {
            control.join();
        }
    }
}

/// An event queue with a buffer for everything.
struct Events(Vec<Vec<u8>>);

impl EventQueue for Events {
    fn size(&self) -> usize {
        1024
    }

    fn peek(&mut self, _count: usize, _min_len: usize) -> Buffers {
        Buffers::Enough
    }

    fn push(&mut self, event: &[u8]) {
        self.0.push(event.to_vec());
    }

    fn discard(&mut self) {}
}

/// A client of the control socket.
pub struct Client(pub BufReader<UnixStream>);

impl Client {
    pub fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("send");
    }

    pub fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    pub fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.send(&format!(
            "{}\n",
            json!({"execute": name, "arguments": arguments})
        ));
        self.receive()
    }

    pub fn class(&mut self, name: &str, arguments: Value) -> String {
        let answer = self.call(name, arguments);
        answer["error"]["class"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} succeeded: {answer}"))
            .to_owned()
    }
}
