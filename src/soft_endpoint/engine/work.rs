// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The work of an engine: from the doorbell to the end of the chain and its interrupt.

use std::sync::Arc;

use crate::soft_endpoint::engine::access::Runner;
use crate::soft_endpoint::engine::descriptor::Outcome;
use crate::soft_endpoint::engine::registers::Cause;
use crate::soft_endpoint::engine::state::Engine;

impl Engine {
    /// The doorbell. A chain that is being carried out goes on, and nothing else happens.
    pub(super) fn start(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        if let Err(error) = self.thread.start(move || engine.run()) {
            log::warn!("fault engine: no thread: {error}");
            self.finish(Outcome::NoThread);
            return;
        }
        // The driver may have seen the end of a chain whose interrupt is on its way.
        let over = || self.progress.is_idle();
        self.thread.begin_if_idle(over, || self.progress.begin());
    }

    /// The body of the thread.
    fn run(&self) {
        let mut runner = Runner::new(self);
        self.thread.serve(|| {
            if self.take_fresh() {
                runner.reset();
            }
            self.finish(runner.chain());
        });
    }

    fn finish(&self, outcome: Outcome) {
        self.progress.end(outcome);
        match outcome {
            Outcome::Reset => {}
            Outcome::Done => self.interrupt(Cause::CHAIN),
            _ => self.interrupt(Cause::CHAIN | Cause::ERROR),
        }
    }
}
