// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random sequences of requests against a naive model: flat lists, searched from end to end.
//!
//! After each sequence every status, every translation of every endpoint, and the host's own copy of the
//! mappings must agree with the model.

use proptest::prelude::*;

use super::fake::FakeHost;
use super::*;

const ENDPOINTS: u32 = 3;
const DOMAINS: u32 = 4;
const PAGES: u64 = 16;

#[derive(Clone, Debug)]
enum Op {
    Attach {
        domain: u32,
        endpoint: u32,
        bypass: bool,
    },
    AttachTable {
        domain: u32,
        endpoint: u32,
        root: u64,
    },
    Detach {
        domain: u32,
        endpoint: u32,
    },
    Map {
        domain: u32,
        first: u64,
        last: u64,
        gpa: u64,
        flags: u32,
    },
    Unmap {
        domain: u32,
        first: u64,
        last: u64,
    },
    Invalidate {
        domain: u32,
        first: u64,
        last: u64,
    },
    Bypass(bool),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let domain = 0..=DOMAINS;
    let endpoint = 0..=ENDPOINTS;
    let page = 0..PAGES;
    let op = prop_oneof![
        3 => (domain.clone(), endpoint.clone(), prop::bool::weighted(0.2))
            .prop_map(|(domain, endpoint, bypass)| Op::Attach { domain, endpoint, bypass }),
        2 => (domain.clone(), endpoint.clone(), 1..3u64)
            .prop_map(|(domain, endpoint, root)| Op::AttachTable { domain, endpoint, root }),
        2 => (domain.clone(), endpoint).prop_map(|(domain, endpoint)| Op::Detach { domain, endpoint }),
        9 => (domain.clone(), page.clone(), page.clone(), page.clone(), 0u32..=4)
            .prop_map(|(domain, first, last, gpa, flags)| Op::Map { domain, first, last, gpa, flags }),
        6 => (domain.clone(), page.clone(), page.clone())
            .prop_map(|(domain, first, last)| Op::Unmap { domain, first, last }),
        2 => (domain, page.clone(), page)
            .prop_map(|(domain, first, last)| Op::Invalidate { domain, first, last }),
        1 => any::<bool>().prop_map(Op::Bypass),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(op, 1..if cfg!(miri) { 12 } else { 60 })
}

/// What a domain translates by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bypass,
    Mappings,
    /// A table, its root in pages.
    Table(u64),
}

/// The specification, told as plainly as can be.
struct Model {
    bypass: bool,
    max_mappings: usize,
    /// (endpoint, domain)
    attached: Vec<(u32, u32)>,
    domains: Vec<(u32, Kind)>,
    /// (domain, first page, last page, gpa page, flags)
    mappings: Vec<(u32, u64, u64, u64, u32)>,
}

impl Model {
    fn domain_of(&self, endpoint: u32) -> Option<u32> {
        self.attached.iter().find(|a| a.0 == endpoint).map(|a| a.1)
    }

    fn kind(&self, domain: u32) -> Option<Kind> {
        self.domains.iter().find(|d| d.0 == domain).map(|d| d.1)
    }

    fn attach(&mut self, domain: u32, endpoint: u32, wanted: Kind) -> Status {
        if endpoint == 0 {
            Status::NoEnt
        } else if self.kind(domain).is_some_and(|kind| kind != wanted) {
            Status::Inval
        } else if self.domain_of(endpoint) == Some(domain) {
            Status::Ok
        } else {
            self.leave(endpoint);
            self.attached.push((endpoint, domain));
            if self.kind(domain).is_none() {
                self.domains.push((domain, wanted));
            }
            Status::Ok
        }
    }

    fn leave(&mut self, endpoint: u32) {
        let Some(domain) = self.domain_of(endpoint) else {
            return;
        };
        self.attached.retain(|a| a.0 != endpoint);
        if !self.attached.iter().any(|a| a.1 == domain) {
            self.domains.retain(|d| d.0 != domain);
            self.mappings.retain(|m| m.0 != domain);
        }
    }

    fn step(&mut self, op: &Op) -> Option<Status> {
        Some(match *op {
            Op::Attach {
                domain,
                endpoint,
                bypass,
            } => self.attach(
                domain,
                endpoint,
                if bypass { Kind::Bypass } else { Kind::Mappings },
            ),
            Op::AttachTable {
                domain,
                endpoint,
                root,
            } => self.attach(domain, endpoint, Kind::Table(root)),
            Op::Detach { domain, endpoint } => {
                if endpoint == 0 {
                    Status::NoEnt
                } else if self.domain_of(endpoint) != Some(domain) {
                    Status::Inval
                } else {
                    self.leave(endpoint);
                    Status::Ok
                }
            }
            Op::Map {
                domain,
                first,
                last,
                gpa,
                flags,
            } => {
                let overlaps =
                    |m: &(u32, u64, u64, u64, u32)| m.0 == domain && m.1 <= last && first <= m.2;
                match self.kind(domain) {
                    _ if flags > 3 || last < first => Status::Inval,
                    None => Status::NoEnt,
                    Some(Kind::Bypass | Kind::Table(_)) => Status::Inval,
                    Some(Kind::Mappings) if self.mappings.iter().any(overlaps) => Status::Inval,
                    Some(Kind::Mappings) if self.mappings.len() >= self.max_mappings => {
                        Status::NoMem
                    }
                    Some(Kind::Mappings) => {
                        self.mappings.push((domain, first, last, gpa, flags));
                        Status::Ok
                    }
                }
            }
            Op::Unmap {
                domain,
                first,
                last,
            } => {
                let touches =
                    |m: &&(u32, u64, u64, u64, u32)| m.0 == domain && m.1 <= last && first <= m.2;
                match self.kind(domain) {
                    _ if last < first => Status::Inval,
                    None => Status::NoEnt,
                    Some(Kind::Bypass | Kind::Table(_)) => Status::Inval,
                    Some(Kind::Mappings)
                        if self
                            .mappings
                            .iter()
                            .filter(touches)
                            .any(|m| m.1 < first || m.2 > last) =>
                    {
                        Status::Range
                    }
                    Some(Kind::Mappings) => {
                        self.mappings.retain(|m| !touches(&m));
                        Status::Ok
                    }
                }
            }
            Op::Invalidate {
                domain,
                first,
                last,
            } => match self.kind(domain) {
                _ if last < first => Status::Inval,
                None => Status::NoEnt,
                Some(Kind::Bypass | Kind::Mappings) => Status::Inval,
                Some(Kind::Table(_)) => Status::Ok,
            },
            Op::Bypass(bypass) => {
                self.bypass = bypass;
                return None;
            }
            Op::Reset => {
                self.attached.clear();
                self.domains.clear();
                self.mappings.clear();
                return None;
            }
        })
    }

    fn translate(&self, endpoint: u32, iova: u64, write: bool) -> Option<u64> {
        let Some(domain) = self.domain_of(endpoint) else {
            return self.bypass.then_some(iova);
        };
        match self.kind(domain)? {
            Kind::Bypass => return Some(iova),
            Kind::Table(root) => return Some(root * GRANULE + iova),
            Kind::Mappings => {}
        }
        let page = iova / GRANULE;
        self.mappings
            .iter()
            .find(|m| m.0 == domain && m.1 <= page && page <= m.2)
            .filter(|m| m.4 & if write { WRITE } else { READ } != 0)
            .map(|m| (m.3 + page - m.1) * GRANULE + iova % GRANULE)
    }
}

fn bytes_of(op: &Op) -> Vec<u8> {
    use zerocopy::IntoBytes;
    // An end before the start shows up as such, whatever the pages are.
    let end = |first: u64, last: u64| {
        if last < first {
            last * GRANULE
        } else {
            (last + 1) * GRANULE - 1
        }
    };
    match *op {
        Op::Attach {
            domain,
            endpoint,
            bypass,
        } => attach_bytes(domain, endpoint, u32::from(bypass), 0)
            .as_bytes()
            .to_vec(),
        Op::AttachTable {
            domain,
            endpoint,
            root,
        } => attach_table_bytes(domain, endpoint, 0, 0, root * GRANULE)
            .as_bytes()
            .to_vec(),
        Op::Detach { domain, endpoint } => detach_bytes(domain, endpoint, 0, 0).as_bytes().to_vec(),
        Op::Map {
            domain,
            first,
            last,
            gpa,
            flags,
        } => map_bytes(
            domain,
            first * GRANULE,
            end(first, last),
            gpa * GRANULE,
            flags,
        ),
        Op::Unmap {
            domain,
            first,
            last,
        } => unmap_bytes(domain, first * GRANULE, end(first, last)),
        Op::Invalidate {
            domain,
            first,
            last,
        } => invalidate_bytes(domain, first * GRANULE, end(first, last))
            .as_bytes()
            .to_vec(),
        Op::Bypass(_) | Op::Reset => Vec::new(),
    }
}

/// Runs the sequence in batches of `batch` requests.
fn run(ops: &[Op], joins: bool, batch: usize) {
    let host = FakeHost::new(&[1, 2, 3]);
    let host = if joins { host } else { host.without_joining() };
    let config = DeviceConfig {
        max_mappings: 12,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, host);
    let mut model = Model {
        bypass: true,
        max_mappings: 12,
        attached: Vec::new(),
        domains: Vec::new(),
        mappings: Vec::new(),
    };
    let mut pending: Vec<(Vec<u8>, usize)> = Vec::new();
    let mut expected = Vec::new();
    let flush = |pending: &mut Vec<(Vec<u8>, usize)>, expected: &mut Vec<Reply>| {
        assert_eq!(bench.batch(pending), *expected, "{pending:x?}");
        pending.clear();
        expected.clear();
    };
    for op in ops {
        if let Op::Bypass(_) | Op::Reset = op {
            flush(&mut pending, &mut expected);
        }
        match model.step(op) {
            Some(status) => {
                pending.push((bytes_of(op), 4));
                expected.push(Reply::Status(status));
            }
            None => match op {
                Op::Bypass(bypass) => bench.device.write_config(36, &[u8::from(*bypass)]),
                _ => bench.device.reset(),
            },
        }
        if pending.len() >= batch {
            flush(&mut pending, &mut expected);
        }
    }
    flush(&mut pending, &mut expected);
    for endpoint in 1..=ENDPOINTS {
        for iova in (0..PAGES).map(|page| page * GRANULE + 5) {
            for write in [false, true] {
                let translated = bench.translate(endpoint, iova, write);
                assert_eq!(
                    translated,
                    model.translate(endpoint, iova, write),
                    "{endpoint} {iova:#x}"
                );
            }
        }
    }
    assert_eq!(
        bench.host.domains(),
        model
            .domains
            .iter()
            .filter(|d| d.1 != Kind::Bypass)
            .map(|d| d.0)
            .collect()
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 1500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_status_and_translation_agrees_with_a_naive_model(
        ops in ops(),
        joins in any::<bool>(),
        batch in 1usize..20,
    ) {
        run(&ops, joins, batch);
    }
}
