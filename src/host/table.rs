// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page tables that the driver owns: what a domain with one is translated by, and what an endpoint can be attached to
//! (draft 2, "Tables of the driver").

use crate::spec::{Gpa, TableFormat};

/// A table of the driver, as ATTACH_TABLE describes it. Two domains with the same table are two domains all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its format.
    pub format: TableFormat,
    /// Bits of a virtual address.
    pub input_bits: u8,
    /// The logarithm to base two of the smallest page, in bytes.
    pub granule: u8,
    /// Where its root is.
    pub root: Gpa,
    /// Depends on the format: MAIR for [`TableFormat::Arm64`], 0 for [`TableFormat::X86_64`].
    pub attributes: u64,
}

/// A format of tables that an endpoint can be attached to: its TABLE property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSupport {
    /// The format.
    pub format: TableFormat,
    /// The most bits of a virtual address. Smaller values of the format can be used as well.
    pub input_bits: u8,
    /// Bits of a physical address.
    pub output_bits: u8,
    /// Sizes of pages that an entry can describe, a bit each.
    pub page_sizes: u64,
}
