// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A domain: an address space with the endpoints in it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::host::mapping::{IovaRange, MappingTable, SharedMappings};

#[derive(Debug, Clone)]
pub(super) enum DomainKind {
    /// F_BYPASS: identity, no mappings.
    Bypass,
    /// Mappings.
    Paging(Paging),
}

#[derive(Clone)]
pub(super) struct Paging {
    pub mappings: SharedMappings,
    /// What the endpoints in the domain have reserved, ascending; regions of different endpoints may overlap.
    pub reserved: Vec<IovaRange>,
}

impl std::fmt::Debug for Paging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paging")
            .field("mappings", &self.read().len())
            .finish()
    }
}

impl Paging {
    pub fn new() -> Self {
        Self {
            mappings: Arc::new(RwLock::new(MappingTable::new())),
            reserved: Vec::new(),
        }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, MappingTable> {
        self.mappings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for accesses in flight (the software host reads the table while it carries one out).
    pub fn write(&self) -> RwLockWriteGuard<'_, MappingTable> {
        self.mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Domain {
    pub kind: DomainKind,
    /// Number of requesters attached. The domain ends with the last (D39).
    pub members: usize,
}

impl Domain {
    pub fn is_bypass(&self) -> bool {
        matches!(self.kind, DomainKind::Bypass)
    }
}
