// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program does without a subcommand: it serves front-ends.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::LevelFilter;
use vmm_sys_util::eventfd::EventFd;

use crate::cli::args::{DEFAULT_IOMMUFD, Seccomp, ServeArgs};
use crate::control::{Context, Control};
use crate::device::Device;
use crate::endpoints::Names;
use crate::endpoints::host::AnyHost;
use crate::host::iommufd::{self, IommufdHost};
use crate::host::soft::SoftHost;
use crate::os::inherited::{self as sys, Signals, SocketKind};
use crate::os::seccomp;
use crate::os::socket_file::SocketFile;
use crate::qmp::{self, Qmp};
use crate::transport::{self, DriverLife, Options, Source};

/// Any failure: it is only printed.
type Failure = Box<dyn Error>;

/// Serves front-ends until a signal, or until the connection of `--fd` is closed.
///
/// # Errors
/// Whatever keeps the process from serving, as a line to print.
pub fn serve(args: &ServeArgs) -> Result<(), Failure> {
    env_logger::Builder::new()
        .filter_level(args.log_level)
        // It announces what each front-end says, and the errors it answers.
        .filter_module("vfio_user", args.log_level.min(LevelFilter::Warn))
        .format_target(false)
        .init();
    if cfg!(odd_bits) {
        log::warn!("built to send what drivers have to ignore: for tests of drivers only");
    }
    // Inherited descriptors first: see `take_fd`.
    let mut inherited = Inherited::take(args)?;
    let front_end_fd = inherited.front_end.take();
    let stop = EventFd::new(0)?;
    stop_on_signals(&stop)?;

    let host = make_host(args, inherited)?;
    let ids: Vec<_> = args.endpoints.iter().map(|endpoint| endpoint.id).collect();
    let device = Arc::new(Device::new(args.device_config(), host.host(), &ids)?);

    let control_file = match &args.control {
        Some(path) => Some(sys::for_owner_only(|| SocketFile::bind(path))?),
        None => None,
    };
    let (source, _socket_file) = front_end(args, front_end_fd)?;
    let names = Arc::new(Names::default());
    for endpoint in &args.endpoints {
        if let Some(name) = &endpoint.qemu_id {
            names.add(endpoint.id, name);
        }
    }
    let control = match &control_file {
        Some(file) => Some(Control::start(
            file.listener().try_clone()?,
            Context {
                device: Arc::clone(&device),
                host: host.clone(),
                names: args.qmp.is_some().then(|| Arc::clone(&names)),
            },
            &stop,
        )?),
        None => None,
    };
    let driver_life = Arc::new(DriverLife::default());
    let qmp = match &args.qmp {
        Some(path) => {
            let context = qmp::Context {
                device: Arc::clone(&device),
                host: host.clone(),
                driver_life: Arc::clone(&driver_life),
                names,
            };
            Some(Qmp::start(path.clone(), context, &stop)?)
        }
        None => None,
    };

    confine(args.seccomp)?;
    let options = Options {
        poll: Duration::from_micros(args.poll_us.into()),
        driver_life,
    };
    let result = transport::serve(device, host.host(), source, &options, &stop);
    stop.write(1)?;
    if let Some(functions) = host.functions() {
        functions.clear();
    }
    if let Some(control) = control {
        control.join();
    }
    if let Some(qmp) = qmp {
        qmp.join();
    }
    Ok(result?)
}

/// What the process inherited for us.
struct Inherited {
    front_end: Option<OwnedFd>,
    iommufd: Option<OwnedFd>,
    /// In the order of the endpoints.
    devices: Vec<Option<OwnedFd>>,
}

impl Inherited {
    fn take(args: &ServeArgs) -> Result<Self, Failure> {
        let take = |option: &str, fd: Option<i32>| -> Result<Option<OwnedFd>, Failure> {
            fd.map(|fd| {
                sys::take_fd(fd).map_err(|error| {
                    format!("{option} {fd}: no such inherited descriptor: {error}")
                })
            })
            .transpose()
            .map_err(Failure::from)
        };
        Ok(Self {
            front_end: take("--fd", args.fd)?,
            iommufd: take("--iommufd-fd", args.iommufd_fd)?,
            devices: args
                .endpoints
                .iter()
                .map(|endpoint| take("vfio-fd", endpoint.fd()))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// SIGTERM and SIGINT make `stop` readable; a second one ends the process where it stands.
fn stop_on_signals(stop: &EventFd) -> Result<(), Failure> {
    // Before any other thread exists, so that none of them is interrupted.
    let mut signals = Signals::block(&[libc::SIGTERM, libc::SIGINT])?;
    let stop = stop.try_clone()?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.wait().and_then(|()| stop.write(1)).is_ok() && signals.wait().is_ok() {
                std::process::exit(1);
            }
        })?;
    Ok(())
}

fn make_host(args: &ServeArgs, inherited: Inherited) -> Result<AnyHost, Failure> {
    // Without endpoints there is an iommufd, for those to come.
    let devices =
        args.endpoints.is_empty() || args.endpoints.iter().any(|endpoint| !endpoint.is_soft());
    let host = if devices {
        let iommufd = match inherited.iommufd {
            Some(fd) => fd,
            None => {
                let path = args.iommufd.as_deref();
                iommufd::open_iommufd(path.unwrap_or(Path::new(DEFAULT_IOMMUFD)))?
            }
        };
        AnyHost::Iommufd(Arc::new(IommufdHost::new(iommufd)?))
    } else {
        AnyHost::Soft(Arc::new(SoftHost::new()?), Arc::default())
    };
    for (endpoint, fd) in args.endpoints.iter().zip(inherited.devices) {
        host.add_endpoint(endpoint, fd)?;
    }
    Ok(host)
}

/// Gives up the system calls that are not needed from here on.
fn confine(asked: Option<Seccomp>) -> Result<(), Failure> {
    match (seccomp::install(asked.unwrap_or(Seccomp::Kill)), asked) {
        (Err(error), None) => {
            log::warn!("running without a system call filter: {error}");
            Ok(())
        }
        (result, _) => Ok(result?),
    }
}

/// The socket for front-ends, and its file where we made one.
fn front_end(
    args: &ServeArgs,
    inherited: Option<OwnedFd>,
) -> Result<(Source, Option<SocketFile>), Failure> {
    if let Some(path) = &args.socket_path {
        let file = SocketFile::bind(path)?;
        log::info!("listening on {}", path.display());
        return Ok((Source::Listen(file.listener().try_clone()?), Some(file)));
    }
    let fd = inherited.ok_or("neither --socket-path nor --fd is given")?;
    match sys::socket_kind(&fd) {
        SocketKind::Listening => Ok((Source::Listen(fd.into()), None)),
        SocketKind::Connected => Ok((Source::Connected(fd.into()), None)),
        SocketKind::Other => Err("--fd is not a UNIX stream socket".into()),
    }
}
