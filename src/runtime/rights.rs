//! What the control thread asks of the system: priority, processor, locked memory.
#![allow(unsafe_code, reason = "sched_setscheduler has no safe wrapper in the crates we use")]

use std::fs::File;
use std::io::Write;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::RealtimeConfig;

/// What the system granted. Processors may sleep again when this is dropped.
pub(super) struct Granted {
    /// One line per refused setting, with the remedy.
    pub(super) refused: Vec<String>,
    _awake: Option<File>,
}

/// Asks for what the configuration wants, for the calling thread.
pub(super) fn acquire(config: &RealtimeConfig) -> Granted {
    let mut refused = Vec::new();
    let mut note = |what: String, error: Errno, remedy: &str| {
        refused.push(format!("{what} refused ({error}): {remedy}"));
    };
    let awake = (config.cpu_dma_latency_us >= 0).then(|| stay_awake(config.cpu_dma_latency_us));
    if let Some(Err(error)) = &awake {
        let remedy = "let the user write /dev/cpu_dma_latency (a udev rule), or set realtime.cpu_dma_latency_us = -1";
        note(format!("wake-up within {} us", config.cpu_dma_latency_us), *error, remedy);
    }
    if config.lock_memory
        && let Err(error) = lock_memory()
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
    Granted { refused, _awake: awake.and_then(Result::ok) }
}

/// Bounds the wake-up time of all idle processors, until the file is closed (`Documentation/power/pm_qos_interface`).
fn stay_awake(within_us: i32) -> Result<File, Errno> {
    let open = || {
        let mut file = File::options().write(true).open("/dev/cpu_dma_latency")?;
        file.write_all(&within_us.to_ne_bytes())?;
        Ok(file)
    };
    open().map_err(|error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Locks what is mapped now, and what is mapped later as it is touched: new policies, not whole reserves.
fn lock_memory() -> Result<(), Errno> {
    mlockall(MlockAllFlags::CURRENT)?;
    // Under a finite limit a later allocation would fail instead of being unlocked.
    if getrlimit(Resource::Memlock).current.is_none() {
        mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    }
    Ok(())
}

/// Page faults of the calling thread since it started, with and without reading from a disk. Reads a file.
pub(super) fn page_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The second field is the name in parentheses; after it come state (3) ... minflt (10), cminflt, majflt (12).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(7)?.parse::<u64>().ok()? + fields.get(9)?.parse::<u64>().ok()?)
}

/// Keeps the calling thread off `cpu`, where there is another processor.
pub(super) fn stay_off(cpu: usize) {
    let Ok(mut set) = sched_getaffinity(None) else { return };
    if cpu < CpuSet::MAX_CPU && set.count() > 1 {
        set.unset(cpu);
        if let Err(error) = sched_setaffinity(None, &set) {
            log::debug!("a thread stays on processor {cpu}: {error}");
        }
    }
}

/// The highest processor this process may use: the one furthest from where systems put their interrupts.
pub(super) fn last_processor() -> i32 {
    let set = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).rev().find(|cpu| set.is_set(*cpu)).map_or(-1, |cpu| cpu as i32)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touched_page_is_counted() {
        let before = page_faults().unwrap();
        // Fresh from the system: larger than what the allocator keeps.
        let mut pages = memmap2::MmapMut::map_anon(64 * 4096).unwrap();
        pages.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        assert!(page_faults().unwrap() > before, "{before}");
    }

    #[test]
    fn what_is_refused_is_named_with_its_remedy() {
        let config = RealtimeConfig {
            priority: 0,
            lock_memory: false,
            cpu: 1023,
            cpu_dma_latency_us: -1,
            ..RealtimeConfig::default()
        };
        let refused = std::thread::scope(|scope| scope.spawn(|| acquire(&config)).join().unwrap().refused);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].starts_with("processor 1023 refused") && refused[0].contains("realtime.cpu"), "{refused:?}");
    }
}
