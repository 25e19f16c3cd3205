// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of an access: its address space and kinds, the bytes that it moves, and why it fails.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::spec::{EventFlags, Gpa, Iova, MapFlags, PageResponseCode, Pasid, Reason};

/// The address space and the kinds of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The address space; `None` without a PASID.
    pub pasid: Option<Pasid>,
    /// READ or WRITE; EXEC and PRIVILEGED in addition. In a domain with mappings EXEC needs what READ needs, and
    /// PRIVILEGED is only reported: mappings have no such flags.
    pub kinds: EventFlags,
    /// If true, the access uses a translation of the endpoint's own cache, which is made if it is not there: PCI's ATS.
    /// If false, it uses the IOMMU's cache, and the endpoint's is left alone.
    pub translated: bool,
}

impl Access {
    /// What a mapping must allow (M45).
    pub(super) fn needed(&self) -> MapFlags {
        let mut needed = MapFlags::empty();
        needed.set(
            MapFlags::READ,
            self.kinds.intersects(EventFlags::READ | EventFlags::EXEC),
        );
        needed.set(MapFlags::WRITE, self.kinds.contains(EventFlags::WRITE));
        needed
    }
}

/// The kinds of access that a mapping permits.
pub(super) fn permitted_by(mapping: MapFlags) -> EventFlags {
    let mut permitted = EventFlags::PRIVILEGED;
    let reads = mapping.contains(MapFlags::READ);
    permitted.set(EventFlags::READ | EventFlags::EXEC, reads);
    permitted.set(EventFlags::WRITE, mapping.contains(MapFlags::WRITE));
    permitted
}

/// The bytes of an access, and their direction.
pub enum Transfer<'a> {
    /// Reads guest memory into the buffer.
    Read(&'a mut [u8]),
    /// Writes the buffer to guest memory.
    Write(&'a [u8]),
}

impl Transfer<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Read(buffer) => buffer.len(),
            Self::Write(buffer) => buffer.len(),
        }
    }

    /// READ or WRITE.
    pub(crate) fn direction(&self) -> EventFlags {
        match self {
            Self::Read(_) => EventFlags::READ,
            Self::Write(_) => EventFlags::WRITE,
        }
    }

    /// Moves the bytes `done .. done + count` of the buffer; says how many were in RAM.
    pub(super) fn carry_out(
        &mut self,
        memory: &GuestMemoryMmap,
        gpa: Gpa,
        done: usize,
        count: usize,
    ) -> usize {
        let result = match self {
            Self::Read(buffer) => buffer
                .get_mut(done..done + count)
                .map(|part| memory.read(part, GuestAddress(gpa.0))),
            Self::Write(buffer) => buffer
                .get(done..done + count)
                .map(|part| memory.write(part, GuestAddress(gpa.0))),
        };
        result.and_then(Result::ok).unwrap_or(0)
    }
}

/// Why a port does not carry out an access or a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The endpoint was removed.
    #[error("the endpoint was removed")]
    NoEndpoint,
    /// The endpoint has no such PASID.
    #[error("the endpoint has PASIDs of {0} bits")]
    NoPasid(u8),
    /// The endpoint cannot raise page requests.
    #[error("the endpoint cannot raise page requests")]
    NoPageRequests,
    /// The requester is attached to nothing that lets accesses through.
    #[error("the requester is blocked")]
    Blocked,
    /// Nothing is mapped there.
    #[error("no translation")]
    Translation,
    /// What is mapped there does not allow the access.
    #[error("the mapping does not permit the access")]
    Permission,
    /// The translation, or an entry of the table on the way to it, leads to an address without memory.
    #[error("no memory behind the address")]
    NoMemory,
    /// An entry of the table is none that its format has.
    #[error("an entry of the table is malformed")]
    Malformed,
    /// The address is not one of the table's.
    #[error("the table has no such address")]
    Outside,
    /// The access is privileged, which no table permits.
    #[error("tables permit no privileged access")]
    Privileged,
    /// The driver changes the entries faster than they can be used.
    #[error("the entries of the table change all the time")]
    Contended,
    /// No table is read now. That is no fault: the access is to be tried again after [`super::Port::released`].
    #[error("the table is not read while the queues stand still")]
    Held,
}

impl Denied {
    /// Whether a page request may help (X88, X89).
    pub fn is_recoverable(self) -> bool {
        matches!(self, Self::Translation | Self::Permission)
    }

    /// The reason in the fault report; `None` if there is no report.
    pub(super) fn reason(self) -> Option<Reason> {
        match self {
            Self::NoEndpoint | Self::NoPasid(_) | Self::NoPageRequests | Self::Held => None,
            Self::Blocked => Some(Reason::Domain),
            Self::Translation
            | Self::Permission
            | Self::Malformed
            | Self::Outside
            | Self::Privileged
            | Self::Contended => Some(Reason::Mapping),
            Self::NoMemory => Some(Reason::Unknown),
        }
    }
}

/// Why an access that may wait for the guest has failed: see [`super::Port::access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The access goes beyond the last address.
    #[error("the access goes beyond the last address")]
    Wraps,
    /// The access was aborted at this address.
    #[error("access to {1}: {0}")]
    Denied(Denied, Iova),
    /// The page request for this address was answered with something other than SUCCESS.
    #[error("the page request for {0} was answered {1:?}")]
    PageRequest(Iova, PageResponseCode),
}
