// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device over a host, the software host unless told otherwise, served on a thread of the test.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use vhost_device_iommu::device::{Device, DeviceConfig};
use vhost_device_iommu::host::Host;
use vhost_device_iommu::host::soft::{SoftHost, default_properties};
use vhost_device_iommu::spec::EndpointId;
use vhost_device_iommu::transport::{Options, Source, TransportError, serve};

/// What to serve.
pub struct ServerOptions {
    pub config: DeviceConfig,
    /// Endpoint IDs.
    pub endpoints: Vec<u32>,
    pub transport: Options,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            config: DeviceConfig::default(),
            endpoints: vec![8, 16],
            transport: Options::default(),
        }
    }
}

/// A running server; stops when dropped.
pub struct Server<H = SoftHost> {
    pub device: Arc<Device>,
    pub host: Arc<H>,
    pub path: PathBuf,
    stop: EventFd,
    thread: Option<JoinHandle<Result<(), TransportError>>>,
    _directory: TempDir,
}

impl Server {
    pub fn start(options: ServerOptions) -> Self {
        let host = SoftHost::new().expect("a host");
        for &id in &options.endpoints {
            host.add_endpoint(EndpointId(id), default_properties())
                .expect("an endpoint");
        }
        Self::over(Arc::new(host), options)
    }
}

impl<H: Host + 'static> Server<H> {
    /// Over a host that has the endpoints.
    pub fn over(host: Arc<H>, options: ServerOptions) -> Self {
        let ids: Vec<_> = options.endpoints.iter().map(|&id| EndpointId(id)).collect();
        let device = Device::new(options.config, Arc::clone(&host) as _, &ids).expect("a device");
        let device = Arc::new(device);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let stop = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let thread = {
            let (device, host) = (Arc::clone(&device), Arc::clone(&host));
            let stop = stop.try_clone().expect("a duplicate");
            std::thread::spawn(move || {
                serve(
                    device,
                    host,
                    Source::Listen(listener),
                    &options.transport,
                    &stop,
                )
            })
        };
        Self {
            device,
            host,
            path,
            stop,
            thread: Some(thread),
            _directory: directory,
        }
    }
}

impl<H> Server<H> {
    /// Tells it to stop, and waits.
    pub fn stop(&mut self) {
        self.stop.write(1).expect("an eventfd");
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .expect("the server does not panic")
                .expect("the server ends without an error");
        }
    }
}

impl<H> Drop for Server<H> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}
