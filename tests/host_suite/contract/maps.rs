// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP, UNMAP and guest memory that comes and goes.

use super::*;
use vhost_device_iommu::spec::Status;

/// Beyond the guest memory of most tests.
const IOVA: u64 = 0x4000_0000;

fn one_endpoint_in_a_domain() -> (Bench, MockDevice, Domain) {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    (bench, device, domain)
}

#[test]
fn a_mapping_is_in_the_hardwares_table_and_gone_after_unmap() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    bench.map(&domain, IOVA, MIB, 18 * MIB).unwrap();
    assert!(bench.reaches(device, IOVA, MIB, 2 * MIB));
    assert!(bench.reaches_none(device, IOVA + MIB, 4096, 3 * MIB));
    bench.unmap(&domain, IOVA, MIB).unwrap();
    assert!(bench.reaches_none(device, IOVA, MIB, 2 * MIB));
}

#[test]
fn one_unmap_takes_several_mappings_and_gaps() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    for index in [0, 1, 5, 9] {
        bench
            .map(&domain, IOVA + index * MIB, 4096, 16 * MIB + index * 4096)
            .unwrap();
    }
    bench.unmap(&domain, IOVA, 9 * MIB).unwrap();
    for index in [0, 1, 5] {
        assert!(bench.reaches_none(device, IOVA + index * MIB, 4096, index * 4096));
    }
    assert!(bench.reaches(device, IOVA + 9 * MIB, 4096, 9 * 4096));
}

#[test]
fn unmapping_nothing_and_everything_works() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    bench.unmap(&domain, IOVA, MIB).unwrap();
    bench.map(&domain, IOVA, 4096, 16 * MIB).unwrap();
    for all in [IovaRange::ALL, IovaRange::new(1, u64::MAX).unwrap()] {
        bench.unmap_range(&domain, all).unwrap();
        assert!(bench.reaches_none(device, IOVA, 4096, 0));
        bench.map(&domain, IOVA, 4096, 16 * MIB).unwrap();
    }
    bench.unmap(&domain, u64::MAX, 1).unwrap();
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
fn the_same_memory_can_be_mapped_twice() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    bench.map(&domain, IOVA, 8192, 16 * MIB).unwrap();
    bench.map(&domain, IOVA + MIB, 8192, 16 * MIB).unwrap();
    bench.unmap(&domain, IOVA, 8192).unwrap();
    assert!(bench.reaches(device, IOVA + MIB, 8192, 0));
}

#[test]
fn what_is_not_memory_is_left_out_and_what_is_memory_is_mapped() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    // Guest memory begins at 16 MiB and ends at 32 MiB.
    bench.map(&domain, IOVA, 64 * MIB, 0).unwrap();
    assert!(bench.reaches(device, IOVA + 16 * MIB, 16 * MIB, 0));
    bench.map(&domain, IOVA + 128 * MIB, MIB, 64 * MIB).unwrap();
    bench.unmap(&domain, IOVA, 64 * MIB).unwrap();
    assert!(bench.reaches_none(device, IOVA + 16 * MIB, 4096, 0));
    bench.unmap(&domain, IOVA + 128 * MIB, MIB).unwrap();
}

#[test]
fn a_mapping_spans_memory_regions_in_any_order() {
    let bench = Bench::new();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    // Guest-physical order is not file order.
    let regions = [
        bench.ram.region(0, 4 * MIB, MIB),
        bench.ram.region(MIB, 0, MIB),
        bench.ram.region(3 * MIB, 2 * MIB, MIB),
    ];
    bench.update_memory(&[], &regions).unwrap();
    bench.map(&domain, IOVA, 4 * MIB, 0).unwrap();
    assert!(bench.reaches(device, IOVA, MIB, 4 * MIB));
    assert!(bench.reaches(device, IOVA + MIB, MIB, 0));
    assert!(bench.reaches(device, IOVA + 3 * MIB, MIB, 2 * MIB));
    assert!(bench.reaches_none(device, IOVA + 2 * MIB, MIB, MIB));
}

#[test]
fn memory_added_later_appears_in_mappings_that_lead_to_it() {
    let (bench, device, domain) = one_endpoint_in_a_domain();
    bench.map(&domain, IOVA, 64 * MIB, 0).unwrap();
    bench
        .map_with(&domain, IOVA + 64 * MIB, MIB, 48 * MIB, MapFlags::empty())
        .unwrap();
    let added = bench.ram.region(48 * MIB, MIB, 2 * MIB);
    bench
        .update_memory(&[], std::slice::from_ref(&added))
        .unwrap();
    assert!(bench.reaches(device, IOVA + 48 * MIB, 2 * MIB, MIB));
    assert!(bench.reaches_none(device, IOVA + 64 * MIB, MIB, MIB));
    bench.update_memory(&[added], &[]).unwrap();
    assert!(bench.reaches_none(device, IOVA + 48 * MIB, 2 * MIB, MIB));
    assert!(bench.reaches(device, IOVA + 16 * MIB, 16 * MIB, 0));
    bench.unmap(&domain, IOVA, 65 * MIB).unwrap();
}

#[test]
fn memory_removed_leaves_every_address_space() {
    let bench = Bench::new();
    let kept = bench.ram.region(16 * MIB, 0, MIB);
    let removed = bench.ram.region(17 * MIB, 8 * MIB, MIB);
    bench.update_memory(&[], &[kept, removed.clone()]).unwrap();
    let (first, second) = (bench.endpoint(1), bench.endpoint(2));
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.attach(2, Attachment::Bypass).unwrap();
    bench.map(&domain, IOVA, 2 * MIB, 16 * MIB).unwrap();
    assert!(bench.reaches(first, IOVA + MIB, MIB, 8 * MIB));
    assert!(bench.reaches(second, 17 * MIB, MIB, 8 * MIB));

    bench
        .update_memory(std::slice::from_ref(&removed), &[])
        .unwrap();
    assert!(bench.reaches_none(first, IOVA + MIB, MIB, 8 * MIB));
    assert!(bench.reaches_none(second, 17 * MIB, MIB, 8 * MIB));
    assert!(bench.reaches(first, IOVA, MIB, 0));
    assert!(bench.reaches(second, 16 * MIB, MIB, 0));

    // Other memory in its place.
    let other = bench.ram.region(17 * MIB, 4 * MIB, MIB);
    bench.update_memory(&[removed], &[other]).unwrap();
    assert!(bench.reaches(first, IOVA + MIB, MIB, 4 * MIB));
    assert!(bench.reaches(second, 17 * MIB, MIB, 4 * MIB));
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
    // Who maps it is told so, and nobody else.
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
fn a_mapping_gives_the_access_it_says_and_no_other__m45() {
    let bench = Bench::with_memory();
    bench.endpoint(1);
    let (domain, ioas) = bench.domain_and_its_ioas(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    let cases = [
        (MapFlags::READ, true, false),
        (MapFlags::WRITE, false, true),
        (READ_WRITE, true, true),
        (MapFlags::empty(), false, false),
    ];
    for (index, (flags, _, _)) in cases.into_iter().enumerate() {
        let iova = IOVA + index as u64 * 4096;
        bench
            .map_with(&domain, iova, 4096, 16 * MIB, flags)
            .unwrap();
    }
    let access = bench.kernel.access(ioas);
    for (index, (flags, reads, writes)) in cases.into_iter().enumerate() {
        let iova = IOVA + index as u64 * 4096;
        let mut data = [0; 16];
        assert_eq!(access.read(iova, &mut data), reads, "{flags:?}");
        assert_eq!(access.write(iova, &mut data), writes, "{flags:?}");
    }
    drop(access);
    bench.unmap(&domain, IOVA, MIB).unwrap();
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
