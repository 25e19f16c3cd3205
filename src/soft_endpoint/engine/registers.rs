// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the registers of the fault engine are (docs/fault-engine.md, "Registers").

pub use crate::soft_endpoint::function::Enabled;

/// Engines of a function.
pub const ENGINES: usize = 8;
/// Length of the register block, in bytes.
pub const LENGTH: u64 = 0x1000;

/// Registers of the function's part.
pub mod global {
    /// "FLTE".
    pub const ID: u64 = 0x00;
    /// The version of the data sheet.
    pub const VERSION: u64 = 0x04;
    /// Number of engines.
    pub const ENGINES: u64 = 0x08;
    /// What configuration space enables: a bit each, see [`super::Enabled`].
    pub const ENABLED: u64 = 0x0c;
    /// Page requests outstanding.
    pub const OUTSTANDING: u64 = 0x10;
    /// Most page requests outstanding at a time since the function's reset.
    pub const OUTSTANDING_PEAK: u64 = 0x14;

    /// The value of ID.
    pub const ID_VALUE: u32 = u32::from_le_bytes(*b"FLTE");
    /// The value of VERSION.
    pub const VERSION_VALUE: u32 = 1;
}

/// Registers of an engine, counted from its first.
pub mod engine {
    /// The first register of the first engine.
    pub const FIRST: u64 = 0x100;
    /// From one engine to the next.
    pub const STRIDE: u64 = 0x100;

    /// See [`super::Control`].
    pub const CONTROL: u64 = 0x00;
    /// State, and the outcome of the last chain.
    pub const STATUS: u64 = 0x04;
    /// Starts at HEAD when it is written.
    pub const DOORBELL: u64 = 0x08;
    /// Interrupt vector.
    pub const VECTOR: u64 = 0x0c;
    /// Address of the first descriptor, 64 bits.
    pub const HEAD: u64 = 0x10;
    /// Its upper half.
    pub const HEAD_HIGH: u64 = 0x14;
    /// PASID that descriptors are fetched with.
    pub const FETCH_PASID: u64 = 0x18;
    /// Most descriptors of a chain; 0 for any number.
    pub const LIMIT: u64 = 0x1c;
    /// See [`super::Cause`]; a 1 clears.
    pub const INTERRUPT: u64 = 0x20;
    /// Descriptors carried out.
    pub const COMPLETED: u64 = 0x24;
    /// The descriptor being carried out, or that failed; 64 bits.
    pub const CURRENT: u64 = 0x28;
    /// Where the last access failed, 64 bits.
    pub const FAULT: u64 = 0x30;
    /// Bytes moved, 64 bits.
    pub const BYTES: u64 = 0x38;
    /// Groups of page requests raised.
    pub const GROUPS: u64 = 0x40;
    /// Page requests in them.
    pub const REQUESTS: u64 = 0x44;
    /// Answers SUCCESS.
    pub const SUCCESSES: u64 = 0x48;
    /// Stop Markers.
    pub const MARKERS: u64 = 0x4c;
    /// Translations that the cache had.
    pub const HITS: u64 = 0x50;
    /// Translations that it had not.
    pub const MISSES: u64 = 0x54;
    /// Translations that were taken away.
    pub const INVALIDATED: u64 = 0x58;
    /// Translations in the cache.
    pub const CACHED: u64 = 0x5c;

    /// The value of LIMIT after a reset.
    pub const LIMIT_RESET: u32 = 0x1_0000;
}

bitflags::bitflags! {
    /// CONTROL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u32 {
        /// Written as 1, resets the engine; always read as 0.
        const RESET = 1 << 0;
        /// Raise the interrupt at the end of a chain, and where descriptors say so.
        const INTERRUPT = 1 << 1;
        /// Fetch descriptors with FETCH_PASID.
        const FETCH_PASID = 1 << 2;
        /// Ask for descriptors that are not there.
        const FETCH_PAGE_REQUESTS = 1 << 3;
    }

    /// INTERRUPT.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Cause: u32 {
        /// A descriptor with the flag INTERRUPT is done.
        const DESCRIPTOR = 1 << 0;
        /// The chain is done.
        const CHAIN = 1 << 1;
        /// The chain ended with an error.
        const ERROR = 1 << 2;
    }
}

/// STATUS, bits 0-7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing to do.
    Idle = 0,
    /// A chain is being carried out.
    Running = 1,
    /// It waits for the answer to a group.
    WaitingForAnswer = 2,
    /// It waits until others have their answers: Outstanding Page Request Allocation is used up.
    WaitingForAllocation = 3,
}

impl State {
    /// What people read.
    pub fn name(number: u8) -> &'static str {
        match number {
            0 => "idle",
            1 => "running",
            2 => "waiting for an answer",
            _ => "waiting for allocation",
        }
    }
}
