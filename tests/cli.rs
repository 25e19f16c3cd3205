// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program answers a user's command line: what it prints, refuses, and ends with.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

use common::requests::{READ, WRITE, attach, map};
use common::{Program, program_on};
use serde_json::{Value, json};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vhost-device-iommu"))
}

fn run(arguments: &[&str]) -> Output {
    program()
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program with an endpoint.
fn start(options: &[&str]) -> Program {
    Program::start(&[&["--endpoint", "00:05.0"], options].concat())
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["viot", "--help"],
        &["ctl", "--help"],
        &["check", "--help"],
        &["completions", "--help"],
        &["completions", "zsh"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_command_line_that_cannot_be_understood_ends_with_2() {
    for (arguments, told) in [
        (&[][..], "--socket-path"),
        (&["--nonsense"], "--nonsense"),
        (&["--fd", "3", "--endpoint", "x"], "expected a number"),
        (
            &["--fd", "3", "--endpoint", "1", "--endpoint", "1"],
            "given twice",
        ),
        (
            &["--fd", "3", "--endpoint", "1", "--endpoint", "2,vfio=/a"],
            "one process serves one kind",
        ),
        (
            &["--fd", "3", "--endpoint", "1,soft="],
            "needs the path of a socket",
        ),
        (
            &["--fd", "3", "--endpoint", "1,qemu-id=dev0"],
            "which is for --qmp",
        ),
        (&["check", "--endpoint", "1"], "by path"),
        (&["check", "--socket-path", "/a"], "--socket-path"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
}

#[test]
fn what_fails_at_the_start_ends_with_1_and_one_line() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("file");
    fs::write(&file, "data").expect("write");
    let file = file.to_str().expect("path");
    for (arguments, told) in [
        (
            &["--socket-path", "/nonexistent/s", "--endpoint", "1"][..],
            "/nonexistent/s",
        ),
        (&["--socket-path", file, "--endpoint", "1"], "not a socket"),
        (&["--fd", "99", "--endpoint", "1"], "--fd 99"),
        (&["--fd", "0", "--endpoint", "1"], "--fd 0"),
        (
            &[
                "--fd",
                "3",
                "--endpoint",
                "1,vfio=/v",
                "--iommufd",
                "/nonexistent/iommu",
            ],
            "--fd 3",
        ),
        (
            &[
                "--socket-path",
                "/nonexistent/s",
                "--endpoint",
                "1,vfio=/v",
                "--iommufd",
                "/nonexistent/iommu",
            ],
            "/nonexistent/iommu",
        ),
        (
            &["ctl", "/nonexistent/control", "status"],
            "/nonexistent/control",
        ),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.contains(told), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn capabilities_are_json_and_other_options_do_not_matter() {
    for arguments in [
        &["--print-capabilities"][..],
        &["--print-capabilities", "--fd", "3", "--endpoint", "1"],
        &["--print-capabilities", "--nonsense"],
        &["--fd", "x", "--endpoint", "", "--print-capabilities"],
        &["--print-capabilities", "--help", "nonsense"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0));
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["type"], "iommu");
        assert!(
            value["features"]
                .as_array()
                .is_some_and(|features| features.contains(&json!("page-request")))
        );
    }
}

#[test]
fn the_example_of_a_descriptor_is_valid_and_warns() {
    let text = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("share/examples/50-vhost-device-iommu.json"),
    )
    .expect("the file");
    assert!(text.contains("not to be installed in /usr/share/qemu/vhost-user"));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["type"], "iommu");
    assert!(value["binary"].is_string());
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    for signal in ["-TERM", "-INT"] {
        let mut daemon = start(&[]);
        let (code, log) = daemon.end_by(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(!daemon.path("vhost").exists());
        assert!(!daemon.path("control").exists());
    }
}

#[test]
fn a_second_instance_is_refused_and_the_first_goes_on() {
    let daemon = start(&[]);
    for taken in ["vhost", "control"] {
        let path = daemon.path(taken);
        let other = daemon.path("other");
        let (socket, control) = match taken {
            "vhost" => (&path, &other),
            _ => (&other, &path),
        };
        let output = program()
            .arg("--socket-path")
            .arg(socket)
            .arg("--control")
            .arg(control)
            .args(["--endpoint", "1"])
            .output()
            .expect("start");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("another process listens there"));
        assert!(!other.exists(), "it leaves nothing behind");
    }
    assert!(daemon.ctl(&["status"]).status.success());
}

#[test]
fn stale_sockets_are_replaced() {
    let directory = tempfile::tempdir().expect("directory");
    for name in ["vhost", "control"] {
        drop(UnixListener::bind(directory.path().join(name)).expect("bind"));
    }
    let daemon = Program::start_in(directory, &["--endpoint", "00:05.0"]);
    assert!(daemon.ctl(&["status"]).status.success());
}

#[test]
fn the_control_socket_is_for_its_owner() {
    let daemon = start(&[]);
    let metadata = fs::metadata(daemon.path("control")).expect("metadata");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn ctl_prints_the_answer_or_the_error() {
    let daemon = start(&[]);
    let output = daemon.ctl(&["status"]);
    assert!(output.status.success());
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["endpoints"][0]["id"], 40);
    let output = daemon.ctl(&["counters", "format=prometheus"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("# HELP vhost_device_iommu_build_info "));
    let raw = daemon.ctl(&[r#"{"execute":"mappings","arguments":{"domain":1}}"#]);
    assert_eq!(raw.status.code(), Some(1));
    assert!(stderr(&raw).starts_with("vhost-device-iommu: InvalidArgument: "));
    let output = daemon.ctl(&["endpoint-add", "endpoint=00:06.0"]);
    assert!(output.status.success());
    let output = daemon.ctl(&["dma-read", "endpoint=00:06.0", "iova=0", "length=1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("TranslationFault"));
}

#[test]
fn mappings_are_drawn() {
    let daemon = start(&[]);
    let mut guest = daemon.guest();
    for request in [
        attach(1, 0x28, 0),
        map(1, 0x1000, 0x1fff, 0x5000, READ | WRITE),
        map(1, 0x2000, 0x2fff, 0x6000, READ | WRITE),
        map(1, 0x8000, 0x8fff, 0x7000, READ),
    ] {
        assert_eq!(guest.request(&request), 0);
    }
    let picture = daemon.path("domain.svg");
    let path = picture.to_str().expect("path");
    let output = daemon.ctl(&["mappings", "domain=1", "--svg", path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let svg = fs::read_to_string(&picture).expect("the picture");
    assert!(svg.starts_with("<svg "));
    assert!(svg.contains("3 mappings, 12.0 KiB in 2 runs"), "{svg}");
    assert!(svg.contains("20.0 KiB not mapped"), "{svg}");
    let output = daemon.ctl(&["mappings", "domain=9", "--svg", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("InvalidArgument"),
        "{}",
        stderr(&output)
    );
    let output = daemon.ctl(&["mappings", "domain=1", "--svg", "/nonexistent/a.svg"]);
    assert!(
        stderr(&output).contains("/nonexistent/a.svg"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn top_prints_once_where_there_is_no_terminal() {
    let daemon = start(&[]);
    let mut guest = daemon.guest();
    assert_eq!(guest.request(&attach(1, 0x28, 0)), 0);
    assert_eq!(guest.request(&map(1, 0x1000, 0x1fff, 0x5000, READ)), 0);
    let output = daemon.ctl(&["top"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("front-end connected"), "{text}");
    assert!(
        text.contains("1 endpoints, 1 domains, 1 mappings"),
        "{text}"
    );
    let line = |begin: &str| {
        let line = text.lines().find(|line| line.starts_with(begin));
        line.unwrap_or_else(|| panic!("{begin}: {text}")).to_owned()
    };
    assert!(line("0000:00:05.0").contains(" attached "));
    assert!(line("1 ").contains(" paging "));
    let output = run(&["ctl", "/nonexistent/control", "top"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn samples_have_the_labels_that_were_given() {
    let daemon = start(&["--label", "vm=mail", "--label", "site=a,b"]);
    let output = daemon.ctl(&["counters", "format=prometheus"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let line = "\nvhost_device_iommu_requests_total{vm=\"mail\",site=\"a,b\"} 0\n";
    assert!(text.contains(line), "{text}");
    for (label, told) in [("vm", "NAME=VALUE"), ("le=1", "samples have already")] {
        let output = run(&["--fd", "3", "--endpoint", "1", "--label", label]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
}

#[test]
fn the_filter_is_for_every_thread_unless_told_otherwise() {
    for (options, mode) in [
        (&[][..], "2"),
        (&["--seccomp", "kill"], "2"),
        (&["--seccomp", "log"], "2"),
        (&["--seccomp", "none"], "0"),
    ] {
        let daemon = start(options);
        // It is installed after "listening": an answer says that it is past that, or soon.
        let tasks = format!("/proc/{}/task", daemon.id());
        let modes = || -> Vec<String> {
            let tasks = fs::read_dir(&tasks).expect("tasks");
            tasks
                .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
                .filter_map(|status| {
                    let line = status.lines().find(|line| line.starts_with("Seccomp:"))?;
                    Some(line.split_whitespace().nth(1)?.to_owned())
                })
                .collect()
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while modes().iter().any(|found| found != mode) {
            assert!(std::time::Instant::now() < deadline, "{:?}", modes());
        }
        assert!(daemon.ctl(&["status"]).status.success());
    }
}

#[test]
fn a_connected_socket_ends_the_program_with_it() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let mut child = program_on(theirs, "--endpoint 1");
    drop(ours);
    assert_eq!(child.wait().expect("wait").code(), Some(0));
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    let null = fs::File::open("/dev/null").expect("open");
    assert!(null.as_raw_fd() > 2);
    let output = program_on(null, "--endpoint 1")
        .wait_with_output()
        .expect("wait");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not a UNIX stream socket"));
}

#[test]
fn viot_writes_the_table() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("viot.bin");
    let output = program()
        .args(["viot", "--iommu", "00:04.0", "--endpoint", "00:05.0"])
        .args(["--endpoint", "00:05.1", "-o"])
        .arg(&path)
        .output()
        .expect("viot");
    assert!(output.status.success());
    let file = fs::read(&path).expect("file");
    assert_eq!(file.len(), 12 + 16 + 24);
    let to_stdout = run(&[
        "viot",
        "--iommu",
        "00:04.0",
        "--endpoint",
        "00:05.0",
        "--endpoint",
        "00:05.1",
    ]);
    assert_eq!(to_stdout.stdout, file);
    let itself = run(&["viot", "--iommu", "00:04.0", "--endpoint", "00:04.0"]);
    assert_eq!(itself.status.code(), Some(1));
    assert!(stderr(&itself).contains("the IOMMU itself"));
}

#[test]
fn viot_writes_a_whole_table_with_its_header() {
    let options = ["viot", "--iommu", "00:04.0", "--endpoint", "00:05.0"];
    let body = run(&options).stdout;
    let table = run(&[&options[..], &["--header"]].concat()).stdout;
    assert_eq!(table[..4], *b"VIOT");
    assert_eq!(table[4..8], (36 + body.len() as u32).to_le_bytes());
    assert_eq!(table[36..], body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0);
}

#[test]
fn viot_says_that_it_needs_an_endpoint_or_a_bus() {
    let output = run(&["viot", "--iommu", "00:04.0"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("{--endpoint <BDF> | --bus <BUS>}..."),
        "{text}"
    );
}

#[test]
fn check_says_what_is_missing_and_what_to_do() {
    let missing = ["check", "--iommufd", "/nonexistent/iommu"];
    let device = ["--endpoint", "00:06.0,vfio=/nonexistent/vfio7", "--bind"];
    let output = run(&[&missing[..], &device].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("text");
    for told in [
        "this machine\n",
        "kernel: Linux ",
        "MISSING  iommufd: /nonexistent/iommu: No such file or directory",
        "-> the kernel needs CONFIG_IOMMUFD",
        "endpoint 0x30: /nonexistent/vfio7, which VFIO does not know\n",
        "MISSING  access: No such file or directory",
        "unknown  in use: there is no iommufd to bind it to",
        "\nnot ready: ",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
    let output = run(&[&missing[..], &device, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["ready"], false);
    let sections = value["sections"].as_array().expect("sections");
    assert_eq!(sections.len(), 2);
    let findings = sections[0]["findings"].as_array().expect("findings");
    let iommufd = findings
        .iter()
        .find(|finding| finding["check"] == "iommufd");
    assert_eq!(iommufd.expect("iommufd")["verdict"], "missing");
}

#[test]
fn it_is_small_while_it_waits() {
    let daemon = start(&[]);
    assert!(daemon.ctl(&["status"]).status.success());
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("proc");
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).expect(name)
    };
    assert!(kib("RssAnon:") <= 2 << 10, "{status}");
    // Code that is not optimised takes several times the room, and nobody runs it.
    assert!(
        cfg!(debug_assertions) || kib("VmRSS:") <= 8 << 10,
        "{status}"
    );
}
