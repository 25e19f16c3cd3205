// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A software endpoint: its properties, and where the accesses of each of its address spaces go.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::host::mapping::SharedMappings;
use crate::host::table::Table;
use crate::host::{EndpointProperties, PageRequests, PerPasid, Translations};
use crate::spec::{DomainId, Pasid};

/// What a domain translates by. A domain that was dropped and made again under its old number has another one.
#[derive(Clone)]
pub(super) enum Source {
    Mappings(SharedMappings),
    Table(Arc<Table>),
}

impl Source {
    pub(super) fn is_table(&self) -> bool {
        matches!(self, Self::Table(_))
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mappings(ours), Self::Mappings(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Table(ours), Self::Table(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

impl From<Translations> for Source {
    fn from(by: Translations) -> Self {
        match by {
            Translations::Mappings(mappings) => Self::Mappings(mappings),
            Translations::Table(table) => Self::Table(Arc::new(table)),
        }
    }
}

/// Where accesses of a requester go: [`crate::host::Attachment`] with what the domain translates by at hand.
#[derive(Clone)]
pub(super) enum View {
    Blocked,
    Bypass,
    Domain {
        id: DomainId,
        by: Source,
        page_requests: PageRequests,
    },
}

impl View {
    /// Whether a table of the driver translates.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, View::Domain { by, .. } if by.is_table())
    }

    /// Whether a move from one view to the other changes nothing.
    pub(super) fn is_same(&self, new: &Self) -> bool {
        match (self, new) {
            (View::Blocked, View::Blocked) | (View::Bypass, View::Bypass) => true,
            (
                View::Domain {
                    id,
                    by,
                    page_requests,
                },
                View::Domain {
                    id: new_id,
                    by: new_by,
                    page_requests: new_requests,
                },
            ) => id == new_id && by.is_same(new_by) && page_requests == new_requests,
            _ => false,
        }
    }
}

/// The views of an endpoint. A PASID without one is blocked, whatever the endpoint is: a PASID is never in bypass by
/// itself.
pub(super) struct Views(PerPasid<View>);

impl Views {
    pub(super) fn get(&self, pasid: Option<Pasid>) -> &View {
        self.0.get(pasid).unwrap_or(&View::Blocked)
    }

    pub(super) fn set(&mut self, pasid: Option<Pasid>, view: View) {
        match (pasid, view) {
            (Some(pasid), View::Blocked) => drop(self.0.remove(pasid)),
            (pasid, view) => self.0.set(pasid, view),
        }
    }
}

/// A software endpoint.
pub(super) struct Endpoint {
    pub(super) properties: EndpointProperties,
    /// Held for reading while a translation is looked up and while a page request is raised; `None` once the endpoint is
    /// removed. Lock order: a port's, this, the mapping table's, the events'.
    views: RwLock<Option<Views>>,
}

impl Endpoint {
    /// A blocked endpoint.
    pub(super) fn new(properties: EndpointProperties) -> Self {
        Self {
            properties,
            views: RwLock::new(Some(Views(PerPasid::new(View::Blocked)))),
        }
    }

    /// Whether it has the address space: every endpoint has the one without a PASID.
    pub(super) fn has_pasid(&self, pasid: Option<Pasid>) -> bool {
        let width = self.properties.pasid_width;
        pasid.is_none_or(|Pasid(pasid)| width != 0 && u64::from(pasid) >> width == 0)
    }

    pub(super) fn views(&self) -> RwLockReadGuard<'_, Option<Views>> {
        self.views.read()
    }

    pub(super) fn views_mut(&self) -> RwLockWriteGuard<'_, Option<Views>> {
        self.views.write()
    }
}
