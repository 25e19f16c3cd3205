// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP and UNMAP.

use super::*;

const AT: u64 = IOVA + 2 * MIB;

#[test]
fn a_map_is_refused_as_a_whole_or_done() {
    sweep("MAP", |bench, point| {
        let map = requests::map(DOMAIN, AT, AT + MIB - 1, GPA + 2 * MIB, READ | WRITE);
        let status = point.during(|| bench.guest.request(&map));
        if status != OK {
            assert!(bench.reaches_none(AT, GPA + 2 * MIB));
            assert_eq!(bench.request(&map), OK);
        }
        assert!(bench.reaches(AT, GPA + 2 * MIB));
        assert!(bench.reaches(IOVA, GPA));
        assert_eq!(bench.unmap(DOMAIN, AT, MIB), OK);
        word(status)
    });
}

#[test]
fn an_unmap_is_done() {
    sweep("UNMAP", |bench, point| {
        for page in 0..4 {
            let gpa = GPA + (4 + page) * MIB;
            assert_eq!(bench.map(DOMAIN, AT + page * 4096, 4096, gpa), OK);
        }
        let unmap = requests::unmap(DOMAIN, AT, AT + MIB - 1);
        let status = point.during(|| bench.guest.request(&unmap));
        if status != OK {
            assert_eq!(bench.request(&unmap), OK);
        }
        for page in 0..4 {
            let (iova, gpa) = (AT + page * 4096, GPA + (4 + page) * MIB);
            let Bench { program, guest } = &*bench;
            assert!(program.reaches_none(ENDPOINT, guest, iova, 4096, gpa));
        }
        assert!(bench.reaches(IOVA, GPA));
        word(status)
    });
}

#[test]
fn each_request_of_a_batch_is_refused_or_done() {
    const PAGES: u64 = 8;
    let page = |index: u64| AT + index * 4096;
    sweep("batch", |bench, point| {
        let mut batch: Vec<_> = (0..PAGES)
            .map(|index| {
                let (first, gpa) = (page(index), GPA + index * 4096);
                requests::map(DOMAIN, first, first + 4095, gpa, READ | WRITE)
            })
            .collect();
        batch.push(requests::unmap(DOMAIN, page(0), page(4) - 1));
        let statuses = point.during(|| bench.guest.batch(&batch));
        let (unmapped, mapped) = statuses.split_last().unwrap();
        for index in 0..PAGES {
            let is_mapped = mapped[index as usize] == OK && !(index < 4 && *unmapped == OK);
            let Bench { program, guest } = &*bench;
            let gpa = GPA + index * 4096;
            let reaches = program.reaches(ENDPOINT, guest, page(index), 4096, gpa);
            assert_eq!(reaches, is_mapped, "page {index}: {statuses:?}");
        }
        assert_eq!(bench.unmap(DOMAIN, AT, MIB), OK);
        let refused = statuses.iter().filter(|status| word(**status) != "OK");
        format!("{} refused", refused.count())
    });
}
