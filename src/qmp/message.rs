// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of QMP (QEMU's docs/interop/qmp-spec): what of them matters here.

use serde::Deserialize;
use serde_json::Value;

use crate::endpoints::{Deleted, Presence};

/// An event that matters, or the answer to what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Whether the machine runs, in QEMU's words (`RunState`): the answer to `query-status`.
    Status(String),
    Reset,
    Stop,
    Resume,
    DeviceDeleted(Deleted),
    /// The answer to a question about a device: its number.
    Presence(u64, Presence),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// QEMU's version.
    Greeting(String),
    Return,
    Error(String),
    Event(Event),
    /// Nothing that matters.
    Other,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Error>,
    event: Option<String>,
    #[serde(default)]
    data: Data,
    /// Of the command that is answered.
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    qemu: Triple,
}

#[derive(Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    class: String,
    desc: String,
}

#[derive(Default, Deserialize)]
struct Data {
    device: Option<String>,
    path: Option<String>,
}

/// Reads a line. `None`: it is no JSON of QMP.
pub(super) fn parse(line: &[u8]) -> Option<Message> {
    let line: Line = serde_json::from_slice(line).ok()?;
    Some(match line {
        Line {
            greeting: Some(Greeting { version }),
            ..
        } => {
            let Triple {
                major,
                minor,
                micro,
            } = version.qemu;
            Message::Greeting(format!("{major}.{minor}.{micro}"))
        }
        Line {
            id: Some(number),
            returned: Some(_),
            ..
        } => Message::Event(Event::Presence(number, Presence::Present)),
        Line {
            id: Some(number),
            error: Some(error),
            ..
        } => Message::Event(Event::Presence(number, presence(&error))),
        Line {
            returned: Some(returned),
            ..
        } => match returned.get("status").and_then(Value::as_str) {
            Some(status) => Message::Event(Event::Status(status.to_owned())),
            None => Message::Return,
        },
        Line {
            error: Some(error), ..
        } => Message::Error(error.desc),
        Line {
            event: Some(name),
            data,
            ..
        } => event(&name, data).map_or(Message::Other, Message::Event),
        _ => Message::Other,
    })
}

/// Only this class says that there is no such device.
fn presence(error: &Error) -> Presence {
    match error.class.as_str() {
        "DeviceNotFound" => Presence::Absent,
        _ => Presence::Unknown,
    }
}

fn event(name: &str, data: Data) -> Option<Event> {
    Some(match name {
        "RESET" => Event::Reset,
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "DEVICE_DELETED" => Event::DeviceDeleted(Deleted {
            id: data.device,
            path: data.path?,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> Option<Message> {
        parse(line.as_bytes())
    }

    #[test]
    fn lines_as_qemu_writes_them_are_read() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 11}, "package": ""}, "capabilities": ["oob"]}}"#;
        assert_eq!(
            message(greeting),
            Some(Message::Greeting("11.1.2".to_owned()))
        );
        assert_eq!(message(r#"{"return": {}}"#), Some(Message::Return));
        assert_eq!(
            message(r#"{"return": {"status": "prelaunch", "running": false}}"#),
            Some(Message::Event(Event::Status("prelaunch".to_owned())))
        );
        let error = r#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#;
        assert_eq!(
            message(error),
            Some(Message::Error("no such command".to_owned()))
        );
        for (name, data, event) in [
            (
                "RESET",
                r#"{"guest": false, "reason": "host-qmp-system-reset"}"#,
                Event::Reset,
            ),
            ("STOP", "{}", Event::Stop),
            ("RESUME", "{}", Event::Resume),
        ] {
            let line = format!(
                r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "{name}", "data": {data}}}"#
            );
            assert_eq!(message(&line), Some(Message::Event(event)));
        }
        let other = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "POWERDOWN"}"#;
        assert_eq!(message(other), Some(Message::Other));
    }

    #[test]
    fn a_deleted_device_has_a_path_and_perhaps_an_id() {
        let time = r#""timestamp": {"seconds": 5, "microseconds": 6}, "event": "DEVICE_DELETED""#;
        let deleted = |id: Option<&str>, path: &str| {
            let (id, path) = (id.map(str::to_owned), path.to_owned());
            Some(Message::Event(Event::DeviceDeleted(Deleted { id, path })))
        };
        let with =
            format!(r#"{{{time}, "data": {{"device": "d0", "path": "/machine/peripheral/d0"}}}}"#);
        assert_eq!(
            message(&with),
            deleted(Some("d0"), "/machine/peripheral/d0")
        );
        let without =
            format!(r#"{{{time}, "data": {{"path": "/machine/peripheral-anon/device[3]"}}}}"#);
        assert_eq!(
            message(&without),
            deleted(None, "/machine/peripheral-anon/device[3]")
        );
        assert_eq!(message(&format!("{{{time}}}")), Some(Message::Other));
    }

    #[test]
    fn what_is_no_line_of_qmp_is_refused() {
        for line in [
            "",
            "HTTP/1.1 400",
            "[]",
            r#"{"QMP": {}}"#,
            r#"{"event": 3}"#,
        ] {
            assert_eq!(message(line), None, "{line}");
        }
    }

    #[test]
    fn the_time_of_day_of_an_event_does_not_matter() {
        let data = r#""event": "DEVICE_DELETED", "data": {"path": "/a"}"#;
        let deleted = message(&format!("{{{data}}}"));
        assert!(matches!(deleted, Some(Message::Event(_))));
        for timestamp in [
            r#"{"seconds": 18446744073709551615, "microseconds": 999999}"#,
            r#"{"seconds": 0, "microseconds": 0}"#,
            r#"{"seconds": -1, "microseconds": -1}"#,
        ] {
            let line = format!(r#"{{"timestamp": {timestamp}, {data}}}"#);
            assert_eq!(message(&line), deleted);
        }
    }

    #[test]
    fn an_answer_with_a_number_says_whether_a_device_is_there() {
        for (line, presence) in [
            (r#"{"return": "vfio-pci", "id": 7}"#, Presence::Present),
            (
                r#"{"error": {"class": "DeviceNotFound", "desc": "Device '/a' not found"}, "id": 7}"#,
                Presence::Absent,
            ),
            (
                r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 7}"#,
                Presence::Unknown,
            ),
        ] {
            let event = Event::Presence(7, presence);
            assert_eq!(message(line), Some(Message::Event(event)));
        }
    }
}
