// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event descriptors that a peer has given to this process.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

/// Takes eventfds only: a read or write of another kind of descriptor may block for ever, or end the process.
///
/// # Errors
/// It is another kind, or /proc is not there to tell.
pub(crate) fn take(descriptor: impl Into<OwnedFd>) -> io::Result<OwnedFd> {
    let descriptor = descriptor.into();
    check(&descriptor)?;
    Ok(descriptor)
}

/// Whether a descriptor is an eventfd.
///
/// # Errors
/// As for [`take`].
pub(crate) fn check(descriptor: &impl AsRawFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let link = std::fs::read_link(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    if link.as_os_str() == "anon_inode:[eventfd]" {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "an eventfd is needed, not {}",
            link.display()
        )))
    }
}

/// Adds 1 to an eventfd. If its counter is full, there is nothing to add: it is readable.
///
/// The peer can make the write block: it fills the counter and clears O_NONBLOCK, which belongs to all holders. No lock is
/// held across this call, and a thread that makes it is interrupted when it must end (see [`crate::os::thread`]).
pub(crate) fn signal(event: &OwnedFd) {
    match rustix::io::write(event, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => log::debug!("an eventfd cannot be signalled: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn only_eventfds_are_taken() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        for other in [
            OwnedFd::from(reader),
            writer.into(),
            File::open("/dev/null").expect("a file").into(),
        ] {
            let error = take(other).expect_err("no eventfd");
            assert!(
                error.to_string().contains("an eventfd is needed"),
                "{error}"
            );
        }
        take(eventfd(0, EventfdFlags::empty()).expect("an eventfd")).expect("taken");
    }

    #[test]
    fn a_full_counter_that_does_not_block_stays_readable() {
        let event = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        signal(&event);
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("readable");
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    }
}
