// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP, UNMAP and guest memory, where the kernel has a say.

use super::*;
use vhost_device_iommu::spec::Status;

fn one_endpoint_in_a_domain() -> (Bench, MockDevice, Domain) {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    (bench, device, domain)
}

#[test]
fn an_unmap_of_what_another_process_has_unmapped_is_told() {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let (domain, ioas) = bench.domain_and_its_ioas(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    // All of what is to be unmapped, or a part of it.
    for lost in [MIB, 2 * MIB] {
        bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
        bench.map(&domain, IOVA + MIB, MIB, 18 * MIB).unwrap();
        bench.kernel.unmap(ioas, IOVA, lost);
        let error = bench.unmap(&domain, IOVA, 2 * MIB).unwrap_err();
        assert!(matches!(error, HostError::Missing(_)), "{error}");
        assert_eq!(error.status(), Status::DevErr);
        assert!(bench.reaches_none(device, IOVA + MIB, MIB, 2 * MIB));
    }
    // Without access, or without memory, nothing is missed.
    bench
        .map_with(&domain, IOVA, MIB, 16 * MIB, MapFlags::empty())
        .unwrap();
    bench.map(&domain, IOVA + MIB, MIB, 64 * MIB).unwrap();
    bench.unmap(&domain, IOVA, 2 * MIB).unwrap();
}

#[test]
fn memory_that_is_not_made_of_pages_is_cut_or_refused() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    // Its pages are not ours: nothing of it can be mapped.
    let skewed = bench.ram.region(0x1000, 0x800, MIB);
    let errors = bench
        .update_memory(&[], std::slice::from_ref(&skewed))
        .unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].gpa, errors[0].length), (Gpa(0x1000), MIB));
    // Each mapping that leads there is refused, and no other.
    let end = 0x1000 + MIB;
    for gpa in [0, 0x1000, end - 0x1000] {
        let error = bench.map(&domain, IOVA, 0x2000, gpa).unwrap_err();
        assert!(matches!(error, HostError::Unreachable(Gpa(0x1000), _)));
        assert_eq!(error.status(), Status::DevErr);
    }
    for gpa in [0, end] {
        bench
            .map(&domain, IOVA + 8 * MIB + gpa, 0x1000, gpa)
            .unwrap();
    }
    // It begins and ends within pages.
    let ragged = bench.ram.region(0x10_0800, 0x800, MIB);
    bench
        .update_memory(&[skewed], std::slice::from_ref(&ragged))
        .unwrap();
    bench.map(&domain, IOVA, 2 * MIB, 0x10_0000).unwrap();
    assert!(bench.reaches(device, IOVA + 0x1000, MIB - 0x1000, 0x1000));
    bench.update_memory(&[ragged], &[]).unwrap();
    assert!(bench.reaches_none(device, IOVA + 0x1000, MIB - 0x1000, 0x1000));
}

#[test]
fn memory_without_a_file_is_mapped_by_its_address() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    let region = MemoryRegion {
        file: None,
        ..bench.ram.region(0, MIB, MIB)
    };
    bench.update_memory(&[], &[region]).unwrap();
    bench.map(&domain, IOVA, MIB, 0).unwrap();
    assert!(bench.reaches(device, IOVA, MIB, MIB));
}

#[test]
fn a_mapping_that_fails_in_the_middle_leaves_nothing() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let (domain, ioas) = bench.domain_and_its_ioas(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    let regions = [
        bench.ram.region(0, 0, MIB),
        bench.ram.region(MIB, 4 * MIB, MIB),
    ];
    bench.update_memory(&[], &regions).unwrap();
    // The second region's part of the mapping lies over a hole.
    bench.kernel.reserve(ioas, IOVA + MIB + 0x4000, 4096);
    let error = bench.map(&domain, IOVA, 2 * MIB, 0).unwrap_err();
    assert_eq!(error.status(), Status::Range, "{error}");
    assert!(bench.reaches_none(device, IOVA, MIB, 0));
    // Nothing is in the way of another mapping there.
    bench.map(&domain, IOVA, MIB, 0).unwrap();
    assert!(bench.reaches(device, IOVA, MIB, 0));
}

#[test]
fn mappings_outside_the_aperture_are_refused_with_range() {
    let (bench, _, domain) = one_endpoint_in_a_domain();
    for iova in [0, 15 * MIB, 2 << 30, u64::MAX - 0xfff] {
        let error = bench.map(&domain, iova, 4096, 16 * MIB).unwrap_err();
        assert_eq!(error.status(), Status::Range, "{iova:#x}: {error}");
    }
}
