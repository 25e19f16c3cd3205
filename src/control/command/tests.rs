// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines, good and bad.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::notation::to_hex;

fn class(line: &str) -> ErrorClass {
    parse(line.as_bytes()).command.expect_err(line).class
}

fn command(line: &str) -> Command {
    parse(line.as_bytes()).command.expect(line)
}

const A: Requester = Requester {
    endpoint: EndpointId(0x28),
    pasid: None,
};

#[test]
fn a_command_has_a_name_arguments_and_an_id() {
    let line = parse(br#"{"execute":"status","id":{"any":["thing"]}}"#);
    assert_eq!(line.id, Some(json!({"any": ["thing"]})));
    assert_eq!(line.command, Ok(Command::Status));
    let read =
        r#"{"execute":"dma-read","arguments":{"endpoint":"00:05.0","iova":4096,"length":16}}"#;
    let expected = Command::DmaRead {
        requester: A,
        iova: Iova(4096),
        length: 16,
    };
    assert_eq!(command(read), expected);
}

#[test]
fn translate_has_a_requester_and_an_address() {
    let line = |arguments: &str| format!(r#"{{"execute":"translate","arguments":{arguments}}}"#);
    let expected = Command::Translate {
        requester: Requester {
            pasid: Some(Pasid(7)),
            ..A
        },
        iova: Iova(u64::MAX),
    };
    let good = line(r#"{"endpoint":"00:05.0","iova":18446744073709551615,"pasid":7}"#);
    assert_eq!(command(&good), expected);
    for arguments in [
        "{}",
        r#"{"endpoint":40}"#,
        r#"{"iova":0}"#,
        r#"{"endpoint":40,"iova":0,"length":1}"#,
    ] {
        assert_eq!(class(&line(arguments)), ErrorClass::InvalidArgument);
    }
}

#[test]
fn an_endpoint_is_a_number_or_a_string() {
    for endpoint in ["40", "\"40\"", "\"0x28\"", "\"0000:00:05.0\""] {
        let line =
            format!(r#"{{"execute":"endpoint-remove","arguments":{{"endpoint":{endpoint}}}}}"#);
        let expected = Command::EndpointRemove {
            endpoint: EndpointId(0x28),
        };
        assert_eq!(command(&line), expected);
    }
    for endpoint in ["-1", "4294967296", "1.5", "null", "[]", "\"00:05\""] {
        let line =
            format!(r#"{{"execute":"endpoint-remove","arguments":{{"endpoint":{endpoint}}}}}"#);
        assert_eq!(class(&line), ErrorClass::InvalidArgument);
    }
}

#[test]
fn data_is_hexadecimal() {
    let write = |data: &str| {
        let line = json!({"execute": "dma-write", "arguments": {
            "endpoint": 40, "iova": u64::MAX, "data": data, "pasid": 7,
        }});
        parse(line.to_string().as_bytes()).command
    };
    let expected = Command::DmaWrite {
        requester: Requester {
            endpoint: EndpointId(40),
            pasid: Some(Pasid(7)),
        },
        iova: Iova(u64::MAX),
        data: vec![0x00, 0xff, 0x1a],
    };
    assert_eq!(write("00ff1a"), Ok(expected));
    for data in ["0", "0g", "zz", "+1", "é"] {
        assert!(write(data).is_err(), "{data}");
    }
    assert_eq!(to_hex(&[0x00, 0xff, 0x1a]), "00ff1a");
}

#[test]
fn a_group_has_pages_and_each_an_access() {
    let line = r#"{"execute":"page-request","arguments":{"endpoint":40,"pages":[{"iova":4096,"access":"r"},{"iova":8192,"access":"wxp"}]}}"#;
    let page = |address, access| PageRequest {
        address: Iova(address),
        access,
        length: 0,
    };
    let expected = Command::PageRequest {
        requester: A,
        pages: vec![
            page(4096, EventFlags::READ),
            page(
                8192,
                EventFlags::WRITE | EventFlags::EXEC | EventFlags::PRIVILEGED,
            ),
        ],
    };
    assert_eq!(command(line), expected);
    for pages in [
        "[]",
        r#"[{"iova":0,"access":""}]"#,
        r#"[{"iova":0,"access":"rr"}]"#,
        r#"[{"iova":0,"access":"q"}]"#,
        r#"[{"iova":0}]"#,
        r#"[{"iova":-1,"access":"r"}]"#,
    ] {
        let line = format!(
            r#"{{"execute":"page-request","arguments":{{"endpoint":40,"pages":{pages}}}}}"#
        );
        assert_eq!(class(&line), ErrorClass::InvalidArgument, "{pages}");
    }
}

#[test]
fn an_endpoint_is_added_with_the_keys_of_the_command_line() {
    let add = |arguments: &str| match command(&format!(
        r#"{{"execute":"endpoint-add","arguments":{arguments}}}"#
    )) {
        Command::EndpointAdd(add) => add,
        other => panic!("{other:?}"),
    };
    let soft = add(r#"{"endpoint":"00:05.0"}"#);
    assert!(soft.spec(None).expect("soft").is_soft());
    assert_eq!(soft.spec(Some(9)).expect("with a descriptor").fd(), Some(9));
    let device = add(r#"{"endpoint":40,"vfio":"/dev/vfio/devices/vfio0","dev-id":3}"#);
    assert_eq!(
        device.spec(None),
        "40,vfio=/dev/vfio/devices/vfio0,dev-id=3"
            .parse()
            .map_err(CommandError::invalid)
    );
    assert!(device.spec(Some(9)).is_err(), "a path and a descriptor");
    assert!(add(r#"{"endpoint":40,"colour":"red"}"#).spec(None).is_err());
    for line in [
        r#"{"execute":"endpoint-add"}"#,
        r#"{"execute":"endpoint-add","arguments":{"endpoint":40,"vfio":[]}}"#,
        r#"{"execute":"endpoint-add","arguments":{"endpoint":40,"vfio-fd":3}}"#,
    ] {
        assert_eq!(class(line), ErrorClass::InvalidArgument);
    }
}

#[test]
fn malformed_lines_get_an_error_and_their_id() {
    for line in [
        "",
        "x",
        "1",
        "null",
        "[]",
        "{}",
        "{\"execute\":1}",
        r#"{"execute":"status","arguments":[]}"#,
        r#"{"execute":"status","arguments":{"x":1}}"#,
        r#"{"execute":"status","extra":1}"#,
        r#"{"execute":"counters","arguments":{"format":"xml"}}"#,
        r#"{"execute":"mappings"}"#,
        r#"{"execute":"mappings","arguments":{"domain":"1"}}"#,
        r#"{"execute":"dma-read","arguments":{"endpoint":1,"iova":0,"length":1048577}}"#,
        r#"{"execute":"dma-read","arguments":{"endpoint":1,"iova":0,"length":1,"pasid":-1}}"#,
        r#"{"execute":"dma-read","arguments":{"endpoint":1,"iova":18446744073709551616,"length":1}}"#,
    ] {
        assert_eq!(class(line), ErrorClass::InvalidArgument, "{line}");
    }
    assert_eq!(
        class(r#"{"execute":"reboot"}"#),
        ErrorClass::CommandNotFound
    );
    assert_eq!(parse(br#"{"id":5}"#).id, Some(json!(5)));
    let deep = [b'['; 100_000];
    assert!(parse(&deep).command.is_err());
    let long_id = format!(r#"{{"execute":"status","id":"{}"}}"#, "x".repeat(MAX_ID));
    assert!(parse(long_id.as_bytes()).command.is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[0-9a-frwxp:.]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_an_answerable_line(line in prop::collection::vec(any::<u8>(), 0..200)) {
        parse(&line);
    }

    #[test]
    fn any_arguments_are_taken_or_refused(
        name in prop::sample::select(vec![
            "status", "counters", "mappings", "endpoint", "endpoint-add", "endpoint-remove", "dma-read",
            "dma-write", "page-request",
        ]),
        arguments in prop::collection::hash_map(
            prop::sample::select(vec![
                "endpoint", "iova", "length", "data", "pages", "access", "pasid", "domain", "format",
                "vfio", "dev-id", "soft",
            ]),
            any_json(),
            0..6,
        ),
    ) {
        let line = json!({"execute": name, "arguments": arguments, "id": 1}).to_string();
        let parsed = parse(line.as_bytes());
        prop_assert_eq!(parsed.id, Some(json!(1)));
        if let Ok(Command::EndpointAdd(add)) = parsed.command {
            let _ = add.spec(None);
        }
    }

    #[test]
    fn what_is_written_in_hexadecimal_is_read_back(data in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(from_hex(&to_hex(&data)), Some(data));
    }
}
