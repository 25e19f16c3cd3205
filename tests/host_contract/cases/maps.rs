// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP, UNMAP and guest memory that comes and goes.

use super::*;

fn one_endpoint_in_a_domain<B: Bench>() -> (B, Domain) {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    (bench, domain)
}

pub fn a_mapping_is_in_force_and_gone_after_unmap<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    bench.map(&domain, IOVA, MIB, 18 * MIB).unwrap();
    assert!(bench.is_reached(plain(1), IOVA, MIB, 2 * MIB));
    assert!(bench.is_out_of_reach(plain(1), IOVA + MIB, 4096, 3 * MIB));
    bench.unmap(&domain, IOVA, MIB).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 2 * MIB));
}

pub fn one_unmap_takes_several_mappings_and_gaps<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    for index in [0, 1, 5, 9] {
        let gpa = 16 * MIB + index * 4096;
        bench.map(&domain, IOVA + index * MIB, 4096, gpa).unwrap();
    }
    bench.unmap(&domain, IOVA, 9 * MIB).unwrap();
    for index in [0, 1, 5] {
        assert!(bench.is_out_of_reach(plain(1), IOVA + index * MIB, 4096, index * 4096));
    }
    assert!(bench.is_reached(plain(1), IOVA + 9 * MIB, 4096, 9 * 4096));
}

pub fn unmapping_nothing_and_everything_works<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    bench.unmap(&domain, IOVA, MIB).unwrap();
    bench.map(&domain, IOVA, 4096, 16 * MIB).unwrap();
    for all in [IovaRange::ALL, IovaRange::new(1, u64::MAX).unwrap()] {
        bench.unmap_range(&domain, all).unwrap();
        assert!(bench.is_out_of_reach(plain(1), IOVA, 4096, 0));
        bench.map(&domain, IOVA, 4096, 16 * MIB).unwrap();
    }
    bench.unmap(&domain, u64::MAX, 1).unwrap();
}

pub fn the_same_memory_can_be_mapped_twice<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    bench.map(&domain, IOVA, 8192, 16 * MIB).unwrap();
    bench.map(&domain, IOVA + MIB, 8192, 16 * MIB).unwrap();
    bench.unmap(&domain, IOVA, 8192).unwrap();
    assert!(bench.is_reached(plain(1), IOVA + MIB, 8192, 0));
}

pub fn what_is_not_memory_is_left_out_and_what_is_memory_is_mapped<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    // Guest memory begins at 16 MiB and ends at 32 MiB.
    bench.map(&domain, IOVA, 64 * MIB, 0).unwrap();
    assert!(bench.is_reached(plain(1), IOVA + 16 * MIB, 16 * MIB, 0));
    bench.map(&domain, IOVA + 128 * MIB, MIB, 64 * MIB).unwrap();
    bench.unmap(&domain, IOVA, 64 * MIB).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA + 16 * MIB, 4096, 0));
    bench.unmap(&domain, IOVA + 128 * MIB, MIB).unwrap();
}

pub fn a_mapping_spans_memory_regions_in_any_order<B: Bench>() {
    let bench = B::new();
    bench.add_endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    // Guest-physical order is not file order.
    let regions = [
        bench.ram().region(0, 4 * MIB, MIB),
        bench.ram().region(MIB, 0, MIB),
        bench.ram().region(3 * MIB, 2 * MIB, MIB),
    ];
    bench.update_memory(&[], &regions).unwrap();
    bench.map(&domain, IOVA, 4 * MIB, 0).unwrap();
    assert!(bench.is_reached(plain(1), IOVA, MIB, 4 * MIB));
    assert!(bench.is_reached(plain(1), IOVA + MIB, MIB, 0));
    assert!(bench.is_reached(plain(1), IOVA + 3 * MIB, MIB, 2 * MIB));
    assert!(bench.is_out_of_reach(plain(1), IOVA + 2 * MIB, MIB, MIB));
    bench.unmap(&domain, IOVA, 4 * MIB).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA, MIB, 4 * MIB));
}

pub fn memory_added_later_appears_in_mappings_that_lead_to_it<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    bench.map(&domain, IOVA, 64 * MIB, 0).unwrap();
    let without_access = IOVA + 64 * MIB;
    bench
        .map_with(&domain, without_access, MIB, 48 * MIB, MapFlags::empty())
        .unwrap();
    let added = bench.ram().region(48 * MIB, MIB, 2 * MIB);
    let added = std::slice::from_ref(&added);
    bench.update_memory(&[], added).unwrap();
    assert!(bench.is_reached(plain(1), IOVA + 48 * MIB, 2 * MIB, MIB));
    assert!(bench.is_out_of_reach(plain(1), without_access, MIB, MIB));
    bench.update_memory(added, &[]).unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA + 48 * MIB, 2 * MIB, MIB));
    assert!(bench.is_reached(plain(1), IOVA + 16 * MIB, 16 * MIB, 0));
    bench.unmap(&domain, IOVA, 65 * MIB).unwrap();
}

pub fn memory_removed_leaves_every_address_space<B: Bench>() {
    let bench = B::new();
    let kept = bench.ram().region(16 * MIB, 0, MIB);
    let removed = bench.ram().region(17 * MIB, 8 * MIB, MIB);
    bench.update_memory(&[], &[kept, removed.clone()]).unwrap();
    bench.add_endpoint(1);
    bench.add_endpoint(2);
    let domain = bench.domain(1);
    bench.attach(1, unwanted(&domain)).unwrap();
    bench.attach(2, Attachment::Bypass).unwrap();
    bench.map(&domain, IOVA, 2 * MIB, 16 * MIB).unwrap();
    assert!(bench.is_reached(plain(1), IOVA + MIB, MIB, 8 * MIB));
    assert!(bench.is_reached(plain(2), 17 * MIB, MIB, 8 * MIB));

    bench
        .update_memory(std::slice::from_ref(&removed), &[])
        .unwrap();
    assert!(bench.is_out_of_reach(plain(1), IOVA + MIB, MIB, 8 * MIB));
    assert!(bench.is_out_of_reach(plain(2), 17 * MIB, MIB, 8 * MIB));
    assert!(bench.is_reached(plain(1), IOVA, MIB, 0));
    assert!(bench.is_reached(plain(2), 16 * MIB, MIB, 0));

    // Other memory in its place.
    let other = bench.ram().region(17 * MIB, 4 * MIB, MIB);
    bench.update_memory(&[removed], &[other]).unwrap();
    assert!(bench.is_reached(plain(1), IOVA + MIB, MIB, 4 * MIB));
    assert!(bench.is_reached(plain(2), 17 * MIB, MIB, 4 * MIB));
}

pub fn a_mapping_gives_the_access_it_says_and_no_other__m45<B: Bench>() {
    let (bench, domain) = one_endpoint_in_a_domain::<B>();
    let cases = [
        (MapFlags::READ, (true, false)),
        (MapFlags::WRITE, (false, true)),
        (READ_WRITE, (true, true)),
        (MapFlags::empty(), (false, false)),
    ];
    for (index, (flags, allowed)) in cases.into_iter().enumerate() {
        let iova = IOVA + index as u64 * 4096;
        bench
            .map_with(&domain, iova, 4096, 16 * MIB, flags)
            .unwrap();
        assert_eq!(bench.allows(&domain, plain(1), iova), allowed, "{flags:?}");
    }
    bench.unmap(&domain, IOVA, MIB).unwrap();
}
