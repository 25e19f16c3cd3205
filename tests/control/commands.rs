// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What commands answer.

use std::time::Instant;

use serde_json::json;
use vhost_device_iommu::host::table::Table;
use vhost_device_iommu::host::{Attachment, Host as _, PageRequests, Requester, Translations};
use vhost_device_iommu::spec::{DomainId, EndpointId, Gpa, Pasid, TableFormat};
use vm_memory::{Bytes, GuestAddress};

use crate::daemon::{Daemon, ENDPOINT};

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
fn without_a_front_end_there_is_nothing_to_reattach() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    assert_eq!(client.class("reattach", json!({})), "TryAgain");
    assert_eq!(
        client.class("reattach", json!({"endpoint": 40})),
        "InvalidArgument"
    );
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
fn translate_says_where_an_access_goes() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let at = |iova: u64| json!({"endpoint": "00:05.0", "iova": iova});
    assert_eq!(
        client.call("translate", at(0x1234))["return"],
        json!({"kind": "bypass", "gpa": 0x1234})
    );
    let pasid = json!({"endpoint": 40, "iova": 0, "pasid": 5});
    assert_eq!(
        client.call("translate", pasid)["return"],
        json!({"kind": "blocked"})
    );
    daemon.attach(1);
    daemon.map(1, 0x1000, 0x2fff, 0x5000, 1);
    assert_eq!(
        client.call("translate", at(0x2345))["return"],
        json!({
            "kind": "paging",
            "domain": 1,
            "mapping": {"iova": 0x1000, "last": 0x2fff, "gpa": 0x5000, "flags": "r"},
            "gpa": 0x6345,
        })
    );
    assert_eq!(
        client.call("translate", at(0x3000))["return"],
        json!({"kind": "paging", "domain": 1, "mapping": null, "gpa": null})
    );
    assert_eq!(
        client.class("translate", json!({"endpoint": 41, "iova": 0})),
        "InvalidArgument"
    );
}

#[test]
fn translate_shows_the_entries_of_a_table() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let entries = [
        (0x8_0000, 0x8_1007_u64),
        (0x8_1000, 0x8_2007),
        (0x8_2000, 0x8_3007),
        (0x8_3008, 0x8000_0000_0000_5007),
    ];
    for (at, entry) in entries {
        let stored = daemon.memory.write_obj(entry, GuestAddress(at));
        stored.expect("memory");
    }
    let table = Table {
        format: TableFormat::X86_64,
        input_bits: 48,
        granule: 12,
        root: Gpa(0x8_0000),
        attributes: 0,
    };
    let domain = DomainId(9);
    let made = daemon
        .host
        .create_domain(domain, Translations::Table(table));
    made.expect("domain");
    let requester = Requester {
        endpoint: EndpointId(ENDPOINT),
        pasid: Some(Pasid(5)),
    };
    let to = Attachment::Domain {
        domain,
        page_requests: PageRequests::Reported,
    };
    daemon.host.attach(requester, to).expect("attach");
    let mut translate = |iova: u64| {
        let arguments = json!({"endpoint": 40, "iova": iova, "pasid": 5});
        client.call("translate", arguments)["return"].take()
    };
    let mut steps: Vec<_> = [4, 3, 2, 1]
        .into_iter()
        .zip(entries)
        .map(|(level, (at, entry))| {
            json!({"level": level, "at": at, "entry": format!("{entry:#x}")})
        })
        .collect();
    let expected = |entries: &[serde_json::Value]| {
        json!({
            "kind": "table",
            "domain": 9,
            "table": {"format": "X86_64", "input_bits": 48, "granule": 12, "root": 0x8_0000},
            "entries": entries,
        })
    };
    let mut found = expected(&steps);
    found["mapping"] = json!({"iova": 0x1000, "last": 0x1fff, "gpa": 0x5000, "flags": "rw"});
    found["gpa"] = json!(0x5678);
    assert_eq!(translate(0x1678), found);
    steps[3] = json!({"level": 1, "at": 0x8_3010, "entry": "0x0"});
    let mut missing = expected(&steps);
    missing["mapping"] = json!(null);
    missing["fault"] = json!("an entry does not exist");
    assert_eq!(translate(0x2000), missing);
    for (at, entry) in entries {
        let now: u64 = daemon.memory.read_obj(GuestAddress(at)).expect("memory");
        assert_eq!(now, entry, "no flag is set");
    }
    // The queues stand still: it is not read.
    daemon.device.suspend(Instant::now());
    let mut held = json!({"kind": "table", "domain": 9, "held": true});
    held["table"] = found["table"].clone();
    assert_eq!(translate(0x1678), held);
    daemon.device.resume(Instant::now());
    assert_eq!(translate(0x1678), found);
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

/// More than the socket takes at once, in several pages.
const MANY: u64 = 16 << 10;

fn map_many(daemon: &Daemon) {
    daemon.attach(1);
    for page in 0..MANY {
        daemon.map(1, page << 12, page << 12 | 0xfff, 0, 1);
    }
}

#[test]
fn many_mappings_are_one_answer() {
    let daemon = Daemon::new();
    map_many(&daemon);
    let mut client = daemon.connect();
    let answer = client.call("mappings", json!({"domain": 1}));
    let list = answer["return"].as_array().expect("a list");
    let firsts = list.iter().map(|mapping| mapping["iova"].as_u64());
    assert!(firsts.eq((0..MANY).map(|page| Some(page << 12))));
    // The end of a page is not always the end of the list.
    for count in [1024, 1, 0] {
        let last = (MANY << 12) - 1;
        daemon.unmap(1, count << 12, last);
        let answer = client.call("mappings", json!({"domain": 1}));
        let list = answer["return"].as_array().expect("a list");
        assert_eq!(list.len() as u64, count);
    }
}

#[test]
fn a_list_that_is_being_read_holds_up_nobody_and_follows_the_driver() {
    let daemon = Daemon::new();
    map_many(&daemon);
    let mut reader = daemon.connect();
    reader.send(concat!(
        r#"{"execute":"mappings","arguments":{"domain":1},"id":1}{"execute":"status","id":2}"#,
        r#"{"execute":"mappings","arguments":{"domain":1},"id":3}"#
    ));
    let mut other = daemon.connect();
    let status = other.call("status", json!({}));
    assert_eq!(status["return"]["domains"][0]["mappings"], MANY);
    // The end of the list is not made yet.
    daemon.unmap(1, (MANY - 1) << 12, (MANY << 12) - 1);
    let answer = reader.receive();
    assert_eq!(answer["id"], 1);
    let list = answer["return"].as_array().expect("a list");
    assert_eq!(list.len() as u64, MANY - 1);
    assert_eq!(reader.receive()["id"], 2);
    assert_eq!(reader.receive()["id"], 3);
}

#[test]
fn a_list_whose_domain_goes_has_an_end() {
    let daemon = Daemon::new();
    map_many(&daemon);
    let mut reader = daemon.connect();
    reader.send(r#"{"execute":"mappings","arguments":{"domain":1}}"#);
    daemon.connect().call("status", json!({}));
    daemon.device.reset();
    let answer = reader.receive();
    let list = answer["return"].as_array().expect("a list");
    assert!((list.len() as u64) < MANY);
}
