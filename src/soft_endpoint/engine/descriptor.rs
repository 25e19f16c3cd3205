// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors as they lie in guest memory, and what they ask for (docs/fault-engine.md, "Descriptors").

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::host::soft::Access;
use crate::spec::{EventFlags, Iova, Pasid};

/// Alignment of descriptors and of scatter lists, in bytes.
pub const ALIGNMENT: u64 = 16;
/// The most page requests in a group.
pub const MAX_GROUP: u8 = 64;
/// The most pieces of a scatter list.
pub const MAX_PIECES: u32 = 4096;

/// A descriptor. The engine reads the first `REQUEST_LEN` bytes and writes the rest.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// An [`Operation`].
    pub operation: u8,
    /// Page requests in a group, 1 to `MAX_GROUP`; 0 is 1.
    pub group: u8,
    /// [`Flags`].
    pub flags: U16,
    /// The PASID, with [`Flags::PASID`].
    pub pasid: U32,
    /// What is accessed, or where the scatter list is.
    pub address: U64,
    /// COPY: where to. READ and WRITE: the offset in the engine's buffer.
    pub other: U64,
    /// Bytes at `address`; without meaning with a scatter list.
    pub length: U32,
    /// Pieces of the scatter list; 0 without one.
    pub pieces: U32,
    /// The next descriptor; 0 at the end of the chain.
    pub next: U64,
    /// What came of it.
    pub completion: Completion,
}

/// What the engine writes behind the request.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Completion {
    /// An [`Outcome`].
    pub status: U32,
    /// Bytes that were moved, or pages that were asked for.
    pub done: U32,
    /// Where it failed.
    pub address: U64,
    /// Groups that were raised.
    pub groups: U32,
    /// Answers SUCCESS after which an access was tried again.
    pub retries: U32,
}

/// Length of what is read.
pub const REQUEST_LEN: usize = offset_of!(Descriptor, completion);

const _: () = assert!(size_of::<Descriptor>() == 64 && REQUEST_LEN == 40);

/// A piece of a scatter list.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Piece {
    /// Its first address.
    pub address: U64,
    /// Its length in bytes.
    pub length: U32,
    /// Not looked at.
    pub reserved: U32,
}

const _: () = assert!(size_of::<Piece>() == 16);

/// What an engine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Nothing.
    Nop = 0,
    /// From memory into the engine's buffer.
    Read = 1,
    /// From the engine's buffer to memory.
    Write = 2,
    /// From memory to memory.
    Copy = 3,
    /// A group of page requests, and no access.
    PageRequest = 4,
    /// Address translation requests, and no access: fills the cache.
    Translate = 5,
    /// A Stop Marker: the page requests of this PASID that came before it were the last ones.
    StopMarker = 6,
    /// Empties the cache.
    Flush = 7,
}

impl Operation {
    fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Nop,
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Copy,
            4 => Self::PageRequest,
            5 => Self::Translate,
            6 => Self::StopMarker,
            7 => Self::Flush,
            _ => return None,
        })
    }
}

bitflags::bitflags! {
    /// Flags of a descriptor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u16 {
        /// With the PASID of the descriptor.
        const PASID = 1 << 0;
        /// Execute Requested: of reads only.
        const EXEC = 1 << 1;
        /// Privileged Mode Requested.
        const PRIVILEGED = 1 << 2;
        /// Ask for pages that are not there, and try again.
        const PAGE_REQUESTS = 1 << 3;
        /// PAGE_REQUEST and TRANSLATE: for reading.
        const FOR_READ = 1 << 4;
        /// PAGE_REQUEST and TRANSLATE: for writing.
        const FOR_WRITE = 1 << 5;
        /// Raise the interrupt when it is done.
        const INTERRUPT = 1 << 6;
        /// Do not use the translation cache: untranslated requests.
        const UNTRANSLATED = 1 << 7;
    }
}

/// What came of a descriptor: its `status`, and the error code in an engine's STATUS register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Outcome {
    /// It was carried out.
    #[error("done")]
    Done = 1,
    /// Unknown operation, flag, group size or length.
    #[error("bad descriptor")]
    BadDescriptor = 2,
    /// The chain has more descriptors than LIMIT says.
    #[error("more descriptors than LIMIT")]
    Limit = 3,
    /// Bus Master Enable is off.
    #[error("bus mastering is disabled")]
    BusMaster = 4,
    /// A PASID, and PASID Enable is off; or EXEC or PRIVILEGED, and it is not enabled.
    #[error("PASIDs, or what the descriptor asks of them, are disabled")]
    PasidDisabled = 5,
    /// No translation.
    #[error("no translation")]
    Translation = 6,
    /// The translation does not permit the access.
    #[error("no permission")]
    Permission = 7,
    /// The requester is attached to nothing, or the endpoint is gone.
    #[error("blocked")]
    Blocked = 8,
    /// No memory behind the translation.
    #[error("no memory")]
    NoMemory = 9,
    /// A page request, and the Page Request Interface is disabled.
    #[error("page requests are disabled")]
    PageRequestsDisabled = 10,
    /// A group is larger than Outstanding Page Request Allocation.
    #[error("the group is larger than the allocation")]
    Allocation = 11,
    /// A page request was answered INVALID_REQUEST.
    #[error("answered INVALID_REQUEST")]
    InvalidRequest = 12,
    /// A page request was answered RESPONSE_FAILURE.
    #[error("answered RESPONSE_FAILURE")]
    ResponseFailure = 13,
    /// Answers SUCCESS brought the access no further.
    #[error("answered SUCCESS in vain")]
    Retries = 14,
    /// TRANSLATE, and ATS is disabled.
    #[error("ATS is disabled")]
    AtsDisabled = 15,
    /// The engine was reset.
    #[error("reset")]
    Reset = 16,
    /// The back-end has no thread for the engine.
    #[error("no thread for the engine")]
    NoThread = 17,
}

impl Outcome {
    const ALL: [Self; 17] = [
        Self::Done,
        Self::BadDescriptor,
        Self::Limit,
        Self::BusMaster,
        Self::PasidDisabled,
        Self::Translation,
        Self::Permission,
        Self::Blocked,
        Self::NoMemory,
        Self::PageRequestsDisabled,
        Self::Allocation,
        Self::InvalidRequest,
        Self::ResponseFailure,
        Self::Retries,
        Self::AtsDisabled,
        Self::Reset,
        Self::NoThread,
    ];

    /// The outcome with this number; `None` when there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|&outcome| outcome as u8 == number)
    }
}

/// A descriptor that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// How.
    pub flags: Flags,
    /// The address space.
    pub pasid: Option<Pasid>,
    /// What is accessed, or where the scatter list is.
    pub address: Iova,
    /// See [`Descriptor::other`].
    pub other: u64,
    /// Bytes at `address`.
    pub length: u32,
    /// Pieces of the scatter list.
    pub pieces: u32,
    /// Page requests in a group; at least 1.
    pub group: usize,
}

impl Job {
    /// Takes a descriptor apart.
    ///
    /// # Errors
    /// [`Outcome::BadDescriptor`].
    pub fn parse(descriptor: &Descriptor) -> Result<Self, Outcome> {
        let bad = Outcome::BadDescriptor;
        let operation = Operation::from_wire(descriptor.operation).ok_or(bad)?;
        let flags = Flags::from_bits(descriptor.flags.get()).ok_or(bad)?;
        let pasid = match flags.contains(Flags::PASID) {
            true => Some(Pasid(descriptor.pasid.get())),
            false => None,
        };
        let job = Self {
            operation,
            flags,
            pasid,
            address: Iova(descriptor.address.get()),
            other: descriptor.other.get(),
            length: descriptor.length.get(),
            pieces: descriptor.pieces.get(),
            group: usize::from(descriptor.group.max(1)),
        };
        let fits = descriptor.group <= MAX_GROUP && job.pieces <= MAX_PIECES;
        (fits && job.is_sensible()).then_some(job).ok_or(bad)
    }

    fn is_sensible(&self) -> bool {
        let list = self.pieces != 0;
        if list && !self.address.0.is_multiple_of(ALIGNMENT) {
            return false;
        }
        // PCI: without a PASID there is neither of them.
        if self.pasid.is_none() && self.flags.intersects(Flags::EXEC | Flags::PRIVILEGED) {
            return false;
        }
        match self.operation {
            Operation::Nop | Operation::Flush => true,
            Operation::Read => true,
            Operation::Write | Operation::Copy => !self.flags.contains(Flags::EXEC),
            Operation::PageRequest | Operation::Translate => {
                self.flags.intersects(Flags::FOR_READ | Flags::FOR_WRITE)
            }
            Operation::StopMarker => self.pasid.is_some(),
        }
    }

    /// The accesses of `direction`, READ or WRITE, that it makes where ATS is enabled.
    pub fn access(&self, direction: EventFlags) -> Access {
        let mut kinds = direction;
        kinds.set(EventFlags::EXEC, self.flags.contains(Flags::EXEC));
        kinds.set(
            EventFlags::PRIVILEGED,
            self.flags.contains(Flags::PRIVILEGED),
        );
        Access {
            pasid: self.pasid,
            kinds,
            translated: !self.flags.contains(Flags::UNTRANSLATED),
        }
    }

    /// What PAGE_REQUEST and TRANSLATE are for.
    pub fn purpose(&self) -> Access {
        let mut direction = EventFlags::empty();
        direction.set(EventFlags::READ, self.flags.contains(Flags::FOR_READ));
        direction.set(EventFlags::WRITE, self.flags.contains(Flags::FOR_WRITE));
        self.access(direction)
    }
}
