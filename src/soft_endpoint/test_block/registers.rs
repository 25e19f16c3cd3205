// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of pci-epf-test (docs/soft-endpoint.md, "BAR 0").

use serde_json::{Value, json};

/// Offsets in BAR 0.
pub(super) mod reg {
    pub const MAGIC: usize = 0x00;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x08;
    pub const SOURCE_LOW: usize = 0x0c;
    pub const SOURCE_HIGH: usize = 0x10;
    pub const DESTINATION_LOW: usize = 0x14;
    pub const DESTINATION_HIGH: usize = 0x18;
    pub const SIZE: usize = 0x1c;
    pub const CHECKSUM: usize = 0x20;
    pub const IRQ_TYPE: usize = 0x24;
    pub const IRQ_NUMBER: usize = 0x28;
    pub const FLAGS: usize = 0x2c;
    pub const CAPS: usize = 0x30;
    pub const DOORBELL_BAR: usize = 0x34;
    pub const DOORBELL_OFFSET: usize = 0x38;
    pub const DOORBELL_DATA: usize = 0x3c;
    /// Where they end.
    pub const END: usize = 0x40;
}

/// The doorbell once it is armed: BAR, offset, and what is written there.
pub(super) const DOORBELL: (u32, u32, u32) = (0, 0x1000, 0x1d00_be11);

/// DOORBELL_BAR while it is not armed.
const NO_BAR: u32 = u32::MAX;

/// COMMAND: one at a time, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    RaiseIntx,
    RaiseMsi,
    RaiseMsix,
    Read,
    Write,
    Copy,
    EnableDoorbell,
    DisableDoorbell,
    SetUpSubranges,
    ClearSubranges,
}

impl Command {
    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            0x001 => Self::RaiseIntx,
            0x002 => Self::RaiseMsi,
            0x004 => Self::RaiseMsix,
            0x008 => Self::Read,
            0x010 => Self::Write,
            0x020 => Self::Copy,
            0x040 => Self::EnableDoorbell,
            0x080 => Self::DisableDoorbell,
            0x100 => Self::SetUpSubranges,
            0x200 => Self::ClearSubranges,
            _ => return None,
        })
    }
}

bitflags::bitflags! {
    /// STATUS.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Status: u32 {
        const READ_SUCCESS = 1 << 0;
        const READ_FAIL = 1 << 1;
        const WRITE_SUCCESS = 1 << 2;
        const WRITE_FAIL = 1 << 3;
        const COPY_SUCCESS = 1 << 4;
        const COPY_FAIL = 1 << 5;
        const IRQ_RAISED = 1 << 6;
        const SRC_ADDR_INVALID = 1 << 7;
        const DST_ADDR_INVALID = 1 << 8;
        const DOORBELL_SUCCESS = 1 << 9;
        const DOORBELL_ENABLE_SUCCESS = 1 << 10;
        const DOORBELL_DISABLE_SUCCESS = 1 << 12;
        const SUBRANGE_SETUP_SUCCESS = 1 << 14;
        const SUBRANGE_SETUP_FAIL = 1 << 15;
        const SUBRANGE_CLEAR_SUCCESS = 1 << 16;
        const SUBRANGE_CLEAR_FAIL = 1 << 17;
        /// Not one of them, but all that say that a command failed.
        const FAILURES = Self::READ_FAIL.bits()
            | Self::WRITE_FAIL.bits()
            | Self::COPY_FAIL.bits()
            | Self::SUBRANGE_SETUP_FAIL.bits()
            | Self::SUBRANGE_CLEAR_FAIL.bits();
        /// The driver may write any bits.
        const _ = !0;
    }

    /// CAPS.
    struct Caps: u32 {
        const UNALIGNED_ACCESS = 1 << 0;
        const MSI = 1 << 1;
        const MSIX = 1 << 2;
        const INTX = 1 << 3;
        const SUBRANGE_MAPPING = 1 << 4;
        const DYNAMIC_INBOUND_MAPPING = 1 << 5;
        /// BAR 2 is not memory: the fault engine.
        const BAR2_RESERVED = 1 << 8;
    }
}

/// The registers.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    magic: u32,
    pub(super) command: u32,
    pub(super) status: Status,
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) size: u32,
    pub(super) checksum: u32,
    pub(super) irq_type: u32,
    pub(super) irq_number: u32,
    flags: u32,
    doorbell: (u32, u32, u32),
}

impl Registers {
    /// After a reset.
    pub(super) fn new() -> Self {
        Self {
            magic: 0,
            command: 0,
            status: Status::empty(),
            source: 0,
            destination: 0,
            size: 0,
            checksum: 0,
            irq_type: 0,
            irq_number: 0,
            flags: 0,
            doorbell: (NO_BAR, 0, 0),
        }
    }

    pub(super) fn arm_doorbell(&mut self) {
        self.doorbell = DOORBELL;
    }

    pub(super) fn disarm_doorbell(&mut self) {
        self.doorbell = (NO_BAR, 0, 0);
    }

    pub(super) fn doorbell_is_armed(&self) -> bool {
        self.doorbell == DOORBELL
    }

    fn get(&self, register: usize) -> u32 {
        match register {
            reg::MAGIC => self.magic,
            reg::COMMAND => self.command,
            reg::STATUS => self.status.bits(),
            reg::SOURCE_LOW => self.source as u32,
            reg::SOURCE_HIGH => (self.source >> 32) as u32,
            reg::DESTINATION_LOW => self.destination as u32,
            reg::DESTINATION_HIGH => (self.destination >> 32) as u32,
            reg::SIZE => self.size,
            reg::CHECKSUM => self.checksum,
            reg::IRQ_TYPE => self.irq_type,
            reg::IRQ_NUMBER => self.irq_number,
            reg::FLAGS => self.flags,
            reg::CAPS => Caps::all().bits(),
            reg::DOORBELL_BAR => self.doorbell.0,
            reg::DOORBELL_OFFSET => self.doorbell.1,
            reg::DOORBELL_DATA => self.doorbell.2,
            _ => 0,
        }
    }

    fn set(&mut self, register: usize, value: u32) {
        let low = |address: u64| address & !0xffff_ffff | u64::from(value);
        let high = |address: u64| address & 0xffff_ffff | u64::from(value) << 32;
        match register {
            reg::MAGIC => self.magic = value,
            reg::COMMAND => self.command = value,
            reg::STATUS => self.status = Status::from_bits_retain(value),
            reg::SOURCE_LOW => self.source = low(self.source),
            reg::SOURCE_HIGH => self.source = high(self.source),
            reg::DESTINATION_LOW => self.destination = low(self.destination),
            reg::DESTINATION_HIGH => self.destination = high(self.destination),
            reg::SIZE => self.size = value,
            reg::CHECKSUM => self.checksum = value,
            reg::IRQ_TYPE => self.irq_type = value,
            reg::IRQ_NUMBER => self.irq_number = value,
            reg::FLAGS => self.flags = value,
            // CAPS and the doorbell's registers are read-only.
            _ => {}
        }
    }

    /// A byte of a register; `at` is below [`reg::END`].
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.get(at & !3).to_le_bytes()[at & 3]
    }

    /// Writes a byte of a register.
    pub(super) fn set_byte(&mut self, at: usize, byte: u8) {
        let mut bytes = self.get(at & !3).to_le_bytes();
        bytes[at & 3] = byte;
        self.set(at & !3, u32::from_le_bytes(bytes));
    }

    /// By name, for people.
    pub(super) fn describe(&self) -> Value {
        let hex = |value: u64| format!("{value:#x}");
        json!({
            "command": hex(self.command.into()),
            "status": hex(self.status.bits().into()),
            "source": hex(self.source),
            "destination": hex(self.destination),
            "size": self.size,
            "checksum": hex(self.checksum.into()),
            "irq-type": self.irq_type,
            "irq-number": self.irq_number,
            "doorbell": self.doorbell_is_armed(),
        })
    }
}
