// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR 0: the registers of Linux's pci-epf-test (its documentation: PCI/endpoint/pci-test-function), with the MSI-X
//! table behind them.

mod registers;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::host::soft::Port;
use crate::soft_endpoint::agent::dma::Dma;
use crate::soft_endpoint::agent::thread::AgentThread;
use crate::soft_endpoint::config::{MSIX_PENDING, MSIX_TABLE};
use crate::soft_endpoint::function::{FunctionState, RegisterBlock};
use crate::soft_endpoint::interrupts::{InterruptKind, MSIX_VECTORS};
use crate::soft_endpoint::scratch::Scratch;
use crate::soft_endpoint::transfer::{Failure, Mover};

use registers::{Command, DOORBELL, Registers, Status, reg};

/// Bytes of the MSI-X table.
const TABLE_LENGTH: usize = 16 * MSIX_VECTORS as usize;

/// The block: registers, and a thread that carries out commands.
pub(super) struct TestBlock(Arc<Shared>);

struct Shared {
    function: Arc<FunctionState>,
    port: Port,
    scratch: Arc<Scratch>,
    thread: AgentThread,
    /// Of the standard library: a driver that polls STATUS wants the lock all the time, and a lock that gives the processor
    /// away while it waits costs a transfer 30 us.
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    /// The MSI-X table, which reads as it was written. The front-end keeps the one that has an effect.
    table: Box<[u8; TABLE_LENGTH]>,
    /// The doorbell was rung with this.
    rung: Option<u32>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    commands: u64,
    failures: u64,
    bytes_read: u64,
    bytes_written: u64,
}

/// What a command came to.
#[derive(Default)]
struct Outcome {
    status: Status,
    checksum: Option<u32>,
    read: u64,
    written: u64,
}

impl TestBlock {
    /// The block, and its thread.
    ///
    /// # Errors
    /// The kernel's, if it has no thread to give.
    pub(super) fn new(
        function: &Arc<FunctionState>,
        port: Port,
        scratch: &Arc<Scratch>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            function: Arc::clone(function),
            port,
            scratch: Arc::clone(scratch),
            thread: AgentThread::new(format!("test {}", function.endpoint())),
            state: Mutex::new(State::new()),
        });
        let worker = Arc::clone(&shared);
        shared.thread.start(move || worker.run())?;
        Ok(Self(shared))
    }
}

impl State {
    /// Takes the command out of its register, with its parameters; `None` if it is unknown.
    fn begin(&mut self) -> Option<(Command, Registers)> {
        let parameters = self.registers.clone();
        self.registers.command = 0;
        self.registers.status = Status::empty();
        self.counters.commands += 1;
        let command = Command::from_bits(parameters.command);
        self.counters.failures += u64::from(command.is_none());
        Some((command?, parameters))
    }

    /// After power-on.
    fn new() -> Self {
        Self {
            registers: Registers::new(),
            table: new_table(),
            rung: None,
            counters: Counters::default(),
        }
    }
}

/// Every vector masked.
fn new_table() -> Box<[u8; TABLE_LENGTH]> {
    let mut table = Box::new([0; TABLE_LENGTH]);
    table.iter_mut().skip(12).step_by(16).for_each(|b| *b = 1);
    table
}

impl Shared {
    /// If something panics while it holds this lock, what it guards is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread: one command after the other, as on the chips that run pci-epf-test.
    fn run(&self) {
        let dma = Dma::new(&*self.function, &self.port, &self.thread);
        let mut mover = Mover::new(dma, self.function.endpoint().0);
        self.thread.serve(|| {
            while !self.thread.is_stopping() && self.step(&mut mover) {
                self.function.interrupts().deliver();
            }
        });
    }

    /// Does what was asked for first, if anything was: whether there was something.
    fn step(&self, mover: &mut Mover) -> bool {
        let mut state = self.lock();
        if let Some(value) = state.rung.take() {
            if state.registers.doorbell_is_armed() && value == DOORBELL.2 {
                state.registers.status |= Status::DOORBELL_SUCCESS;
                self.interrupt(&mut state);
            }
            return true;
        }
        if state.registers.command == 0 {
            return false;
        }
        let begun = state.begin();
        drop(state);
        if let Some((command, parameters)) = begun {
            mover.begin();
            let outcome = self.carry_out(command, &parameters, mover);
            self.finish(command, &outcome);
        }
        true
    }

    fn finish(&self, command: Command, outcome: &Outcome) {
        let mut state = self.lock();
        // A reset is about to clear the registers; the end has no more use for them.
        if self.thread.is_stopping() {
            return;
        }
        state.counters.bytes_read += outcome.read;
        state.counters.bytes_written += outcome.written;
        state.counters.failures += u64::from(outcome.status.intersects(Status::FAILURES));
        state.registers.status |= outcome.status;
        if let Some(checksum) = outcome.checksum {
            state.registers.checksum = checksum;
        }
        match command {
            Command::EnableDoorbell => state.registers.arm_doorbell(),
            Command::DisableDoorbell => state.registers.disarm_doorbell(),
            _ => {}
        }
        self.interrupt(&mut state);
    }

    fn carry_out(&self, command: Command, parameters: &Registers, mover: &mut Mover) -> Outcome {
        let size = u64::from(parameters.size);
        match command {
            Command::RaiseIntx | Command::RaiseMsi | Command::RaiseMsix => Outcome::default(),
            Command::Read => {
                let (result, read) = mover.read(parameters.source, size);
                let status = match result {
                    Ok(sum) if sum == parameters.checksum => Status::READ_SUCCESS,
                    Ok(_) => Status::READ_FAIL,
                    Err(failure) => Status::READ_FAIL | address_status(failure),
                };
                Outcome {
                    status,
                    read,
                    ..Outcome::default()
                }
            }
            Command::Write => {
                let (result, written) = mover.write(parameters.destination, size);
                let status = match result {
                    Ok(_) => Status::WRITE_SUCCESS,
                    Err(failure) => Status::WRITE_FAIL | address_status(failure),
                };
                Outcome {
                    status,
                    checksum: result.ok(),
                    written,
                    ..Outcome::default()
                }
            }
            Command::Copy => {
                let (result, moved) = mover.copy(parameters.source, parameters.destination, size);
                let status = match result {
                    Ok(()) => Status::COPY_SUCCESS,
                    Err(failure) => Status::COPY_FAIL | address_status(failure),
                };
                Outcome {
                    status,
                    read: moved,
                    written: moved,
                    ..Outcome::default()
                }
            }
            Command::EnableDoorbell => status(Status::DOORBELL_ENABLE_SUCCESS),
            Command::DisableDoorbell => status(Status::DOORBELL_DISABLE_SUCCESS),
            Command::SetUpSubranges if parameters.size as usize == self.scratch.index() => {
                self.scratch.map_subranges();
                status(Status::SUBRANGE_SETUP_SUCCESS)
            }
            Command::SetUpSubranges => status(Status::SUBRANGE_SETUP_FAIL),
            Command::ClearSubranges
                if parameters.size as usize == self.scratch.index()
                    && self.scratch.unmap_subranges() =>
            {
                status(Status::SUBRANGE_CLEAR_SUCCESS)
            }
            Command::ClearSubranges => status(Status::SUBRANGE_CLEAR_FAIL),
        }
    }

    /// Interrupts as IRQ_TYPE and IRQ_NUMBER say, once the lock is let go. The status is there before the interrupt is.
    fn interrupt(&self, state: &mut State) {
        state.registers.status |= Status::IRQ_RAISED;
        let interrupts = self.function.interrupts();
        let number = state.registers.irq_number;
        let raised = match state.registers.irq_type {
            0 => interrupts.raise_as(InterruptKind::Intx, 0),
            kind @ 1..=2 => {
                let kind = if kind == 1 {
                    InterruptKind::Msi
                } else {
                    InterruptKind::Msix
                };
                // Numbers begin with 1.
                let vector = number.checked_sub(1).and_then(|n| u16::try_from(n).ok());
                vector.is_some_and(|vector| interrupts.raise_as(kind, vector))
            }
            _ => false,
        };
        if !raised {
            state.counters.failures += 1;
        }
    }
}

fn status(status: Status) -> Outcome {
    Outcome {
        status,
        ..Outcome::default()
    }
}

fn address_status(failure: Failure) -> Status {
    match failure {
        Failure::Source => Status::SRC_ADDR_INVALID,
        Failure::Destination => Status::DST_ADDR_INVALID,
        Failure::Stopped => Status::empty(),
    }
}

impl RegisterBlock for TestBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.0.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = match usize::try_from(at).unwrap_or(usize::MAX) {
                at if at < reg::END => state.registers.byte(at),
                at => match at.checked_sub(MSIX_TABLE as usize) {
                    Some(entry) if entry < TABLE_LENGTH => state.table[entry],
                    _ => self.pending_byte(at),
                },
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.0.lock();
        for (at, &byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if at < reg::END {
                state.registers.set_byte(at, byte);
            } else if let Some(entry) = at
                .checked_sub(MSIX_TABLE as usize)
                .and_then(|entry| state.table.get_mut(entry))
            {
                *entry = byte;
            }
        }
        if offset == u64::from(DOORBELL.1)
            && let Ok(value) = data.try_into()
        {
            state.rung = Some(u32::from_le_bytes(value));
        }
        let work = state.rung.is_some() || state.registers.command != 0;
        drop(state);
        if work {
            self.0.thread.begin();
        }
    }

    fn reset(&self) {
        self.0.thread.stop(|| {
            *self.0.lock() = State::new();
        });
    }

    fn describe(&self) -> Value {
        // A reset holds the thread's lock while it takes the other: never this one after that.
        let busy = self.0.thread.is_busy();
        let state = self.0.lock();
        json!({
            "registers": state.registers.describe(),
            "busy": busy,
            "commands": state.counters.commands,
            "failures": state.counters.failures,
            "bytes-read": state.counters.bytes_read,
            "bytes-written": state.counters.bytes_written,
        })
    }
}

impl TestBlock {
    /// A byte of the Pending Bit Array, or of nothing.
    fn pending_byte(&self, at: usize) -> u8 {
        let Some(at) = at.checked_sub(MSIX_PENDING as usize) else {
            return 0;
        };
        let interrupts = self.0.function.interrupts();
        (0..8)
            .filter(|bit| interrupts.msix_pending(at * 8 + bit))
            .fold(0, |byte, bit| byte | 1 << bit)
    }
}

impl Drop for TestBlock {
    fn drop(&mut self) {
        self.0.thread.end();
    }
}
