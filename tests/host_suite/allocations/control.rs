// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of the control socket, and endpoints that come and go with them.

use super::*;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use crate::kernel::MockDevice;

const ADDED: u32 = 0x50;

/// Why a command was not carried out: its error, in a word; or the end of its connection.
fn execute(program: &Program, command: &str, arguments: &Value) -> Result<Value, String> {
    let answer = || -> io::Result<String> {
        let mut stream = UnixStream::connect(program.control_path())?;
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().unwrap_or_default();
    if !answer.ends_with('\n') {
        return Err("the connection ended".to_owned());
    }
    let answer: Value = serde_json::from_str(&answer).unwrap();
    match answer.get("return") {
        Some(value) => Ok(value.clone()),
        None => Err(error_in_a_word(&answer["error"])),
    }
}

/// The class, which says that the same may succeed later; or that a step of iommufd failed with an error of its own.
fn error_in_a_word(error: &Value) -> String {
    let text = |name: &str| error[name].as_str().unwrap();
    match text("class") {
        "TryAgain" => "TryAgain".to_owned(),
        "Internal"
            if ["(os error 2)", "(os error 22)"]
                .iter()
                .any(|e| text("desc").contains(e)) =>
        {
            "a step of iommufd failed".to_owned()
        }
        _ => panic!("{error}"),
    }
}

#[test]
fn a_command_is_answered_or_its_connection_ends() {
    for command in ["status", "counters", "mappings"] {
        let arguments = match command {
            "mappings" => json!({ "domain": DOMAIN }),
            _ => json!({}),
        };
        sweep(command, |bench, point| {
            let result = point.during(|| execute(&bench.program, command, &arguments));
            execute(&bench.program, command, &arguments).unwrap();
            result.map_or_else(|error| error, |_| "answered".to_owned())
        });
    }
}

fn adding(device: MockDevice) -> Value {
    json!({ "endpoint": ADDED, "mock": device.stdev, "dev-id": device.dev })
}

fn has_endpoint(bench: &Bench) -> bool {
    let status = bench.status();
    let endpoints = status["endpoints"].as_array().unwrap();
    endpoints.iter().any(|endpoint| endpoint["id"] == ADDED)
}

#[test]
fn an_endpoint_is_added_or_the_client_is_told_to_try_again() {
    sweep("endpoint-add", |bench, point| {
        let program = &bench.program;
        let device = program.kernel.mock_device();
        let result = point.during(|| execute(program, "endpoint-add", &adding(device)));
        let mut second = None;
        if !has_endpoint(bench) {
            assert!(result.is_err());
            // A mock device without a page table does not exist, so where it was given up, it takes another one.
            if execute(program, "endpoint-add", &adding(device)).is_err() {
                let device = *second.insert(program.kernel.mock_device());
                execute(program, "endpoint-add", &adding(device)).unwrap();
            }
        }
        assert_eq!(bench.guest.request(&requests::attach(5, ADDED, 0)), OK);
        execute(program, "endpoint-remove", &json!({ "endpoint": ADDED })).unwrap();
        for device in second.into_iter().chain([device]) {
            program.kernel.end(device);
        }
        result.map_or_else(|error| error, |_| "added".to_owned())
    });
}

#[test]
fn an_endpoint_is_removed() {
    sweep("endpoint-remove", |bench, point| {
        let program = &bench.program;
        let device = program.kernel.mock_device();
        execute(program, "endpoint-add", &adding(device)).unwrap();
        assert_eq!(bench.guest.request(&requests::attach(5, ADDED, 0)), OK);
        let arguments = json!({ "endpoint": ADDED });
        let result = point.during(|| execute(program, "endpoint-remove", &arguments));
        if has_endpoint(bench) {
            assert!(result.is_err());
            execute(program, "endpoint-remove", &arguments).unwrap();
        }
        program.kernel.end(device);
        result.map_or_else(|error| error, |_| "removed".to_owned())
    });
}
