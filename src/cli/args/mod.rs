// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.
//!
//! [`Args`] is what clap reads; [`ServeArgs::check`] finds what clap cannot: options that contradict each
//! other. Every message says what was asked, why it cannot be, and what to do.
#![forbid(unsafe_code)]

mod values;

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::device::DeviceConfig;
use crate::endpoints::{Backing, EndpointSpec, VfioDevice};
use crate::host::ReservedRegion;
use crate::host::mapping::IovaRange;
use crate::spec::EndpointId;

const USAGE: &str = "\
vhost-device-iommu {--socket-path <PATH> | --fd <N>} --endpoint <ID>... [OPTIONS]
       vhost-device-iommu viot --iommu <BDF> {--endpoint <BDF>|--bus <BUS>}... [-o <FILE>]
       vhost-device-iommu ctl <PATH> <COMMAND>...
       vhost-device-iommu check [--endpoint <ID,vfio=PATH>]... [--bind] [--json]";

/// `--iommufd` unless given.
pub const DEFAULT_IOMMUFD: &str = "/dev/iommu";

const EXAMPLES: &str = "\
Examples:
  A software endpoint at 00:05.0, driven over the control socket:
    vhost-device-iommu --socket-path /run/iommu.sock --endpoint 00:05.0 --control /run/iommu.ctl
    vhost-device-iommu ctl /run/iommu.ctl dma-read endpoint=00:05.0 iova=0x1000 length=16

  A software endpoint with a PCI function, which QEMU's vfio-user-pci connects to:
    vhost-device-iommu --socket-path /run/iommu.sock --endpoint 00:05.0,soft=/run/pci.sock

  A physical device (its driver is vfio-pci), which the guest sees at 00:06.0:
    vhost-device-iommu --socket-path /run/iommu.sock \\
        --endpoint 00:06.0,vfio=/dev/vfio/devices/vfio0

  QEMU, with the IOMMU at 00:04.0 and the table that tells the guest so:
    vhost-device-iommu viot --iommu 00:04.0 --endpoint 00:05.0 -o viot.bin
    qemu-system-x86_64 -machine q35 \\
        -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
        -chardev socket,id=c,path=/run/iommu.sock \\
        -device vhost-user-test-device-pci,chardev=c,virtio-id=23,num_vqs=2,vq_size=1024,config_size=40,addr=04.0 \\
        -acpitable sig=VIOT,rev=0,data=viot.bin ...

Exit status: 0 after SIGTERM or SIGINT, or when the socket of --fd is closed; 1 when something failed;
2 when the command line cannot be understood.";

/// virtio-iommu with page requests, as a vhost-user back-end.
///
/// Serves one virtio IOMMU device (device ID 23) to a vhost-user front-end such as QEMU. Translations are
/// carried out by Linux iommufd for physical devices, or in this process for software endpoints.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = USAGE,
    after_long_help = EXAMPLES,
    max_term_width = 100
)]
pub struct Args {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the ACPI VIOT table that tells a guest which endpoints the IOMMU translates
    ///
    /// The output is what QEMU takes after "-acpitable sig=VIOT,rev=0,data=": the table without its header.
    Viot(ViotArgs),
    /// Send a command to a control socket and print its answer
    ///
    /// COMMAND is a name followed by key=value arguments, or one JSON object as it goes over the socket.
    #[command(after_help = CTL_EXAMPLES)]
    Ctl(CtlArgs),
    /// Say what this machine can do for devices, and what to do about what is missing
    ///
    /// Looks at the kernel, its IOMMUs and the devices named. Nothing is changed unless --bind is given.
    #[command(after_help = CHECK_STATUS)]
    Check(CheckArgs),
}

const CHECK_STATUS: &str = "\
Exit status: 0 when nothing that serving devices needs is missing; 1 when something is.";

const CTL_EXAMPLES: &str = "\
Commands:
  status
  counters [format=prometheus]
  mappings domain=N
  endpoint endpoint=ID
  endpoint-add endpoint=ID [soft=PATH | vfio=PATH | vfio-fd=N] [dev-id=N] [qemu-id=ID]
  endpoint-remove endpoint=ID
  dma-read endpoint=ID iova=N length=N [pasid=N]
  dma-write endpoint=ID iova=N data=HEX [pasid=N]
  page-request endpoint=ID pages=IOVA:ACCESS[,IOVA:ACCESS]... [pasid=N]
      ACCESS is one or more of r, w, x (execute), p (privileged)

Numbers are decimal, or hexadecimal after 0x.

Examples:
  vhost-device-iommu ctl /run/iommu.ctl page-request endpoint=00:05.0 pages=0x1000:r,0x2000:rw
  vhost-device-iommu ctl /run/iommu.ctl '{\"execute\":\"mappings\",\"arguments\":{\"domain\":1}}'

Exit status: 0 with the answer on standard output; 1 with an error on standard error.";

/// The first function of a bus: `01`, `0000:01`.
fn first_of_bus(text: &str) -> Result<EndpointId, String> {
    format!("{text}:00.0")
        .parse()
        .map_err(|_| "expected a bus in hexadecimal, such as 01 or 0000:01".to_owned())
}

/// `viot`.
#[derive(Debug, clap::Args)]
pub struct ViotArgs {
    /// PCI address of the IOMMU in the guest, such as 00:04.0
    #[arg(long, value_name = "BDF")]
    pub iommu: EndpointId,
    /// PCI address of an endpoint in the guest; repeat for more. Neighbours become one range
    #[arg(
        long = "endpoint",
        value_name = "BDF",
        required_unless_present = "buses"
    )]
    pub endpoints: Vec<EndpointId>,
    /// A bus in the guest, such as 01, all of whose functions are endpoints; repeat for more
    ///
    /// For the bus behind a root port, where devices come and go while the guest runs.
    #[arg(long = "bus", value_name = "BUS", value_parser = first_of_bus)]
    pub buses: Vec<EndpointId>,
    /// File to write; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A device to look at, as it would be served; repeat for more
    #[arg(long = "endpoint", value_name = "ID,vfio=PATH")]
    pub endpoints: Vec<EndpointSpec>,
    /// The iommufd device [default: /dev/iommu]
    #[arg(long, value_name = "PATH")]
    pub iommufd: Option<PathBuf>,
    /// Set the devices up as for serving, and give them back
    ///
    /// Each is bound to an iommufd and attached without any memory to reach. That resets it, and fails while
    /// somebody else uses it. Only so page sizes, addresses, and whether page requests work are known for sure.
    #[arg(long)]
    pub bind: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `ctl`.
#[derive(Debug, clap::Args)]
pub struct CtlArgs {
    /// The control socket: the PATH of --control
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The command
    #[arg(
        value_name = "COMMAND",
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Listen on this path, and again after a front-end is gone
    ///
    /// A socket file that nobody listens on is replaced. One front-end is served at a time; others wait.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        required_unless_present_any = ["fd", "print_capabilities"],
        help_heading = "Front-end"
    )]
    pub socket_path: Option<PathBuf>,
    /// Permissions of the file of --socket-path, in octal, such as 0666
    ///
    /// Whoever may write to the file may connect. Without the option these are the file's owner and group (0660), so far
    /// as the umask lets them.
    #[arg(
        long,
        value_name = "MODE",
        value_parser = values::socket_mode,
        conflicts_with = "fd",
        help_heading = "Front-end"
    )]
    pub socket_mode: Option<u32>,
    /// Serve on this inherited socket, listening or connected
    ///
    /// With a connected socket the program ends when it is closed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..), help_heading = "Front-end")]
    pub fd: Option<RawFd>,

    /// An endpoint behind the IOMMU; repeat for more
    ///
    /// ID is a number (40, 0x28) or the PCI address in the guest (00:05.0, 0000:00:05.0). With
    /// vfio=/dev/vfio/devices/vfioN or vfio-fd=N it is a physical device; dev-id=N is then its number in the
    /// iommufd, where a front-end that shares the iommufd has bound it. Without them it is a software endpoint,
    /// driven over the control socket. With soft=PATH it is one with a PCI function, served over vfio-user on PATH.
    /// Software endpoints and devices cannot be mixed. qemu-id=ID is the device's id in QEMU, or its path there: with
    /// --qmp the endpoint is removed when QEMU has let go of it.
    #[arg(
        long = "endpoint",
        value_name = "ID[,soft=PATH|,vfio=PATH|,vfio-fd=N][,dev-id=N][,qemu-id=ID]",
        required_unless_present_any = ["iommufd_fd", "print_capabilities"],
        help_heading = "Endpoints"
    )]
    pub endpoints: Vec<EndpointSpec>,
    /// The iommufd device, for endpoints with vfio or vfio-fd [default: /dev/iommu]
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "iommufd_fd",
        help_heading = "Endpoints"
    )]
    pub iommufd: Option<PathBuf>,
    /// An inherited iommufd, shared with the front-end
    ///
    /// The front-end binds the devices when it starts. Endpoints can then come with endpoint-add, over --control.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..), help_heading = "Endpoints")]
    pub iommufd_fd: Option<RawFd>,

    /// Whether endpoints reach all guest memory until the driver attaches them
    #[arg(
        long,
        value_name = "on|off",
        value_enum,
        default_value = "on",
        hide_possible_values = true,
        help_heading = "Device"
    )]
    pub boot_bypass: OnOff,
    /// Virtual addresses that no endpoint can use; repeat for more
    ///
    /// In QEMU's syntax: LOW and HIGH are hexadecimal and both belong to the region; TYPE is 0 for reserved, 1
    /// for an MSI doorbell. Example: 0xfee00000:0xfeefffff:1
    #[arg(
        long = "reserved-region",
        value_name = "LOW:HIGH:TYPE",
        value_parser = values::reserved_region,
        help_heading = "Device"
    )]
    pub reserved_regions: Vec<ReservedRegion>,
    /// Page sizes to offer, a bit each [default: all that the host has]
    ///
    /// The lowest bit is the granule. A Linux guest needs one that is not above its page size.
    #[arg(
        long,
        value_name = "MASK",
        value_parser = values::page_size_mask,
        help_heading = "Device"
    )]
    pub page_size_mask: Option<u64>,
    /// Virtual addresses to offer, both ends included [default: all that the host has]
    #[arg(
        long,
        value_name = "LOW:HIGH",
        value_parser = values::input_range,
        help_heading = "Device"
    )]
    pub input_range: Option<IovaRange>,
    /// Domain IDs to offer, both ends included [default: all]
    #[arg(
        long,
        value_name = "LOW:HIGH",
        value_parser = values::domain_range,
        help_heading = "Device"
    )]
    pub domain_range: Option<(u32, u32)>,

    /// The most mappings, over all domains; MAP is answered NOMEM beyond
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_MAPPINGS,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_mappings: u32,
    /// The most domains; ATTACH is answered NOMEM beyond
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_DOMAINS,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_domains: u32,
    /// The most PASID attachments, over all endpoints; ATTACH is answered NOMEM beyond
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_PASIDS,
        value_parser = clap::value_parser!(u32).range(0..),
        help_heading = "Limits"
    )]
    pub max_pasids: u32,
    /// The most page-request groups that wait for the guest; more are refused
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_PAGE_REQUESTS,
        value_parser = clap::value_parser!(u32).range(1..=65536),
        help_heading = "Limits"
    )]
    pub max_page_requests: u32,
    /// How long a page-request group waits for the guest's answer; 0 is for ever
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = DeviceConfig::PAGE_RESPONSE_TIMEOUT as f64,
        value_parser = values::timeout,
        help_heading = "Limits"
    )]
    pub page_response_timeout: f64,

    /// How long to watch the request queue after a request before sleeping; 0 never polls
    ///
    /// A wake-up costs more than a request. The time is adapted to what pays; an idle guest costs nothing.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(0..=1_000_000),
        help_heading = "Operation"
    )]
    pub poll_us: u32,
    /// Listen for commands on this path: see "ctl --help"
    #[arg(long, value_name = "PATH", help_heading = "Operation")]
    pub control: Option<PathBuf>,
    /// Listen to QEMU on this QMP socket: start QEMU with -qmp unix:PATH,server=on,wait=off
    ///
    /// A reset of the machine is known at once, so that firmware and boot loaders find endpoints as at start; the end of a
    /// driver is told from a pause; and endpoints with qemu-id are removed when QEMU has unplugged them. The socket is for
    /// one client: give QEMU one of its own.
    #[arg(long, value_name = "PATH", help_heading = "Operation")]
    pub qmp: Option<PathBuf>,
    /// How much to log to standard error: off, error, warn, info, debug or trace
    ///
    /// trace has the bytes of every request, as the driver sent it.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log_level: LevelFilter,
    /// What happens at a system call that the program does not need [default: kill]
    ///
    /// kill ends the process with SIGSYS; log has the kernel log the call; none installs no filter. Without the
    /// option, a kernel that takes no filters is only warned about.
    #[arg(
        long,
        value_name = "kill|log|none",
        value_enum,
        hide_possible_values = true,
        help_heading = "Operation"
    )]
    pub seccomp: Option<Seccomp>,

    /// Print what this back-end can do, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
}

/// on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes.
    On,
    /// No.
    Off,
}

/// What happens at a system call that the program does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// The process ends.
    Kill,
    /// The kernel logs it.
    Log,
    /// No filter is installed.
    None,
}

/// Options that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// An endpoint came twice.
    #[error("endpoint {0} is given twice: each --endpoint needs an ID of its own")]
    DuplicateEndpoint(EndpointId),
    /// One VFIO device for two endpoints.
    #[error("{0} is given to two endpoints: a device is one endpoint")]
    DuplicateDevice(String),
    /// Both kinds of endpoint.
    #[error(
        "endpoint {soft} is a software endpoint and endpoint {device} a device: one process serves one kind; start a second process, or give endpoint {soft} a device with vfio="
    )]
    Mixed {
        /// A software endpoint.
        soft: EndpointId,
        /// One with a device.
        device: EndpointId,
    },
    /// An iommufd without a device to use it.
    #[error("{0} is for endpoints with vfio= or vfio-fd=, and there is none")]
    UnusedIommufd(&'static str),
    /// No endpoint, and no way for one to come.
    #[error("there is no endpoint: name one with --endpoint, or add them over --control")]
    NoWayIn,
    /// A descriptor twice.
    #[error("file descriptor {0} is given for two purposes")]
    DuplicateFd(RawFd),
    /// A mock device needs the iommufd it was made in.
    #[error(
        "endpoint {0} is a mock device: pass the iommufd that it was made in with --iommufd-fd"
    )]
    MockWithoutIommufd(EndpointId),
    /// The name of a device, and nobody who tells of it.
    #[error(
        "endpoint {0} has qemu-id=, which is for --qmp: pass the path of QEMU's QMP socket with it"
    )]
    QemuIdWithoutQmp(EndpointId),
    /// A check of what cannot be looked at.
    #[error(
        "endpoint {0}: check looks at devices that nobody uses, by path: give it vfio=/dev/vfio/devices/vfioN and no dev-id"
    )]
    NotCheckable(EndpointId),
    /// One path for two sockets.
    #[error("{0}: two sockets need two paths; --socket-path, --control and each soft= are one")]
    SamePath(String),
}

/// Finds endpoints and devices that are named twice.
fn check_endpoints(endpoints: &[EndpointSpec]) -> Result<(), ArgsError> {
    let mut ids = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for endpoint in endpoints {
        if !ids.insert(endpoint.id) {
            return Err(ArgsError::DuplicateEndpoint(endpoint.id));
        }
        if let Backing::Vfio {
            device: VfioDevice::Path(path),
            ..
        } = &endpoint.backing
            && !paths.insert(path)
        {
            return Err(ArgsError::DuplicateDevice(path.display().to_string()));
        }
    }
    Ok(())
}

impl CheckArgs {
    /// Finds what cannot be looked at.
    pub fn check(&self) -> Result<(), ArgsError> {
        let by_path = |endpoint: &&EndpointSpec| {
            matches!(
                endpoint.backing,
                Backing::Vfio {
                    device: VfioDevice::Path(_),
                    dev_id: None
                }
            )
        };
        if let Some(other) = self.endpoints.iter().find(|endpoint| !by_path(endpoint)) {
            return Err(ArgsError::NotCheckable(other.id));
        }
        check_endpoints(&self.endpoints)
    }
}

impl ServeArgs {
    /// Finds options that contradict each other.
    pub fn check(&self) -> Result<(), ArgsError> {
        check_endpoints(&self.endpoints)?;
        #[cfg(feature = "iommufd-test")]
        for endpoint in &self.endpoints {
            if matches!(endpoint.backing, Backing::Mock { .. }) && self.iommufd_fd.is_none() {
                return Err(ArgsError::MockWithoutIommufd(endpoint.id));
            }
        }
        let soft = self.endpoints.iter().find(|e| e.is_soft());
        let device = self.endpoints.iter().find(|e| !e.is_soft());
        match (soft, device) {
            (Some(soft), Some(device)) => {
                return Err(ArgsError::Mixed {
                    soft: soft.id,
                    device: device.id,
                });
            }
            (_, None) if self.iommufd.is_some() => {
                return Err(ArgsError::UnusedIommufd("--iommufd"));
            }
            (None, None) if self.iommufd_fd.is_some() && self.control.is_none() => {
                return Err(ArgsError::NoWayIn);
            }
            (Some(_), None) if self.iommufd_fd.is_some() => {
                return Err(ArgsError::UnusedIommufd("--iommufd-fd"));
            }
            _ => {}
        }
        let mut fds = BTreeSet::new();
        let device_fds = self.endpoints.iter().filter_map(EndpointSpec::fd);
        for fd in self.fd.into_iter().chain(self.iommufd_fd).chain(device_fds) {
            if !fds.insert(fd) {
                return Err(ArgsError::DuplicateFd(fd));
            }
        }
        let mut sockets = BTreeSet::new();
        let soft_sockets = self.endpoints.iter().filter_map(EndpointSpec::soft_socket);
        let own_sockets = self.socket_path.iter().chain(&self.control);
        for path in own_sockets.map(PathBuf::as_path).chain(soft_sockets) {
            if !sockets.insert(path) {
                return Err(ArgsError::SamePath(path.display().to_string()));
            }
        }
        let named = self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.qemu_id.is_some());
        if let (Some(named), None) = (named, &self.qmp) {
            return Err(ArgsError::QemuIdWithoutQmp(named.id));
        }
        Ok(())
    }

    /// How to set up the device.
    pub fn device_config(&self) -> DeviceConfig {
        DeviceConfig {
            boot_bypass: self.boot_bypass == OnOff::On,
            page_size_mask: self.page_size_mask,
            input_range: self.input_range.unwrap_or(IovaRange::ALL),
            domain_range: self.domain_range.unwrap_or((0, u32::MAX)),
            reserved_regions: self.reserved_regions.clone(),
            max_mappings: self.max_mappings as usize,
            max_domains: self.max_domains as usize,
            max_pasids: self.max_pasids as usize,
            max_page_requests: self.max_page_requests as usize,
            page_response_timeout: values::timeout_duration(self.page_response_timeout),
        }
    }
}

#[cfg(test)]
mod tests;
