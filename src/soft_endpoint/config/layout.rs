// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where everything is in configuration space, what it holds after power-on, and which bits can be written.

use crate::soft_endpoint::engine;
use crate::soft_endpoint::interrupts::{MSI_VECTORS, MSIX_VECTORS};
use crate::soft_endpoint::pri;

/// Bytes of configuration space: that of PCI Express.
pub(in crate::soft_endpoint) const SIZE: usize = 4096;

/// Texas Instruments, DRA74x: the first entry in the table of Linux's pci_endpoint_test. The test registers are in BAR
/// 0 there, and no other driver knows the number.
const VENDOR: u16 = 0x104c;
const DEVICE: u16 = 0xb500;

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::soft_endpoint) struct Bar {
    /// Its number, which is that of its region in vfio-user.
    pub index: usize,
    /// Bytes: a power of two.
    pub size: u32,
}

impl Bar {
    /// Its offset in configuration space.
    pub(in crate::soft_endpoint) const fn register(&self) -> usize {
        header::BAR0 + 4 * self.index
    }
}

/// The BARs, all of 32 bits and not prefetchable: test registers with the MSI-X table, memory, fault engine.
pub(in crate::soft_endpoint) const BARS: [Bar; 3] = [
    Bar {
        index: 0,
        size: 0x4000,
    },
    Bar {
        index: 1,
        size: 0x1000,
    },
    Bar {
        index: 2,
        size: engine::registers::LENGTH as u32,
    },
];

/// Offset of the MSI-X table in BAR 0.
pub(in crate::soft_endpoint) const MSIX_TABLE: u32 = 0x2000;
/// Offset of the Pending Bit Array in BAR 0.
pub(in crate::soft_endpoint) const MSIX_PENDING: u32 = 0x3000;

/// The header of type 0.
pub(super) mod header {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const CLASS: usize = 0x08;
    pub const CACHE_LINE: usize = 0x0c;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM: usize = 0x2c;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
}

/// Capabilities.
pub(super) mod cap {
    pub const POWER: usize = 0x40;
    pub const MSI: usize = 0x50;
    pub const MSIX: usize = 0x68;
    pub const EXPRESS: usize = 0x80;
}

/// Extended capabilities.
pub(super) mod ext {
    pub const ATS: usize = 0x100;
    pub const PRI: usize = 0x110;
    pub const PASID: usize = 0x120;
}

/// Bits of registers.
pub(super) mod bits {
    pub const MEMORY_SPACE: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const PARITY_RESPONSE: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
    pub const INTERRUPT_STATUS: u16 = 1 << 3;
    pub const CAPABILITIES_LIST: u16 = 1 << 4;

    pub const MSI_ENABLE: u16 = 1 << 0;
    pub const MSI_MULTIPLE_CAPABLE: u16 = 1;
    pub const MSI_MULTIPLE_ENABLE: u16 = 4;
    pub const MSI_64: u16 = 1 << 7;
    pub const MSIX_MASK_ALL: u16 = 1 << 14;
    pub const MSIX_ENABLE: u16 = 1 << 15;

    pub const FLR: u32 = 1 << 28;
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    pub const EXTENDED_TAG: u32 = 1 << 5;
    pub const END_TO_END_PREFIX: u32 = 1 << 21;
    pub const INITIATE_FLR: u16 = 1 << 15;

    pub const ATS_PAGE_ALIGNED: u16 = 1 << 5;
    pub const ATS_ENABLE: u16 = 1 << 15;
    pub const ATS_SMALLEST_UNIT: u16 = 0x1f;
    pub const PRI_ENABLE: u16 = 1 << 0;
    pub const PRI_RESET: u16 = 1 << 1;
    pub const PASID_ENABLE: u16 = 1 << 0;
    pub const PASID_EXEC: u16 = 1 << 1;
    pub const PASID_PRIVILEGED: u16 = 1 << 2;
    pub const PASID_WIDTH: u16 = 8;
}

/// The bytes, and a mask of those that can be written.
pub(super) struct Image {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    /// Ones written to Page Request Status, which clear what they meet.
    pub(super) page_request_status_ones: u16,
}

impl Image {
    /// As after power-on.
    pub(super) fn new() -> Self {
        let mut image = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            page_request_status_ones: 0,
        };
        image.header();
        image.power_management();
        image.interrupts();
        image.express();
        image.extended();
        image
    }

    fn header(&mut self) {
        self.put_word(0, VENDOR, 0);
        self.put_word(2, DEVICE, 0);
        let command = bits::MEMORY_SPACE
            | bits::BUS_MASTER
            | bits::PARITY_RESPONSE
            | bits::SERR
            | bits::INTX_DISABLE;
        self.put_word(header::COMMAND, 0, command);
        self.put_word(header::STATUS, bits::CAPABILITIES_LIST, 0);
        // Class 0xff: fits no defined class. Revision 1.
        self.put_dword(header::CLASS, 0xff00_0001, 0);
        self.put_word(header::CACHE_LINE, 0, 0x00ff);
        for bar in BARS {
            self.put_dword(bar.register(), 0, !(bar.size - 1));
        }
        self.put_word(header::SUBSYSTEM, VENDOR, 0);
        self.put_word(header::SUBSYSTEM + 2, 1, 0);
        self.put_word(header::CAPABILITIES, cap::POWER as u16, 0);
        self.put_word(header::INTERRUPT_LINE, 0, 0x00ff);
        self.bytes[header::INTERRUPT_PIN] = 1;
    }

    /// Power Management version 3: D0 and D3hot, from which it returns without a reset.
    fn power_management(&mut self) {
        self.capability(cap::POWER, 0x01, cap::MSI);
        self.put_word(cap::POWER + 2, 3, 0);
        self.put_word(cap::POWER + 4, 1 << 3, 0b11);
    }

    fn interrupts(&mut self) {
        self.capability(cap::MSI, 0x05, cap::MSIX);
        let vectors = (MSI_VECTORS.ilog2() as u16) << bits::MSI_MULTIPLE_CAPABLE;
        self.put_word(
            cap::MSI + 2,
            vectors | bits::MSI_64,
            bits::MSI_ENABLE | 7 << bits::MSI_MULTIPLE_ENABLE,
        );
        self.put_dword(cap::MSI + 4, 0, !3);
        self.put_dword(cap::MSI + 8, 0, !0);
        self.put_word(cap::MSI + 12, 0, 0xffff);
        self.capability(cap::MSIX, 0x11, cap::EXPRESS);
        self.put_word(
            cap::MSIX + 2,
            MSIX_VECTORS - 1,
            bits::MSIX_ENABLE | bits::MSIX_MASK_ALL,
        );
        // The low three bits are the BAR: 0.
        self.put_dword(cap::MSIX + 4, MSIX_TABLE, 0);
        self.put_dword(cap::MSIX + 8, MSIX_PENDING, 0);
    }

    /// PCI Express version 2, an endpoint: a front-end makes it integrated where it sits on a root bus.
    fn express(&mut self) {
        self.capability(cap::EXPRESS, 0x10, 0);
        self.put_word(cap::EXPRESS + 2, 2, 0);
        let capabilities = bits::FLR | bits::ROLE_BASED_ERRORS | bits::EXTENDED_TAG;
        self.put_dword(cap::EXPRESS + 4, capabilities, 0);
        // Device Control: error reporting, relaxed ordering, payload, tags, no snoop, read request; and the reset.
        self.put_word(cap::EXPRESS + 8, 0x2810, !0x0600);
        // 2.5 GT/s, one lane.
        self.put_dword(cap::EXPRESS + 12, 0x11, 0);
        self.put_word(cap::EXPRESS + 16, 0, 0x00c3);
        self.put_word(cap::EXPRESS + 18, 0x11, 0);
        // Device Capabilities 2: without prefixes there are no PASIDs. Device Control 2: completion time-outs.
        self.put_dword(cap::EXPRESS + 36, bits::END_TO_END_PREFIX, 0);
        self.put_word(cap::EXPRESS + 40, 0, 0x001f);
    }

    fn extended(&mut self) {
        self.extended_capability(ext::ATS, 0x0f, ext::PRI);
        self.put_word(ext::ATS + 4, bits::ATS_PAGE_ALIGNED, 0);
        self.put_word(ext::ATS + 6, 0, bits::ATS_ENABLE | bits::ATS_SMALLEST_UNIT);
        self.extended_capability(ext::PRI, 0x13, ext::PASID);
        self.put_word(ext::PRI + 4, 0, bits::PRI_ENABLE | bits::PRI_RESET);
        self.put_dword(ext::PRI + 8, pri::CAPACITY, 0);
        self.put_dword(ext::PRI + 12, 0, !0);
        self.extended_capability(ext::PASID, 0x1b, 0);
        let kinds = bits::PASID_EXEC | bits::PASID_PRIVILEGED;
        self.put_word(ext::PASID + 4, 20 << bits::PASID_WIDTH | kinds, 0);
        self.put_word(ext::PASID + 6, 0, bits::PASID_ENABLE | kinds);
    }

    fn capability(&mut self, at: usize, id: u8, next: usize) {
        self.put_word(at, u16::from(id) | (next as u16) << 8, 0);
    }

    fn extended_capability(&mut self, at: usize, id: u16, next: usize) {
        self.put_dword(at, u32::from(id) | 1 << 16 | (next as u32) << 20, 0);
    }

    fn put_word(&mut self, at: usize, value: u16, writable: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 2].copy_from_slice(&writable.to_le_bytes());
    }

    fn put_dword(&mut self, at: usize, value: u32, writable: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&writable.to_le_bytes());
    }

    /// A byte; 0 beyond the end.
    pub(super) fn byte(&self, at: u64) -> u8 {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Writes what can be written of a byte.
    pub(super) fn write_byte(&mut self, at: u64, value: u8) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
            *byte = *byte & !mask | value & mask;
        }
        match at.checked_sub(ext::PRI + 6) {
            Some(0) => self.page_request_status_ones |= u16::from(value),
            Some(1) => self.page_request_status_ones |= u16::from(value) << 8,
            _ => {}
        }
    }

    pub(super) fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(super) fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    pub(super) fn set_word(&mut self, at: usize, change: impl FnOnce(u16) -> u16) {
        let value = change(self.word(at)).to_le_bytes();
        self.bytes[at..at + 2].copy_from_slice(&value);
    }

    pub(super) fn set_dword(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}
