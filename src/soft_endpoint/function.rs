// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all parts of a function share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::Value;

use crate::soft_endpoint::interrupts::Interrupts;
use crate::soft_endpoint::pri::PageRequestInterface;
use crate::spec::EndpointId;

bitflags::bitflags! {
    /// What configuration space enables.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Enabled: u32 {
        /// Bus Master Enable: DMA, and interrupts as messages.
        const BUS_MASTER = 1 << 0;
        /// ATS Enable.
        const ATS = 1 << 1;
        /// PRI Enable.
        const PAGE_REQUESTS = 1 << 2;
        /// PASID Enable.
        const PASID = 1 << 3;
        /// Execute Permission Enable.
        const EXEC = 1 << 4;
        /// Privileged Mode Enable.
        const PRIVILEGED = 1 << 5;
    }
}

/// What agents need of their function.
pub trait Function: Send + Sync {
    /// What configuration space enables now.
    fn enabled(&self) -> Enabled;
    /// The Page Request Interface: its registers are in configuration space.
    fn page_requests(&self) -> &Arc<PageRequestInterface>;
    /// Raises an interrupt vector by MSI-X, MSI or INTx, whichever is enabled. INTx has one, and of MSI those that the
    /// driver has not enabled are the last that it has.
    fn raise(&self, vector: u16);
}

/// What the parts of a function share: which endpoint it is, what it may do, how it interrupts.
///
/// Configuration space changes it; agents look at it before each access.
pub struct FunctionState {
    endpoint: EndpointId,
    enabled: AtomicU32,
    decodes: AtomicBool,
    page_requests: Arc<PageRequestInterface>,
    interrupts: Interrupts,
}

impl FunctionState {
    /// A function of an endpoint, with nothing enabled.
    pub fn new(endpoint: EndpointId) -> Self {
        Self {
            endpoint,
            enabled: AtomicU32::new(0),
            decodes: AtomicBool::new(false),
            page_requests: Arc::default(),
            interrupts: Interrupts::default(),
        }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    pub(super) fn set_enabled(&self, enabled: Enabled) {
        self.enabled.store(enabled.bits(), Ordering::Release);
    }

    /// Whether the BARs answer: Memory Space Enable.
    pub(super) fn decodes(&self) -> bool {
        self.decodes.load(Ordering::Acquire)
    }

    pub(super) fn set_decodes(&self, decodes: bool) {
        self.decodes.store(decodes, Ordering::Release);
    }

    /// The interrupts.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }
}

impl Function for FunctionState {
    fn enabled(&self) -> Enabled {
        Enabled::from_bits_truncate(self.enabled.load(Ordering::Acquire))
    }

    fn page_requests(&self) -> &Arc<PageRequestInterface> {
        &self.page_requests
    }

    fn raise(&self, vector: u16) {
        self.interrupts.raise(vector);
        self.interrupts.deliver();
    }
}

/// A block of registers behind a BAR.
///
/// Accesses come from one thread at a time and must not wait, least of all for the guest: a processor of the guest
/// waits for them. Dropping the block ends what it started.
pub trait RegisterBlock: Send + Sync {
    /// Reads registers, of any width and alignment, within the length of the BAR.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes registers, as above.
    fn write(&self, offset: u64, data: &[u8]);

    /// Puts everything in the state after power-on. When it returns, no DMA that was begun before is under way, and
    /// none raises an interrupt.
    fn reset(&self);

    /// What there is to see, for people.
    fn describe(&self) -> Value;
}
