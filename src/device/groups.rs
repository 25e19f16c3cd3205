// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page-request groups that wait: which are held, which are outstanding and under which id, and until when.
//!
//! Every list loses a group when the group goes, so what is kept is what waits; and each step costs no more than the
//! logarithm of that.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::time::{Duration, Instant};

use crate::host::{Cookie, PageRequestGroup, Requester};
use crate::spec::{EndpointId, GroupId};

/// A group's number: ascending in the order of arrival, and never used twice.
type Serial = u64;

struct Waiting {
    group: PageRequestGroup,
    /// When it came; later by the time that stood still.
    since: Instant,
    /// Ascending with the serials. `None`: the group waits for ever.
    deadline: Option<Instant>,
    /// `None` while it is held.
    id: Option<GroupId>,
}

/// The ids of an endpoint's groups.
#[derive(Default)]
struct Ids {
    outstanding: BTreeMap<GroupId, Serial>,
    /// Ids go round, so that a late answer meets an unused id and not a new group (X47).
    next: u16,
}

/// The groups that wait, held or outstanding.
pub(super) struct Groups {
    /// How long a group waits for its answer; `None` for ever.
    timeout: Option<Duration>,
    /// Since when no time passes for them; `None` while it does.
    stopped_since: Option<Instant>,
    next_serial: Serial,
    entries: BTreeMap<Serial, Waiting>,
    by_requester: BTreeSet<(Requester, Serial)>,
    /// Of endpoints that have any.
    held: BTreeMap<EndpointId, BTreeSet<Serial>>,
    /// Of endpoints that have had an outstanding one.
    ids: BTreeMap<EndpointId, Ids>,
}

impl Groups {
    pub fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            stopped_since: None,
            next_serial: 0,
            entries: BTreeMap::new(),
            by_requester: BTreeSet::new(),
            held: BTreeMap::new(),
            ids: BTreeMap::new(),
        }
    }

    /// How many wait, held or outstanding.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether any waits for buffers or an id.
    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// From now on no time passes for groups.
    pub fn stop_time(&mut self, now: Instant) {
        self.stopped_since.get_or_insert(now);
    }

    /// Whether no time passes.
    pub fn time_stands_still(&self) -> bool {
        self.stopped_since.is_some()
    }

    /// Time passes again, and deadlines are where they were.
    pub fn forget_stop(&mut self) {
        self.stopped_since = None;
    }

    /// Time passes again: deadlines are as far away as when it stopped.
    pub fn restart_time(&mut self, now: Instant) {
        let Some(since) = self.stopped_since.take() else {
            return;
        };
        let stood_still = now.saturating_duration_since(since);
        for entry in self.entries.values_mut() {
            entry.since = entry.since.checked_add(stood_still).unwrap_or(entry.since);
            // A deadline beyond the end of time is none.
            entry.deadline = entry
                .deadline
                .and_then(|deadline| deadline.checked_add(stood_still));
        }
    }

    /// Takes a new group. It waits for buffers.
    pub fn hold(&mut self, group: PageRequestGroup, now: Instant) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let now = self.stopped_since.unwrap_or(now);
        let deadline = self.timeout.and_then(|timeout| now.checked_add(timeout));
        let requester = group.requester;
        self.by_requester.insert((requester, serial));
        self.held
            .entry(requester.endpoint)
            .or_default()
            .insert(serial);
        self.entries.insert(
            serial,
            Waiting {
                group,
                since: now,
                deadline,
                id: None,
            },
        );
    }

    /// The endpoints with held groups, beginning behind `last`.
    pub fn waiting_behind(&self, last: Option<EndpointId>) -> Vec<EndpointId> {
        let Some(last) = last else {
            return self.held.keys().copied().collect();
        };
        let behind = self.held.range((Bound::Excluded(last), Bound::Unbounded));
        let before = self.held.range(..=last);
        behind.chain(before).map(|(&id, _)| id).collect()
    }

    /// The first held group of an endpoint.
    pub fn first_held(&self, endpoint: EndpointId) -> Option<&PageRequestGroup> {
        Some(&self.entries.get(&self.first_serial(endpoint)?)?.group)
    }

    fn first_serial(&self, endpoint: EndpointId) -> Option<Serial> {
        self.held.get(&endpoint)?.first().copied()
    }

    /// Gives the first held group of an endpoint an id: it is outstanding by now. `None` when there is no group, or no
    /// id that is unused.
    pub fn deliver_first(&mut self, endpoint: EndpointId) -> Option<(GroupId, &PageRequestGroup)> {
        let serial = self.first_serial(endpoint)?;
        let ids = self.ids.entry(endpoint).or_default();
        let id = ids.take(serial)?;
        self.unhold(endpoint, serial);
        let entry = self.entries.get_mut(&serial)?;
        entry.id = Some(id);
        Some((id, &entry.group))
    }

    /// Takes the first held group of an endpoint away.
    pub fn take_first(&mut self, endpoint: EndpointId) -> Option<PageRequestGroup> {
        let serial = self.first_serial(endpoint)?;
        self.take(serial)
    }

    /// The outstanding group with this id.
    pub fn outstanding(&self, endpoint: EndpointId, id: GroupId) -> Option<&PageRequestGroup> {
        Some(&self.entries.get(&self.serial_of(endpoint, id)?)?.group)
    }

    /// Takes the outstanding group with this id away, and says when it came.
    pub fn take_outstanding(&mut self, endpoint: EndpointId, id: GroupId) -> Option<Instant> {
        let serial = self.serial_of(endpoint, id)?;
        let since = self.entries.get(&serial)?.since;
        self.take(serial);
        Some(since)
    }

    /// For each endpoint with groups that wait: how many, and for how long the oldest one does. Ascending.
    pub fn waiting(&self, now: Instant) -> BTreeMap<EndpointId, (usize, Duration)> {
        let now = self.stopped_since.unwrap_or(now);
        let mut waiting = BTreeMap::new();
        for (requester, serial) in &self.by_requester {
            let since = self.entries.get(serial).map_or(now, |entry| entry.since);
            let (count, oldest) = waiting
                .entry(requester.endpoint)
                .or_insert((0, Duration::ZERO));
            *count += 1;
            *oldest = now.saturating_duration_since(since).max(*oldest);
        }
        waiting
    }

    fn serial_of(&self, endpoint: EndpointId, id: GroupId) -> Option<Serial> {
        self.ids.get(&endpoint)?.outstanding.get(&id).copied()
    }

    /// Takes a group away whose time is up (X53).
    pub fn take_expired(&mut self, now: Instant) -> Option<PageRequestGroup> {
        if self.stopped_since.is_some() {
            return None;
        }
        let (&serial, entry) = self.entries.first_key_value()?;
        entry.deadline.filter(|&deadline| deadline <= now)?;
        self.take(serial)
    }

    /// When the next group's time is up. `None` when no time passes, or none has an end.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stopped_since.is_some() {
            return None;
        }
        self.entries.first_key_value()?.1.deadline
    }

    /// The host's names for the groups of a requester, oldest first.
    pub fn cookies_of(&self, requester: Requester) -> Vec<Cookie> {
        self.by_requester
            .range((requester, 0)..=(requester, Serial::MAX))
            .filter_map(|(_, serial)| Some(self.entries.get(serial)?.group.cookie))
            .collect()
    }

    /// Takes the groups of a requester away. Returns how many.
    pub fn forget_requester(&mut self, requester: Requester) -> u64 {
        self.forget(requester..=requester)
    }

    /// Takes the groups of an endpoint and its ids away. Returns how many groups.
    pub fn forget_endpoint(&mut self, endpoint: EndpointId) -> u64 {
        let count = self.forget(Requester::all_of(endpoint));
        self.ids.remove(&endpoint);
        count
    }

    fn forget(&mut self, requesters: RangeInclusive<Requester>) -> u64 {
        let (first, last) = requesters.into_inner();
        let serials: Vec<Serial> = self
            .by_requester
            .range((first, 0)..=(last, Serial::MAX))
            .map(|&(_, serial)| serial)
            .collect();
        for &serial in &serials {
            self.take(serial);
        }
        serials.len() as u64
    }

    /// Takes any group away.
    pub fn take_any(&mut self) -> Option<PageRequestGroup> {
        let (&serial, _) = self.entries.first_key_value()?;
        self.take(serial)
    }

    fn take(&mut self, serial: Serial) -> Option<PageRequestGroup> {
        let Waiting { group, id, .. } = self.entries.remove(&serial)?;
        self.by_requester.remove(&(group.requester, serial));
        let endpoint = group.requester.endpoint;
        match id {
            None => self.unhold(endpoint, serial),
            Some(id) => {
                if let Some(ids) = self.ids.get_mut(&endpoint) {
                    ids.outstanding.remove(&id);
                }
            }
        }
        Some(group)
    }

    fn unhold(&mut self, endpoint: EndpointId, serial: Serial) {
        if let Some(held) = self.held.get_mut(&endpoint) {
            held.remove(&serial);
            if held.is_empty() {
                self.held.remove(&endpoint);
            }
        }
    }

    /// Entries of all lists.
    #[cfg(test)]
    pub fn entries_kept(&self) -> usize {
        let held: usize = self.held.values().map(BTreeSet::len).sum();
        let outstanding: usize = self.ids.values().map(|ids| ids.outstanding.len()).sum();
        self.entries.len() + self.by_requester.len() + held + outstanding
    }
}

impl Ids {
    /// An id that no outstanding group has, for this group.
    fn take(&mut self, serial: Serial) -> Option<GroupId> {
        if self.outstanding.len() > usize::from(u16::MAX) {
            return None;
        }
        loop {
            let id = GroupId(self.next);
            self.next = self.next.wrapping_add(1);
            if let Entry::Vacant(unused) = self.outstanding.entry(id) {
                unused.insert(serial);
                return Some(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::Pasid;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Hold(u32, Option<u32>),
        Deliver(u32),
        Refuse(u32),
        Answer(usize),
        Withdraw(u32, Option<u32>),
        Remove(u32),
        Later(u64),
        Stop,
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        let endpoint = 0..3u32;
        let pasid = prop::option::of(0..2u32);
        prop_oneof![
            6 => (endpoint.clone(), pasid.clone()).prop_map(|(e, p)| Op::Hold(e, p)),
            4 => endpoint.clone().prop_map(Op::Deliver),
            1 => endpoint.clone().prop_map(Op::Refuse),
            2 => (0..8usize).prop_map(Op::Answer),
            1 => (endpoint.clone(), pasid).prop_map(|(e, p)| Op::Withdraw(e, p)),
            1 => endpoint.prop_map(Op::Remove),
            3 => (0..6u64).prop_map(Op::Later),
            1 => Just(Op::Stop),
            1 => Just(Op::Restart),
        ]
    }

    /// A group as the model has it.
    struct Known {
        cookie: Cookie,
        requester: Requester,
        /// Seconds that it still has.
        left: u64,
        id: Option<GroupId>,
    }

    const TIMEOUT: u64 = 10;

    fn requester(endpoint: u32, pasid: Option<u32>) -> Requester {
        Requester {
            endpoint: EndpointId(endpoint),
            pasid: pasid.map(Pasid),
        }
    }

    fn run(ops: &[Op]) {
        let mut groups = Groups::new(Some(Duration::from_secs(TIMEOUT)));
        // A flat list in the order of arrival.
        let mut model: Vec<Known> = Vec::new();
        let mut now = Instant::now();
        let mut stopped = false;
        for (number, op) in ops.iter().enumerate() {
            let first_held = |model: &[Known], endpoint| {
                let held = |known: &Known| {
                    known.requester.endpoint == EndpointId(endpoint) && known.id.is_none()
                };
                model.iter().position(held)
            };
            match *op {
                Op::Hold(endpoint, pasid) => {
                    let cookie = Cookie(number as u64);
                    let requester = requester(endpoint, pasid);
                    let pages = Vec::new();
                    groups.hold(
                        PageRequestGroup {
                            requester,
                            cookie,
                            pages,
                        },
                        now,
                    );
                    model.push(Known {
                        cookie,
                        requester,
                        left: TIMEOUT,
                        id: None,
                    });
                }
                Op::Deliver(endpoint) => {
                    let expected = first_held(&model, endpoint);
                    let found = groups.deliver_first(EndpointId(endpoint));
                    assert_eq!(
                        found.as_ref().map(|(_, group)| group.cookie),
                        expected.map(|index| model[index].cookie)
                    );
                    if let (Some((id, _)), Some(index)) = (found, expected) {
                        let taken = model.iter().any(|known| {
                            known.requester.endpoint == EndpointId(endpoint) && known.id == Some(id)
                        });
                        assert!(!taken, "an id twice");
                        model[index].id = Some(id);
                    }
                }
                Op::Refuse(endpoint) => {
                    let expected = first_held(&model, endpoint).map(|index| model.remove(index));
                    let found = groups.take_first(EndpointId(endpoint));
                    assert_eq!(
                        found.map(|group| group.cookie),
                        expected.map(|known| known.cookie)
                    );
                }
                Op::Answer(nth) => {
                    let mut outstanding = model.iter().enumerate();
                    let Some((index, known)) = outstanding
                        .by_ref()
                        .filter(|(_, k)| k.id.is_some())
                        .nth(nth)
                    else {
                        continue;
                    };
                    let (endpoint, id) = (known.requester.endpoint, known.id.unwrap());
                    let found = groups.outstanding(endpoint, id).map(|group| group.cookie);
                    assert_eq!(found, Some(known.cookie));
                    groups.take_outstanding(endpoint, id);
                    assert!(groups.outstanding(endpoint, id).is_none());
                    model.remove(index);
                }
                Op::Withdraw(endpoint, pasid) => {
                    let requester = requester(endpoint, pasid);
                    let of: Vec<_> = model
                        .extract_if(.., |known| known.requester == requester)
                        .map(|known| known.cookie)
                        .collect();
                    assert_eq!(groups.cookies_of(requester), of);
                    assert_eq!(groups.forget_requester(requester), of.len() as u64);
                }
                Op::Remove(endpoint) => {
                    let endpoint = EndpointId(endpoint);
                    let of = model.extract_if(.., |known| known.requester.endpoint == endpoint);
                    assert_eq!(groups.forget_endpoint(endpoint), of.count() as u64);
                }
                Op::Later(seconds) => {
                    now += Duration::from_secs(seconds);
                    if !stopped {
                        for known in &mut model {
                            known.left = known.left.saturating_sub(seconds);
                        }
                    }
                }
                Op::Stop => {
                    groups.stop_time(now);
                    stopped = true;
                }
                Op::Restart => {
                    groups.restart_time(now);
                    stopped = false;
                }
            }
            let mut expired = Vec::new();
            while let Some(group) = groups.take_expired(now) {
                expired.push(group.cookie);
            }
            let due: Vec<_> = model
                .extract_if(.., |known| !stopped && known.left == 0)
                .map(|known| known.cookie)
                .collect();
            assert_eq!(expired, due);
            let next = model.first().filter(|_| !stopped);
            let next = next.map(|known| now + Duration::from_secs(known.left));
            assert_eq!(groups.next_deadline(), next);
            assert_eq!(groups.len(), model.len());
            // Each is in the list of all, in that of its requester, and among the held or the outstanding.
            assert_eq!(groups.entries_kept(), 3 * model.len());
            let held = model.iter().any(|known| known.id.is_none());
            assert_eq!(groups.holds_any(), held);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 500 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn every_list_agrees_with_a_flat_one(ops in prop::collection::vec(op(), 0..if cfg!(miri) { 12 } else { 80 })) {
            run(&ops);
        }
    }
}
