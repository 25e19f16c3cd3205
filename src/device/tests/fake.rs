// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host and an event queue that do just what the contracts say, and show it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::RawFd;
use std::sync::Mutex;

use vm_memory::GuestMemoryMmap;

use crate::device::events::{Buffers, EventQueue};
use crate::host::mapping::{IovaRange, Mapping};
use crate::host::table::{Table, TableSupport};
use crate::host::{
    Answer, Attachment, Cookie, EndpointProperties, Fault, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Owner, PageRequest, PageRequestGroup, Requester, Translations,
};
use crate::spec::{DomainId, EndpointId, MapFlags, PasidFlags, TableFormat};

/// Host calls that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    CreateDomain,
    AttachDomain,
    AttachBypass,
    Block,
    Map,
    Unmap,
    /// UNMAP finds less than the table had.
    UnmapAll,
    Invalidate,
    Respond,
    AddMemory,
}

/// Host calls whose order matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    Attach(Requester),
    Map(DomainId),
    Unmap(DomainId),
    Invalidate(DomainId, IovaRange),
    Destroy(DomainId),
    Respond(Cookie),
}

/// What the endpoints of [`FakeHost::new`] can be attached to.
pub const X86_64: TableSupport = TableSupport {
    format: TableFormat::X86_64,
    input_bits: 57,
    output_bits: 52,
    page_sizes: 1 << 12 | 1 << 21,
};

#[derive(Default)]
struct Inner {
    endpoints: BTreeMap<EndpointId, EndpointProperties>,
    attachments: BTreeMap<Requester, Attachment>,
    domains: BTreeMap<DomainId, BTreeMap<u64, Mapping>>,
    /// Of those, the ones with a table.
    tables: BTreeMap<DomainId, Table>,
    queue: VecDeque<HostEvent>,
    waiting: BTreeMap<Cookie, Requester>,
    answers: Vec<(Cookie, Answer)>,
    failing: Option<Call>,
    unmaps: Vec<(DomainId, IovaRange)>,
    invalidate_calls: usize,
    did: Vec<Did>,
    held: bool,
    released: Vec<Vec<DomainId>>,
}

/// A host with its own copy of every mapping, to be compared with the device's table.
pub struct FakeHost {
    inner: Mutex<Inner>,
    joins: bool,
    limits: Limits,
}

impl FakeHost {
    pub fn new(endpoints: &[u32]) -> Self {
        let properties = EndpointProperties {
            page_requests: true,
            pasid_width: 8,
            pasid_flags: PasidFlags::EXEC,
            reserved: Vec::new(),
            tables: vec![X86_64],
            owner: Owner::Host,
        };
        let endpoints = endpoints
            .iter()
            .map(|&id| (EndpointId(id), properties.clone()))
            .collect();
        Self {
            inner: Mutex::new(Inner {
                endpoints,
                ..Inner::default()
            }),
            joins: true,
            limits: Limits {
                page_size_mask: !0xfff,
                input_range: IovaRange::ALL,
            },
        }
    }

    pub fn without_joining(mut self) -> Self {
        self.joins = false;
        self
    }

    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub fn set_endpoint(&self, id: u32, properties: EndpointProperties) {
        self.inner
            .lock()
            .unwrap()
            .endpoints
            .insert(EndpointId(id), properties);
    }

    pub fn endpoint_ids(&self) -> Vec<EndpointId> {
        self.inner
            .lock()
            .unwrap()
            .endpoints
            .keys()
            .copied()
            .collect()
    }

    pub fn fail(&self, call: Option<Call>) {
        self.inner.lock().unwrap().failing = call;
    }

    /// A group with the lowest free cookie, as Linux gives them out.
    pub fn raise(&self, requester: Requester, pages: &[PageRequest]) -> Cookie {
        let mut inner = self.inner.lock().unwrap();
        let cookie = (1..)
            .map(Cookie)
            .find(|cookie| !inner.waiting.contains_key(cookie))
            .unwrap();
        inner.waiting.insert(cookie, requester);
        inner
            .queue
            .push_back(HostEvent::PageRequest(PageRequestGroup {
                requester,
                cookie,
                pages: pages.to_vec(),
            }));
        cookie
    }

    pub fn fault(&self, fault: Fault) {
        self.event(HostEvent::Fault(fault));
    }

    pub fn event(&self, event: HostEvent) {
        self.inner.lock().unwrap().queue.push_back(event);
    }

    /// Faults that there was no room for.
    pub fn dropped(&self, count: u64) {
        let event = HostEvent::FaultsDropped(count);
        self.inner.lock().unwrap().queue.push_back(event);
    }

    /// What was answered since the last time, by the device or by the host itself.
    pub fn answers(&self) -> Vec<(Cookie, Answer)> {
        std::mem::take(&mut self.inner.lock().unwrap().answers)
    }

    pub fn waiting(&self) -> Vec<Cookie> {
        self.inner.lock().unwrap().waiting.keys().copied().collect()
    }

    pub fn attachment(&self, requester: Requester) -> Attachment {
        let inner = self.inner.lock().unwrap();
        inner
            .attachments
            .get(&requester)
            .copied()
            .unwrap_or(Attachment::Blocked)
    }

    pub fn domains(&self) -> BTreeSet<u32> {
        let inner = self.inner.lock().unwrap();
        inner.domains.keys().map(|domain| domain.0).collect()
    }

    pub fn mapped(&self, domain: u32) -> Vec<Mapping> {
        let inner = self.inner.lock().unwrap();
        inner.domains[&DomainId(domain)].values().copied().collect()
    }

    /// UNMAP calls since the last time.
    pub fn unmaps(&self) -> Vec<(DomainId, IovaRange)> {
        std::mem::take(&mut self.inner.lock().unwrap().unmaps)
    }

    /// How many calls carried INVALIDATEs out since the last time.
    pub fn invalidate_calls(&self) -> usize {
        std::mem::take(&mut self.inner.lock().unwrap().invalidate_calls)
    }

    /// Calls since the last time.
    pub fn did(&self) -> Vec<Did> {
        std::mem::take(&mut self.inner.lock().unwrap().did)
    }

    /// Whether tables are held.
    pub fn holds_tables(&self) -> bool {
        self.inner.lock().unwrap().held
    }

    /// For each release since the last time, the domains whose tables were there.
    pub fn released(&self) -> Vec<Vec<DomainId>> {
        std::mem::take(&mut self.inner.lock().unwrap().released)
    }

    pub fn table(&self, domain: u32) -> Option<Table> {
        let inner = self.inner.lock().unwrap();
        inner.tables.get(&DomainId(domain)).copied()
    }

    /// Where an access goes. A table leads from each address to the same one behind its root.
    pub fn translate(&self, requester: Requester, iova: u64, write: bool) -> Option<u64> {
        let inner = self.inner.lock().unwrap();
        match inner.attachments.get(&requester)? {
            Attachment::Blocked => None,
            Attachment::Bypass => Some(iova),
            Attachment::Domain { domain, .. } => {
                if let Some(table) = inner.tables.get(domain) {
                    return Some(table.root.0 + iova);
                }
                let (_, mapping) = inner.domains[domain].range(..=iova).next_back()?;
                let wanted = if write {
                    MapFlags::WRITE
                } else {
                    MapFlags::READ
                };
                (mapping.range.last.0 >= iova && mapping.flags.contains(wanted))
                    .then(|| mapping.gpa.0 + iova - mapping.range.first.0)
            }
        }
    }
}

impl Inner {
    fn check(&self, call: Call) -> Result<(), HostError> {
        if self.failing == Some(call) {
            return Err(HostError::NoMemory(format!("{call:?} was told to fail")));
        }
        Ok(())
    }

    fn withdraw(&mut self, requester: Requester) {
        let gone: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, who)| **who == requester)
            .map(|(&cookie, _)| cookie)
            .collect();
        for cookie in gone {
            self.waiting.remove(&cookie);
            self.answers.push((cookie, Answer::Invalid));
        }
        self.queue.retain(
            |event| !matches!(event, HostEvent::PageRequest(group) if group.requester == requester),
        );
    }
}

impl Host for FakeHost {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn has_endpoint(&self, endpoint: EndpointId) -> bool {
        self.inner.lock().unwrap().endpoints.contains_key(&endpoint)
    }

    fn properties(&self, endpoint: EndpointId) -> Option<EndpointProperties> {
        self.inner.lock().unwrap().endpoints.get(&endpoint).cloned()
    }

    fn create_domain(&self, domain: DomainId, by: Translations) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        inner.check(Call::CreateDomain)?;
        assert!(inner.domains.insert(domain, BTreeMap::new()).is_none());
        if let Translations::Table(table) = by {
            assert!(table.is_possible());
            inner.tables.insert(domain, table);
        }
        Ok(())
    }

    fn destroy_domain(&self, domain: DomainId) {
        let mut inner = self.inner.lock().unwrap();
        let used = inner
            .attachments
            .values()
            .any(|at| matches!(at, Attachment::Domain { domain: d, .. } if *d == domain));
        assert!(!used, "domain {domain} destroyed with requesters in it");
        assert!(inner.domains.remove(&domain).is_some());
        inner.tables.remove(&domain);
        inner.did.push(Did::Destroy(domain));
    }

    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        match to {
            Attachment::Blocked => inner.check(Call::Block)?,
            Attachment::Bypass => inner.check(Call::AttachBypass)?,
            Attachment::Domain { domain, .. } => {
                assert!(inner.domains.contains_key(&domain));
                if let Some(table) = inner.tables.get(&domain) {
                    let properties = &inner.endpoints[&requester.endpoint];
                    assert!(properties.tables.iter().any(|one| one.allows(table)));
                }
                inner.check(Call::AttachDomain)?;
            }
        }
        inner.did.push(Did::Attach(requester));
        if inner.attachments.insert(requester, to) != Some(to) {
            inner.withdraw(requester);
        }
        Ok(())
    }

    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        inner.check(Call::Map)?;
        assert!(!inner.tables.contains_key(&domain));
        inner.did.push(Did::Map(domain));
        let mappings = inner.domains.get_mut(&domain).expect("domain");
        assert!(
            !mappings
                .values()
                .any(|other| other.range.intersection(&mapping.range).is_some())
        );
        mappings.insert(mapping.range.first.0, *mapping);
        Ok(())
    }

    fn unmap(&self, domain: DomainId, range: IovaRange, _: &[Mapping]) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        inner.check(Call::Unmap)?;
        let missing = inner.check(Call::UnmapAll);
        assert!(!inner.tables.contains_key(&domain));
        inner.did.push(Did::Unmap(domain));
        inner.unmaps.push((domain, range));
        let mappings = inner.domains.get_mut(&domain).expect("domain");
        mappings.retain(|_, mapping| match mapping.range.intersection(&range) {
            None => true,
            Some(common) => {
                assert_eq!(common, mapping.range, "an UNMAP cut a mapping on the host");
                false
            }
        });
        missing.map_err(|error| HostError::Missing(error.to_string()))
    }

    fn invalidate(&self, domain: DomainId, ranges: &[IovaRange]) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        inner.check(Call::Invalidate)?;
        assert!(inner.tables.contains_key(&domain));
        inner.invalidate_calls += 1;
        let all = ranges.iter();
        inner
            .did
            .extend(all.map(|&range| Did::Invalidate(domain, range)));
        Ok(())
    }

    fn hold_tables(&self) {
        self.inner.lock().unwrap().held = true;
    }

    fn release_tables(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.held = false;
        let tables = inner.tables.keys().copied().collect();
        inner.released.push(tables);
    }

    fn joins_requests(&self) -> bool {
        self.joins
    }

    fn update_memory(
        &self,
        _: &GuestMemoryMmap,
        _: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        let inner = self.inner.lock().unwrap();
        let refused = |region: &MemoryRegion| {
            let error = inner.check(Call::AddMemory).err()?;
            Some(MemoryError {
                gpa: region.gpa,
                length: region.length,
                error,
            })
        };
        let errors: Vec<_> = added.iter().filter_map(refused).collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    fn event_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        let queue = std::mem::take(&mut self.inner.lock().unwrap().queue);
        queue.into_iter().for_each(sink);
    }

    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        let mut inner = self.inner.lock().unwrap();
        inner.check(Call::Respond)?;
        inner
            .waiting
            .remove(&cookie)
            .ok_or(HostError::NoGroup(cookie))?;
        inner.answers.push((cookie, answer));
        inner.did.push(Did::Respond(cookie));
        Ok(())
    }

    fn remove_endpoint(&self, endpoint: EndpointId) {
        let mut inner = self.inner.lock().unwrap();
        inner.endpoints.remove(&endpoint);
        let gone: Vec<_> = inner
            .attachments
            .keys()
            .chain(inner.waiting.values())
            .filter(|requester| requester.endpoint == endpoint)
            .copied()
            .collect();
        for requester in gone {
            inner.attachments.remove(&requester);
            inner.withdraw(requester);
        }
    }
}

/// An event queue whose buffers have the lengths given.
pub struct FakeQueue {
    pub size: usize,
    pub buffers: VecDeque<usize>,
    pub events: Vec<Vec<u8>>,
    pub discarded: usize,
}

impl FakeQueue {
    pub fn new(buffers: usize) -> Self {
        Self {
            size: 64,
            buffers: std::iter::repeat_n(32, buffers).collect(),
            events: Vec::new(),
            discarded: 0,
        }
    }

    pub fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.events)
    }
}

impl EventQueue for FakeQueue {
    fn size(&self) -> usize {
        self.size
    }

    fn peek(&mut self, count: usize, min_len: usize) -> Buffers {
        for index in 0..count {
            match self.buffers.get(index) {
                None => return Buffers::TooFew,
                Some(&len) if len < min_len => return Buffers::TooSmall { index, len },
                Some(_) => {}
            }
        }
        Buffers::Enough
    }

    fn push(&mut self, event: &[u8]) {
        let len = self.buffers.pop_front().expect("a buffer");
        assert!(event.len() <= len);
        self.events.push(event.to_vec());
    }

    fn discard(&mut self) {
        self.buffers.pop_front().expect("a buffer");
        self.discarded += 1;
    }
}
