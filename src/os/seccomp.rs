// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that the program needs once it is set up, and no others.
//!
//! The filter is installed for all threads just before the first front-end is served; threads that start later
//! inherit it. A front-end that finds a hole in this process still cannot run a program, make memory executable,
//! open a network socket or trace another process.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use clap::ValueEnum;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

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

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The filter cannot be made for this machine.
    #[error("no system call filter for {ARCH}: {0}; pass --seccomp none to do without")]
    Make(seccompiler::BackendError),
    /// The kernel does not take it.
    #[error(
        "the kernel takes no system call filter ({0}); it needs CONFIG_SECCOMP_FILTER; pass --seccomp none to do without"
    )]
    Install(seccompiler::Error),
}

/// Installs the filter for every thread of the process.
///
/// # Errors
/// There is no filter for this machine, or the kernel does not take it. Nothing has changed.
pub fn install(mode: Seccomp) -> Result<(), SeccompError> {
    let otherwise = match mode {
        Seccomp::None => return Ok(()),
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Kill => SeccompAction::KillProcess,
    };
    let program = program(otherwise).map_err(SeccompError::Make)?;
    apply_filter_all_threads(&program).map_err(SeccompError::Install)
}

fn program(otherwise: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(ARCH)?;
    SeccompFilter::new(rules()?, otherwise, SeccompAction::Allow, arch)?.try_into()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = allowed()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let executable = libc::PROT_EXEC as u64;
    for (call, alternatives) in [
        // Memory of the guest, of threads, of the allocator: never executable.
        (libc::SYS_mmap, vec![masked(2, executable, 0)?]),
        (libc::SYS_mprotect, vec![masked(2, executable, 0)?]),
        // A front-end of a PCI function is handed to the vfio-user library over a socket of our own.
        (libc::SYS_socket, vec![equal(0, libc::AF_UNIX as u64)?]),
        (libc::SYS_socketpair, vec![equal(0, libc::AF_UNIX as u64)?]),
        // Names of threads, and of memory for the eyes of people.
        (
            libc::SYS_prctl,
            vec![
                equal(0, libc::PR_SET_NAME as u64)?,
                equal(0, libc::PR_SET_VMA as u64)?,
            ],
        ),
        // An abort; a thread that is to end. Of no other process.
        (libc::SYS_tgkill, vec![equal(0, std::process::id().into())?]),
        // iommufd and VFIO (both of type ';'); whether a descriptor blocks; whether a log line goes to a terminal.
        (
            libc::SYS_ioctl,
            vec![
                masked(1, 0xff00, u64::from(b';') << 8)?,
                equal(1, libc::FIONBIO)?,
                equal(1, libc::TCGETS)?,
            ],
        ),
    ] {
        rules.insert(call, alternatives);
    }
    Ok(rules)
}

/// Calls allowed whatever their arguments.
fn allowed() -> Vec<i64> {
    let calls = vec![
        // Waiting: event loops of the workers, the control socket and the library.
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        libc::SYS_eventfd2,
        // Reading and writing: events, kicks, calls, signals, page requests, log lines.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        // Sockets of front-ends and of control clients; descriptors arrive with messages.
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_connect,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_shutdown,
        // Descriptors.
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_fcntl,
        // The device of endpoint-add, and what the kernel says about it; files behind guest memory.
        libc::SYS_openat,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstatfs,
        libc::SYS_lseek,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        // Socket files get their mode, and are removed at the end.
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_unlinkat,
        // Memory.
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        // Threads: a connection starts its own.
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_futex,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_membarrier,
        libc::SYS_exit,
        // Signals of new threads: their mask, and a stack to report an overflow on.
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        // Time; the vDSO falls back to the calls where the clock is not readable.
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        // The kernel restarts an interrupted wait with this.
        libc::SYS_restart_syscall,
        // Seeds of hash tables.
        libc::SYS_getrandom,
        // The end.
        libc::SYS_exit_group,
        // A backtrace names files from the directory that the process is in.
        libc::SYS_getcwd,
    ];
    // What newer architectures only have in the forms above.
    #[cfg(target_arch = "x86_64")]
    let calls = [
        calls,
        vec![
            libc::SYS_epoll_wait,
            libc::SYS_poll,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_readlink,
            libc::SYS_unlink,
            libc::SYS_time,
        ],
    ]
    .concat();
    // What an SMMU reads of this process: the descriptors of tables.
    #[cfg(target_arch = "aarch64")]
    let calls = [calls, vec![libc::SYS_memfd_create, libc::SYS_ftruncate]].concat();
    calls
}

/// The lower half of an argument is a value.
fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    one(argument, SeccompCmpOp::Eq, value)
}

/// The lower half of an argument, masked, is a value.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    one(argument, SeccompCmpOp::MaskedEq(mask), value)
}

fn one(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    // All the arguments looked at are ints or small unsigned longs.
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests;
