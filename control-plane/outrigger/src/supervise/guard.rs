//! Ties a child's life to its parent's: when the parent dies, however it dies, the kernel signals the child.
//!
//! The kernel fires the signal when the *thread* that spawned the child ends, so every child is spawned from the main
//! thread. This is the one file of the program with unsafe code: nothing else runs between fork and exec.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd;

/// Makes the kernel send `on_death` to the child when this thread dies.
pub(crate) fn tie(command: &mut Command, on_death: Signal) {
    let parent = unistd::getpid();
    // SAFETY: the closure runs in the forked child and makes only system calls that are async-signal-safe (prctl,
    // getppid, sigaction); it neither allocates nor takes a lock, and it captures two plain integers.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(on_death)?;
            // The parent may have died before prctl: then no signal would ever come.
            if unistd::getppid() != parent {
                return Err(io::Error::from(Errno::ESRCH));
            }
            // The supervisor ignores SIGTTOU to be able to print from the background; ignored signals survive exec.
            signal(Signal::SIGTTOU, SigHandler::SigDfl)?;
            Ok(())
        });
    }
}

/// Lets a process in the background write to a terminal that is set to stop such writers (`stty tostop`).
pub(crate) fn ignore_terminal_stop() -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run in signal context.
    unsafe { signal(Signal::SIGTTOU, SigHandler::SigIgn) }?;
    Ok(())
}
