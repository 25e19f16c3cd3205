// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function as its bus sees it: configuration space, BARs, resets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value, json};

use crate::host::soft::SoftHost;
use crate::soft_endpoint::config::{BARS, Bar, ConfigSpace, Effect, SIZE};
use crate::soft_endpoint::engine::FaultEngine;
use crate::soft_endpoint::function::{Function, FunctionState, RegisterBlock};
use crate::soft_endpoint::scratch::Scratch;
use crate::soft_endpoint::test_block::TestBlock;
use crate::spec::EndpointId;

/// An access that goes beyond a region, or to one that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {length} bytes at {offset:#x} of {region}")]
pub struct NoSuchRegister {
    region: Region,
    offset: u64,
    length: usize,
}

/// A region of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Configuration space.
    Config,
    /// A BAR, by its number.
    Bar(usize),
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config => f.write_str("configuration space"),
            Self::Bar(index) => write!(f, "BAR {index}"),
        }
    }
}

/// A PCI function.
pub struct PciFunction {
    function: Arc<FunctionState>,
    config: Mutex<ConfigSpace>,
    blocks: Vec<(Bar, Arc<dyn RegisterBlock>)>,
    resets: AtomicU64,
}

impl PciFunction {
    /// A function of an endpoint, as after power-on.
    ///
    /// # Errors
    /// The kernel has no thread to give, or the host does not have the endpoint.
    pub fn new(endpoint: EndpointId, host: &Arc<SoftHost>) -> io::Result<Self> {
        let function = Arc::new(FunctionState::new(endpoint));
        let [test, memory, faults] = BARS;
        let scratch = Arc::new(Scratch::new(memory.index, memory.size as usize));
        let port = host.port(endpoint).map_err(io::Error::other)?;
        let test_block = TestBlock::new(&function, port, &scratch)?;
        let shared = Arc::clone(&function) as Arc<dyn Function>;
        let engine = FaultEngine::new(&shared, host, endpoint).map_err(io::Error::other)?;
        Ok(Self {
            config: Mutex::new(ConfigSpace::new(Arc::clone(&function))),
            function,
            blocks: vec![
                (test, Arc::new(test_block)),
                (memory, scratch),
                (faults, Arc::new(engine)),
            ],
            resets: AtomicU64::new(0),
        })
    }

    /// The length of a region in bytes; 0 if there is no such BAR.
    pub fn length(region: Region) -> u64 {
        match region {
            Region::Config => SIZE as u64,
            Region::Bar(index) => BARS
                .iter()
                .find(|bar| bar.index == index)
                .map_or(0, |bar| bar.size.into()),
        }
    }

    /// Reads registers from byte `offset` of a region on. A BAR reads as ones while Memory Space Enable is off.
    ///
    /// # Errors
    /// [`NoSuchRegister`] if the region has no such bytes.
    pub fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<(), NoSuchRegister> {
        check(region, offset, data.len())?;
        match self.block(region) {
            None => self.config().read(offset, data),
            Some(_) if !self.function.decodes() => data.fill(0xff),
            Some(block) => block.read(offset, data),
        }
        Ok(())
    }

    /// Writes registers from byte `offset` of a region on. A write to a BAR has no effect while Memory Space Enable is off.
    ///
    /// # Errors
    /// [`NoSuchRegister`] if the region has no such bytes.
    pub fn write(&self, region: Region, offset: u64, data: &[u8]) -> Result<(), NoSuchRegister> {
        check(region, offset, data.len())?;
        match self.block(region) {
            None => {
                let effect = self.config().write(offset, data);
                if effect == Effect::Reset {
                    self.reset();
                }
                self.function.interrupts().deliver();
            }
            Some(block) if self.function.decodes() => block.write(offset, data),
            Some(_) => {}
        }
        Ok(())
    }

    /// Resets the function. When this returns, it does no DMA and raises no interrupt.
    pub fn reset(&self) {
        // First, so that no DMA begins any more.
        self.config().reset();
        for (_, block) in &self.blocks {
            block.reset();
        }
        // What was raised in between.
        self.function.interrupts().reset();
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// The front-end is gone: the function is as after power-on, and has no event descriptors.
    pub fn disconnect(&self) {
        self.reset();
        self.function.interrupts().disconnect();
    }

    /// What blocks share.
    pub fn function(&self) -> &Arc<FunctionState> {
        &self.function
    }

    /// Everything there is to see, for people.
    pub fn describe(&self) -> Value {
        let config = self.config();
        let bars: Map<String, Value> = self
            .blocks
            .iter()
            .map(|(bar, block)| {
                let mut description = block.describe();
                description["address"] = format!("{:#x}", config.bar_address(bar)).into();
                (bar.index.to_string(), description)
            })
            .collect();
        let enabled = self.function.enabled();
        let (outstanding, peak) = self.function.page_requests().outstanding();
        json!({
            "enabled": enabled.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>(),
            "interrupts": self.function.interrupts().describe(),
            "page-requests": {
                "allocation": self.function.page_requests().allocation(),
                "outstanding": outstanding,
                "outstanding-peak": peak,
            },
            "resets": self.resets.load(Ordering::Relaxed),
            "bars": bars,
        })
    }

    fn block(&self, region: Region) -> Option<&dyn RegisterBlock> {
        let Region::Bar(index) = region else {
            return None;
        };
        let (_, block) = self.blocks.iter().find(|(bar, _)| bar.index == index)?;
        Some(&**block)
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock()
    }
}

fn check(region: Region, offset: u64, length: usize) -> Result<(), NoSuchRegister> {
    let end = offset.checked_add(length as u64);
    match end {
        Some(end) if end <= PciFunction::length(region) => Ok(()),
        _ => Err(NoSuchRegister {
            region,
            offset,
            length,
        }),
    }
}
