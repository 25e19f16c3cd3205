// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a page request through the back-end, hop by hop, and how many a second go it.
//!
//! ```text
//! host's queue readable ── taken ── event published ── guest notified    (the guest decides)
//! host answered ── answer taken ── kick                                  (its PAGE_RESPONSE)
//! ```
//!
//! The driver watches what the device writes, on a processor of its own: it is the clock, and adds no wake-up.
//! All of the back-end is asleep before each round, as it is while a guest does nothing.

use std::collections::VecDeque;
use std::hint::spin_loop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use vhost_device_iommu::device::DeviceConfig;
use vhost_device_iommu::host::Host;
use vhost_device_iommu::spec::{EVENT_LEN, Event};

use super::common::guest::{EVENT_IDX, EVENTS, REQUESTS};
use super::common::requests::{self, ATTACH_PAGE_REQUEST};
use super::common::{Guest, GuestOptions, Layout, Segment, Server, ServerOptions};
use super::figure::median;
use super::pin;
use super::stamps::{TimedHost, now};

/// How many groups are outstanding when the rate is measured.
pub const OUTSTANDING: usize = 256;

const SUCCESS: u16 = 0;
const DOMAIN: u32 = 1;
const QUEUE: u16 = 1024;
/// Longer than the request worker ever watches its ring.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the time of a page request goes in the back-end.
const HOPS: [(&str, &str, Whose); 6] = [
    (
        "fault worker wakes",
        "host's queue readable → page request taken",
        Whose::Kernel,
    ),
    (
        "writes the event",
        "page request taken → event published",
        Whose::Own,
    ),
    (
        "interrupts the guest",
        "event published → guest notified",
        Whose::Own,
    ),
    (
        "request worker wakes",
        "kick → request worker runs",
        Whose::Kernel,
    ),
    (
        "takes the answer",
        "request worker runs → answer taken",
        Whose::Own,
    ),
    (
        "answers the host",
        "answer taken → host answered",
        Whose::Own,
    ),
];

/// Who spends the time.
#[derive(Clone, Copy, PartialEq)]
enum Whose {
    /// A thread of the back-end that runs.
    Own,
    /// The scheduler and the processor, until the thread runs.
    Kernel,
}

/// Nanoseconds of each hop.
type Times = [u64; HOPS.len()];

/// The least that anybody could do: a loop of epoll, read and write on the same kind of descriptor. Microseconds.
pub struct Bare {
    /// From its thread's running to the written answer.
    pub awake: f64,
    /// From the request to the written answer.
    pub whole: f64,
    /// Groups a second with [`OUTSTANDING`] of them.
    pub rate: f64,
}

/// A device over a host, a guest with an endpoint attached, and something that makes the endpoint ask for a page.
pub struct Course<H, R> {
    server: Server<TimedHost<H>>,
    guest: Guest,
    endpoint: u32,
    raise: R,
    buffers: Vec<u64>,
}

impl<H: Host + 'static, R: FnMut()> Course<H, R> {
    pub fn new(host: Arc<H>, endpoint: u32, raise: R) -> Self {
        let server = pin::device_side(|| {
            let options = ServerOptions {
                config: DeviceConfig {
                    boot_bypass: false,
                    ..DeviceConfig::default()
                },
                endpoints: vec![endpoint],
                ..ServerOptions::default()
            };
            Server::over(Arc::new(TimedHost::new(host)), options)
        });
        // Without EVENT_IDX the driver sees in the ring's flags when the request worker runs.
        let options = GuestOptions {
            queue_size: QUEUE,
            features: !EVENT_IDX,
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(&server.path, &options);
        let attach = requests::attach(DOMAIN, endpoint, ATTACH_PAGE_REQUEST);
        assert_eq!(guest.request(&attach), 0);
        let mut buffers = vec![0; usize::from(QUEUE)];
        let events = &mut guest.queues[EVENTS];
        for _ in 0..2 * OUTSTANDING {
            let address = guest.ram.allocate(EVENT_LEN as u64);
            let segment = Segment::writable(address, EVENT_LEN);
            let head = events.push(&[segment], Layout::Direct);
            buffers[usize::from(head)] = address;
        }
        events.submit();
        guest.queues[REQUESTS].want_interrupts(false);
        Self {
            server,
            guest,
            endpoint,
            raise,
            buffers,
        }
    }

    fn raise(&mut self) {
        (self.raise)();
    }

    /// The next event, if there is one: its group. Its buffer is available again.
    fn poll(&mut self) -> Option<u16> {
        let queue = &mut self.guest.queues[EVENTS];
        let (head, written) = queue.poll()?;
        assert_eq!(written as usize, EVENT_LEN);
        let event = self
            .guest
            .ram
            .read::<EVENT_LEN>(self.buffers[usize::from(head)]);
        let event: Event = zerocopy::transmute!(event);
        queue.make_available(head);
        queue.publish();
        Some(event.group_id.get())
    }

    fn answer(&self, group: u16) -> Vec<u8> {
        requests::page_response(self.endpoint, None, group, SUCCESS)
    }

    /// One page request there and back.
    fn round(&mut self) -> Times {
        self.guest.queues[EVENTS].want_interrupts(true);
        std::thread::sleep(PAUSE);
        let raised = now();
        self.raise();
        while self.guest.queues[EVENTS].used_index() == self.guest.queues[EVENTS].used_seen {
            spin_loop();
        }
        let published = now();
        while !self.guest.queues[EVENTS].interrupted() {
            spin_loop();
        }
        let notified = now();
        let group = self.poll().expect("an event");
        let request = self.answer(group);
        std::thread::sleep(PAUSE);
        let queued = self.guest.queue(&request, 4);
        let kicked = now();
        let queue = &mut self.guest.queues[REQUESTS];
        assert!(queue.submit(), "the request worker is awake");
        // The first that the worker does is to ask for no more kicks. When it has answered it may want them again.
        while queue.wants_kick() && queue.used_index() == queue.used_seen {
            spin_loop();
        }
        let running = now();
        while queue.used_index() == queue.used_seen {
            spin_loop();
        }
        let (_, written) = queue.wait();
        assert_eq!(self.guest.collect(queued, written).status(), 0);
        let host = &self.server.host;
        let taken = host.watch.taken.get();
        let answering = host.watch.answering.get();
        // The driver may look after the answer was taken.
        let running = running.min(answering);
        [
            taken - raised,
            published - taken,
            notified - published,
            running - kicked,
            answering - running,
            host.watch.answered.get() - answering,
        ]
    }

    /// Groups a second, with [`OUTSTANDING`] of them all the time: a new one for each answered one.
    fn rate(&mut self, groups: usize) -> f64 {
        for _ in 0..OUTSTANDING {
            self.raise();
        }
        self.guest.queues[EVENTS].want_interrupts(false);
        let begin = Instant::now();
        let mut queued = VecDeque::new();
        let (mut answered, mut raised) = (0, OUTSTANDING);
        while answered < groups {
            while let Some(group) = self.poll() {
                let request = self.answer(group);
                queued.push_back(self.guest.queue(&request, 4));
            }
            self.guest.queues[REQUESTS].submit();
            while let Some((head, written)) = self.guest.queues[REQUESTS].poll() {
                let first = queued.pop_front().expect("a request in the queue");
                assert_eq!(first.head, head, "requests are used in order");
                assert_eq!(self.guest.collect(first, written).status(), 0);
                answered += 1;
                if raised < groups {
                    self.raise();
                    raised += 1;
                }
            }
            spin_loop();
        }
        groups as f64 / begin.elapsed().as_secs_f64()
    }

    /// Measures, and prints: tables for people, and a line of JSON that starts with "hops" for the picture. `most` is
    /// what the back-end's own share may be, in microseconds.
    pub fn figures(
        mut self,
        name: &str,
        bare: &Bare,
        most: Option<f64>,
        rounds: usize,
        groups: usize,
    ) {
        let times: Vec<_> = (0..rounds).map(|_| self.round()).collect();
        let middle = |of: &dyn Fn(&Times) -> u64| {
            median(times.iter().map(|time| of(time) as f64 / 1e3).collect())
        };
        let hops: [f64; HOPS.len()] = std::array::from_fn(|hop| middle(&|time| time[hop]));
        let whole = middle(&|time| time.iter().sum());
        let own = middle(&|time| {
            let own = HOPS.iter().zip(time).filter(|(hop, _)| hop.2 == Whose::Own);
            own.map(|(_, time)| time).sum()
        });
        let rate = median((0..5).map(|_| self.rate(groups)).collect());
        assert_eq!(self.server.device.counters().page_response_stale.get(), 0);

        let goal = most.map_or(String::new(), |most| format!("<= {most} us"));
        let met = most.map_or("", |most| if own <= most { "met" } else { "MISSED" });
        println!("| {name}: hop | whose time | median |");
        println!("|---|---|---|");
        for ((_, what, whose), time) in HOPS.iter().zip(&hops) {
            let whose = match whose {
                Whose::Own => "the back-end's",
                Whose::Kernel => "until its thread runs",
            };
            println!("| {what} | {whose} | {time:.1} us |");
        }
        println!("\n| {name} | ours | epoll, read and write alone | ratio | goal | |");
        println!("|---|---|---|---|---|---|");
        println!(
            "| own share: the hops but the wake-ups | {own:.1} us | {:.1} us | {:.2} | {goal} | {met} |",
            bare.awake,
            own / bare.awake,
        );
        println!(
            "| all hops, two wake-ups; alone there is one | {whole:.1} us | {:.1} us | {:.2} | | |",
            bare.whole,
            whole / bare.whole
        );
        println!(
            "| groups a second, {OUTSTANDING} outstanding | {:.0} k/s | {:.0} k/s | {:.2} | | |\n",
            rate / 1e3,
            bare.rate / 1e3,
            rate / bare.rate
        );
        let hops: Vec<_> = HOPS
            .iter()
            .zip(hops)
            .map(|((name, _, whose), time)| json!([name, *whose == Whose::Own, time]))
            .collect();
        let report = json!({
            "host": name,
            "hops": hops,
            "whole": whole,
            "own": own,
            "bare_whole": bare.whole,
            "bare_awake": bare.awake,
            "rate": rate,
            "bare_rate": bare.rate,
        });
        println!("hops {report}");
    }
}
