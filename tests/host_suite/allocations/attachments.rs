// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ATTACH and DETACH.

use super::*;
use crate::common::requests::{ATTACH_BYPASS, PASID};

const PASID_NUMBER: u32 = 77;
const NEW_DOMAIN: u32 = 9;

#[test]
fn an_attach_is_refused_as_a_whole_or_done() {
    sweep("ATTACH", |bench, point| {
        let attach = requests::attach(OTHER_DOMAIN, ENDPOINT, ATTACH_PAGE_REQUEST);
        let status = point.during(|| bench.guest.request(&attach));
        if status != OK {
            assert!(bench.reaches(IOVA, GPA));
            assert!(bench.reaches_none(OTHER_IOVA, GPA + MIB));
            assert_eq!(bench.request(&attach), OK);
        }
        assert!(bench.reaches(OTHER_IOVA, GPA + MIB));
        assert!(bench.reaches_none(IOVA, GPA));
        bench.enter_domain();
        word(status)
    });
}

#[test]
fn an_attach_that_is_refused_leaves_no_domain() {
    sweep("ATTACH to a new domain", |bench, point| {
        let attach = requests::attach(NEW_DOMAIN, ENDPOINT, 0);
        let status = point.during(|| bench.guest.request(&attach));
        assert_eq!(bench.reaches(IOVA, GPA), status != OK);
        assert_eq!(bench.status()["domains"].as_array().unwrap().len(), 2);
        if status == OK {
            bench.enter_domain();
        }
        word(status)
    });
}

#[test]
fn an_attach_to_a_bypass_domain_is_refused_or_done() {
    sweep("ATTACH to a bypass domain", |bench, point| {
        let attach = requests::attach(NEW_DOMAIN, ENDPOINT, ATTACH_BYPASS);
        let status = point.during(|| bench.guest.request(&attach));
        if status != OK {
            assert!(bench.reaches(IOVA, GPA));
            assert!(bench.reaches_none(GPA, GPA));
            assert_eq!(bench.request(&attach), OK);
        }
        assert!(bench.reaches(GPA, GPA));
        assert!(bench.reaches_none(IOVA, GPA));
        bench.enter_domain();
        word(status)
    });
}

#[test]
fn a_pasid_is_attached_and_detached_or_not() {
    let attach = requests::attach_pasid(
        OTHER_DOMAIN,
        ENDPOINT,
        PASID | ATTACH_PAGE_REQUEST,
        PASID_NUMBER,
    );
    let detach = requests::detach_pasid(OTHER_DOMAIN, ENDPOINT, PASID_NUMBER);
    let is_attached = |bench: &Bench| {
        let device = bench.program.device(ENDPOINT);
        let table = bench.program.kernel.page_table_of(device, PASID_NUMBER);
        table.is_some()
    };
    sweep("ATTACH of a PASID", |bench, point| {
        let status = point.during(|| bench.guest.request(&attach));
        assert_eq!(is_attached(bench), status == OK);
        if status == OK {
            assert_eq!(bench.request(&detach), OK);
        }
        word(status)
    });
    sweep("DETACH of a PASID", |bench, point| {
        assert_eq!(bench.request(&attach), OK);
        let status = point.during(|| bench.guest.request(&detach));
        assert_eq!(is_attached(bench), status != OK);
        if status != OK {
            assert_eq!(bench.request(&detach), OK);
        }
        word(status)
    });
}

#[test]
fn an_endpoint_that_is_detached_comes_to_bypass() {
    sweep("DETACH", |bench, point| {
        let detach = requests::detach(DOMAIN, ENDPOINT);
        let status = point.during(|| bench.guest.request(&detach));
        if status != OK {
            assert!(bench.reaches(IOVA, GPA));
            assert_eq!(bench.request(&detach), OK);
        }
        assert!(bench.reaches_none(IOVA, GPA));
        // Where that fails, it is blocked until the next request.
        bench.next_request();
        assert!(bench.reaches(GPA, GPA));
        assert_eq!(bench.status()["endpoints"][0]["state"], "bypass");
        bench.enter_domain();
        word(status)
    });
}

#[test]
fn an_endpoint_whose_driver_ends_comes_to_bypass() {
    sweep("reset", |bench, point| {
        bench.guest.stop();
        let restarted = point.during(|| {
            catch_unwind(AssertUnwindSafe(|| {
                bench.guest.start_anew();
                // The first look at the ring tells a reset from a resume.
                bench.next_request();
            }))
        });
        if restarted.is_err() {
            // The front-end was refused.
            bench.is_disconnected();
            bench.start_again();
            return "the connection ended".to_owned();
        }
        assert!(bench.reaches_none(IOVA, GPA));
        bench.next_request();
        assert!(bench.reaches(GPA, GPA));
        bench.set_up();
        "reset".to_owned()
    });
}
