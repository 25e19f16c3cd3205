// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel's drivers of IOMMUs write into its log about an access that they refused. The words are no interface:
//! they are those of Linux 6.2 to 7.3, and a line that is not understood is passed by.

use crate::notation::{hexadecimal, pci_address};
use crate::spec::{EventFlags, Iova, Pasid, Reason};

/// A refused access, as a line tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The device: its PCI address, as of [`pci_address`].
    pub device: u32,
    pub pasid: Option<Pasid>,
    pub reason: Reason,
    /// VT-d tells the page only.
    pub address: Option<Iova>,
    pub access: EventFlags,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Refused(Refused),
    /// The first of two lines of an SMMUv3, by its name: the kind of access comes with the next.
    First(&'a str, Refused),
    /// The second, with the kind of access; `None` where it was the table's and not the device's.
    Second(&'a str, Option<EventFlags>),
    Other,
}

/// Fault reasons of VT-d (11.4.7.8, table "Fault Reason Encodings") that are about the entry for the address: not writable,
/// not readable, and what says so in scalable mode.
const VTD_MAPPING: [u64; 6] = [0x05, 0x06, 0x71, 0x79, 0x85, 0x86];
/// Flags of AMD's IO_PAGE_FAULT (2.5.3): a write, an interrupt.
const AMD_WRITE: u64 = 0x020;
const AMD_INTERRUPT: u64 = 0x008;

pub(super) fn parse(text: &str) -> Line<'_> {
    let found = vtd(text)
        .or_else(|| amd(text))
        .map(Line::Refused)
        .or_else(|| smmu(text));
    found.unwrap_or(Line::Other)
}

/// `DMAR: [DMA Read NO_PASID] Request device [0000:00:02.0] fault addr 0x1000 [fault reason 0x06] PTE Read ...`
fn vtd(text: &str) -> Option<Refused> {
    let rest = text.strip_prefix("DMAR: [DMA ")?;
    let (kind, rest) = rest.split_once("] Request device [")?;
    let (device, rest) = rest.split_once("] fault addr ")?;
    let (address, rest) = rest.split_once(" [fault reason ")?;
    let (reason, _) = rest.split_once(']')?;
    let (access, pasid) = kind.split_once(' ')?;
    Some(Refused {
        device: pci_address(device)?,
        pasid: match pasid.strip_prefix("PASID ") {
            Some(number) => Some(Pasid(narrow(prefixed(number)?)?)),
            None => None,
        },
        reason: match VTD_MAPPING.contains(&prefixed(reason)?) {
            true => Reason::Mapping,
            false => Reason::Unknown,
        },
        address: Some(Iova(prefixed(address)?)),
        access: match access {
            "Read" => EventFlags::READ,
            "Write" => EventFlags::WRITE,
            _ => return None,
        },
    })
}

/// `vfio-pci 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0x1000 flags=0x0020]`, or without the
/// driver and with `device=0000:01:00.0`.
fn amd(text: &str) -> Option<Refused> {
    let (before, event) = text.split_once("AMD-Vi: Event logged [IO_PAGE_FAULT ")?;
    let (event, _) = event.split_once(']')?;
    let field = |name: &str| {
        let mut fields = event.split(' ').filter_map(|field| field.split_once('='));
        fields.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let device = match field("device") {
        Some(device) => device,
        None => before.strip_suffix(": ")?.rsplit(' ').next()?,
    };
    let flags = prefixed(field("flags")?)?;
    if flags & AMD_INTERRUPT != 0 {
        return None;
    }
    Some(Refused {
        device: pci_address(device)?,
        pasid: None,
        reason: Reason::Mapping,
        address: Some(Iova(prefixed(field("address")?)?)),
        access: match flags & AMD_WRITE {
            0 => EventFlags::READ,
            _ => EventFlags::WRITE,
        },
    })
}

/// `arm-smmu-v3 NAME: event: F_TRANSLATION client: 0000:00:01.0 sid: 0x8 ssid: 0x0 iova: 0x1000 ipa: 0x0`, then
/// `arm-smmu-v3 NAME: unpriv data read s2 "Input address caused fault" stag: 0x0`.
fn smmu(text: &str) -> Option<Line<'_>> {
    let (name, rest) = text.strip_prefix("arm-smmu-v3 ")?.split_once(": ")?;
    let Some(event) = rest.strip_prefix("event: ") else {
        return second(name, rest);
    };
    let mut words = event.split(' ');
    let kind = words.next()?;
    let mut field = |key: &str| {
        (words.next()? == key).then_some(())?;
        words.next()
    };
    let device = pci_address(field("client:")?)?;
    field("sid:")?;
    // 0 is also what an access without one has.
    let pasid = Some(narrow(prefixed(field("ssid:")?)?)?).filter(|&pasid: &u32| pasid != 0);
    let address = field("iova:").and_then(prefixed);
    let refused = Refused {
        device,
        pasid: pasid.map(Pasid),
        reason: match kind {
            "F_TRANSLATION" | "F_ADDR_SIZE" | "F_ACCESS" | "F_PERMISSION" => Reason::Mapping,
            "F_STREAM_DISABLED" | "C_BAD_SUBSTREAMID" => Reason::Domain,
            _ => Reason::Unknown,
        },
        address: address.map(Iova),
        access: EventFlags::empty(),
    };
    Some(match address {
        Some(_) => Line::First(name, refused),
        None => Line::Refused(refused),
    })
}

fn second<'a>(name: &'a str, rest: &str) -> Option<Line<'a>> {
    let mut words = rest.split(' ');
    let mut access = match words.next()? {
        "priv" => EventFlags::PRIVILEGED,
        "unpriv" => EventFlags::empty(),
        _ => return None,
    };
    access |= match (words.next()?, words.next()?) {
        ("inst", _) => EventFlags::EXEC,
        ("data", "read") => EventFlags::READ,
        ("data", "write") => EventFlags::WRITE,
        _ => return None,
    };
    let own = rest.contains("\"Input address caused fault\"");
    Some(Line::Second(name, own.then_some(access)))
}

fn prefixed(text: &str) -> Option<u64> {
    // `%#x` gives a zero no prefix.
    hexadecimal(text.strip_prefix("0x").unwrap_or(text))
}

fn narrow(number: u64) -> Option<u32> {
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u32 = 0x0001_0208;

    fn refused(reason: Reason, address: u64, access: EventFlags) -> Refused {
        Refused {
            device: DEVICE,
            pasid: None,
            reason,
            address: Some(Iova(address)),
            access,
        }
    }

    #[test]
    fn lines_of_vtd() {
        // Recorded on Linux 7.2, with the address changed.
        let read = "DMAR: [DMA Read NO_PASID] Request device [0001:02:01.0] fault addr 0x1234000 [fault reason 0x06] \
                    PTE Read access is not set";
        let expected = refused(Reason::Mapping, 0x123_4000, EventFlags::READ);
        assert_eq!(parse(read), Line::Refused(expected));
        let write = "DMAR: [DMA Write PASID 0x5] Request device [0001:02:01.0] fault addr 0xfffffffffffff000 \
                     [fault reason 0x79] SM: Read/Write permission error in first-stage entry";
        let expected = Refused {
            pasid: Some(Pasid(5)),
            ..refused(Reason::Mapping, !0xfff, EventFlags::WRITE)
        };
        assert_eq!(parse(write), Line::Refused(expected));
        for (reason, expected) in [
            ("0x02", Reason::Unknown),
            ("0x05", Reason::Mapping),
            ("0x71", Reason::Mapping),
            ("0x50", Reason::Unknown),
        ] {
            let line = format!(
                "DMAR: [DMA Write NO_PASID] Request device [0001:02:01.0] fault addr 0x0 [fault reason {reason}] x"
            );
            let expected = refused(expected, 0, EventFlags::WRITE);
            assert_eq!(parse(&line), Line::Refused(expected), "{reason}");
        }
    }

    #[test]
    fn lines_of_amd() {
        let event = |flags: &str| {
            format!(
                "vfio-pci 0001:02:01.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0x1234 flags={flags}]"
            )
        };
        let expected = |access| Line::Refused(refused(Reason::Mapping, 0x1234, access));
        assert_eq!(parse(&event("0x0020")), expected(EventFlags::WRITE));
        assert_eq!(parse(&event("0x0010")), expected(EventFlags::READ));
        // An interrupt that was not to be.
        assert_eq!(parse(&event("0x0009")), Line::Other);
        let without_driver = "AMD-Vi: Event logged [IO_PAGE_FAULT device=0001:02:01.0 domain=0x0001 address=0x1234 flags=0x0020]";
        assert_eq!(parse(without_driver), expected(EventFlags::WRITE));
        let other = "AMD-Vi: Event logged [ILLEGAL_DEV_TABLE_ENTRY device=0001:02:01.0 pasid=0x0 address=0x1 flags=0x0]";
        assert_eq!(parse(other), Line::Other);
    }

    #[test]
    fn lines_of_smmuv3_come_in_pairs() {
        let event = |kind: &str, ssid: &str| {
            format!(
                "arm-smmu-v3 9050000.smmuv3: event: {kind} client: 0001:02:01.0 sid: 0x208 ssid: {ssid} iova: 0x1234 ipa: 0"
            )
        };
        let none = EventFlags::empty();
        let first = refused(Reason::Mapping, 0x1234, none);
        for kind in ["F_TRANSLATION", "F_ADDR_SIZE", "F_ACCESS", "F_PERMISSION"] {
            let line = event(kind, "0");
            assert_eq!(parse(&line), Line::First("9050000.smmuv3", first), "{kind}");
        }
        let with_pasid = Refused {
            pasid: Some(Pasid(7)),
            ..first
        };
        let line = event("F_TRANSLATION", "0x7");
        assert_eq!(parse(&line), Line::First("9050000.smmuv3", with_pasid));
        for (words, access) in [
            ("unpriv data read", EventFlags::READ),
            ("unpriv data write", EventFlags::WRITE),
            (
                "priv data write",
                EventFlags::WRITE | EventFlags::PRIVILEGED,
            ),
            ("unpriv inst read", EventFlags::EXEC),
        ] {
            let line = format!(
                "arm-smmu-v3 9050000.smmuv3: {words} s1 \"Input address caused fault\" stag: 0"
            );
            let expected = Line::Second("9050000.smmuv3", Some(access));
            assert_eq!(parse(&line), expected, "{words}");
        }
        let walk = "arm-smmu-v3 9050000.smmuv3: unpriv data read s2 \"Stage 1 translation table fetch\" ttd_read stag: 0";
        assert_eq!(parse(walk), Line::Second("9050000.smmuv3", None));
        for (kind, reason) in [
            ("C_BAD_CD", Reason::Unknown),
            ("F_STREAM_DISABLED", Reason::Domain),
            ("C_BAD_SUBSTREAMID", Reason::Domain),
        ] {
            let line = format!(
                "arm-smmu-v3 9050000.smmuv3: event: {kind} client: 0001:02:01.0 sid: 0x208 ssid: 0"
            );
            let expected = Refused {
                address: None,
                ..refused(reason, 0, none)
            };
            assert_eq!(parse(&line), Line::Refused(expected), "{kind}");
        }
    }

    #[test]
    fn other_lines_and_broken_ones_are_passed_by() {
        for line in [
            "",
            "DMAR: [DMA ",
            "DMAR: [DMA Read NO_PASID] Request device [] fault addr 0x1 [fault reason 0x06]",
            "DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x1g [fault reason 0x06]",
            "DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x1 [fault reason ]",
            "DMAR: [DMA Fetch NO_PASID] Request device [00:02.0] fault addr 0x1 [fault reason 0x06] x",
            "DMAR: [DMA Read PASID 0x100000000] Request device [00:02.0] fault addr 0x1 [fault reason 0x06] x",
            "DMAR: DRHD: handling fault status reg 3",
            "DMAR: [INTR-REMAP] Request device [0000:00:02.0] fault index 0x12 [fault reason 0x22] Present field",
            "note: DMAR: [DMA Read NO_PASID] Request device [0000:00:02.0] fault addr 0x1 [fault reason 0x06] x",
            "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1 address=0x1 flags=0x20]",
            "vfio-pci 0001:02:01.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1 flags=0x20]",
            "arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: (unassigned sid) sid: 0x1 ssid: 0 iova: 0x1 ipa: 0",
            "arm-smmu-v3 9050000.smmuv3: \t0x0000020800000010",
            "arm-smmu-v3 9050000.smmuv3: EVTQ overflow detected -- events lost",
        ] {
            assert_eq!(parse(line), Line::Other, "{line:?}");
        }
    }
}
