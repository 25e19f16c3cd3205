// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SIGTERM.

use super::*;

/// A thread that ends makes fewer allocations than this. Whether one failed cannot be asked of a thread that is gone.
const ALLOCATIONS: usize = 14;

#[test]
fn the_program_ends_in_good_order() {
    let threads_of_a_program = threads(&Bench::start().program).len();
    for place in 0..threads_of_a_program {
        for nth in slice::some_points().take_while(|nth| *nth <= ALLOCATIONS) {
            let Bench { mut program, guest } = Bench::start();
            let (thread, name) = threads(&program).swap_remove(place);
            let device = program.device(ENDPOINT);
            let fail = FailNth::of(program.id(), thread).expect("a thread");
            named("SIGTERM", &name, nth, || {
                let (status, _) = fail.during(nth, || program.terminate());
                assert!(status.success(), "{status}");
                // Mock devices end with the program.
                assert_eq!(program.kernel.page_table_of(device, 0), None);
            });
            drop(guest);
        }
    }
}
