// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values of options: numbers, ranges, regions, times.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::ReservedRegion;
use crate::host::mapping::IovaRange;
use crate::notation::{hexadecimal, number};
use crate::spec::ResvMemSubtype;

/// The longest `--page-response-timeout`: a year. Beyond that, 0 says it better.
const MAX_TIMEOUT_SECONDS: f64 = 365.0 * 86400.0;

/// A descriptor that the process inherits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InheritedFd {
    /// By its number.
    Number(RawFd),
    /// By the name that systemd has passed with it.
    Name(String),
}

impl fmt::Display for InheritedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(fd) => write!(f, "{fd}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A number, or a name such as systemd's: it begins with a letter.
pub(super) fn inherited_fd(text: &str) -> Result<InheritedFd, String> {
    let is_name = text.len() < 256
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_graphic() && c != ':');
    if is_name {
        return Ok(InheritedFd::Name(text.to_owned()));
    }
    match text.parse() {
        Ok(fd) if fd >= 0 => Ok(InheritedFd::Number(fd)),
        _ => Err(
            "expected the number of a descriptor, or the name of one that systemd passes"
                .to_owned(),
        ),
    }
}

/// Where the kernel's log is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// A file to open.
    Path(PathBuf),
    /// One that is open.
    Fd(InheritedFd),
}

/// `--kernel-log`.
pub(super) fn log_source(text: &str) -> Result<LogSource, String> {
    match text.strip_prefix("fd=") {
        Some(fd) => inherited_fd(fd).map(LogSource::Fd),
        None => Ok(LogSource::Path(text.into())),
    }
}

/// `--page-size-mask`.
pub(super) fn page_size_mask(text: &str) -> Result<u64, String> {
    match number(text) {
        None => Err("expected a number, such as 0xfffffffffffff000".to_owned()),
        Some(0) => Err("at least one page size must be left: set at least one bit".to_owned()),
        Some(mask) => Ok(mask),
    }
}

/// `LOW:HIGH`, both inclusive.
fn range(text: &str) -> Result<(u64, u64), String> {
    let (low, high) = text
        .split_once(':')
        .and_then(|(low, high)| Some((number(low)?, number(high)?)))
        .ok_or("expected LOW:HIGH, two numbers such as 0x0:0xffffffff")?;
    if low > high {
        return Err(format!(
            "LOW is above HIGH ({low:#x} > {high:#x}); both belong to the range"
        ));
    }
    Ok((low, high))
}

/// `--input-range`.
pub(super) fn input_range(text: &str) -> Result<IovaRange, String> {
    let (low, high) = range(text)?;
    IovaRange::new(low, high).ok_or_else(|| "LOW is above HIGH".to_owned())
}

/// `--domain-range`.
pub(super) fn domain_range(text: &str) -> Result<(u32, u32), String> {
    let (low, high) = range(text)?;
    match (u32::try_from(low), u32::try_from(high)) {
        (Ok(low), Ok(high)) => Ok((low, high)),
        _ => Err("domain IDs have 32 bits: 0xffffffff is the highest".to_owned()),
    }
}

/// `--reserved-region LOW:HIGH:TYPE`, in QEMU's syntax: hexadecimal, with or without `0x`.
pub(super) fn reserved_region(text: &str) -> Result<ReservedRegion, String> {
    const SYNTAX: &str = "expected LOW:HIGH:TYPE as in QEMU, LOW and HIGH hexadecimal, such as 0xfee00000:0xfeefffff:1";
    let hex = |part: &str| hexadecimal(part.strip_prefix("0x").unwrap_or(part));
    let mut parts = text.split(':');
    let (Some(low), Some(high), Some(kind), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SYNTAX.to_owned());
    };
    let (Some(low), Some(high)) = (hex(low), hex(high)) else {
        return Err(SYNTAX.to_owned());
    };
    let subtype = match kind {
        "0" => ResvMemSubtype::Reserved,
        "1" => ResvMemSubtype::Msi,
        _ => return Err(format!("TYPE '{kind}' is neither 0 (reserved) nor 1 (MSI)")),
    };
    let range = IovaRange::new(low, high)
        .ok_or_else(|| format!("LOW is above HIGH ({low:#x} > {high:#x})"))?;
    Ok(ReservedRegion { range, subtype })
}

/// `--socket-mode`: permissions in octal.
pub(super) fn socket_mode(text: &str) -> Result<u32, String> {
    let is_octal = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, at most 0777, such as 0660".to_owned()),
    }
}

/// `--page-response-timeout`: seconds, 0 for none.
pub(super) fn timeout(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_TIMEOUT_SECONDS).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, such as 10 or 0.5; 0 waits for ever".to_owned()),
    }
}

/// The time-out as the device wants it.
pub(super) fn timeout_duration(seconds: f64) -> Option<Duration> {
    (seconds > 0.0)
        .then(|| Duration::try_from_secs_f64(seconds).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("40"), Some(40));
        assert_eq!(number("0xffffffffffffffff"), Some(u64::MAX));
        for text in ["", "0x", "-1", "+1", "0x+1", "1k", "18446744073709551616"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_kernel_log_is_a_file_or_a_descriptor() {
        let path = LogSource::Path("/dev/kmsg".into());
        assert_eq!(log_source("/dev/kmsg"), Ok(path));
        let number = LogSource::Fd(InheritedFd::Number(3));
        assert_eq!(log_source("fd=3"), Ok(number));
        assert!(log_source("fd=").is_err());
        assert!(log_source("fd=-1").is_err());
    }

    #[test]
    fn a_descriptor_has_a_number_or_a_name() {
        assert_eq!(inherited_fd("3"), Ok(InheritedFd::Number(3)));
        let name = InheritedFd::Name("front-end".to_owned());
        assert_eq!(inherited_fd("front-end"), Ok(name));
        for text in ["", "-1", "-a", "3a", "a:b", "a b", "4294967296"] {
            assert!(inherited_fd(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn both_ends_belong_to_a_range() {
        assert_eq!(input_range("0:0xffffffffffffffff"), Ok(IovaRange::ALL));
        assert_eq!(domain_range("5:5"), Ok((5, 5)));
        for text in ["", "5", "6:5", "1:2:3", "a:b"] {
            assert!(domain_range(text).is_err(), "{text:?}");
        }
        assert!(domain_range("0:0x100000000").is_err());
    }

    #[test]
    fn reserved_regions_are_written_as_for_qemu() {
        let msi = ReservedRegion {
            range: IovaRange::new(0xfee0_0000, 0xfeef_ffff).expect("range"),
            subtype: ResvMemSubtype::Msi,
        };
        assert_eq!(reserved_region("0xfee00000:0xfeefffff:1"), Ok(msi));
        assert_eq!(reserved_region("fee00000:feefffff:1"), Ok(msi));
        for text in ["", "0:1", "1:0:0", "0:1:2", "0:1:0:0", "x:1:0", "0:1:"] {
            assert!(reserved_region(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(socket_mode("0660"), Ok(0o660));
        assert_eq!(socket_mode("777"), Ok(0o777));
        for text in ["", "0o660", "8", "1777", "+7", "rw"] {
            assert!(socket_mode(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn no_time_out_is_written_as_zero() {
        assert_eq!(timeout("0").map(timeout_duration), Ok(None));
        let half = Some(Duration::from_millis(500));
        assert_eq!(timeout("0.5").map(timeout_duration), Ok(half));
        for text in ["", "-1", "NaN", "inf", "ten", "1e30"] {
            assert!(timeout(text).is_err(), "{text:?}");
        }
    }
}
