// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An endpoint's life over the software host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const ENDPOINT: EndpointId = EndpointId(0x28);

fn spec(text: &str) -> EndpointSpec {
    text.parse().expect("a description")
}

fn endpoints(specs: &[&str]) -> Endpoints {
    let host = AnyHost::Soft(Arc::new(SoftHost::new().expect("host")), Arc::default());
    let specs = specs.iter().map(|text| (spec(text), None));
    Endpoints::new(host, DeviceConfig::default(), specs).expect("endpoints")
}

/// Followed by a client that is connected. The event says that there may be a question.
fn followed(specs: &[&str]) -> (Endpoints, EventFd) {
    let endpoints = endpoints(specs);
    let event = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
    endpoints.follow_qemu(event.try_clone().expect("eventfd"));
    endpoints.qemu_connects();
    (endpoints, event)
}

fn dev0() -> Deleted {
    Deleted {
        id: Some("dev0".to_owned()),
        path: "/machine/peripheral/dev0".to_owned(),
    }
}

fn count(endpoints: &Endpoints) -> usize {
    endpoints.device().status().endpoints.len()
}

#[test]
fn an_endpoint_is_in_the_device_and_the_host_or_in_neither() {
    let endpoints = endpoints(&["0x28"]);
    assert!(endpoints.add(&spec("0x28"), None).is_err());
    assert_eq!(count(&endpoints), 1);
    endpoints.remove(ENDPOINT).expect("removed");
    assert!(!endpoints.host().has_endpoint(ENDPOINT));
    assert!(matches!(
        endpoints.remove(ENDPOINT),
        Err(EndpointError::Device(device::SetupError::NoEndpoint(
            ENDPOINT
        )))
    ));
    endpoints.add(&spec("0x28"), None).expect("added");
    assert!(endpoints.host().has_endpoint(ENDPOINT));
}

#[test]
fn an_endpoint_that_cannot_be_made_leaves_no_name() {
    let (endpoints, _event) = followed(&[]);
    let nowhere = spec("0x28,soft=/nonexistent/pci,qemu-id=dev0");
    assert!(matches!(
        endpoints.add(&nowhere, None),
        Err(EndpointError::Serve(_))
    ));
    assert_eq!(endpoints.question(), None);
    assert_eq!(count(&endpoints), 0);
}

#[test]
fn a_name_needs_a_connection_to_qemu() {
    let endpoints = endpoints(&[]);
    let named = spec("0x28,qemu-id=dev0");
    assert!(matches!(
        endpoints.add(&named, None),
        Err(EndpointError::NoQemu)
    ));
    assert_eq!(count(&endpoints), 0);
}

#[test]
fn an_unplugged_device_takes_its_endpoint_and_function_along() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("pci");
    let (endpoints, _event) = followed(&[&format!("0x28,soft={},qemu-id=dev0", path.display())]);
    assert!(endpoints.describe_function(ENDPOINT).is_ok());
    assert_eq!(endpoints.deleted(&dev0()), [ENDPOINT]);
    assert_eq!(count(&endpoints), 0);
    assert!(!path.exists());
    assert_eq!(endpoints.deleted(&dev0()), []);
}

#[test]
fn a_new_endpoint_is_asked_about_and_a_late_deletion_does_not_take_it() {
    let (endpoints, event) = followed(&["0x28,qemu-id=dev0"]);
    assert_eq!(endpoints.question(), None);
    endpoints.remove(ENDPOINT).expect("removed");
    endpoints
        .add(&spec("0x28,qemu-id=dev0"), None)
        .expect("added");
    event.read().expect("the client is woken");
    let question = endpoints.question().expect("a question");
    assert_eq!(endpoints.deleted(&dev0()), []);
    assert_eq!(endpoints.answered(question.number, Presence::Absent), None);
    assert_eq!(count(&endpoints), 1);
    assert_eq!(endpoints.deleted(&dev0()), [ENDPOINT]);
}

#[test]
fn a_new_connection_brings_only_deletions_that_mean_the_endpoints_there_are() {
    let (endpoints, _event) = followed(&[]);
    endpoints
        .add(&spec("0x28,qemu-id=dev0"), None)
        .expect("added");
    endpoints.qemu_connects();
    assert_eq!(endpoints.question(), None);
    assert_eq!(endpoints.deleted(&dev0()), [ENDPOINT]);
}

/// An operator replaces an endpoint again and again while QEMU says, late, that its device is gone. An operation that
/// worked on an endpoint of before would make the next step of the operator fail.
#[test]
fn removals_of_two_origins_never_meet_in_the_middle() {
    let (endpoints, _event) = followed(&[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(endpoints.deleted(&dev0()), []);
            }
        });
        for _ in 0..200 {
            endpoints
                .add(&spec("0x28,qemu-id=dev0"), None)
                .expect("added");
            assert!(endpoints.host().has_endpoint(ENDPOINT));
            endpoints.remove(ENDPOINT).expect("removed");
        }
        done.store(true, Ordering::Relaxed);
    });
}
