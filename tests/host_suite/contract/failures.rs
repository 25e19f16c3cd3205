// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every step of the kernel that can fail during a call of the host, made to fail.

use super::*;
use crate::injection::FailNth;

const OTHER_IOVA: u64 = 0x5000_0000;
/// Where guest memory begins.
const START: u64 = 16 * MIB;
/// A piece of it, in bytes. The kernel makes an allocation or two for a page, each of which fails once.
const PIECE: u64 = 0x4000;

/// Runs an operation once for each of its steps, on a new bench each time, with that step failing. Where it then
/// fails, `before` must hold, and a second try must succeed; in the end `after` must hold.
pub(super) fn each_step_failing<S>(
    setup: impl Fn() -> S,
    operation: impl Fn(&S) -> Result<(), HostError>,
    before: impl Fn(&S) -> bool,
    after: impl Fn(&S) -> bool,
) {
    let fail = FailNth::of_this_thread();
    let mut failures = 0;
    for nth in 1.. {
        let bench = setup();
        let (result, injected) = fail.during(nth, || operation(&bench));
        if let Err(error) = result {
            assert!(
                injected == Some(true),
                "without a failure of the kernel: {error}"
            );
            failures += 1;
            assert!(before(&bench), "after failure {nth}: {error}");
            operation(&bench).unwrap();
        }
        assert!(after(&bench), "after step {nth}");
        if injected != Some(true) {
            break;
        }
    }
    assert!(failures > 0, "no step can fail");
}

struct Attached {
    device: MockDevice,
    domain: Domain,
    bench: Bench,
}

/// An endpoint in a domain, in memory of two regions: guest-physical addresses from [`START`] on.
fn attached() -> Attached {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.update_memory(&[], &regions(&bench)).unwrap();
    Attached {
        device,
        domain,
        bench,
    }
}

/// Adjacent in the guest, not in the file.
fn regions(bench: &Bench) -> [MemoryRegion; 2] {
    [
        bench.ram.region(START, 0, PIECE),
        bench.ram.region(START + PIECE, 4 * MIB, PIECE),
    ]
}

impl Attached {
    /// Whether the device reaches all of the memory through the addresses from `iova` on.
    fn reaches_all(&self, iova: u64) -> bool {
        self.bench.reaches(self.device, iova, PIECE, 0)
            && self
                .bench
                .reaches(self.device, iova + PIECE, PIECE, 4 * MIB)
    }

    fn reaches_nothing(&self, iova: u64) -> bool {
        self.bench.reaches_none(self.device, iova, PIECE, 0)
            && self
                .bench
                .reaches_none(self.device, iova + PIECE, PIECE, 4 * MIB)
    }
}

#[test]
fn a_map_that_fails_anywhere_leaves_nothing() {
    each_step_failing(
        attached,
        |s| s.bench.map(&s.domain, IOVA, 2 * PIECE, START),
        |s| s.reaches_nothing(IOVA),
        |s| s.reaches_all(IOVA),
    );
}

#[test]
fn an_attach_that_fails_anywhere_leaves_the_old_attachment() {
    for page_requests in [PageRequests::Unwanted, PageRequests::Reported] {
        each_step_failing(
            || {
                let s = attached();
                s.bench.map(&s.domain, IOVA, 2 * PIECE, START).unwrap();
                let other = s.bench.domain(2);
                s.bench
                    .map(&other, OTHER_IOVA, PIECE, START + PIECE)
                    .unwrap();
                (s, other)
            },
            |(s, other)| s.bench.attach(1, in_domain(other, page_requests)),
            |(s, _)| s.reaches_all(IOVA),
            |(s, _)| {
                s.reaches_nothing(IOVA) && s.bench.reaches(s.device, OTHER_IOVA, PIECE, 4 * MIB)
            },
        );
    }
}

#[test]
fn a_move_to_bypass_that_fails_anywhere_leaves_the_old_attachment() {
    each_step_failing(
        || {
            let s = attached();
            s.bench.map(&s.domain, IOVA, 2 * PIECE, START).unwrap();
            s
        },
        |s| s.bench.attach(1, Attachment::Bypass),
        |s| s.reaches_all(IOVA) && s.reaches_nothing(START),
        |s| s.reaches_nothing(IOVA) && s.reaches_all(START),
    );
}

#[test]
fn an_attach_of_a_pasid_that_fails_anywhere_attaches_nothing() {
    const PASID: u32 = 7;
    each_step_failing(
        attached,
        |s| {
            s.bench
                .host
                .attach(with_pasid(1, PASID), reported(&s.domain))
        },
        |s| s.bench.kernel.page_table_of(s.device, PASID).is_none(),
        |s| s.bench.kernel.page_table_of(s.device, PASID).is_some(),
    );
}

#[test]
fn memory_that_could_not_be_added_harms_nothing_else() {
    let fail = FailNth::of_this_thread();
    let mut failures = 0;
    for nth in 1.. {
        let s = attached();
        s.bench.map(&s.domain, IOVA, 4 * PIECE, START).unwrap();
        let added = s.bench.ram.region(START + 2 * PIECE, 8 * MIB, 2 * PIECE);
        let added = std::slice::from_ref(&added);
        let (result, injected) = fail.during(nth, || s.bench.update_memory(&[], added));
        failures += usize::from(result.is_err());
        assert!(s.reaches_all(IOVA), "after step {nth}");
        // Taken away and added again, it is there.
        s.bench.update_memory(added, &[]).unwrap();
        s.bench.update_memory(&[], added).unwrap();
        assert!(
            s.bench
                .reaches(s.device, IOVA + 2 * PIECE, 2 * PIECE, 8 * MIB)
        );
        if injected != Some(true) {
            break;
        }
    }
    assert!(failures > 0, "no step can fail");
}

#[test]
fn an_endpoint_that_cannot_be_added_leaves_nothing_behind() {
    let fail = FailNth::of_this_thread();
    let mut failures = 0;
    for nth in 1.. {
        let Bench { host, kernel, .. } = Bench::new();
        let device = kernel.mock_device();
        let source = EndpointSource::Mock {
            stdev_id: device.stdev,
        };
        let add = || host.add_endpoint(EndpointId(1), source, Some(device.dev));
        let (result, injected) = fail.during(nth, add);
        if let Err(error) = result {
            assert!(
                injected == Some(true),
                "without a failure of the kernel: {error}"
            );
            failures += 1;
            // Where it was before, or nowhere: then it has ended.
            kernel.end(device);
        }
        drop(host);
        assert!(kernel.is_clean(), "after step {nth}");
        if injected != Some(true) {
            break;
        }
    }
    assert!(failures > 0, "no step can fail");
}

#[test]
fn an_unmap_has_no_step_that_can_fail_once_its_address_space_is_found() {
    let fail = FailNth::of_this_thread();
    // The first step is the look-up of the address space, which is ours and cannot be missing. For the others the
    // kernel has another way.
    for nth in 2.. {
        let s = attached();
        s.bench.map(&s.domain, IOVA, 2 * PIECE, START).unwrap();
        let (result, injected) = fail.during(nth, || s.bench.unmap(&s.domain, IOVA, 2 * PIECE));
        result.unwrap();
        assert!(s.reaches_nothing(IOVA), "after step {nth}");
        if injected != Some(true) {
            break;
        }
    }
}
