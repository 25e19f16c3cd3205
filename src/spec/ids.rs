// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vocabulary: identifiers and addresses as types of their own.

use std::fmt;
use std::str::FromStr;

use crate::notation;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// An endpoint: what the IOMMU tells apart as the source of accesses. For a PCI function on segment 0
    /// it is, by the choice of the ACPI VIOT that we write, its bus-device-function number.
    EndpointId(u32), "{:#x}"
);
id!(
    /// A domain: an address space that endpoints are attached to.
    DomainId(u32), "{}"
);
id!(
    /// A process address space identifier: one of several address spaces of an endpoint. 20 bits on PCI.
    Pasid(u32), "{}"
);
id!(
    /// The number of a page request group, unique per endpoint among outstanding groups (draft 1).
    GroupId(u16), "{}"
);
id!(
    /// An I/O virtual address: what an endpoint puts on the bus. In bytes.
    Iova(u64), "{:#x}"
);
id!(
    /// A guest-physical address. In bytes.
    Gpa(u64), "{:#x}"
);

/// An endpoint that is neither a number nor a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not an endpoint: expected a number (40, 0x28) or a PCI address (00:05.0, 0000:00:05.0)"
)]
pub struct ParseEndpointError(String);

impl FromStr for EndpointId {
    type Err = ParseEndpointError;

    /// Accepts a number (`40`, `0x28`) or a PCI address (`00:05.0`, `0000:00:05.0`). The segment becomes the
    /// upper 16 bits, bus, device and function the lower ones.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseEndpointError(text.to_owned());
        if text.contains(':') {
            return notation::pci_address(text)
                .map(EndpointId)
                .ok_or_else(error);
        }
        notation::number(text)
            .and_then(|number| u32::try_from(number).ok())
            .map(EndpointId)
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_a_number_or_a_pci_address() {
        for (text, id) in [
            ("40", 40),
            ("0x28", 0x28),
            ("00:05.0", 0x28),
            ("0000:00:05.0", 0x28),
            ("0001:02:1f.7", 0x1_02ff),
            ("5.0", 0),
        ] {
            match text {
                "5.0" => assert!(text.parse::<EndpointId>().is_err()),
                _ => assert_eq!(text.parse(), Ok(EndpointId(id)), "{text}"),
            }
        }
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for text in [
            "",
            "x",
            "0x",
            "-1",
            "+1",
            "0x+1",
            "4294967296",
            "00:20.0",
            "00:05.8",
            "00:05",
            "1:2:3:4.0",
            ":05.0",
            "10000:00:05.0",
            "00:05.0 ",
        ] {
            assert!(text.parse::<EndpointId>().is_err(), "{text:?}");
        }
    }
}
