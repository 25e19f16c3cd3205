// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An engine: its registers, and how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::host::soft::Port;
use crate::soft_endpoint::agent::thread::AgentThread;
use crate::soft_endpoint::engine::descriptor::Outcome;
use crate::soft_endpoint::engine::registers::{Cause, Control, State, engine};
use crate::soft_endpoint::function::Function;

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

    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == State::Idle as u8
    }

    /// A chain begins.
    pub(super) fn begin(&self) {
        self.outcome.store(0, Ordering::Relaxed);
        self.enter(State::Running);
    }

    /// A chain has ended.
    pub(super) fn end(&self, outcome: Outcome) {
        self.outcome.store(outcome as u8, Ordering::Release);
        self.enter(State::Idle);
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
    /// The engine was reset after the last chain.
    fresh: bool,
}

/// An engine.
pub(super) struct Engine {
    pub(super) function: Arc<dyn Function>,
    pub(super) port: Port,
    pub(super) progress: Progress,
    /// Works from the doorbell until the chain is done and its interrupt raised.
    pub(super) thread: AgentThread,
    inner: Mutex<Inner>,
}

impl Engine {
    pub(super) fn new(function: Arc<dyn Function>, port: Port) -> Self {
        Self {
            function,
            port,
            progress: Progress::default(),
            thread: AgentThread::new("fault-engine".to_owned()),
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub(super) fn program(&self) -> Program {
        self.lock().program
    }

    /// Whether the engine was reset since the last call.
    pub(super) fn take_fresh(&self) -> bool {
        std::mem::take(&mut self.lock().fresh)
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

    /// Writes a register other than DOORBELL.
    pub(super) fn write(&self, register: u64, value: u32) {
        if register == engine::CONTROL && value & Control::RESET.bits() != 0 {
            return self.reset();
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

    /// Stops the chain where it is, and puts everything in the state after power-on. When this returns, no access is in
    /// flight, and none follows.
    pub(super) fn reset(&self) {
        self.thread.stop(|| {
            *self.lock() = Inner {
                fresh: true,
                ..Inner::default()
            };
            self.progress.clear();
            self.port.flush();
        });
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
}
