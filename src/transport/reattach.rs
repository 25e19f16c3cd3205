// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asking for a fresh daemon of the library under a front-end that stays connected.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// What a reattachment was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reattached {
    /// How long no queue was served.
    pub paused: Duration,
    /// How many messages the front-end has sent on its connection so far. None was lost.
    pub messages: u64,
}

/// Why there was no reattachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReattachError {
    /// Nobody to reattach to.
    #[error("no front-end is connected")]
    NoFrontEnd,
    /// The connection ended before it was done.
    #[error("the front-end's connection ended meanwhile")]
    Gone,
    /// A descriptor or a thread cannot be made. The front-end is served as before.
    #[error("nothing has changed: {0}")]
    NotPrepared(String),
}

/// Asks whatever connection there is to begin again with fresh threads, vrings and a fresh daemon of the library, while its
/// front-end and the device stay.
#[derive(Debug, Default)]
pub struct Reattach(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Written when somebody asks. `None` without a front-end.
    connection: Option<Arc<EventFd>>,
    asking: Vec<Asking>,
}

type Outcome = Result<Reattached, ReattachError>;

/// Those who asked for one reattachment; each has its answer.
#[derive(Clone, Debug)]
struct Asking(Arc<Mutex<Answer>>);

#[derive(Debug, Default)]
struct Answer {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

impl Reattach {
    /// Asks. It is done when the future is ready; several that ask at the same time may get the same one. A future that is
    /// dropped takes nothing back.
    pub fn ask(&self) -> impl Future<Output = Outcome> + Send + use<> {
        let asking = Asking(Arc::default());
        let mut state = self.0.lock();
        match &state.connection {
            Some(connection) => {
                // A full counter is readable too.
                let _ = connection.write(1);
                state.asking.push(asking.clone());
            }
            None => asking.answer(Err(ReattachError::NoFrontEnd)),
        }
        asking
    }

    /// A front-end is there. `news` is written when somebody asks.
    pub(super) fn connected(&self, news: &Arc<EventFd>) {
        self.0.lock().connection = Some(Arc::clone(news));
    }

    /// The front-end is gone: who asked is told.
    pub(super) fn disconnected(&self) {
        self.0.lock().connection = None;
        self.asked().answer(&Err(ReattachError::Gone));
    }

    /// Those who have asked by now.
    pub(super) fn asked(&self) -> Asked {
        Asked(std::mem::take(&mut self.0.lock().asking))
    }
}

/// Those who wait for one reattachment.
#[derive(Debug)]
pub(super) struct Asked(Vec<Asking>);

impl Asked {
    /// Nobody has asked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn answer(self, outcome: &Outcome) {
        for asking in self.0 {
            asking.answer(outcome.clone());
        }
    }
}

impl Asking {
    fn answer(&self, outcome: Outcome) {
        let mut answer = self.0.lock();
        answer.outcome = Some(outcome);
        let waker = answer.waker.take();
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Asking {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut answer = self.0.lock();
        match answer.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                answer.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
