// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reattachments at any moment: under requests, page requests and messages, and as something ends.

use super::*;

/// Reattaches again and again on a thread, until told to stop; then how often.
struct Reattacher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Reattacher {
    fn start(reattach: &Arc<Reattach>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (reattach, stopped) = (Arc::clone(reattach), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::SeqCst) {
                done(&reattach);
                count += 1;
            }
            count
        });
        Self { stop, thread }
    }

    fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no panic")
    }
}

#[test]
fn no_request_is_lost_or_carried_out_twice() {
    for features in [u64::MAX, !EVENT_IDX] {
        let (server, reattach) = start(ServerOptions::default());
        let options = GuestOptions {
            features,
            queue_size: 128,
            layout: Layout::Indirect,
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(&server.path, &options);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        let reattacher = Reattacher::start(&reattach);
        // Each is INVAL if it is done twice, and the next one is if it is lost.
        let pair = [
            map(1, 0, 0xfff, RAM, READ),
            map(1, 0x1000, 0x1fff, RAM, READ),
        ];
        let undo = [unmap(1, 0, 0xfff), unmap(1, 0x1000, 0x1fff)];
        let all: Vec<_> = [pair, undo]
            .concat()
            .into_iter()
            .cycle()
            .take(128)
            .collect();
        let mut requests = 0;
        // Around the end of the indices, too.
        while requests < 70_000 || server.device.counters().reattachments.get() < often() as u64 {
            let batch = &all[..4 * (1 + requests % 32)];
            assert!(guest.batch(batch).iter().all(|&status| status == OK));
            requests += batch.len();
            assert_eq!(guest.request(&a_map()), OK);
            assert_eq!(guest.request(&unmap(1, 0, 0xfff)), OK);
            requests += 2;
        }
        assert!(reattacher.stop() >= often());
        let counters = server.device.counters();
        // The request that attached is one more.
        assert_eq!(counters.requests.get(), requests as u64 + 1);
        assert_eq!(counters.resets.get(), 0);
    }
}

#[test]
fn a_driver_that_waits_for_an_interrupt_gets_it() {
    for features in [u64::MAX, !EVENT_IDX] {
        let (server, reattach) = start(ServerOptions::default());
        let options = GuestOptions {
            features,
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(&server.path, &options);
        let reattacher = Reattacher::start(&reattach);
        while server.device.counters().reattachments.get() < often() as u64 {
            guest.queues[REQUESTS].want_interrupts(true);
            let queued = guest.queue(&attach(1, ENDPOINT, 0), 4);
            guest.queues[REQUESTS].submit();
            let used = loop {
                // One may be for nothing.
                guest.queues[REQUESTS].wait_interrupt();
                if let Some(used) = guest.queues[REQUESTS].poll() {
                    break used;
                }
                guest.queues[REQUESTS].want_interrupts(true);
            };
            assert_eq!(guest.collect(queued, used.1).status(), OK);
        }
        reattacher.stop();
    }
}

#[test]
fn messages_of_the_same_moment_are_carried_out_once() {
    let (server, reattach) = start(ServerOptions::default());
    let mut guest = mapped(&server, &GuestOptions::default());
    let first = done(&reattach).messages;
    let reattacher = Reattacher::start(&reattach);
    let mut rounds = 0;
    while server.device.counters().reattachments.get() < often() as u64 {
        rounds += 1;
        guest.send_memory();
        guest.config();
        let bases = guest.stop();
        guest.start(bases);
        assert_eq!(guest.request(&a_map()), INVAL);
    }
    reattacher.stop();
    let messages = done(&reattach).messages - first;
    // Two for memory and configuration, four to stop, 13 to start.
    assert_eq!(messages, rounds * 19);
    assert_eq!(server.device.counters().resets.get(), 0);
}

#[test]
fn a_front_end_may_leave_at_any_moment() {
    let (server, reattach) = start(ServerOptions::default());
    let (mut reattached, mut gone) = (0, 0);
    for _ in 0..often() {
        let guest = mapped(&server, &GuestOptions::default());
        let asked: Vec<_> = (0..3).map(|_| reattach.ask()).collect();
        let leaving = thread::spawn(move || drop(guest));
        for asked in asked {
            match block_on(asked) {
                Ok(_) => reattached += 1,
                Err(ReattachError::Gone | ReattachError::NoFrontEnd) => gone += 1,
                Err(error) => panic!("{error}"),
            }
        }
        leaving.join().expect("no panic");
        wait_until("the end of the connection", || {
            !server.device.status().connected
        });
    }
    assert_eq!(reattached + gone, 3 * often());
    let guest = mapped(&server, &GuestOptions::default());
    done(&reattach);
    drop(guest);
}

#[test]
fn the_process_may_end_at_any_moment() {
    for _ in 0..often() / 4 {
        let (mut server, reattach) = start(ServerOptions::default());
        let guest = mapped(&server, &GuestOptions::default());
        let asked: Vec<_> = (0..3).map(|_| reattach.ask()).collect();
        server.stop();
        for asked in asked {
            match block_on(asked) {
                Ok(_) | Err(ReattachError::Gone) => {}
                Err(error) => panic!("{error}"),
            }
        }
        drop(guest);
    }
}

#[test]
fn a_message_that_is_refused_meanwhile_ends_the_connection() {
    let (server, reattach) = start(ServerOptions::default());
    for _ in 0..often() / 4 {
        let guest = mapped(&server, &GuestOptions::default());
        let asked = reattach.ask();
        // An owner is there.
        guest.frontend.set_owner().expect_err("refused");
        match block_on(asked) {
            Ok(_) | Err(ReattachError::Gone) => {}
            Err(error) => panic!("{error}"),
        }
        wait_until("the end of the connection", || {
            !server.device.status().connected
        });
    }
}

#[test]
fn page_requests_are_reported_once_and_answered() {
    let (server, reattach) = start(with_time_out(None));
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST)), OK);
    let reattacher = Reattacher::start(&reattach);
    let mut groups = 0;
    while server.device.counters().reattachments.get() < often() as u64 {
        // Two are outstanding, and two held, for want of buffers.
        let answers: Vec<_> = (0..4)
            .map(|group_number| group(&server.host, 0x10_0000 * (group_number + 1)))
            .collect();
        guest.post_events(4, 32, true);
        for half in 0..2 {
            for _ in 0..2 {
                let events = [guest.page_request(), guest.page_request()];
                let [first, last] = events.map(|event| event.address.get());
                assert_eq!(last, first + 0x1000);
                assert_eq!(events[0].group_id, events[1].group_id);
                let response = page_response(ENDPOINT, None, events[0].group_id.get(), 0);
                assert_eq!(guest.request(&response), OK);
                groups += 1;
            }
            if half == 0 {
                guest.post_events(4, 32, true);
            }
        }
        for answer in answers {
            assert_eq!(answer.join().expect("no panic"), PageResponseCode::Success);
        }
    }
    reattacher.stop();
    let counters = server.device.counters();
    assert_eq!(counters.page_request_groups_delivered.get(), groups);
    assert_eq!(counters.page_request_success.get(), groups);
}
