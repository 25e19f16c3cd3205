// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that waits with epoll, reads page requests and writes answers, and does nothing else: no IOMMU answers
//! sooner.

use std::hint::spin_loop;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::figure::median;
use super::hops::{Bare, OUTSTANDING};
use super::pin;
use super::stamps::{Stamp, now};

const PAUSE: Duration = Duration::from_millis(1);

/// Where page requests wait, and answers go.
pub trait Queue: Sync {
    /// Readable while there is a page request.
    fn fd(&self) -> RawFd;
    /// Somebody asks for a page.
    fn raise(&self);
    /// Answers what is there: how many.
    fn serve(&self) -> usize;
}

#[derive(Default)]
struct Loop {
    woken: Stamp,
    answered_at: Stamp,
    answered: AtomicUsize,
    stop: AtomicBool,
}

impl Loop {
    fn run(&self, queue: &impl Queue) {
        pin::to(pin::DEVICE);
        let set = Epoll::new().expect("an epoll set");
        let readable = EpollEvent::new(EventSet::IN, 0);
        set.ctl(ControlOperation::Add, queue.fd(), readable)
            .expect("a descriptor");
        while !self.stop.load(Ordering::Acquire) {
            set.wait(-1, &mut [readable]).expect("an event");
            self.woken.set();
            let served = queue.serve();
            self.answered_at.set();
            self.answered.fetch_add(served, Ordering::AcqRel);
        }
    }

    fn wait_for(&self, answered: usize) {
        while self.answered.load(Ordering::Acquire) < answered {
            spin_loop();
        }
    }
}

/// Measures it.
pub fn measure(queue: &impl Queue, rounds: usize, groups: usize) -> Bare {
    let course = Loop::default();
    std::thread::scope(|scope| {
        scope.spawn(|| course.run(queue));
        pin::to(pin::DRIVER);
        let (mut awake, mut whole, mut total) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            std::thread::sleep(PAUSE);
            let raised = now();
            queue.raise();
            total += 1;
            course.wait_for(total);
            let answered = course.answered_at.get();
            awake.push((answered - course.woken.get()) as f64 / 1e3);
            whole.push((answered - raised) as f64 / 1e3);
        }
        let mut rates = Vec::new();
        for _ in 0..5 {
            let begin = Instant::now();
            for raised in 0..groups {
                // The oldest of them is answered before there is a new one.
                course.wait_for(total + (raised + 1).saturating_sub(OUTSTANDING));
                queue.raise();
            }
            total += groups;
            course.wait_for(total);
            rates.push(groups as f64 / begin.elapsed().as_secs_f64());
        }
        course.stop.store(true, Ordering::Release);
        queue.raise();
        Bare {
            awake: median(awake),
            whole: median(whole),
            rate: median(rates),
        }
    })
}
