// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One value for an endpoint's accesses without a PASID, and one for each of its PASIDs.

use std::collections::BTreeMap;

use crate::spec::Pasid;

/// A value for accesses without a PASID, and one for each PASID that has one.
#[derive(Clone, Debug, Default)]
pub struct PerPasid<T> {
    /// For accesses without a PASID.
    pub plain: T,
    pasids: BTreeMap<Pasid, T>,
}

impl<T> PerPasid<T> {
    /// One that has no PASID yet.
    pub const fn new(plain: T) -> Self {
        Self {
            plain,
            pasids: BTreeMap::new(),
        }
    }

    /// The value of a PASID, or the plain one; `None` when the PASID has none.
    pub fn get(&self, pasid: Option<Pasid>) -> Option<&T> {
        match pasid {
            None => Some(&self.plain),
            Some(pasid) => self.pasids.get(&pasid),
        }
    }

    /// Replaces the value of a PASID, or the plain one.
    pub fn set(&mut self, pasid: Option<Pasid>, value: T) {
        match pasid {
            None => self.plain = value,
            Some(pasid) => drop(self.pasids.insert(pasid, value)),
        }
    }

    /// Takes the value of a PASID away; `None` when it has none.
    pub fn remove(&mut self, pasid: Pasid) -> Option<T> {
        self.pasids.remove(&pasid)
    }

    /// The PASIDs from `first` on that have a value, ascending.
    pub fn pasids_from(&self, first: Pasid) -> impl Iterator<Item = (Pasid, &T)> {
        self.pasids
            .range(first..)
            .map(|(&pasid, value)| (pasid, value))
    }

    /// Every value: the plain one first, then those of PASIDs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Option<Pasid>, &T)> {
        let pasids = self
            .pasids
            .iter()
            .map(|(&pasid, value)| (Some(pasid), value));
        std::iter::once((None, &self.plain)).chain(pasids)
    }
}
