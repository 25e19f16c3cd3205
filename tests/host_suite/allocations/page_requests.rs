// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests. (An answer to one makes no allocation.)

use super::*;
use crate::kernel;

const MISSING: u64 = IOVA + 4 * MIB;

#[test]
fn a_page_request_reaches_the_driver() {
    sweep("page request", |bench, point| {
        let Bench { program, guest } = bench;
        let event = point.during(|| {
            program.page_request(ENDPOINT, kernel::READ, MISSING);
            guest.page_request()
        });
        assert_eq!(event.address.get(), MISSING);
        bench.guest.post_events(1, EVENT_LEN, true);
        let answer = requests::page_response(ENDPOINT, None, event.group_id.get(), 0);
        assert_eq!(bench.request(&answer), OK);
        "delivered".to_owned()
    });
}
