// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which endpoint is which device of QEMU, and which of them a deletion means: the module's page has the reasons.

use std::collections::BTreeMap;

use crate::endpoints::{Backing, EndpointSpec, VfioDevice};
use crate::spec::EndpointId;

/// Endpoints by the device that they are in QEMU: its `id`, or its path in the tree of objects.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeMap<EndpointId, Name>,
    /// The number of the last name that was entered.
    last: u64,
}

#[derive(Debug)]
struct Name {
    device: String,
    /// Each name that is entered has another one, also when endpoint and device are the same again.
    number: u64,
    /// QEMU has the device before the endpoint is added.
    shared: bool,
    certainty: Certainty,
}

/// Whether a deletion of the name means this endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Certainty {
    /// It may be an earlier device's. `deleted`: there was one.
    Unsettled { deleted: bool },
    /// It does.
    Settled,
}

/// A device that QEMU has let go of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its `id`, if the user gave it one.
    pub id: Option<String>,
    /// Where it was in QEMU's tree of objects.
    pub path: String,
}

/// A question for QEMU: is there an object at `path`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// For [`crate::endpoints::Endpoints::answered`].
    pub number: u64,
    /// A path in QEMU's tree of objects.
    pub path: String,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// QEMU cannot say. It has answered, so events of before have arrived.
    Unknown,
}

impl Names {
    /// Enters the name of an endpoint, if it has one.
    pub fn add(&mut self, spec: &EndpointSpec) {
        let Some(device) = &spec.qemu_id else {
            return;
        };
        self.last += 1;
        let name = Name {
            device: device.clone(),
            number: self.last,
            shared: is_shared(&spec.backing),
            certainty: Certainty::Unsettled { deleted: false },
        };
        self.names.insert(spec.id, name);
    }

    /// The endpoint is gone.
    pub fn remove(&mut self, endpoint: EndpointId) {
        self.names.remove(&endpoint);
    }

    /// Every deletion to come means the endpoint that has the name now.
    pub fn settle_all(&mut self) {
        for name in self.names.values_mut() {
            name.certainty = Certainty::Settled;
        }
    }

    /// The oldest name that is unsettled, as a question.
    pub fn question(&self) -> Option<Question> {
        let unsettled = |name: &&Name| name.certainty != Certainty::Settled;
        let names = self.names.values().filter(unsettled);
        names.min_by_key(|name| name.number).map(|name| Question {
            number: name.number,
            path: name.path(),
        })
    }

    /// Settles a name that is still there. Takes the endpoint if its device is known to be gone.
    pub fn answered(&mut self, number: u64, presence: Presence) -> Option<EndpointId> {
        let mut names = self.names.iter_mut();
        let (&endpoint, name) = names.find(|(_, name)| name.number == number)?;
        let before = std::mem::replace(&mut name.certainty, Certainty::Settled);
        let gone = presence == Presence::Absent
            && name.shared
            && before == Certainty::Unsettled { deleted: true };
        gone.then(|| self.names.remove(&endpoint)).map(|_| endpoint)
    }

    /// Takes the endpoints that a deleted device was.
    pub fn deleted(&mut self, device: &Deleted) -> Vec<EndpointId> {
        let gone = self.names.extract_if(.., |_, name| {
            if !name.is(device) {
                return false;
            }
            match &mut name.certainty {
                Certainty::Settled => true,
                Certainty::Unsettled { deleted } => {
                    *deleted = true;
                    false
                }
            }
        });
        gone.map(|(endpoint, _)| endpoint).collect()
    }
}

/// A descriptor of a VFIO device is a duplicate of the one that QEMU was given.
fn is_shared(backing: &Backing) -> bool {
    match backing {
        Backing::Vfio { device, .. } => matches!(device, VfioDevice::Fd(_)),
        Backing::Soft { .. } => false,
        #[cfg(feature = "iommufd-test")]
        Backing::Mock { .. } => false,
    }
}

impl Name {
    fn is(&self, deleted: &Deleted) -> bool {
        deleted.path == self.device || deleted.id.as_ref() == Some(&self.device)
    }

    /// Where QEMU has it: a device with an `id` is in the container of devices that users name.
    fn path(&self) -> String {
        match self.device.starts_with('/') {
            true => self.device.clone(),
            false => format!("/machine/peripheral/{}", self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: EndpointId = EndpointId(1);
    const SECOND: EndpointId = EndpointId(2);

    fn names(specs: &[&str]) -> Names {
        let mut names = Names::default();
        for spec in specs {
            names.add(&spec.parse().expect("a description"));
        }
        names
    }

    fn deleted(id: Option<&str>, path: &str) -> Deleted {
        Deleted {
            id: id.map(str::to_owned),
            path: path.to_owned(),
        }
    }

    fn dev0() -> Deleted {
        deleted(Some("dev0"), "/machine/peripheral/dev0")
    }

    #[test]
    fn a_device_is_known_by_its_id_or_its_path() {
        let unnamed = "/machine/peripheral-anon/device[3]";
        let mut names = names(&["1,qemu-id=dev0", &format!("2,qemu-id={unnamed}"), "3"]);
        names.settle_all();
        let other = deleted(Some("dev1"), "/machine/peripheral/dev1");
        assert_eq!(names.deleted(&other), []);
        assert_eq!(names.deleted(&deleted(None, unnamed)), [SECOND]);
        assert_eq!(names.deleted(&dev0()), [FIRST]);
        assert_eq!(names.deleted(&dev0()), []);
    }

    #[test]
    fn all_endpoints_of_a_device_go_with_it() {
        let mut names = names(&["1,qemu-id=dev0", "2,qemu-id=dev0"]);
        names.settle_all();
        assert_eq!(names.deleted(&dev0()), [FIRST, SECOND]);
    }

    #[test]
    fn questions_come_one_after_the_other_and_name_a_path() {
        let mut names = names(&["2,qemu-id=dev0", "1,qemu-id=/machine/unattached/device[7]"]);
        let first = names.question().expect("a question");
        assert_eq!(first.path, "/machine/peripheral/dev0");
        assert_eq!(names.question(), Some(first.clone()));
        assert_eq!(names.answered(first.number, Presence::Present), None);
        let second = names.question().expect("a question");
        assert_eq!(second.path, "/machine/unattached/device[7]");
        assert_eq!(names.answered(second.number, Presence::Unknown), None);
        assert_eq!(names.question(), None);
    }

    #[test]
    fn a_deletion_of_before_the_answer_is_an_earlier_devices() {
        for presence in [Presence::Present, Presence::Absent, Presence::Unknown] {
            let mut names = names(&["1,soft=/a,qemu-id=dev0"]);
            assert_eq!(names.deleted(&dev0()), []);
            let question = names.question().expect("a question");
            assert_eq!(names.answered(question.number, presence), None);
            assert_eq!(names.deleted(&dev0()), [FIRST]);
        }
    }

    #[test]
    fn a_shared_device_that_was_deleted_and_is_absent_is_gone() {
        for (delete, presence, gone) in [
            (true, Presence::Absent, true),
            (true, Presence::Present, false),
            (true, Presence::Unknown, false),
            // It was not QEMU's; the name may be wrong.
            (false, Presence::Absent, false),
        ] {
            let mut names = names(&["1,vfio-fd=9,qemu-id=dev0"]);
            if delete {
                assert_eq!(names.deleted(&dev0()), []);
            }
            let question = names.question().expect("a question");
            let taken = names.answered(question.number, presence);
            assert_eq!(taken, gone.then_some(FIRST), "{delete} {presence:?}");
            assert_eq!(names.deleted(&dev0()).is_empty(), gone);
        }
    }

    #[test]
    fn an_answer_about_an_endpoint_that_was_removed_says_nothing_of_the_next() {
        let mut names = names(&["1,vfio-fd=9,qemu-id=dev0"]);
        let question = names.question().expect("a question");
        names.remove(FIRST);
        names.add(&"1,vfio-fd=9,qemu-id=dev0".parse().expect("a description"));
        names.deleted(&dev0());
        assert_eq!(names.answered(question.number, Presence::Absent), None);
        assert_ne!(
            names.question().expect("a question").number,
            question.number
        );
    }
}
