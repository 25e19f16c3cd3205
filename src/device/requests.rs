// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each request does (§ Device operations).

use crate::spec::Status;

/// The most bytes of a request's readable part that the device looks at: a longer request is malformed.
pub const MAX_READABLE: usize = 72;

/// What to put into a request's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: used length 0 (R15, R16).
    Unwritten,
    /// The tail, with this status; used length is the whole writable part.
    Status(Status),
    /// [`Requests::properties`], zeros up to the tail, then the tail with status OK.
    Properties,
    /// Not known yet: this UNMAP was joined to the ones before or after it. The reply is
    /// `Reply::Status(settled)` of the next [`Step`] or of [`Finished`] that has `settled`.
    Joined,
}

/// What came of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The status of *every* request answered [`Reply::Joined`] before this one, when it is known by now.
    pub settled: Option<Status>,
    /// The reply to this one.
    pub reply: Reply,
}

/// What came of the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The status of every request that was still [`Reply::Joined`].
    pub settled: Option<Status>,
    /// [`super::Device::service_events`] has something to do.
    pub events_wanted: bool,
}

/// A batch of requests: carries them out in order, under the device's state lock.
pub struct Requests<'a> {
    _device: std::marker::PhantomData<&'a ()>,
}

impl Requests<'_> {
    /// Carries out one request. `readable` is the device-readable part of its buffer, or the first
    /// [`MAX_READABLE`] bytes of it; `readable_len` and `writable_len` are the lengths of the two parts.
    pub fn execute(
        &mut self,
        _readable: &[u8],
        _readable_len: usize,
        _writable_len: usize,
    ) -> Step {
        todo!()
    }

    /// The properties for the last [`Reply::Properties`]: at most `probe_size` bytes.
    pub fn properties(&self) -> &[u8] {
        todo!()
    }

    /// Settles what is still open. Dropping the batch settles it too, but tells nobody.
    pub fn finish(self) -> Finished {
        todo!()
    }
}
