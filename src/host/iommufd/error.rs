// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From `errno` to what the guest, or the operator, is told.

use std::io;
use std::path::Path;

use super::kernel::CallError;
use super::startup::SetupError;
use crate::host::{HostError, Requester};

impl CallError {
    /// MAP, COPY and UNMAP: what is wrong with the addresses is RANGE.
    pub(super) fn of_range(self, first: u64, last: u64) -> HostError {
        let message = format!("{first:#x}-{last:#x}: {self}");
        match self.errno {
            libc::EINVAL | libc::ERANGE | libc::EOVERFLOW | libc::EADDRINUSE => {
                HostError::Range(message)
            }
            errno if is_exhausted(errno) => HostError::NoMemory(message),
            _ => HostError::Internal(message),
        }
    }

    /// Attaching: what a device cannot do, or not with these mappings, is UNSUPP.
    pub(super) fn of_attach(self, requester: Requester) -> HostError {
        let message = format!("{requester}: {self}");
        match self.errno {
            libc::EINVAL | libc::EADDRINUSE | libc::ENODEV | libc::EOPNOTSUPP | libc::EPERM => {
                HostError::Unsupported(message)
            }
            errno if is_exhausted(errno) => HostError::NoMemory(message),
            _ => HostError::Internal(message),
        }
    }

    /// Making something: without resources it is NOMEM.
    pub(super) fn of_making(self) -> HostError {
        if is_exhausted(self.errno) {
            HostError::NoMemory(self.to_string())
        } else {
            HostError::Internal(self.to_string())
        }
    }
}

impl CallError {
    /// Setting an endpoint up: without resources it is to be tried again.
    pub(super) fn of_setup(self, other: impl FnOnce(Self) -> SetupError) -> SetupError {
        if is_exhausted(self.errno) {
            SetupError::NoMemory(self.to_string())
        } else {
            other(self)
        }
    }
}

/// The same for a file of the system.
pub(super) fn of_file(
    path: &Path,
    error: io::Error,
    other: impl FnOnce(io::Error) -> SetupError,
) -> SetupError {
    if error.raw_os_error().is_some_and(is_exhausted) {
        SetupError::NoMemory(format!("{}: {error}", path.display()))
    } else {
        other(error)
    }
}

pub(super) fn is_exhausted(errno: i32) -> bool {
    [
        libc::ENOMEM,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EMFILE,
        libc::ENFILE,
    ]
    .contains(&errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{EndpointId, Status};

    #[test]
    fn each_errno_has_one_status() {
        let error = |errno| CallError {
            call: "IOMMU_IOAS_COPY",
            errno,
        };
        let requester = Requester {
            endpoint: EndpointId(1),
            pasid: None,
        };
        for (errno, mapping, attaching) in [
            (libc::EINVAL, Status::Range, Status::Unsupp),
            (libc::EOVERFLOW, Status::Range, Status::DevErr),
            (libc::EADDRINUSE, Status::Range, Status::Unsupp),
            (libc::ENODEV, Status::DevErr, Status::Unsupp),
            (libc::ENOMEM, Status::NoMem, Status::NoMem),
            (libc::ENOENT, Status::DevErr, Status::DevErr),
            (libc::EFAULT, Status::DevErr, Status::DevErr),
        ] {
            assert_eq!(error(errno).of_range(0, 1).status(), mapping, "{errno}");
            assert_eq!(
                error(errno).of_attach(requester).status(),
                attaching,
                "{errno}"
            );
        }
    }
}
