// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An engine: its registers, and the thread that carries out its chains.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{JoinHandle, Thread};

use serde_json::{Value, json};

use crate::host::soft::Port;
use crate::soft_endpoint::engine::Function;
use crate::soft_endpoint::engine::descriptor::Outcome;
use crate::soft_endpoint::engine::registers::{Cause, Control, State, engine};
use crate::soft_endpoint::engine::run::Runner;

/// Cached translations that a picture shows.
const MAX_SHOWN: usize = 16;

/// A number that one thread changes and others look at.
#[derive(Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Only for the one thread that changes it.
    pub(super) fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }
}

/// How far an engine is: written by its thread, read by everybody.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Progress {
    state: AtomicU8,
    outcome: AtomicU8,
    pub(super) current: Gauge,
    pub(super) fault: Gauge,
    pub(super) completed: Gauge,
    pub(super) bytes: Gauge,
    pub(super) groups: Gauge,
    pub(super) requests: Gauge,
    pub(super) successes: Gauge,
    pub(super) markers: Gauge,
}

impl Progress {
    pub(super) fn enter(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn clear(&self) {
        self.outcome.store(0, Ordering::Relaxed);
        for gauge in [
            &self.current,
            &self.fault,
            &self.completed,
            &self.bytes,
            &self.groups,
            &self.requests,
            &self.successes,
            &self.markers,
        ] {
            gauge.set(0);
        }
    }
}

/// What the driver programs.
#[derive(Clone, Copy)]
pub(super) struct Program {
    pub(super) control: Control,
    pub(super) vector: u16,
    pub(super) head: u64,
    pub(super) fetch_pasid: u32,
    pub(super) limit: u32,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            control: Control::empty(),
            vector: 0,
            head: 0,
            fetch_pasid: 0,
            limit: engine::LIMIT_RESET,
        }
    }
}

#[derive(Default)]
struct Inner {
    program: Program,
    cause: Cause,
    /// From the doorbell until the chain is done and its interrupt raised.
    busy: bool,
    /// The engine was reset after the last chain.
    fresh: bool,
    ended: bool,
    thread: Option<JoinHandle<()>>,
}

/// An engine.
pub(super) struct Engine {
    pub(super) function: Arc<dyn Function>,
    pub(super) port: Port,
    pub(super) progress: Progress,
    /// The chain must stop where it is.
    stopping: AtomicBool,
    inner: Mutex<Inner>,
    /// `busy`, `ended` changed.
    changed: Condvar,
}

impl Engine {
    pub(super) fn new(function: Arc<dyn Function>, port: Port) -> Self {
        Self {
            function,
            port,
            progress: Progress::default(),
            stopping: AtomicBool::new(false),
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Nothing panics while it holds this lock, and if something did, what it guards is still whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn program(&self) -> Program {
        self.lock().program
    }

    /// Whether the chain must stop where it is.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self, register: u64) -> u32 {
        let progress = &self.progress;
        let (register, high) = match register {
            engine::HEAD..engine::FETCH_PASID | engine::CURRENT..engine::GROUPS => {
                (register & !4, register & 4 != 0)
            }
            _ => (register, false),
        };
        let value = match register {
            engine::CONTROL => self.program().control.bits().into(),
            engine::STATUS => {
                let state = progress.state.load(Ordering::Acquire);
                let outcome = progress.outcome.load(Ordering::Acquire);
                u64::from(state) | u64::from(outcome) << 8
            }
            engine::VECTOR => self.program().vector.into(),
            engine::HEAD => self.program().head,
            engine::FETCH_PASID => self.program().fetch_pasid.into(),
            engine::LIMIT => self.program().limit.into(),
            engine::INTERRUPT => self.lock().cause.bits().into(),
            engine::COMPLETED => progress.completed.get(),
            engine::CURRENT => progress.current.get(),
            engine::FAULT => progress.fault.get(),
            engine::BYTES => progress.bytes.get(),
            engine::GROUPS => progress.groups.get(),
            engine::REQUESTS => progress.requests.get(),
            engine::SUCCESSES => progress.successes.get(),
            engine::MARKERS => progress.markers.get(),
            engine::HITS => self.port.counters().hits,
            engine::MISSES => self.port.counters().misses,
            engine::INVALIDATED => self.port.counters().invalidated,
            engine::CACHED => self.port.cached().len() as u64,
            _ => 0,
        };
        (if high { value >> 32 } else { value }) as u32
    }

    /// Registers and cache, for people.
    pub(super) fn describe(&self) -> Value {
        let progress = &self.progress;
        let program = self.program();
        let counters = self.port.counters();
        let outcome = Outcome::from_number(progress.outcome.load(Ordering::Acquire));
        let cached = self.port.cached();
        let shown = cached.iter().take(MAX_SHOWN).map(|cached| {
            json!({
                "pasid": cached.pasid.map(|pasid| pasid.0),
                "domain": cached.domain.map(|domain| domain.0),
                "iova": cached.mapping.range.first.0,
                "last": cached.mapping.range.last.0,
                "gpa": cached.mapping.gpa.0,
            })
        });
        json!({
            "state": State::name(progress.state.load(Ordering::Acquire)),
            "outcome": outcome.map(|outcome| outcome.to_string()),
            "control": program.control.bits(),
            "vector": program.vector,
            "head": program.head,
            "current": progress.current.get(),
            "fault": progress.fault.get(),
            "completed": progress.completed.get(),
            "bytes": progress.bytes.get(),
            "page-requests": {
                "groups": progress.groups.get(),
                "requests": progress.requests.get(),
                "successes": progress.successes.get(),
                "stop-markers": progress.markers.get(),
            },
            "cache": {
                "hits": counters.hits,
                "misses": counters.misses,
                "invalidated": counters.invalidated,
                "translations": cached.len(),
                "first": shown.collect::<Vec<_>>(),
            },
        })
    }

    pub(super) fn write(self: &Arc<Self>, register: u64, value: u32) {
        if register == engine::CONTROL && value & Control::RESET.bits() != 0 {
            return self.reset();
        }
        if register == engine::DOORBELL {
            return self.start();
        }
        let mut inner = self.lock();
        let program = &mut inner.program;
        match register {
            engine::CONTROL => program.control = Control::from_bits_truncate(value),
            engine::VECTOR => program.vector = value as u16,
            engine::HEAD => program.head = program.head >> 32 << 32 | u64::from(value),
            engine::HEAD_HIGH => {
                program.head = u64::from(value) << 32 | u64::from(program.head as u32);
            }
            engine::FETCH_PASID => program.fetch_pasid = value,
            engine::LIMIT => program.limit = value,
            engine::INTERRUPT => inner.cause -= Cause::from_bits_truncate(value),
            _ => {}
        }
    }

    /// The doorbell. A chain that is being carried out goes on, and nothing else happens.
    fn start(self: &Arc<Self>) {
        let mut inner = self.lock();
        // The driver has seen the end of a chain whose interrupt is on its way.
        while inner.busy && self.progress.state.load(Ordering::Acquire) == State::Idle as u8 {
            inner = self.wait(inner);
        }
        if inner.busy || inner.ended {
            return;
        }
        if inner.thread.is_none() {
            let engine = Arc::clone(self);
            let builder = std::thread::Builder::new().name("fault-engine".to_owned());
            match builder.spawn(move || engine.run()) {
                Ok(thread) => inner.thread = Some(thread),
                Err(error) => {
                    log::warn!("fault engine: no thread: {error}");
                    return;
                }
            }
        }
        inner.busy = true;
        self.progress.outcome.store(0, Ordering::Relaxed);
        self.progress.enter(State::Running);
        self.changed.notify_all();
    }

    /// Stops the chain where it is. When this returns, no access is in flight, and none follows.
    fn stop<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = &inner.thread {
            thread.thread().unpark();
        }
        while inner.busy {
            inner = self.wait(inner);
        }
        self.stopping.store(false, Ordering::Relaxed);
        inner
    }

    pub(super) fn reset(&self) {
        let mut inner = self.stop(self.lock());
        inner.program = Program::default();
        inner.cause = Cause::empty();
        inner.fresh = true;
        self.progress.clear();
        self.port.flush();
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        self.changed.notify_all();
        let mut inner = self.stop(inner);
        let thread = inner.thread.take();
        drop(inner);
        if let Some(thread) = thread {
            // It has nothing to say.
            let _ = thread.join();
        }
    }

    pub(super) fn interrupt(&self, cause: Cause) {
        let mut inner = self.lock();
        inner.cause |= cause;
        let program = inner.program;
        drop(inner);
        if program.control.contains(Control::INTERRUPT) {
            self.function.raise(program.vector);
        }
    }

    /// The thread.
    fn run(&self) {
        let mut runner = Runner::new(self);
        loop {
            let mut inner = self.lock();
            while !inner.busy {
                if inner.ended {
                    return;
                }
                inner = self.wait(inner);
            }
            let fresh = std::mem::take(&mut inner.fresh);
            drop(inner);
            if fresh {
                runner.reset();
            }
            let outcome = runner.chain();
            self.progress
                .outcome
                .store(outcome as u8, Ordering::Release);
            self.progress.enter(State::Idle);
            match outcome {
                Outcome::Reset => {}
                Outcome::Done => self.interrupt(Cause::CHAIN),
                _ => self.interrupt(Cause::CHAIN | Cause::ERROR),
            }
            let mut inner = self.lock();
            inner.busy = false;
            self.changed.notify_all();
        }
    }

    /// Waits on the engine's thread until `poll` has something; `None` when the chain must stop.
    pub(super) fn wait_until<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Option<T>,
    ) -> Option<T> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(value) = poll(&mut context) {
                return Some(value);
            }
            std::thread::park();
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
