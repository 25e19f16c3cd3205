// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd as new_eventfd};
use rustix::fs::{OFlags, fcntl_getfl};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::transport::new_event;

const TOKEN: u64 = 7;

/// An eventfd that blocks, as its other holder has it.
fn event() -> OwnedFd {
    new_eventfd(0, EventfdFlags::empty()).expect("an eventfd")
}

/// As a message brings it.
fn duplicate(fd: &OwnedFd) -> Option<File> {
    Some(File::from(fd.try_clone().expect("a duplicate")))
}

fn kick(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("a kick");
}

fn enabled() -> (Arc<Poller>, Vring) {
    let poller = Arc::new(Poller::new().expect("a poller"));
    let memory = Memory::new(GuestMemoryMmap::new());
    let wake = Arc::new(new_event().expect("an eventfd"));
    let (line, _) = UnixStream::pair().expect("sockets");
    let vring =
        Vring::new(memory, Arc::clone(&poller), TOKEN, wake, Arc::new(line)).expect("a vring");
    vring
        .change(|state| state.enabled = true)
        .expect("a change");
    (poller, vring)
}

fn was_kicked(poller: &Poller) -> bool {
    let mut kicked = false;
    poller
        .wait(Some(Instant::now()), |token| kicked |= token == TOKEN)
        .expect("a wait");
    kicked
}

#[test]
#[cfg_attr(miri, ignore = "no epoll")]
fn a_kick_descriptor_that_is_replaced_is_not_waited_for() {
    let (poller, vring) = enabled();
    let (first, second) = (event(), event());
    vring.set_kick(duplicate(&first)).expect("an eventfd");
    kick(&first);
    assert!(was_kicked(&poller));
    vring.set_kick(duplicate(&second)).expect("an eventfd");
    kick(&first);
    assert!(!was_kicked(&poller));
    kick(&second);
    assert!(was_kicked(&poller));
    assert!(!was_kicked(&poller), "once, though it is not read");
    vring.set_kick(None).expect("a stop");
    kick(&second);
    assert!(!was_kicked(&poller));
}

#[test]
#[cfg_attr(miri, ignore = "no epoll")]
fn a_vring_that_goes_away_is_not_waited_for() {
    let (poller, vring) = enabled();
    let event = event();
    vring.set_kick(duplicate(&event)).expect("an eventfd");
    drop(vring);
    kick(&event);
    assert!(!was_kicked(&poller));
}

#[test]
#[cfg_attr(miri, ignore = "reads /proc")]
fn only_eventfds_are_taken_and_their_flags_are_left_alone() {
    let (_, vring) = enabled();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let reader = File::from(OwnedFd::from(reader));
    let writer = File::from(OwnedFd::from(writer));
    assert!(vring.set_kick(Some(reader)).is_err());
    assert!(vring.set_call(Some(writer)).is_err());
    let event = event();
    vring.set_kick(duplicate(&event)).expect("an eventfd");
    vring.set_call(duplicate(&event)).expect("an eventfd");
    vring.notify(&vring.serve());
    let flags = fcntl_getfl(&event).expect("flags");
    assert!(!flags.contains(OFlags::NONBLOCK));
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count).expect("a notification");
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
#[cfg_attr(miri, ignore = "no epoll")]
fn whatever_changes_may_mend_a_broken_ring() {
    let (_, vring) = enabled();
    vring.serve().broken = true;
    assert!(vring.look(|state| state.broken));
    vring.change(|_| ()).expect("a change");
    assert!(!vring.look(|state| state.broken));
}
