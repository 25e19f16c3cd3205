// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How numbers, bytes and PCI addresses are written: on the command line, on the control socket, in sysfs.
#![forbid(unsafe_code)]

/// A decimal number, or a hexadecimal one after `0x`.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits),
        None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

/// Hexadecimal digits without a prefix.
pub fn hexadecimal(digits: &str) -> Option<u64> {
    (digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Lower-case hexadecimal.
pub fn to_hex(data: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    data.iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Bytes from hexadecimal with two digits for each; `None` if it is anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect::<Option<Vec<u8>>>()
        .filter(|_| rest.is_empty())
}

/// A number of bytes for people: `4.0 KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let step = (count.ilog2() / 10).min(6);
    let size = count as f64 / f64::from(step * 10).exp2();
    format!("{size:.1} {}", UNITS[step as usize - 1])
}

/// How an endpoint's number is written as a PCI address: `0000:00:05.0`.
pub fn pci_name(id: u32) -> String {
    let (segment, bus) = (id >> 16, id >> 8 & 0xff);
    let (device, function) = (id >> 3 & 0x1f, id & 7);
    format!("{segment:04x}:{bus:02x}:{device:02x}.{function}")
}

/// A PCI address, `[segment:]bus:device.function`, all hexadecimal: segment << 16 | bus << 8 | device << 3 | function.
/// `None` if a part is missing, too long or too large.
pub fn pci_address(text: &str) -> Option<u32> {
    let field = |s: &str, digits: std::ops::RangeInclusive<usize>, max: u32| {
        (digits.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(s, 16).ok())
            .flatten()
            .filter(|&v| v <= max)
    };
    let (rest, function) = text.split_once('.')?;
    let mut parts = rest.rsplit(':');
    let device = field(parts.next()?, 1..=2, 0x1f)?;
    let bus = field(parts.next()?, 1..=2, 0xff)?;
    let segment = match parts.next() {
        Some(s) => field(s, 1..=4, 0xffff)?,
        None => 0,
    };
    let function = field(function, 1..=1, 7)?;
    parts
        .next()
        .is_none()
        .then_some(segment << 16 | bus << 8 | device << 3 | function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 << 20, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn endpoints_are_written_as_pci_addresses() {
        assert_eq!(pci_name(0x28), "0000:00:05.0");
        assert_eq!(pci_address(&pci_name(0x1_02ff)), Some(0x1_02ff));
    }

    #[test]
    fn pci_addresses_of_sysfs_are_read() {
        assert_eq!(pci_address("0000:00:05.0"), Some(0x28));
        assert_eq!(pci_address("10de:ff:1f.7"), Some(0x10de_ffff));
        for wrong in [
            "",
            "0000:00:05",
            "0000:00:20.0",
            "0000:00:05.8",
            "x:00:05.0",
        ] {
            assert_eq!(pci_address(wrong), None, "{wrong}");
        }
    }
}
