// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.
//!
//! [`Args`] is what clap reads. [`ServeArgs::check`] finds what clap cannot: options that contradict each other. Every
//! message says what was asked, why it cannot be, and what to do.
//!
//! Files: `values` (values of options), `conflicts` (options that do not go together), `text` (usage and examples).
#![forbid(unsafe_code)]

mod conflicts;
mod text;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::control::metrics::Label;
use crate::device::DeviceConfig;
use crate::endpoints::EndpointSpec;
use crate::host::ReservedRegion;
use crate::host::mapping::IovaRange;
use crate::os::seccomp::Seccomp;
use crate::spec::EndpointId;
use crate::transport::Options;

pub use conflicts::ArgsError;
pub use values::{InheritedFd, LogSource};

/// `--iommufd` unless given.
pub const DEFAULT_IOMMUFD: &str = "/dev/iommu";

/// virtio-iommu with page requests, as a vhost-user back-end.
///
/// Serves one virtio IOMMU device (device ID 23) to a vhost-user front-end such as QEMU. For physical devices Linux
/// iommufd translates; for software endpoints this process does.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = text::USAGE,
    after_long_help = text::EXAMPLES,
    term_width = text::WIDTH
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
    /// QEMU takes the output after "-acpitable sig=VIOT,rev=0,data=". With --header it is a whole table, which QEMU takes
    /// after "-acpitable file=", libvirt in a table of type "raw", and "iasl -d" as its input.
    #[command(override_usage = text::VIOT_USAGE)]
    Viot(ViotArgs),
    /// Send a command to a control socket and print its answer
    ///
    /// COMMAND is a name followed by key=value arguments, or a JSON object as it goes over the socket.
    #[command(after_help = text::CTL_EXAMPLES)]
    Ctl(CtlArgs),
    /// Say what this machine can do for devices, and what to do about what it lacks
    ///
    /// Looks at the kernel, its IOMMUs and the devices named. Without --bind it changes nothing.
    #[command(after_help = text::CHECK_STATUS)]
    Check(CheckArgs),
    /// Print the completions of this command line for a shell
    ///
    /// A package installs files that call this. By hand: source <(vhost-device-iommu completions bash)
    Completions(CompletionsArgs),
}

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
    /// PCI address of an endpoint in the guest; repeat for more
    ///
    /// Endpoints at neighbouring addresses become one range of the table.
    #[arg(
        long = "endpoint",
        value_name = "BDF",
        required_unless_present = "buses"
    )]
    pub endpoints: Vec<EndpointId>,
    /// A bus in the guest, such as 01, with all its functions; repeat for more
    ///
    /// For the bus behind a root port, if devices come and go while the guest runs.
    #[arg(long = "bus", value_name = "BUS", value_parser = first_of_bus)]
    pub buses: Vec<EndpointId>,
    /// Write the whole table, with its ACPI header and checksum
    #[arg(long)]
    pub header: bool,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A device to look at, described as for serving; repeat for more
    #[arg(long = "endpoint", value_name = "ID,vfio=PATH")]
    pub endpoints: Vec<EndpointSpec>,
    /// The iommufd device [default: /dev/iommu]
    #[arg(long, value_name = "PATH")]
    pub iommufd: Option<PathBuf>,
    /// Set the devices up as for serving, and give them back
    ///
    /// Binds each device to an iommufd, and attaches it without any memory to reach. This resets the device, and fails
    /// while another process uses it. Without --bind, the report cannot say for sure which page sizes and addresses a
    /// device has, and whether its page requests work.
    #[arg(long)]
    pub bind: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// A shell that can complete words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU's shell.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
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
    /// Listen on this path, and serve one front-end after the other
    ///
    /// One front-end is served at a time; others wait. If there is a socket file that no process listens on, it is
    /// replaced; if a process listens there, that is an error.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        required_unless_present = "fd",
        help_heading = "Front-end"
    )]
    pub socket_path: Option<PathBuf>,
    /// Permissions of the sockets that front-ends connect to, in octal, such as 0666
    ///
    /// These are the files of --socket-path and of each soft=PATH, those of endpoint-add included. Processes that may
    /// write to a file may connect. Without this option a file has 0660, for its owner and group, minus the umask. With
    /// it the umask does not matter. The file of --control always is for its owner alone.
    #[arg(
        long,
        value_name = "MODE",
        value_parser = values::socket_mode,
        help_heading = "Front-end"
    )]
    pub socket_mode: Option<u32>,
    /// Serve on this inherited socket, listening or connected
    ///
    /// N is its number. NAME is that of a descriptor which systemd passes: FileDescriptorName= of a socket unit.
    ///
    /// If the socket is connected, the program ends when the front-end closes it.
    #[arg(
        long,
        value_name = "N|NAME",
        value_parser = values::inherited_fd,
        help_heading = "Front-end"
    )]
    pub fd: Option<InheritedFd>,

    /// An endpoint behind the IOMMU; repeat for more
    ///
    /// ID is a number (40, 0x28) or the PCI address in the guest (00:05.0, 0000:00:05.0).
    ///
    /// With vfio=/dev/vfio/devices/vfioN or vfio-fd=N the endpoint is a physical device. If a front-end shares the
    /// iommufd and has bound the device, dev-id=N is the device's number there.
    ///
    /// Otherwise it is a software endpoint, driven over the control socket. With soft=PATH it has a PCI function, served
    /// over vfio-user on PATH to one front-end at a time. One process serves software endpoints or physical devices, not
    /// both.
    ///
    /// qemu-id=ID is the device's id in QEMU, or its path in the tree of objects there. With --qmp, the endpoint is
    /// removed when QEMU has unplugged that device.
    #[arg(
        long = "endpoint",
        value_name = "ID[,soft=PATH|,vfio=PATH|,vfio-fd=N][,dev-id=N][,qemu-id=ID]",
        required_unless_present = "iommufd_fd",
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
    /// N and NAME are as for --fd. The front-end binds the devices when it starts. Add them as endpoints then, with endpoint-add over --control.
    #[arg(
        long,
        value_name = "N|NAME",
        value_parser = values::inherited_fd,
        help_heading = "Endpoints"
    )]
    pub iommufd_fd: Option<InheritedFd>,

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
    /// In QEMU's syntax: LOW and HIGH are hexadecimal, with or without 0x, and both belong to the region; TYPE is 0 for
    /// reserved, 1 for an MSI doorbell. Example: 0xfee00000:0xfeefffff:1
    ///
    /// Devices on x86 and Arm have their doorbells without this option. Functions in software have them on x86, and need
    /// this option on Arm.
    #[arg(
        long = "reserved-region",
        value_name = "LOW:HIGH:TYPE",
        value_parser = values::reserved_region,
        help_heading = "Device"
    )]
    pub reserved_regions: Vec<ReservedRegion>,
    /// Page sizes to offer, a bit each [default: all that the host has]
    ///
    /// The lowest bit is the granule. Linux guests need a granule that is not above their page size.
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

    /// The most mappings, over all domains; a MAP beyond is answered NOMEM
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_MAPPINGS,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_mappings: u32,
    /// The most domains; an ATTACH beyond is answered NOMEM
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_DOMAINS,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_domains: u32,
    /// The most PASID attachments, over all endpoints; an ATTACH beyond is answered NOMEM
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceConfig::MAX_PASIDS,
        value_parser = clap::value_parser!(u32).range(0..),
        help_heading = "Limits"
    )]
    pub max_pasids: u32,
    /// The most page-request groups that wait for the guest, at most 65536; more are refused
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

    /// How many microseconds to watch the request queue after a request; 0 never polls
    ///
    /// Waking up takes longer than carrying out a request. The request worker adapts the time to what has paid lately,
    /// up to this number, which is at most 1000000. While the guest is idle, the worker sleeps.
    #[arg(
        long,
        value_name = "N",
        default_value_t = Options::default().poll.as_micros() as u32,
        value_parser = clap::value_parser!(u32).range(0..=1_000_000),
        help_heading = "Operation"
    )]
    pub poll_us: u32,
    /// Listen for commands on this path: see "ctl --help"
    #[arg(long, value_name = "PATH", help_heading = "Operation")]
    pub control: Option<PathBuf>,
    /// A label of every sample that "ctl PATH counters format=prometheus" prints; repeat for more
    ///
    /// With a label such as vm=mail the samples of several processes can be told apart, also in one directory of text files.
    #[arg(long = "label", value_name = "NAME=VALUE", help_heading = "Operation")]
    pub labels: Vec<Label>,
    /// Listen to QEMU on this QMP socket: start QEMU with -qmp unix:PATH,server=on,wait=off
    ///
    /// QEMU then tells when the machine is reset, so firmware and boot loaders find endpoints in bypass. It tells whether
    /// the machine runs, which distinguishes the end of a driver from a pause. And it tells which devices it has
    /// unplugged: see qemu-id.
    ///
    /// A QMP socket serves one client at a time, so give QEMU one for this process alone. Without a connection,
    /// everything is as without this option, and the connection is tried again every second.
    #[arg(long, value_name = "PATH", help_heading = "Operation")]
    pub qmp: Option<PathBuf>,
    /// Report accesses that the IOMMU refused, as the kernel's log tells them
    ///
    /// Linux tells a process of page requests alone. With this option, fault reports reach the guest from devices without
    /// page requests (PRI) too. The kernel logs at most some five such accesses in five seconds, for the whole machine.
    ///
    /// PATH is /dev/kmsg. While kernel.dmesg_restrict is 1, to open it takes CAP_SYSLOG; fd=N is an inherited descriptor
    /// of it, N or NAME as for --fd.
    #[arg(
        long,
        value_name = "PATH|fd=N",
        value_parser = values::log_source,
        help_heading = "Operation"
    )]
    pub kernel_log: Option<LogSource>,
    /// How much to log to standard error: off, error, warn, info, debug or trace
    ///
    /// trace has the bytes of every request, as the driver sent it. Lines that cannot be written are counted, and hold
    /// nothing up.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log_level: LevelFilter,
    /// What happens at a system call that the program does not need [default: kill]
    ///
    /// kill: the kernel ends the process with SIGSYS. log: the kernel logs the call. none: there is no filter. If the
    /// kernel takes no filters, that is an error with this option and a warning without it.
    #[arg(
        long,
        value_name = "kill|log|none",
        value_enum,
        hide_possible_values = true,
        help_heading = "Operation"
    )]
    pub seccomp: Option<Seccomp>,

    /// Print what this back-end can do, as JSON, and exit; other options do not matter
    #[arg(long)]
    pub print_capabilities: bool,
}

/// Whether the command line asks for the capabilities. As the conventions for back-end programs want it, nothing else on
/// it matters then, not even what is wrong.
pub fn asks_for_capabilities(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut arguments = arguments.into_iter().peekable();
    let first = arguments.peek().and_then(|first| first.to_str());
    let command = Args::command();
    let is_subcommand = first.is_some_and(|first| command.find_subcommand(first).is_some());
    !is_subcommand && arguments.any(|argument| argument == "--print-capabilities")
}

/// on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes.
    On,
    /// No.
    Off,
}

impl ServeArgs {
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
