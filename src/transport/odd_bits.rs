// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an exact device never sends, and a driver has to live with all the same (`--cfg odd_bits`).
//!
//! A later version of the specification may give a meaning to what is reserved today, so drivers must not look at
//! it. These stand-ins sit where bytes leave for the guest, and set what no driver may act on:
//!
//! * the config space: undefined bits of `bypass` (C77);
//! * properties: `reserved` and undefined flags (V60, X22, X27, X74), more bytes than a type has now, first in each list
//!   two to be ignored (P53), and before those of tables one of a format that nobody knows (X74);
//! * tails: `reserved`, and for one request no tail at all (R18);
//! * events: undefined flags, `reserved1` and `reserved2`, and fields without the flag that makes them valid (E70, X32,
//!   X33).
//!
//! What becomes of a fault report besides is chosen by the bits of its address, so that whoever causes the fault knows
//! it: [`RESERVED`], [`NO_ADDRESS`], [`NO_REASON`].

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::device::events::{Buffers, EventQueue};
use crate::device::{Finished, Reply, Step};
use crate::spec::{
    Attach, AttachFlags, Config, EVENT_LEN, Event, EventFlags, PageRequestProperty, PasidFlags,
    PasidProperty, PropertyHead, PropertyType, RequestType, ResvMemProperty, ResvMemSubtype,
    Status, TAIL_LEN, TableProperty,
};
use crate::transport::batch::Execute;
use crate::transport::chain::Broken;

/// `reserved` is set: the driver ignores the report (E70).
const RESERVED: u64 = 1 << 12;

/// The address is there without the flag that makes it valid (E66).
const NO_ADDRESS: u64 = 1 << 13;

/// The reason is one that nobody knows.
const NO_REASON: u64 = 1 << 14;

/// What is no reason, no `subtype` of a RESV_MEM property.
const UNKNOWN: u8 = 0x7f;

/// A property of an unknown type, with four bytes that mean nothing.
const UNKNOWN_PROPERTY: [u8; 8] = [0xff, 0x07, 4, 0, 0xff, 0xff, 0xff, 0xff];

/// A reserved region, if it were not for the reserved bits of `type` (P53).
const RESERVED_PROPERTY: ResvMemProperty = ResvMemProperty {
    head: PropertyHead {
        kind: U16::new(0xf000 | PropertyType::ResvMem as u16),
        length: U16::new((size_of::<ResvMemProperty>() - size_of::<PropertyHead>()) as u16),
    },
    subtype: ResvMemSubtype::Reserved as u8,
    reserved: [0; 3],
    first: U64::new(0x4000_0000),
    last: U64::new(0x4000_ffff),
};

/// Tables of a format that nobody knows, otherwise better than any (X74).
const UNKNOWN_TABLE: TableProperty = TableProperty {
    head: PropertyHead::new(PropertyType::Table, size_of::<TableProperty>()),
    format: U16::new(0x7f),
    input_bits: 64,
    output_bits: 64,
    page_size_mask: U64::new(u64::MAX),
    flags: U32::new(0),
    reserved: [0; 4],
};

/// What a later version may append to a property (P53).
const MORE: [u8; 4] = [0xff; 4];

/// An ATTACH of this PASID is not carried out, and goes back unwritten (R18).
const UNWRITTEN_PASID: u32 = 13;

/// An event queue whose events are odd.
pub(super) struct OddEvents<'a>(pub &'a mut dyn EventQueue);

impl EventQueue for OddEvents<'_> {
    fn size(&self) -> usize {
        self.0.size()
    }

    fn peek(&mut self, count: usize, min_len: usize) -> Buffers {
        self.0.peek(count, min_len)
    }

    fn push(&mut self, event: &[u8]) {
        let odd = odd_event(event);
        // Reports go in the longer form to every driver that has room for it.
        let length = match self.0.peek(1, EVENT_LEN) {
            Buffers::Enough => EVENT_LEN,
            _ => event.len(),
        };
        self.0.push(odd.as_bytes().get(..length).unwrap_or(event));
    }

    fn discard(&mut self) {
        self.0.discard();
    }
}

/// A report or a page request, as the device made it, in its odd form.
fn odd_event(event: &[u8]) -> Event {
    let mut odd = Event::new_zeroed();
    for (odd, byte) in odd.as_mut_bytes().iter_mut().zip(event) {
        *odd = *byte;
    }
    let mut flags = EventFlags::from_bits_retain(odd.flags.get());
    odd.reserved2 = U16::new(u16::MAX);
    if !flags.contains(EventFlags::PASID) {
        odd.pasid = U32::new(u32::MAX);
    }
    if !flags.contains(EventFlags::PAGE_REQUEST) {
        odd.group_id = U16::new(u16::MAX);
        odd.length = U32::new(u32::MAX);
        flags |= EventFlags::LAST;
        let chosen = odd.address.get();
        if chosen & RESERVED != 0 {
            odd.reserved = [0xff; 3];
        }
        if chosen & NO_ADDRESS != 0 {
            flags -= EventFlags::ADDRESS;
        }
        if chosen & NO_REASON != 0 {
            odd.reason = UNKNOWN;
        }
    }
    odd.flags = U32::new(flags.bits() | !EventFlags::all().bits());
    odd
}

/// A batch whose answers are odd.
pub(super) struct OddBatch<B> {
    batch: B,
    properties: Vec<u8>,
}

impl<B> OddBatch<B> {
    pub fn new(batch: B) -> Self {
        Self {
            batch,
            properties: Vec::new(),
        }
    }
}

impl<B: Execute> Execute for OddBatch<B> {
    fn execute(&mut self, readable: &[u8], readable_len: usize, writable_len: usize) -> Step {
        if is_unwritten(readable) {
            self.batch.broken(Broken::Chain);
            return Step {
                settled: None,
                reply: Reply::Unwritten,
            };
        }
        let step = self.batch.execute(readable, readable_len, writable_len);
        if step.reply == Reply::Properties {
            self.properties = odd_properties(self.batch.properties());
        }
        step
    }

    fn properties(&self) -> &[u8] {
        &self.properties
    }

    fn broken(&mut self, why: Broken) {
        self.batch.broken(why);
    }

    /// With its reserved bytes set.
    fn tail(status: Status) -> [u8; TAIL_LEN] {
        [status as u8, 0xff, 0xff, 0xff]
    }

    fn finish(self) -> Finished {
        self.batch.finish()
    }
}

fn is_unwritten(request: &[u8]) -> bool {
    Attach::read_from_bytes(request).is_ok_and(|attach| {
        attach.head.kind == RequestType::Attach as u8
            && attach.flags.get() & AttachFlags::PASID.bits() != 0
            && attach.pasid.get() == UNWRITTEN_PASID
    })
}

/// A list of properties in its odd form.
fn odd_properties(properties: &[u8]) -> Vec<u8> {
    let mut odd = [&UNKNOWN_PROPERTY, RESERVED_PROPERTY.as_bytes()].concat();
    let mut rest = properties;
    let mut has_table = false;
    while let Ok((head, _)) = PropertyHead::read_from_prefix(rest) {
        let size = size_of::<PropertyHead>() + usize::from(head.length.get());
        let (property, next) = rest.split_at(size);
        if head.kind.get() == PropertyType::Table as u16 && !has_table {
            has_table = true;
            odd.extend_from_slice(UNKNOWN_TABLE.as_bytes());
        }
        let mut property = property.to_vec();
        make_odd(head.kind.get(), &mut property);
        if let Ok((head, _)) = PropertyHead::mut_from_prefix(&mut property) {
            head.length += MORE.len() as u16;
        }
        odd.extend(property);
        odd.extend(MORE);
        rest = next;
    }
    odd
}

fn make_odd(kind: u16, property: &mut [u8]) {
    if kind == PropertyType::ResvMem as u16 {
        if let Ok(property) = ResvMemProperty::mut_from_bytes(property) {
            property.reserved = [0xff; 3];
            if property.subtype == ResvMemSubtype::Reserved as u8 {
                property.subtype = UNKNOWN;
            }
        }
    } else if kind == PropertyType::PageRequest as u16 {
        if let Ok(property) = PageRequestProperty::mut_from_bytes(property) {
            property.flags = U32::new(u32::MAX);
        }
    } else if kind == PropertyType::Pasid as u16 {
        if let Ok(property) = PasidProperty::mut_from_bytes(property) {
            property.flags |= !PasidFlags::all().bits();
            property.reserved = [0xff; 3];
        }
    } else if kind == PropertyType::Table as u16
        && let Ok(property) = TableProperty::mut_from_bytes(property)
    {
        property.flags = U32::new(u32::MAX);
        property.reserved = [0xff; 4];
    }
}

/// The config space with bits 1 to 7 of `bypass` set.
pub(super) fn config(mut space: [u8; size_of::<Config>()]) -> [u8; size_of::<Config>()] {
    if let Some(bypass) = space.get_mut(offset_of!(Config, bypass)) {
        *bypass |= 0xfe;
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{FAULT_REPORT_LEN, FaultReport, TableFormat};
    use crate::transport::batch::DeviceBatch;

    const READ: u32 = EventFlags::READ.bits() | EventFlags::ADDRESS.bits();

    /// Buffers of one length, and what was put into them.
    struct Queue {
        room: usize,
        events: Vec<Vec<u8>>,
    }

    impl EventQueue for Queue {
        fn size(&self) -> usize {
            8
        }

        fn peek(&mut self, _: usize, min_len: usize) -> Buffers {
            if min_len <= self.room {
                Buffers::Enough
            } else {
                Buffers::TooSmall {
                    index: 0,
                    len: self.room,
                }
            }
        }

        fn push(&mut self, event: &[u8]) {
            self.events.push(event.to_vec());
        }

        fn discard(&mut self) {}
    }

    fn report(address: u64) -> FaultReport {
        let mut report = FaultReport::new_zeroed();
        report.reason = 2;
        report.flags = U32::new(READ);
        report.address.set(address);
        report
    }

    #[test]
    fn what_a_report_means_is_left_alone() {
        let odd = odd_event(report(0x8000).as_bytes());
        assert_eq!((odd.reason, odd.reserved), (2, [0; 3]));
        assert_eq!(odd.address.get(), 0x8000);
        let known = EventFlags::from_bits_truncate(odd.flags.get());
        assert_eq!(known.bits(), READ | EventFlags::LAST.bits());
        assert_eq!(odd.flags.get() | EventFlags::all().bits(), u32::MAX);
        assert_eq!(odd.pasid.get(), u32::MAX);
        assert_eq!((odd.group_id.get(), odd.reserved2.get()), (0xffff, 0xffff));
        assert_eq!(odd.length.get(), u32::MAX);
    }

    #[test]
    fn the_address_chooses_what_is_wrong_with_a_report() {
        assert_eq!(odd_event(report(RESERVED).as_bytes()).reserved, [0xff; 3]);
        assert_eq!(odd_event(report(NO_REASON).as_bytes()).reason, UNKNOWN);
        let odd = odd_event(report(NO_ADDRESS).as_bytes());
        assert_eq!(odd.flags.get() & EventFlags::ADDRESS.bits(), 0);
        assert_eq!(odd.address.get(), NO_ADDRESS);
    }

    #[test]
    fn a_page_request_keeps_what_its_answer_needs() {
        let mut request = Event::new_zeroed();
        let flags = EventFlags::PAGE_REQUEST | EventFlags::PASID | EventFlags::ADDRESS;
        request.flags = U32::new(flags.bits());
        request.pasid = U32::new(5);
        request.address.set(RESERVED);
        request.group_id = U16::new(7);
        let odd = odd_event(request.as_bytes());
        assert_eq!(EventFlags::from_bits_truncate(odd.flags.get()), flags);
        assert_eq!((odd.pasid.get(), odd.group_id.get()), (5, 7));
        assert_eq!((odd.reserved, odd.reserved2.get()), ([0; 3], 0xffff));
    }

    #[test]
    fn a_report_is_as_long_as_its_buffer_allows() {
        for (room, length) in [(FAULT_REPORT_LEN, FAULT_REPORT_LEN), (64, EVENT_LEN)] {
            let mut queue = Queue {
                room,
                events: Vec::new(),
            };
            OddEvents(&mut queue).push(report(0).as_bytes());
            assert_eq!(queue.events.concat().len(), length);
        }
    }

    #[test]
    fn properties_keep_their_values() {
        let size = size_of::<PasidProperty>();
        let mut property = PasidProperty::new_zeroed();
        property.head = PropertyHead::new(PropertyType::Pasid, size);
        property.flags = U32::new(PasidFlags::EXEC.bits());
        property.width = 20;
        let odd = odd_properties(property.as_bytes());
        let (ignored, odd) = odd.split_at(odd.len() - size - MORE.len());
        assert!(ignored.starts_with(&UNKNOWN_PROPERTY));
        assert!(ignored.ends_with(RESERVED_PROPERTY.as_bytes()));
        let (odd, more) = PasidProperty::read_from_prefix(odd).unwrap();
        assert_eq!(more, MORE);
        assert_eq!((odd.head.kind, odd.width), (property.head.kind, 20));
        assert_eq!(odd.head.length, property.head.length + MORE.len() as u16);
        assert_eq!(odd.flags.get(), !PasidFlags::PRIVILEGED.bits());
        assert_eq!(odd.reserved, [0xff; 3]);
    }

    #[test]
    fn tables_keep_their_format_and_come_behind_one_that_nobody_knows() {
        let size = size_of::<TableProperty>();
        let mut property = TableProperty::new_zeroed();
        property.head = PropertyHead::new(PropertyType::Table, size);
        property.format = U16::new(TableFormat::X86_64 as u16);
        property.input_bits = 57;
        let odd = odd_properties(&[property.as_bytes(), property.as_bytes()].concat());
        let (ignored, odd) = odd.split_at(odd.len() - 2 * (size + MORE.len()));
        assert!(ignored.ends_with(UNKNOWN_TABLE.as_bytes()));
        for odd in odd.chunks(size + MORE.len()) {
            let (odd, _) = TableProperty::read_from_prefix(odd).unwrap();
            assert_eq!((odd.format, odd.input_bits), (property.format, 57));
            assert_eq!((odd.flags.get(), odd.reserved), (u32::MAX, [0xff; 4]));
        }
    }

    #[test]
    fn one_pasid_is_never_attached() {
        let mut attach = Attach::new_zeroed();
        attach.head.kind = RequestType::Attach as u8;
        attach.pasid = U32::new(UNWRITTEN_PASID);
        assert!(!is_unwritten(attach.as_bytes()));
        attach.flags = U32::new(AttachFlags::PASID.bits());
        assert!(is_unwritten(attach.as_bytes()));
        attach.head.kind = RequestType::Detach as u8;
        assert!(!is_unwritten(attach.as_bytes()));
    }

    #[test]
    fn bypass_keeps_the_bit_that_means_something() {
        let space = [1; size_of::<Config>()];
        let odd = config(space);
        let at = offset_of!(Config, bypass);
        assert_eq!(odd[at], 0xff);
        assert_eq!(
            (&odd[..at], &odd[at + 1..]),
            (&space[..at], &space[at + 1..])
        );
        assert_eq!(config([0; size_of::<Config>()])[at], 0xfe);
    }

    #[test]
    fn a_tail_keeps_its_status() {
        assert_eq!(
            OddBatch::<DeviceBatch<'_>>::tail(Status::Inval),
            [Status::Inval as u8, 0xff, 0xff, 0xff]
        );
    }
}
