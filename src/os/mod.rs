// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process and its kernel: descriptors, signals, sockets, the system call filter.
//!
//! `inherited` (descriptors, signals and seals that std does not cover), `socket_file` (listening sockets with a path),
//! `log_output` (the log), `message` (bytes with descriptors), `eventfd` (event descriptors of a peer), `poller` (epoll),
//! `service_manager` (descriptors and news as systemd has them), `thread` (threads that a signal interrupts), `relay` (messages with descriptors between a connection and a library),
//! `seccomp` (the filter).

pub(crate) mod eventfd;
pub mod inherited;
pub mod log_output;
pub mod message;
pub(crate) mod poller;
pub(crate) mod relay;
pub mod seccomp;
pub mod service_manager;
pub mod socket_file;
pub(crate) mod thread;
