// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket over a real device and software host; the test plays the driver.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use vhost_device_iommu::control::{Context, Control};
use vhost_device_iommu::device::events::{Buffers, EventQueue};
use vhost_device_iommu::device::{Device, DeviceConfig, Reply};
use vhost_device_iommu::endpoints::Endpoints;
use vhost_device_iommu::endpoints::host::AnyHost;
use vhost_device_iommu::host::soft::SoftHost;
use vhost_device_iommu::host::{Host, MemoryRegion};
use vhost_device_iommu::spec::{EndpointId, Gpa, Status};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const ENDPOINT: u32 = 0x28;

/// A process without its front-end: the device, its host, the control socket.
struct Daemon {
    device: Arc<Device>,
    host: Arc<SoftHost>,
    memory: GuestMemoryMmap,
    path: std::path::PathBuf,
    stop: EventFd,
    control: Option<Control>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Self {
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
        let context = Context { endpoints };
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

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("timeout");
        Client(BufReader::new(stream))
    }

    fn request(&self, readable: &[u8]) -> Status {
        let mut requests = self.device.requests();
        let step = requests.execute(readable, readable.len(), 4);
        requests.finish();
        match step.reply {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// ATTACH with PAGE_REQUEST.
    fn attach(&self, domain: u32) {
        let mut bytes = vec![1, 0, 0, 0];
        for field in [domain, ENDPOINT, 2, 0] {
            bytes.extend(field.to_le_bytes());
        }
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    fn map(&self, domain: u32, iova: u64, last: u64, gpa: u64, flags: u32) {
        let mut bytes = vec![3, 0, 0, 0];
        bytes.extend(domain.to_le_bytes());
        for field in [iova, last, gpa] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(flags.to_le_bytes());
        assert_eq!(self.request(&bytes), Status::Ok);
    }

    fn respond(&self, group: u16, code: u16) {
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
    fn groups(&self, count: usize) -> Vec<u16> {
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

struct Client(BufReader<UnixStream>);

impl Client {
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("send");
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.send(&format!(
            "{}\n",
            json!({"execute": name, "arguments": arguments})
        ));
        self.receive()
    }

    fn class(&mut self, name: &str, arguments: Value) -> String {
        let answer = self.call(name, arguments);
        answer["error"]["class"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} succeeded: {answer}"))
            .to_owned()
    }
}

#[test]
fn status_shows_endpoints_and_domains() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let status = client.call("status", json!({}));
    assert_eq!(
        status["return"]["endpoints"],
        json!([{"id": 40, "state": "bypass", "domain": null, "pasids": [], "page_requests": false}])
    );
    daemon.attach(1);
    daemon.map(1, 0x1000, 0x2fff, 0x5000, 3);
    let status = client.call("status", json!({}));
    assert_eq!(status["return"]["endpoints"][0]["domain"], 1);
    assert_eq!(
        status["return"]["domains"],
        json!([{"id": 1, "kind": "paging", "endpoints": [40], "mappings": 1, "bytes": 8192}])
    );
    assert_eq!(
        client.call("mappings", json!({"domain": 1}))["return"],
        json!([{"iova": 4096, "last": 12287, "gpa": 20480, "flags": "rw"}])
    );
    assert_eq!(
        client.class("mappings", json!({"domain": 2})),
        "InvalidArgument"
    );
}

#[test]
fn counters_are_one_flat_object_or_prometheus_text() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    let counters = client.call("counters", json!({}));
    assert_eq!(counters["return"]["attach"], 1);
    let counters = client.call("counters", json!({"format": "prometheus"}));
    let text = counters["return"]["text"].as_str().expect("text");
    assert!(text.contains("\nvhost_device_iommu_attach_total 1\n"));
    assert!(text.contains("# TYPE vhost_device_iommu_attach_total counter\n"));
}

#[test]
fn accesses_go_through_the_mappings() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    daemon.map(1, 0x1000, 0x1fff, 0x5000, 3);
    daemon.map(1, 0x2000, 0x2fff, 0x6000, 1);
    let write = json!({"endpoint": "00:05.0", "iova": 0x1004, "data": "00ff10"});
    assert_eq!(client.call("dma-write", write), json!({"return": {}}));
    let bytes: [u8; 3] = daemon
        .memory
        .read_obj(GuestAddress(0x5004))
        .expect("memory");
    assert_eq!(bytes, [0x00, 0xff, 0x10]);
    let read = json!({"endpoint": 40, "iova": 0x1003, "length": 4});
    assert_eq!(
        client.call("dma-read", read),
        json!({"return": {"data": "0000ff10"}})
    );
    let nothing = json!({"endpoint": 40, "iova": 0x1003, "length": 0});
    assert_eq!(
        client.call("dma-read", nothing),
        json!({"return": {"data": ""}})
    );
}

#[test]
fn failed_accesses_say_why() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let read = |iova: u64, length: u64| json!({"endpoint": 40, "iova": iova, "length": length});
    // Bypass, beyond memory.
    assert_eq!(
        client.class("dma-read", read(1 << 20, 1)),
        "TranslationFault"
    );
    assert_eq!(
        client.class("dma-read", read(u64::MAX, 2)),
        "InvalidArgument"
    );
    let unknown = json!({"endpoint": 41, "iova": 0, "length": 1});
    assert_eq!(client.class("dma-read", unknown), "InvalidArgument");
    let pasid = json!({"endpoint": 40, "iova": 0, "length": 1, "pasid": 5});
    assert_eq!(client.class("dma-read", pasid), "TranslationFault");
    let pasid = json!({"endpoint": 40, "iova": 0, "length": 1, "pasid": 1 << 20});
    assert_eq!(client.class("dma-read", pasid), "InvalidArgument");
}

#[test]
fn a_waiting_access_does_not_hold_up_other_commands() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    daemon.map(1, 0, 0xfff, 0, 1);
    client.send(concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":4096,"length":1},"id":"waits"}"#,
        "\n",
        r#"{"execute":"dma-write","arguments":{"endpoint":40,"iova":0,"data":"01"},"id":"too"}"#,
        "\n",
        r#"{"execute":"status","id":"does not"}"#,
        "\n"
    ));
    assert_eq!(client.receive()["id"], "does not");
    let groups = daemon.groups(2);
    daemon.respond(groups[1], 1);
    let answer = client.receive();
    assert_eq!(answer["id"], "too");
    assert_eq!(answer["error"]["class"], "PageRequestFailed");
    daemon.map(1, 0x1000, 0x1fff, 0x5000, 1);
    daemon.respond(groups[0], 0);
    let answer = client.receive();
    assert_eq!(answer, json!({"return": {"data": "00"}, "id": "waits"}));
}

#[test]
fn a_page_request_is_answered_in_the_words_of_pci() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    let ask = concat!(
        r#"{"execute":"page-request","arguments":{"endpoint":40,"pages":[{"iova":4096,"access":"rw"}]}}"#,
        "\n"
    );
    for (code, response) in [
        (0, "success"),
        (1, "invalid-request"),
        (2, "response-failure"),
    ] {
        client.send(ask);
        let groups = daemon.groups(1);
        daemon.respond(groups[0], code);
        assert_eq!(client.receive(), json!({"return": {"response": response}}));
    }
    // Page requests are off now: whatever comes is answered at once.
    client.send(ask);
    assert_eq!(
        client.receive(),
        json!({"return": {"response": "invalid-request"}})
    );
}

#[test]
fn so_many_commands_wait_and_no_more() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    for id in 0..257 {
        client.send(&format!(
            r#"{{"execute":"dma-read","arguments":{{"endpoint":40,"iova":0,"length":1}},"id":{id}}}{}"#,
            '\n'
        ));
    }
    let refused = client.receive();
    assert_eq!(refused["id"], 256);
    assert_eq!(refused["error"]["class"], "Internal");
    // What does not wait is still served.
    assert!(client.call("status", json!({})).get("return").is_some());
    for group in daemon.groups(256) {
        daemon.respond(group, 1);
    }
    let mut ids: Vec<u64> = (0..256)
        .map(|_| client.receive()["id"].as_u64().expect("id"))
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..256));
}

#[test]
fn a_group_outlives_the_connection_that_raised_it() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    client.send(concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":0,"length":1}}"#,
        "\n"
    ));
    let groups = daemon.groups(1);
    drop(client);
    // The answer to this comes after the server has seen the end of the other.
    daemon.connect().call("status", json!({}));
    daemon.respond(groups[0], 0);
}

#[test]
fn endpoints_come_and_go() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let add = json!({"endpoint": "00:06.0"});
    assert_eq!(
        client.call("endpoint-add", add.clone()),
        json!({"return": {}})
    );
    assert_eq!(client.class("endpoint-add", add.clone()), "InvalidArgument");
    let vfio = json!({"endpoint": 1, "vfio": "/dev/vfio/devices/vfio0"});
    assert_eq!(client.class("endpoint-add", vfio), "Unsupported");
    // Nobody listens to QEMU here.
    let named = json!({"endpoint": 1, "qemu-id": "dev0"});
    assert_eq!(client.class("endpoint-add", named), "InvalidArgument");
    let read = json!({"endpoint": "00:06.0", "iova": 0, "length": 1});
    assert_eq!(
        client.call("dma-read", read.clone()),
        json!({"return": {"data": "00"}})
    );
    assert_eq!(
        client.call("endpoint-remove", add.clone()),
        json!({"return": {}})
    );
    assert_eq!(client.class("endpoint-remove", add), "InvalidArgument");
    assert_eq!(client.class("dma-read", read), "InvalidArgument");
}

#[test]
fn pci_functions_come_and_go() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    assert_eq!(
        client.class("endpoint", json!({"endpoint": 40})),
        "Unsupported"
    );
    let nowhere = json!({"endpoint": 1, "soft": "/nonexistent/pci"});
    assert_eq!(client.class("endpoint-add", nowhere), "InvalidArgument");
    let one = json!({"endpoint": 1});
    assert_eq!(client.class("endpoint", one.clone()), "InvalidArgument");
    let path = daemon.path.with_file_name("pci");
    for _ in 0..2 {
        let add = json!({"endpoint": 1, "soft": path});
        assert_eq!(client.call("endpoint-add", add), json!({"return": {}}));
        let front_end = vfio_user::Client::new(&path).expect("connect");
        let seen = &client.call("endpoint", one.clone())["return"];
        assert_eq!(seen["connected"], true);
        assert_eq!(
            client.call("endpoint-remove", one.clone()),
            json!({"return": {}})
        );
        assert!(!path.exists());
        assert_eq!(client.class("endpoint", one.clone()), "InvalidArgument");
        drop(front_end);
    }
}

#[test]
fn removing_an_endpoint_answers_its_waiting_accesses() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    client.send(concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":0,"length":1},"id":1}"#,
        "\n"
    ));
    daemon.groups(1);
    let mut other = daemon.connect();
    assert_eq!(
        other.call("endpoint-remove", json!({"endpoint": 40})),
        json!({"return": {}})
    );
    let answer = client.receive();
    assert_eq!(answer["error"]["class"], "PageRequestFailed");
    assert!(!daemon.host.has_endpoint(EndpointId(40)));
}

#[test]
fn malformed_lines_are_answered_and_the_connection_stays_open() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    for line in ["nonsense", "[]", "{\"execute\":", "\u{0}\u{1}", "{}"] {
        client.send(&format!("{line}\n"));
        assert_eq!(client.receive()["error"]["class"], "InvalidArgument");
    }
    assert_eq!(client.class("reboot", json!({})), "CommandNotFound");
    // Blank lines are nothing; a line may come in pieces, and several at once.
    client.send("\n \r\n");
    client.send("{\"execute\":");
    client.send("\"status\",\"id\":1}\n{\"execute\":\"status\",\"id\":2}\n");
    assert_eq!(client.receive()["id"], 1);
    assert_eq!(client.receive()["id"], 2);
}

#[test]
fn a_line_that_is_too_long_is_refused_once_and_skipped() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let long = "x".repeat((1 << 20) + 1);
    for end in ["\n", "xxxxxxxx\n"] {
        client.send(&long);
        client.send(end);
        assert_eq!(client.receive()["error"]["class"], "InvalidArgument");
        assert!(client.call("status", json!({})).get("return").is_some());
    }
}

#[test]
fn the_longest_accesses_fit() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let read = json!({"endpoint": 40, "iova": 0, "length": 1 << 20});
    let answer = client.call("dma-read", read);
    let data = answer["return"]["data"].as_str().expect("data");
    assert_eq!(data.len(), 2 << 20);
    let write = json!({"endpoint": 40, "iova": 0, "data": "ab".repeat(500_000)});
    assert_eq!(client.call("dma-write", write), json!({"return": {}}));
    let more = json!({"endpoint": 40, "iova": 0, "length": (1 << 20) + 1});
    assert_eq!(client.class("dma-read", more), "InvalidArgument");
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let line = format!(
        "{}\n",
        json!({"execute": "dma-read", "arguments": {"endpoint": 40, "iova": 0, "length": 1 << 19}})
    );
    // Until the server closes the connection, which it must do at some time.
    while client.0.get_mut().write_all(line.as_bytes()).is_ok() {}
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    assert!(rest.len() < 16 << 20);
    let mut other = daemon.connect();
    assert!(other.call("status", json!({})).get("return").is_some());
}

#[test]
fn a_client_that_ends_its_side_gets_its_answers() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    client.send(concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":0,"length":1},"id":1}"#,
        "\n",
        r#"{"execute":"status","id":2}"# // no end of line
    ));
    client
        .0
        .get_ref()
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    assert_eq!(client.receive()["id"], 2);
    let groups = daemon.groups(1);
    daemon.respond(groups[0], 1);
    assert_eq!(client.receive()["id"], 1);
    let mut end = Vec::new();
    client.0.read_to_end(&mut end).expect("the end");
    assert!(end.is_empty());
}

#[test]
fn connections_are_bounded() {
    let daemon = Daemon::new();
    let mut clients: Vec<Client> = (0..64).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert!(client.call("status", json!({})).get("return").is_some());
    }
    let mut refused = daemon.connect();
    assert_eq!(refused.receive()["error"]["class"], "Internal");
    clients.pop();
    // The server may see the end of the one after it sees the beginning of the other.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut client = daemon.connect();
        if client.call("status", json!({})).get("return").is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "never accepted again");
    }
}

#[test]
fn a_descriptor_belongs_to_the_line_it_came_with() {
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let null = std::fs::File::open("/dev/null").expect("open");
    let add = b"{\"execute\":\"endpoint-add\",\"arguments\":{\"endpoint\":9},\"id\":1}\n";
    client
        .0
        .get_mut()
        .send_with_fd(&add[..], std::os::fd::AsRawFd::as_raw_fd(&null))
        .expect("send");
    // A device, for a process with software endpoints.
    assert_eq!(client.receive()["error"]["class"], "Unsupported");
    // Without a descriptor it is a software endpoint.
    client.send(std::str::from_utf8(add).expect("text"));
    assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
}

/// Arguments that are nearly right.
fn any_argument() -> impl Strategy<Value = Value> {
    let iova = prop_oneof![
        Just(0),
        Just(0xfff),
        Just((1 << 20) - 1),
        Just(1 << 20),
        Just(u64::MAX),
        any::<u64>()
    ];
    let page = (iova.clone(), "[rwxp]{0,3}")
        .prop_map(|(iova, access)| json!({"iova": iova, "access": access}));
    prop_oneof![
        iova.prop_map(Value::from),
        Just(json!(ENDPOINT)),
        Just(json!("00:05.0")),
        (0_u64..3).prop_map(Value::from),
        "([0-9a-f]{2}){0,8}".prop_map(Value::from),
        "[0-9a-f]{0,8}".prop_map(Value::from),
        prop::collection::vec(page, 0..4).prop_map(Value::from),
        Just(Value::Null),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing waits here: the endpoint is in bypass, and blocked after a removal.
    #[test]
    fn any_lines_are_answered_each(
        lines in prop::collection::vec(
            prop_oneof![
                r"[^\n]*[!-~][^\n]*",
                (
                    prop::sample::select(vec![
                        "status", "counters", "mappings", "endpoint-add", "endpoint-remove",
                        "dma-read", "dma-write", "page-request", "other",
                    ]),
                    prop::collection::hash_map(
                        prop::sample::select(vec![
                            "endpoint", "iova", "length", "data", "pages", "pasid", "domain",
                            "format", "vfio", "dev-id",
                        ]),
                        any_argument(),
                        0..6,
                    ),
                ).prop_map(|(name, arguments)| {
                    json!({"execute": name, "arguments": arguments}).to_string()
                }),
            ],
            1..20,
        ),
    ) {
        let daemon = Daemon::new();
        let mut client = daemon.connect();
        for line in &lines {
            client.send(&format!("{line}\n"));
            let answer = client.receive();
            prop_assert!(answer.get("return").is_some() || answer.get("error").is_some());
        }
    }
}
