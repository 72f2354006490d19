//! What the control thread asks of the system: priority, processor, locked memory.
#![allow(unsafe_code, reason = "sched_setscheduler has no safe wrapper in the crates we use")]

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::config::RealtimeConfig;

/// Asks for what the configuration wants, for the calling thread. Returns one line per refused setting, with
/// the remedy.
pub(super) fn acquire(config: &RealtimeConfig) -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |what: String, error: Errno, remedy: &str| {
        refused.push(format!("{what} refused ({error}): {remedy}"));
    };
    if config.lock_memory
        && let Err(error) = mlockall(MlockAllFlags::CURRENT)
    {
        note("locked memory".into(), error, "raise the memlock limit, or set realtime.lock_memory = false");
    }
    if let Ok(cpu) = usize::try_from(config.cpu) {
        let mut set = CpuSet::new();
        if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
        }
        if let Err(error) = sched_setaffinity(None, &set) {
            note(format!("processor {cpu}"), error, "choose another in realtime.cpu, or -1");
        }
    }
    if config.priority > 0
        && let Err(error) = fifo(0, config.priority)
    {
        let what = format!("SCHED_FIFO priority {}", config.priority);
        note(what, error, "grant CAP_SYS_NICE or an rtprio limit, or set realtime.priority = 0");
    }
    prefault_stack();
    refused
}

/// Real-time priority for a child process that plays the robot: a robot is never late because we are busy.
pub(super) fn raise(child: u32, priority: u32) {
    if priority > 0
        && let Err(error) = fifo(child as i32, (priority + 1).min(99))
    {
        log::debug!("the simulated robot runs at normal priority: {error}");
    }
}

/// Gives `process` (0: the calling thread) a real-time priority.
fn fifo(process: i32, priority: u32) -> Result<(), Errno> {
    let parameter = libc::sched_param { sched_priority: priority as i32 };
    // SAFETY: `parameter` is a valid sched_param that outlives the call; a process that is gone is an error.
    let answer = unsafe {
        libc::sched_setscheduler(process, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::PERM))
    }
}

/// Touches 128 KiB of the stack, so that no tick takes the fault.
#[expect(clippy::large_stack_arrays, reason = "the large array is the purpose")]
fn prefault_stack() {
    let mut pages = [0u8; 128 * 1024];
    for byte in pages.iter_mut().step_by(4096) {
        *byte = 1;
    }
    std::hint::black_box(&pages);
}
