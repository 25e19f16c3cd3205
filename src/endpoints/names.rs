// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which endpoint is which device of QEMU.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::spec::EndpointId;

/// Endpoints by the device that they are in QEMU: its `id`, or its path in the tree of objects.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<EndpointId, Name>>);

#[derive(Debug)]
struct Name {
    name: String,
    since: SystemTime,
}

/// A device that QEMU has let go of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its `id`, if the user gave it one.
    pub id: Option<String>,
    /// Where it was in QEMU's tree of objects.
    pub path: String,
    /// When, by the clock of the machine that both processes are on.
    pub when: SystemTime,
}

impl Names {
    fn names(&self) -> MutexGuard<'_, HashMap<EndpointId, Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint is this device from now on.
    pub fn add(&self, endpoint: EndpointId, name: &str) {
        let name = Name {
            name: name.to_owned(),
            since: SystemTime::now(),
        };
        self.names().insert(endpoint, name);
    }

    /// The endpoint is gone.
    pub fn remove(&self, endpoint: EndpointId) {
        self.names().remove(&endpoint);
    }

    /// Takes the endpoint that a deleted device was. One that came after the deletion is another device.
    pub fn take(&self, deleted: &Deleted) -> Option<EndpointId> {
        let mut names = self.names();
        let endpoint = names
            .iter()
            .find(|(_, name)| name.is(deleted))
            .map(|(&endpoint, _)| endpoint)?;
        names.remove(&endpoint);
        Some(endpoint)
    }
}

impl Name {
    fn is(&self, deleted: &Deleted) -> bool {
        let same = deleted.path == self.name || deleted.id.as_ref() == Some(&self.name);
        same && deleted.when >= self.since
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn deleted(id: Option<&str>, path: &str, when: SystemTime) -> Deleted {
        Deleted {
            id: id.map(str::to_owned),
            path: path.to_owned(),
            when,
        }
    }

    #[test]
    fn a_device_is_known_by_its_id_or_its_path() {
        let names = Names::default();
        let (first, second) = (EndpointId(1), EndpointId(2));
        names.add(first, "dev0");
        names.add(second, "/machine/peripheral-anon/device[3]");
        let later = SystemTime::now() + Duration::from_secs(1);
        let take = |id, path| names.take(&deleted(id, path, later));
        assert_eq!(take(Some("dev1"), "/machine/peripheral/dev1"), None);
        assert_eq!(
            take(None, "/machine/peripheral-anon/device[3]"),
            Some(second)
        );
        assert_eq!(take(Some("dev0"), "/machine/peripheral/dev0"), Some(first));
        assert_eq!(take(Some("dev0"), "/machine/peripheral/dev0"), None);
    }

    #[test]
    fn an_endpoint_that_came_after_the_deletion_is_another_device() {
        let names = Names::default();
        let before = SystemTime::now() - Duration::from_secs(1);
        names.add(EndpointId(1), "dev0");
        assert_eq!(names.take(&deleted(Some("dev0"), "/a", before)), None);
        names.remove(EndpointId(1));
        let later = SystemTime::now() + Duration::from_secs(1);
        assert_eq!(names.take(&deleted(Some("dev0"), "/a", later)), None);
    }
}
