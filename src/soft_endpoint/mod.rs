// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Software PCI functions: endpoints whose DMA goes through the software IOMMU.
//!
//! * [`pri`]: the Page Request Interface of a function.
//! * [`engine`]: the fault engine, a register block behind one of its BARs.
#![forbid(unsafe_code)]

pub mod engine;
pub mod pri;

pub use pri::PageRequestInterface;
