// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program, over mock devices, with a guest at its socket.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Guest, GuestOptions, program_in, wait_until};
use crate::kernel::{Kernel, MockDevice};

/// The endpoints of every program here.
pub const ENDPOINTS: [u32; 2] = [0x28, 0x30];
/// The first of them.
pub const ENDPOINT: u32 = ENDPOINTS[0];
/// The other.
pub const OTHER: u32 = ENDPOINTS[1];

/// A running program; it is stopped when dropped.
pub struct Program {
    child: Child,
    directory: TempDir,
    /// One for each of [`ENDPOINTS`].
    pub devices: [MockDevice; 2],
    pub kernel: Kernel,
}

impl Program {
    /// Starts it with these options in addition.
    pub fn start(options: &[&str]) -> Self {
        Self::start_by(program_in, options)
    }

    /// Starts what `program_in` makes for a directory, with these options in addition.
    pub fn start_by(program_in: impl FnOnce(&Path) -> Command, options: &[&str]) -> Self {
        let kernel = Kernel::open();
        let devices = [(); 2].map(|()| kernel.mock_device());
        let directory = tempfile::tempdir().unwrap();
        let context = kernel.descriptor();
        let number = context.as_raw_fd();
        let mut command = program_in(directory.path());
        command
            .arg("--iommufd-fd")
            .arg(number.to_string())
            .args(options);
        for (id, device) in ENDPOINTS.iter().zip(devices) {
            let MockDevice { stdev, dev } = device;
            command
                .arg("--endpoint")
                .arg(format!("{id:#x},mock={stdev},dev-id={dev}"));
        }
        // SAFETY: the closure only makes a system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().unwrap();
        Self {
            child,
            directory,
            devices,
            kernel,
        }
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The socket for front-ends.
    pub fn vhost_path(&self) -> PathBuf {
        self.directory.path().join("vhost")
    }

    /// The control socket.
    pub fn control_path(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// A guest with the default memory.
    pub fn guest(&self) -> Guest {
        self.guest_with(&GuestOptions::default())
    }

    pub fn guest_with(&self, options: &GuestOptions) -> Guest {
        Guest::connect(&self.vhost_path(), options)
    }

    /// Carries out a command of the control socket.
    pub fn control(&self, command: &str, arguments: Value) -> Value {
        let mut stream = UnixStream::connect(self.control_path()).unwrap();
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer
            .get("return")
            .unwrap_or_else(|| panic!("{command}: {answer}"))
            .clone()
    }

    /// One of the counters.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.control("counters", json!({}));
        counters[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name}: {counters}"))
    }

    pub fn wait_for_counter(&self, name: &str, value: u64) {
        wait_until(&format!("{name} to be {value}"), || {
            self.counter(name) == value
        });
    }

    /// Whether the device of an endpoint reaches the guest's memory at `gpa` through addresses from `iova` on.
    pub fn reaches(&self, endpoint: u32, guest: &Guest, iova: u64, length: u64, gpa: u64) -> bool {
        let hwpt = self.kernel.page_table(self.device(endpoint));
        let address = guest.ram.user_address(gpa) as *const u8;
        self.kernel.maps(hwpt, iova, length, address)
    }

    /// Whether it reaches no page of it.
    pub fn reaches_none(
        &self,
        endpoint: u32,
        guest: &Guest,
        iova: u64,
        length: u64,
        gpa: u64,
    ) -> bool {
        let hwpt = self.kernel.page_table(self.device(endpoint));
        let address = guest.ram.user_address(gpa) as *const u8;
        self.kernel.maps_none(hwpt, iova, length, address)
    }

    /// The device of an endpoint.
    pub fn device(&self, endpoint: u32) -> MockDevice {
        let index = ENDPOINTS.iter().position(|&id| id == endpoint).unwrap();
        self.devices[index]
    }

    /// The device of an endpoint asks for a page.
    pub fn page_request(&self, endpoint: u32, access: u32, iova: u64) {
        self.page_request_with(endpoint, 0, access, iova);
    }

    /// The device of an endpoint asks for a page of a PASID; 0 for none.
    pub fn page_request_with(&self, endpoint: u32, pasid: u32, access: u32, iova: u64) {
        // Hardware repeats its group indices.
        self.kernel
            .page_request(self.device(endpoint), pasid, 7, access, iova);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        // SAFETY: the child is ours and not waited for yet, so its number is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let mut status = None;
        wait_until("the program to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Program {
    /// In good order: what a killed program leaves attached stays on a mock device.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if std::thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        }
        let status = self.terminate();
        assert!(status.success(), "{status}");
    }
}
