//! Time (layer 0): the only reader of the operating system's clocks.
//!
//! A [`Stamp`] counts microseconds on one clock. [`Clock::Monotonic`] is the machine's `CLOCK_MONOTONIC`;
//! [`Clock::Lockstep`] is a counter that the run advances by one control period per step, so that a run on
//! simulated time takes the same decisions whatever the machine is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::clock_gettime;

/// A point in time: microseconds since an arbitrary origin of one [`Clock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Stamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The stamp `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Stamp {
        Stamp(self.0 + duration.as_micros() as u64)
    }
}

/// The clock of a run, passed as a handle to everything that needs the time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// Simulated time in microseconds, advanced by [`Clock::advance`].
    Lockstep(Arc<AtomicU64>),
}

impl Clock {
    /// A lockstep clock at time zero.
    pub fn lockstep() -> Self {
        Self::Lockstep(Arc::new(AtomicU64::new(0)))
    }

    /// The present time.
    pub fn now(&self) -> Stamp {
        match self {
            Self::Monotonic => monotonic(),
            Self::Lockstep(time) => Stamp(time.load(Ordering::Acquire)),
        }
    }

    /// Sleeps until `deadline`; a lockstep clock jumps there instead.
    pub fn sleep_until(&self, deadline: Stamp) {
        match self {
            Self::Monotonic => {
                let request = rustix::time::Timespec {
                    tv_sec: (deadline.0 / 1_000_000) as i64,
                    tv_nsec: ((deadline.0 % 1_000_000) * 1000) as _,
                };
                // EINTR only: the deadline is absolute, so asking again keeps the phase.
                while clock_nanosleep_absolute(ClockId::Monotonic, &request).is_err() {}
            }
            Self::Lockstep(time) => {
                time.fetch_max(deadline.0, Ordering::AcqRel);
            }
        }
    }

    /// Moves a lockstep clock forward; the monotonic clock moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Self::Lockstep(time) = self {
            time.fetch_add(by.as_micros() as u64, Ordering::AcqRel);
        }
    }

    /// Whether this is simulated time.
    pub fn is_lockstep(&self) -> bool {
        matches!(self, Self::Lockstep(_))
    }
}

/// `CLOCK_MONOTONIC` in microseconds.
pub fn monotonic() -> Stamp {
    let t = clock_gettime(rustix::time::ClockId::Monotonic);
    Stamp(t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1000)
}

/// Waits until `fd` can be read; `false` when `until` of the monotonic clock passes first.
///
/// # Errors
/// When the system refuses.
pub fn wait_readable(fd: impl AsFd, until: Stamp) -> Result<bool, Errno> {
    loop {
        let left = until.since(monotonic());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

/// `CLOCK_MONOTONIC` to the nanosecond, for measuring what is shorter than a microsecond.
pub fn precise() -> Duration {
    let t = clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// CPU time of the calling thread, for measurements that a busy machine does not disturb.
pub fn thread_cpu() -> Duration {
    let t = clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// CPU time of the whole process.
pub fn process_cpu() -> Duration {
    let t = clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockstep_time_moves_only_when_told() {
        let clock = Clock::lockstep();
        let start = clock.now();
        clock.advance(Duration::from_millis(50));
        assert_eq!(clock.now().since(start), Duration::from_millis(50));
        clock.sleep_until(Stamp(60_000));
        clock.sleep_until(Stamp(10_000));
        assert_eq!(clock.now(), Stamp(60_000));
    }

    #[test]
    fn monotonic_sleep_reaches_its_deadline() {
        let due = Clock::Monotonic.now().plus(Duration::from_millis(3));
        Clock::Monotonic.sleep_until(due);
        assert!(Clock::Monotonic.now() >= due);
    }
}
