//! The newest command of a person, from any thread to the control loop: a sequence lock of atomics.
//!
//! The writer marks the slot as torn, fills it, and marks it as whole under the next number; a reader that saw the
//! number change drops what it read. Neither side waits. `tests/handover_model.rs` puts loom's atomics in this place.

use firmware_bridge::MAX_ACTION;

use super::atomic::Ordering::{Acquire, Relaxed, Release};
use super::atomic::{AtomicU32, AtomicU64, fence};

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PersonCommand<const N: usize = MAX_ACTION> {
    /// When it came, microseconds of the run's clock.
    pub at_us: u64,
    /// Length of the action; 0: the person has let go.
    pub len: u32,
    /// The action, in `[-1, 1]`; the first `len` entries count.
    pub action: [f32; N],
}

impl<const N: usize> Default for PersonCommand<N> {
    fn default() -> Self {
        Self { at_us: 0, len: 0, action: [0.0; N] }
    }
}

/// Why a command of a person was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// No action of a robot has this length.
    #[error("an action has 1 to {MAX_ACTION} entries, this one has {0}")]
    Length(usize),
    /// A NaN or an infinity.
    #[error("entry {0} of the action is not a finite number")]
    NotFinite(usize),
    /// Another thread writes at this moment.
    #[error("another source commands the robot at the same time")]
    Busy,
}

/// One slot; the newest command replaces the one before.
#[derive(Debug)]
pub struct PersonSlot<const N: usize = MAX_ACTION> {
    /// Odd while the rest is being written.
    number: AtomicU32,
    at_us: AtomicU64,
    len: AtomicU32,
    action: [AtomicU32; N],
}

impl<const N: usize> Default for PersonSlot<N> {
    fn default() -> Self {
        let action = std::array::from_fn(|_| AtomicU32::new(0));
        Self { number: AtomicU32::new(0), at_us: AtomicU64::new(0), len: AtomicU32::new(0), action }
    }
}

impl<const N: usize> PersonSlot<N> {
    /// The person takes control, or moves on: `action` in `[-1, 1]`, `at_us` on the run's clock.
    ///
    /// # Errors
    /// When it is no action; the command before stays.
    pub fn command(&self, action: &[f32], at_us: u64) -> Result<(), NotTaken> {
        if action.is_empty() || action.len() > N {
            return Err(NotTaken::Length(action.len()));
        }
        if let Some(index) = action.iter().position(|value| !value.is_finite()) {
            return Err(NotTaken::NotFinite(index));
        }
        self.write(action, at_us)
    }

    /// The person lets go.
    ///
    /// # Errors
    /// When another thread writes at this moment.
    pub fn release(&self, at_us: u64) -> Result<(), NotTaken> {
        self.write(&[], at_us)
    }

    fn write(&self, action: &[f32], at_us: u64) -> Result<(), NotTaken> {
        let number = self.number.load(Relaxed);
        let torn = number | 1;
        if torn == number || self.number.compare_exchange(number, torn, Acquire, Relaxed).is_err() {
            return Err(NotTaken::Busy);
        }
        fence(Release);
        self.at_us.store(at_us, Relaxed);
        self.len.store(action.len() as u32, Relaxed);
        for (to, from) in self.action.iter().zip(action) {
            to.store(from.to_bits(), Relaxed);
        }
        self.number.store(torn.wrapping_add(1), Release);
        Ok(())
    }

    /// The newest command; `None` while it is being written. Real time.
    pub fn read(&self) -> Option<PersonCommand<N>> {
        let number = self.number.load(Acquire);
        let mut command =
            PersonCommand { at_us: self.at_us.load(Relaxed), len: self.len.load(Relaxed), ..PersonCommand::default() };
        for (to, from) in command.action.iter_mut().zip(&self.action) {
            *to = f32::from_bits(from.load(Relaxed));
        }
        fence(Acquire);
        (number & 1 == 0 && self.number.load(Relaxed) == number).then_some(command)
    }
}
