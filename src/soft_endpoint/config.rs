// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space: its bytes, which of them can be written, and what a write means (PCI Express Base, "Software
//! Initialization and Configuration").

mod layout;

use std::sync::Arc;

use crate::soft_endpoint::function::{Enabled, Function, FunctionState};
use crate::soft_endpoint::interrupts::Signalling;
use crate::soft_endpoint::pri;

pub(super) use layout::{BARS, Bar, MSIX_PENDING, MSIX_TABLE, SIZE};
use layout::{Image, bits, cap, ext, header};

/// What a write asks of the function as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Function Level Reset.
    Reset,
}

/// Configuration space of a function.
pub(super) struct ConfigSpace {
    image: Image,
    function: Arc<FunctionState>,
}

impl ConfigSpace {
    pub(super) fn new(function: Arc<FunctionState>) -> Self {
        Self {
            image: Image::new(),
            function,
        }
    }

    /// Reads bytes; those beyond the end are 0.
    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.refresh();
        for (at, byte) in (0u64..).zip(data) {
            *byte = self.image.byte(offset.saturating_add(at));
        }
    }

    /// Writes bytes: read-only bits keep their value.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.refresh();
        for (at, &byte) in (0u64..).zip(data) {
            self.image.write_byte(offset.saturating_add(at), byte);
        }
        self.take_effect(offset, offset.saturating_add(data.len() as u64))
    }

    /// Everything as after power-on.
    pub(super) fn reset(&mut self) {
        self.image = Image::new();
        self.function.page_requests().reset();
        self.function.interrupts().reset();
        self.function.set_enabled(Enabled::empty());
        self.function.set_decodes(false);
    }

    /// Where a BAR is, as the driver has set it up.
    pub(super) fn bar_address(&self, bar: &Bar) -> u64 {
        u64::from(self.image.dword(bar.register()) & !0xf)
    }

    /// Brings what changes by itself into the image.
    fn refresh(&mut self) {
        let pri = self.function.page_requests();
        let intx = self.function.interrupts().intx_status();
        self.image.set_word(header::STATUS, |status| {
            status & !bits::INTERRUPT_STATUS | if intx { bits::INTERRUPT_STATUS } else { 0 }
        });
        self.image.set_word(ext::PRI + 4, |_| pri.control().bits());
        self.image.set_word(ext::PRI + 6, |_| pri.status().bits());
        self.image.set_dword(ext::PRI + 12, pri.allocation());
    }

    fn take_effect(&mut self, first: u64, end: u64) -> Effect {
        let touches = |register: usize, length: usize| {
            let register = register as u64;
            first < register + length as u64 && register < end
        };
        if touches(cap::EXPRESS + 8, 2) {
            let control = self.image.word(cap::EXPRESS + 8);
            if control & bits::INITIATE_FLR != 0 {
                return Effect::Reset;
            }
        }
        let pri = self.function.page_requests();
        if touches(ext::PRI + 4, 2) {
            let control = self.image.word(ext::PRI + 4);
            pri.set_control(pri::Control::from_bits_truncate(control));
        }
        if touches(ext::PRI + 6, 2) {
            let ones = std::mem::take(&mut self.image.page_request_status_ones);
            pri.clear_status(pri::Status::from_bits_truncate(ones));
        }
        if touches(ext::PRI + 12, 4) {
            pri.set_allocation(self.image.dword(ext::PRI + 12));
        }
        self.function.set_enabled(self.enabled());
        let command = self.image.word(header::COMMAND);
        self.function.set_decodes(command & bits::MEMORY_SPACE != 0);
        self.function.interrupts().set_signalling(self.signalling());
        Effect::None
    }

    fn enabled(&self) -> Enabled {
        let command = self.image.word(header::COMMAND);
        let ats = self.image.word(ext::ATS + 6);
        let pri = self.image.word(ext::PRI + 4);
        let pasid = self.image.word(ext::PASID + 6);
        let mut enabled = Enabled::empty();
        enabled.set(Enabled::BUS_MASTER, command & bits::BUS_MASTER != 0);
        enabled.set(Enabled::ATS, ats & bits::ATS_ENABLE != 0);
        enabled.set(Enabled::PAGE_REQUESTS, pri & bits::PRI_ENABLE != 0);
        // Execute and privileged requests are requests with a PASID.
        if pasid & bits::PASID_ENABLE != 0 {
            enabled.insert(Enabled::PASID);
            enabled.set(Enabled::EXEC, pasid & bits::PASID_EXEC != 0);
            enabled.set(Enabled::PRIVILEGED, pasid & bits::PASID_PRIVILEGED != 0);
        }
        enabled
    }

    fn signalling(&self) -> Signalling {
        let command = self.image.word(header::COMMAND);
        let msi = self.image.word(cap::MSI + 2);
        let msix = self.image.word(cap::MSIX + 2);
        Signalling {
            msix: msix & bits::MSIX_ENABLE != 0,
            msix_masked: msix & bits::MSIX_MASK_ALL != 0,
            msi: (msi & bits::MSI_ENABLE != 0)
                .then_some(1 << (msi >> bits::MSI_MULTIPLE_ENABLE & 7).min(5)),
            intx_disabled: command & bits::INTX_DISABLE != 0,
            messages: command & bits::BUS_MASTER != 0,
        }
    }
}
