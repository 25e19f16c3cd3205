// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a driver, from one to the next: what the vhost-user messages say of it, and what QEMU says over QMP.
//!
//! The messages alone do not distinguish a pause from a reset (see `lifecycle`). QMP does, over a connection of its own,
//! so its news can be late. While the queues are stopped and no driver has negotiated features since, it is not.

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;

/// The life of the driver, shared between the transport and QMP.
#[derive(Debug, Default)]
pub struct DriverLife(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// How often the queues have stopped.
    stops: u64,
    /// Written when they stop.
    stop_event: Option<EventFd>,
}

/// A stop of the queues that may be a reset or a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop(u64);

/// What happened last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// There has been no driver.
    #[default]
    NoDriver,
    /// The queues of a driver stopped.
    Stopped(NextDriver),
    /// A driver has negotiated features, or runs.
    Driver(NextDriver),
}

/// What the next driver finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextDriver {
    /// The request queue's position decides: after a pause the same driver goes on, else the device is to be reset.
    Undecided,
    /// The driver before has ended: the device is to be reset.
    AfterEnd,
    /// The device was reset already.
    AfterReset,
}

impl DriverLife {
    // Held while the device is reset, so that a driver's start waits for that.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// From now on a stop of the queues writes `event`, which must not block. A second call replaces the event.
    pub fn set_stop_event(&self, event: EventFd) {
        self.state().stop_event = Some(event);
    }

    /// The last stop, if the queues still stand and it is not known whether that is a pause.
    pub fn undecided_stop(&self) -> Option<Stop> {
        let state = self.state();
        (state.phase == Phase::Stopped(NextDriver::Undecided)).then_some(Stop(state.stops))
    }

    /// QEMU reported "running" after the queues stopped, and every vhost-user message sent before that report has been
    /// handled. So the stop was not a pause: ends the driver, and the next one finds the device reset. False, and nothing
    /// is done, if a driver is on its way again or the queues have stopped another time.
    pub fn machine_runs(&self, stop: Stop, device: &Device) -> bool {
        let mut state = self.state();
        if state.phase != Phase::Stopped(NextDriver::Undecided) || state.stops != stop.0 {
            return false;
        }
        device.end_driver();
        state.phase = Phase::Stopped(NextDriver::AfterEnd);
        true
    }

    /// The machine was reset: resets the device. False, and nothing is done, if a driver is on its way again.
    pub fn machine_was_reset(&self, device: &Device) -> bool {
        let mut state = self.state();
        if matches!(state.phase, Phase::Driver(_)) {
            return false;
        }
        device.system_reset();
        state.phase = Phase::Stopped(NextDriver::AfterReset);
        true
    }

    /// The front-end has passed on the features of a driver. That takes no lock of the workers.
    pub(crate) fn driver_comes(&self) {
        let mut state = self.state();
        state.phase = match state.phase {
            Phase::NoDriver => Phase::Driver(NextDriver::Undecided),
            Phase::Stopped(next) | Phase::Driver(next) => Phase::Driver(next),
        };
    }

    /// The driver's request queue runs. Returns what the driver finds.
    pub(super) fn driver_started(&self) -> NextDriver {
        let started = Phase::Driver(NextDriver::Undecided);
        match std::mem::replace(&mut self.state().phase, started) {
            Phase::NoDriver => NextDriver::Undecided,
            Phase::Stopped(next) | Phase::Driver(next) => next,
        }
    }

    /// The queues stopped: the driver may have ended.
    pub(crate) fn queues_stopped(&self) {
        let mut state = self.state();
        state.phase = Phase::Stopped(NextDriver::Undecided);
        state.stops += 1;
        // A full counter is readable too.
        let _ = state.stop_event.as_ref().map(|event| event.write(1));
    }

    /// The front-end is gone, and the driver with it.
    pub(super) fn front_end_is_gone(&self) {
        self.state().phase = Phase::NoDriver;
    }
}
