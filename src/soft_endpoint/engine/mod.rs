// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fault engine: DMA engines that a driver programs with descriptors, to meet every case of translation, page
//! requests and PASIDs. `docs/fault-engine.md` is its data sheet.
//!
//! ```text
//! driver ── registers ── Engine ── its thread ── Runner ── Dma ── port ── software IOMMU
//!                          │                               │
//!                          └── Progress                    └── PageRequestInterface (of the function)
//! ```
//!
//! Each engine has its own thread, port and counters: two engines share nothing while their accesses hit.
//!
//! * [`registers`], [`descriptor`]: what the driver sees.
//! * `state`: an engine. `work`: from the doorbell to the interrupt.
//! * `run`: chains and descriptors. `access`: their accesses, counted.

mod access;
pub mod descriptor;
pub mod registers;
mod run;
mod state;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::host::HostError;
use crate::host::soft::SoftHost;
use crate::soft_endpoint::function::{Function, RegisterBlock};
use crate::spec::EndpointId;

pub use descriptor::{Completion, Descriptor, Flags, Operation, Outcome, Piece};
#[cfg(test)]
use registers::Cause;
#[cfg(test)]
use registers::Enabled;
use registers::{engine, global};
use state::Engine;

/// The register block.
pub struct FaultEngine {
    function: Arc<dyn Function>,
    engines: Vec<Arc<Engine>>,
}

impl FaultEngine {
    /// The engines of a function.
    ///
    /// # Errors
    /// [`HostError::NoEndpoint`].
    pub fn new(
        function: &Arc<dyn Function>,
        host: &Arc<SoftHost>,
        endpoint: EndpointId,
    ) -> Result<Self, HostError> {
        let engines = (0..registers::ENGINES)
            .map(|_| {
                Ok(Arc::new(Engine::new(
                    Arc::clone(function),
                    host.port(endpoint)?,
                )))
            })
            .collect::<Result<_, HostError>>()?;
        Ok(Self {
            function: Arc::clone(function),
            engines,
        })
    }

    fn engine_at(&self, offset: u64) -> Option<(&Arc<Engine>, u64)> {
        let offset = offset.checked_sub(engine::FIRST)?;
        let index = usize::try_from(offset / engine::STRIDE).ok()?;
        Some((self.engines.get(index)?, offset % engine::STRIDE))
    }

    fn word(&self, offset: u64) -> u32 {
        if let Some((engine, register)) = self.engine_at(offset) {
            return engine.read(register);
        }
        match offset {
            global::ID => global::ID_VALUE,
            global::VERSION => global::VERSION_VALUE,
            global::ENGINES => registers::ENGINES as u32,
            global::ENABLED => self.function.enabled().bits(),
            global::OUTSTANDING => self.function.page_requests().outstanding().0,
            global::OUTSTANDING_PEAK => self.function.page_requests().outstanding().1,
            _ => 0,
        }
    }
}

impl RegisterBlock for FaultEngine {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (0..).map(|i| offset.wrapping_add(i)).zip(data) {
            *byte = self.word(at & !3).to_le_bytes()[(at & 3) as usize];
        }
    }

    /// 4 or 8 bytes, aligned. Anything else is ignored.
    fn write(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return;
        }
        for (word, bytes) in (0..).zip(data.chunks_exact(4)) {
            let value = bytes.try_into().map(u32::from_le_bytes).unwrap_or(0);
            if let Some((engine, register)) = self.engine_at(offset.wrapping_add(4 * word)) {
                match register {
                    engine::DOORBELL => engine.start(),
                    _ => engine.write(register, value),
                }
            }
        }
    }

    fn reset(&self) {
        self.engines.iter().for_each(|engine| engine.reset());
    }

    fn describe(&self) -> Value {
        let engines = self.engines.iter().map(|engine| engine.describe());
        json!({"engines": engines.collect::<Vec<_>>()})
    }
}

impl Drop for FaultEngine {
    fn drop(&mut self) {
        self.engines.iter().for_each(|engine| engine.thread.end());
    }
}
