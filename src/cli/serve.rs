// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program does without a subcommand: it serves front-ends.
//!
//! Three steps, so that what fails at the start leaves nothing behind: `Setup::new` makes the host, the endpoints and
//! the sockets; `Setup::start` starts the threads beside the front-end's; `Running::serve` serves front-ends until
//! the end.

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use env_logger::{Target, WriteStyle};
use log::LevelFilter;
use vmm_sys_util::eventfd::EventFd;

use crate::cli::args::{DEFAULT_IOMMUFD, InheritedFd, LogSource, ServeArgs};
use crate::control::{self, Control};
use crate::endpoints::Endpoints;
use crate::endpoints::host::AnyHost;
use crate::host::iommufd::{self, IommufdHost, KernelLog, SetupError};
use crate::host::soft::SoftHost;
use crate::os::inherited::{self as sys, Signals, SocketKind};
use crate::os::log_output::LogOutput;
use crate::os::seccomp::{self, Seccomp};
use crate::os::service_manager::{self, Notifier};
use crate::os::socket_file::SocketFile;
use crate::qmp::{self, Qmp};
use crate::soft_endpoint::SoftEndpoints;
use crate::transport::{self, DriverLife, Options, Reattach, Source};

/// Any failure: it is only printed.
type Failure = Box<dyn Error>;

/// Serves front-ends until a signal, or until the connection of `--fd` is closed.
///
/// # Errors
/// Whatever keeps the process from serving, as a line to print.
pub fn serve(args: &ServeArgs) -> Result<(), Failure> {
    start_log(args.log_level);
    // Inherited descriptors first: see `take_fd`.
    let inherited = Inherited::take(args)?;
    let stop = EventFd::new(libc::EFD_CLOEXEC)?;
    stop_on_signals(&stop)?;
    let notifier = Notifier::from_environment()
        .map_err(|error| format!("cannot reach the service manager at NOTIFY_SOCKET: {error}"))?;
    let running = Setup::new(args, inherited)?.start(args, stop)?;
    confine(args.seccomp)?;
    notifier.ready(&running.summary());
    running.serve(Duration::from_micros(args.poll_us.into()), &notifier)
}

fn start_log(level: LevelFilter) {
    let library_level = match level {
        LevelFilter::Debug | LevelFilter::Trace => level,
        _ => LevelFilter::Off,
    };
    env_logger::Builder::new()
        .filter_level(level)
        // It has a line for whatever a front-end asks for in vain. Ours are fewer: see `soft_endpoint::guard`.
        .filter_module("vfio_user", library_level)
        .format_target(false)
        .target(Target::Pipe(Box::new(LogOutput::default())))
        .write_style(log_style())
        .init();
    sys::ignore_file_size_signal();
    if cfg!(odd_bits) {
        log::warn!("built to send what drivers have to ignore: for tests of drivers only");
    }
}

/// Colours for people at a terminal (<https://no-color.org>).
fn log_style() -> WriteStyle {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let plain = is_set("NO_COLOR") || env::var_os("TERM").is_none_or(|term| term == "dumb");
    match io::stderr().is_terminal() && !plain {
        true => WriteStyle::Always,
        false => WriteStyle::Never,
    }
}

/// What the process inherited for us.
#[derive(Default)]
struct Inherited {
    front_end: Option<OwnedFd>,
    iommufd: Option<OwnedFd>,
    kernel_log: Option<OwnedFd>,
    /// In the order of the endpoints.
    devices: Vec<Option<OwnedFd>>,
}

impl Inherited {
    fn take(args: &ServeArgs) -> Result<Self, Failure> {
        let take = |option: &str, fd: Option<InheritedFd>| -> Result<Option<OwnedFd>, Failure> {
            fd.map(|fd| {
                take_fd(&fd).map_err(|error| {
                    format!("{option} {fd}: no such inherited descriptor: {error}")
                })
            })
            .transpose()
            .map_err(Failure::from)
        };
        Ok(Self {
            front_end: take("--fd", args.fd.clone())?,
            iommufd: take("--iommufd-fd", args.iommufd_fd.clone())?,
            kernel_log: match &args.kernel_log {
                Some(LogSource::Fd(fd)) => take("--kernel-log fd=", Some(fd.clone()))?,
                _ => None,
            },
            devices: args
                .endpoints
                .iter()
                .map(|endpoint| take("vfio-fd", endpoint.fd().map(InheritedFd::Number)))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn take_fd(fd: &InheritedFd) -> Result<OwnedFd, Failure> {
    let number = match fd {
        InheritedFd::Number(number) => *number,
        InheritedFd::Name(name) => service_manager::passed(name)?,
    };
    Ok(sys::take_fd(number)?)
}

/// SIGTERM, SIGINT and SIGHUP make `stop` readable; a second one ends the process where it stands.
fn stop_on_signals(stop: &EventFd) -> Result<(), Failure> {
    // Before any other thread exists, so that none of them is interrupted.
    let mut signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
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

/// The endpoints and the sockets: all that can fail because of the options. No client is served yet.
struct Setup {
    endpoints: Arc<Endpoints>,
    control: Option<SocketFile>,
    front_end: Source,
    /// The file of `front_end`, if we made one.
    front_end_file: Option<SocketFile>,
}

impl Setup {
    fn new(args: &ServeArgs, mut inherited: Inherited) -> Result<Self, Failure> {
        let socket = inherited.front_end.take();
        let endpoints = make_endpoints(args, inherited)?;
        let control = match &args.control {
            Some(path) => Some(SocketFile::for_owner(path)?),
            None => None,
        };
        let (front_end, front_end_file) = front_end(args, socket)?;
        Ok(Self {
            endpoints: Arc::new(endpoints),
            control,
            front_end,
            front_end_file,
        })
    }

    /// Starts the threads of the control socket and of QMP. They end when `stop` is readable.
    fn start(self, args: &ServeArgs, stop: EventFd) -> Result<Running, Failure> {
        let driver_life = Arc::new(DriverLife::default());
        let reattach = Arc::new(Reattach::default());
        let qmp = match &args.qmp {
            Some(path) => {
                let context = qmp::Context {
                    endpoints: Arc::clone(&self.endpoints),
                    driver_life: Arc::clone(&driver_life),
                };
                Some(Qmp::start(path.clone(), context, &stop)?)
            }
            None => None,
        };
        let control = match &self.control {
            Some(file) => {
                let context = control::Context {
                    endpoints: Arc::clone(&self.endpoints),
                    reattach: Arc::clone(&reattach),
                    labels: args.labels.clone().into(),
                };
                let listener = file.listener().try_clone()?;
                Some(Control::start(listener, context, &stop)?)
            }
            None => None,
        };
        Ok(Running {
            setup: self,
            driver_life,
            reattach,
            control,
            qmp,
            stop,
        })
    }
}

/// The process with all its threads but the front-end's.
struct Running {
    setup: Setup,
    driver_life: Arc<DriverLife>,
    reattach: Arc<Reattach>,
    control: Option<Control>,
    qmp: Option<Qmp>,
    stop: EventFd,
}

impl Running {
    /// How the service is, in a line.
    fn summary(&self) -> String {
        let count = self.setup.endpoints.device().outline().endpoints.len();
        format!("Ready for front-ends, with endpoints: {count}")
    }

    /// Serves front-ends until `stop` is readable or the connection of `--fd` is closed, then ends everything.
    fn serve(self, poll: Duration, notifier: &Notifier) -> Result<(), Failure> {
        let endpoints = self.setup.endpoints;
        let options = Options {
            poll,
            driver_life: self.driver_life,
            reattach: self.reattach,
        };
        let device = Arc::clone(endpoints.device());
        let source = self.setup.front_end;
        let result = transport::serve(device, endpoints.host(), source, &options, &self.stop);
        notifier.stopping();
        self.stop.write(1)?;
        endpoints.end_functions();
        if let Some(control) = self.control {
            control.join();
        }
        if let Some(qmp) = self.qmp {
            qmp.join();
        }
        drop((self.setup.front_end_file, self.setup.control));
        Ok(result?)
    }
}

fn make_endpoints(args: &ServeArgs, inherited: Inherited) -> Result<Endpoints, Failure> {
    let specs = &args.endpoints;
    // Without endpoints there is an iommufd, for those to come.
    let host = if specs.is_empty() || specs.iter().any(|endpoint| !endpoint.is_soft()) {
        let iommufd = match inherited.iommufd {
            Some(fd) => fd,
            None => {
                let path = args.iommufd.as_deref();
                iommufd::open_iommufd(path.unwrap_or(Path::new(DEFAULT_IOMMUFD)))?
            }
        };
        let mut host = IommufdHost::new(iommufd)?;
        if let Some(log) = kernel_log(args, inherited.kernel_log)? {
            host = host.with_kernel_log(log);
        }
        AnyHost::Iommufd(Arc::new(host))
    } else {
        let functions = SoftEndpoints::new(args.socket_mode);
        AnyHost::Soft(Arc::new(SoftHost::new()?), Arc::new(functions))
    };
    let endpoints = specs.iter().cloned().zip(inherited.devices);
    Ok(Endpoints::new(host, args.device_config(), endpoints)?)
}

/// The log of `--kernel-log`; `open` is its descriptor if the option names one.
fn kernel_log(args: &ServeArgs, open: Option<OwnedFd>) -> Result<Option<KernelLog>, SetupError> {
    match (&args.kernel_log, open) {
        (Some(LogSource::Path(path)), _) => KernelLog::open(path).map(Some),
        (_, Some(fd)) => KernelLog::new(fd).map(Some),
        (_, None) => Ok(None),
    }
}

/// The socket for front-ends, and its file if we made one.
fn front_end(
    args: &ServeArgs,
    inherited: Option<OwnedFd>,
) -> Result<(Source, Option<SocketFile>), Failure> {
    if let Some(path) = &args.socket_path {
        let file = SocketFile::for_front_ends(path, args.socket_mode)?;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::cli::args::Args;

    /// Options over the sockets `vhost` and `control` in a directory.
    fn options(directory: &Path, more: &[&str]) -> ServeArgs {
        let path = |name: &str| directory.join(name).display().to_string();
        let (vhost, control) = (path("vhost"), path("control"));
        let own = ["program", "--socket-path", &vhost, "--control", &control];
        Args::try_parse_from(own.iter().chain(more))
            .expect("options")
            .serve
    }

    fn inherited(args: &ServeArgs) -> Inherited {
        Inherited::take(args).expect("nothing is inherited")
    }

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).expect("directory").count()
    }

    #[test]
    fn a_setup_has_the_endpoints_and_the_sockets_and_takes_the_sockets_along() {
        let directory = tempfile::tempdir().expect("directory");
        let function = format!("2,soft={}", directory.path().join("pci").display());
        let more = ["--endpoint", "1", "--endpoint", &function];
        let args = options(directory.path(), &more);
        let setup = Setup::new(&args, inherited(&args)).expect("setup");
        let ids = setup.endpoints.device().status().endpoints;
        assert!(ids.iter().map(|endpoint| endpoint.id).eq([1, 2]));
        assert_eq!(entries(directory.path()), 3);
        drop(setup);
        assert_eq!(entries(directory.path()), 0);
    }

    #[test]
    fn a_setup_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("directory");
        let function = format!("2,soft={}", directory.path().join("pci").display());
        let taken = directory.path().join("vhost");
        fs::write(&taken, "data").expect("a file in the way");
        let args = options(directory.path(), &["--endpoint", &function]);
        assert!(Setup::new(&args, inherited(&args)).is_err());
        assert_eq!(entries(directory.path()), 1);
    }

    #[test]
    fn everything_ends_when_it_is_told_to_stop() {
        let directory = tempfile::tempdir().expect("directory");
        let qmp = directory.path().join("qmp").display().to_string();
        let args = options(directory.path(), &["--endpoint", "1", "--qmp", &qmp]);
        let stop = EventFd::new(libc::EFD_CLOEXEC).expect("eventfd");
        stop.write(1).expect("eventfd");
        let setup = Setup::new(&args, inherited(&args)).expect("setup");
        let running = setup.start(&args, stop).expect("threads");
        running
            .serve(Duration::ZERO, &Notifier::default())
            .expect("a good end");
        assert_eq!(entries(directory.path()), 0);
    }
}
