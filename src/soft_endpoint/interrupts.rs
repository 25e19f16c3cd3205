// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupts of a function: MSI-X, MSI, or INTx.
//!
//! A front-end gives an event descriptor for each vector that the driver uses. INTx is a level, of which vfio-user
//! carries edges only: the front-end lowers it by itself when the driver has touched a BAR, and says so by unmasking.
//! So an interrupt is one edge, those that come before the unmasking are one more, and none is lost.
//!
//! A front-end can make the write to an event descriptor block. So no lock is held across it: an interrupt is first
//! decided upon, under the locks of the function, and [`Interrupts::deliver`] writes when they are let go.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::os::eventfd;

/// Vectors of MSI: all that it can have.
pub const MSI_VECTORS: u16 = 32;
/// Vectors of MSI-X. A guest's processor has some 200 for all its devices, and several functions should find room.
pub const MSIX_VECTORS: u16 = 32;

/// How an interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// A wire.
    Intx,
    /// Message signalled interrupts.
    Msi,
    /// Those with a table.
    Msix,
}

impl InterruptKind {
    /// How many vectors the function has.
    pub fn vectors(self) -> u16 {
        match self {
            Self::Intx => 1,
            Self::Msi => MSI_VECTORS,
            Self::Msix => MSIX_VECTORS,
        }
    }
}

/// What configuration space says about interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signalling {
    /// MSI-X Enable.
    pub msix: bool,
    /// Function Mask of MSI-X.
    pub msix_masked: bool,
    /// With MSI Enable, how many vectors Multiple Message Enable gives the function.
    pub msi: Option<u16>,
    /// Interrupt Disable.
    pub intx_disabled: bool,
    /// Bus Master Enable: messages are memory writes.
    pub messages: bool,
}

/// The interrupts of a function.
#[derive(Default)]
pub struct Interrupts(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    signalling: Signalling,
    intx: Vector,
    /// From an edge to the unmasking that follows it.
    intx_asserted: bool,
    /// Masked by the front-end.
    intx_masked: bool,
    msi: Vec<Vector>,
    msix: Vec<Vector>,
    /// Decided upon, and not yet written.
    due: Vec<Arc<OwnedFd>>,
}

#[derive(Default)]
struct Vector {
    /// An eventfd.
    trigger: Option<Arc<OwnedFd>>,
    /// Raised when it could not be signalled.
    pending: bool,
    signalled: u64,
}

impl Vector {
    fn signal(&mut self, due: &mut Vec<Arc<OwnedFd>>) {
        self.pending = match &self.trigger {
            Some(trigger) => {
                due.push(Arc::clone(trigger));
                self.signalled += 1;
                false
            }
            None => true,
        };
    }
}

impl Inner {
    fn kind(&self) -> InterruptKind {
        match self.signalling {
            Signalling { msix: true, .. } => InterruptKind::Msix,
            Signalling { msi: Some(_), .. } => InterruptKind::Msi,
            _ => InterruptKind::Intx,
        }
    }

    /// How many vectors of a kind the driver has enabled.
    fn enabled_vectors(&self, kind: InterruptKind) -> u16 {
        match kind {
            InterruptKind::Msi => self.signalling.msi.unwrap_or(0),
            _ => kind.vectors(),
        }
    }

    fn messages(&mut self, kind: InterruptKind) -> &mut Vec<Vector> {
        self.messages_and_due(kind).0
    }

    fn messages_and_due(
        &mut self,
        kind: InterruptKind,
    ) -> (&mut Vec<Vector>, &mut Vec<Arc<OwnedFd>>) {
        let vectors = match kind {
            InterruptKind::Msix => &mut self.msix,
            _ => &mut self.msi,
        };
        vectors.resize_with(kind.vectors().into(), Vector::default);
        (vectors, &mut self.due)
    }

    fn raise(&mut self, kind: InterruptKind, vector: u16) {
        match kind {
            InterruptKind::Intx => {
                self.intx.pending = true;
                self.settle_intx();
            }
            _ if !self.signalling.messages => {}
            _ => {
                let vector = vector.min(self.enabled_vectors(kind).saturating_sub(1));
                let masked = kind == InterruptKind::Msix && self.signalling.msix_masked;
                let (vectors, due) = self.messages_and_due(kind);
                match vectors.get_mut(usize::from(vector)) {
                    Some(vector) if masked => vector.pending = true,
                    Some(vector) => vector.signal(due),
                    None => {}
                }
            }
        }
    }

    /// Signals INTx if it is raised and nothing keeps it back.
    fn settle_intx(&mut self) {
        let kept_back = self.intx_asserted || self.intx_masked || self.signalling.intx_disabled;
        if self.intx.pending && !kept_back {
            self.intx.signal(&mut self.due);
            self.intx_asserted = !self.intx.pending;
        }
    }

    /// Signals what is pending and can be.
    fn settle_messages(&mut self, kind: InterruptKind) {
        if kind == InterruptKind::Msix && self.signalling.msix_masked {
            return;
        }
        let (vectors, due) = self.messages_and_due(kind);
        for vector in vectors {
            if vector.pending && vector.trigger.is_some() {
                vector.signal(due);
            }
        }
    }
}

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Writes to the event descriptors of what was decided upon. The caller holds no lock.
    pub(super) fn deliver(&self) {
        let due = std::mem::take(&mut self.lock().due);
        for trigger in due {
            eventfd::signal(&trigger);
        }
    }

    /// Raises a vector by what is enabled. With INTx there is one. `deliver` comes next.
    pub fn raise(&self, vector: u16) {
        let mut inner = self.lock();
        let kind = inner.kind();
        inner.raise(kind, vector);
    }

    /// Raises a vector of a kind, if that kind is enabled: whether it is. `deliver` comes next.
    pub fn raise_as(&self, kind: InterruptKind, vector: u16) -> bool {
        let mut inner = self.lock();
        let enabled = inner.kind() == kind && vector < inner.enabled_vectors(kind);
        if enabled {
            inner.raise(kind, vector);
        }
        enabled
    }

    /// Whether INTx is raised: Interrupt Status in configuration space.
    pub(super) fn intx_status(&self) -> bool {
        let inner = self.lock();
        inner.intx.pending || inner.intx_asserted
    }

    /// What configuration space says now. `deliver` comes next.
    pub(super) fn set_signalling(&self, signalling: Signalling) {
        let mut inner = self.lock();
        inner.signalling = signalling;
        if inner.kind() != InterruptKind::Intx {
            // A function with MSI or MSI-X enabled does not use its wire.
            inner.intx.pending = false;
        }
        inner.settle_intx();
        inner.settle_messages(InterruptKind::Msix);
    }

    /// Gives eventfds to the vectors from `first` on, or takes them away. `deliver` comes next.
    pub(super) fn set_triggers(
        &self,
        kind: InterruptKind,
        first: usize,
        triggers: Vec<Option<OwnedFd>>,
    ) {
        let mut inner = self.lock();
        match kind {
            InterruptKind::Intx => {
                if let Some(trigger) = triggers.into_iter().next() {
                    inner.intx.trigger = trigger.map(Arc::new);
                    inner.intx_asserted = false;
                    inner.intx_masked = false;
                    inner.settle_intx();
                }
            }
            _ => {
                let vectors = inner.messages(kind).iter_mut().skip(first);
                for (vector, trigger) in vectors.zip(triggers) {
                    vector.trigger = trigger.map(Arc::new);
                }
                inner.settle_messages(kind);
            }
        }
    }

    /// Takes all descriptors of a kind away, and what is pending.
    pub(crate) fn disable(&self, kind: InterruptKind) {
        let mut inner = self.lock();
        match kind {
            InterruptKind::Intx => {
                inner.intx.trigger = None;
                inner.intx_asserted = false;
                inner.intx_masked = false;
            }
            _ => inner
                .messages(kind)
                .iter_mut()
                .for_each(|v| v.trigger = None),
        }
    }

    /// Masks INTx, or unmasks it, as the front-end does when it has lowered it. `deliver` comes next.
    pub(super) fn mask_intx(&self, masked: bool) {
        let mut inner = self.lock();
        inner.intx_masked = masked;
        inner.intx_asserted &= masked;
        inner.settle_intx();
    }

    /// Whether a vector of MSI-X waits to be signalled: the Pending Bit Array.
    pub(super) fn msix_pending(&self, vector: usize) -> bool {
        self.lock().msix.get(vector).is_some_and(|v| v.pending)
    }

    /// Forgets what is pending. The descriptors stay: they are the front-end's.
    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.due.clear();
        inner.signalling = Signalling::default();
        inner.intx.pending = false;
        inner.intx_asserted = false;
        for kind in [InterruptKind::Msi, InterruptKind::Msix] {
            inner
                .messages(kind)
                .iter_mut()
                .for_each(|v| v.pending = false);
        }
    }

    /// Forgets the front-end.
    pub(super) fn disconnect(&self) {
        *self.lock() = Inner::default();
    }

    /// What there is to see, for people.
    pub(super) fn describe(&self) -> Value {
        let inner = self.lock();
        let enabled = match inner.kind() {
            InterruptKind::Msix => "msix",
            InterruptKind::Msi => "msi",
            InterruptKind::Intx if inner.signalling.intx_disabled => "none",
            InterruptKind::Intx => "intx",
        };
        let messages = inner.msi.iter().chain(&inner.msix);
        let pending = messages.clone().filter(|v| v.pending).count();
        json!({
            "enabled": enabled,
            "signalled": messages.map(|v| v.signalled).sum::<u64>() + inner.intx.signalled,
            "pending": pending + usize::from(inner.intx.pending),
            "intx-asserted": inner.intx_asserted,
        })
    }
}
