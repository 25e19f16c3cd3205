// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections: several commands at a time, several clients, and clients that misbehave.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::daemon::{Client, Daemon, ENDPOINT};

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
    assert_eq!(refused["error"]["class"], "TryAgain");
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

/// As clients of QMP do it that trust their server to find the end.
#[test]
fn an_object_is_complete_when_its_braces_close() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    client.send(r#"{"execute":"status","id":"}{"}"#);
    assert_eq!(client.receive()["id"], "}{");
    client.send(r#"{"execute":"status","arguments":{},"id":{"a":{"b":"\"}"}}}"#);
    assert_eq!(client.receive()["id"], json!({"a": {"b": "\"}"}}));
    client.send(r#"{"execute":"status","id":1}{"execute":"status","id":2}  {"execute":"#);
    assert_eq!(client.receive()["id"], 1);
    assert_eq!(client.receive()["id"], 2);
    client.send("\"status\",\"id\":3}\r\n");
    assert_eq!(client.receive()["id"], 3);
    // Broken off: answered with its line, and the next is understood.
    client.send("{\"execute\":{\n{\"execute\":\"status\",\"id\":4}");
    assert_eq!(client.receive()["error"]["class"], "InvalidArgument");
    assert_eq!(client.receive()["id"], 4);
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
    assert_eq!(refused.receive()["error"]["class"], "TryAgain");
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
