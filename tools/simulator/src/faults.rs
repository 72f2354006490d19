//! Fault injection on a line: frames get lost, damaged or late, with given probabilities, repeatable by a seed.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::endpoint::Peer;

/// How bad a line is; probabilities per frame, for each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Badness {
    pub(crate) drop: f64,
    pub(crate) corrupt: f64,
    pub(crate) delay: f64,
    /// How late a delayed frame is.
    pub(crate) delay_us: u64,
    /// Damage hits this many bytes at the front of a frame.
    pub(crate) reach: usize,
}

/// What was done to the frames of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Frames that never arrived.
    pub dropped: u64,
    /// Frames with wrong bytes.
    pub corrupted: u64,
    /// Frames that came later, behind those sent after them.
    pub delayed: u64,
}

struct Held {
    due_us: u64,
    bytes: Vec<u8>,
    peer: Peer,
}

/// One direction of a bad line.
pub(crate) struct Injector {
    badness: Badness,
    rng: ChaCha8Rng,
    held: VecDeque<Held>,
    injected: Injected,
}

impl Injector {
    /// `stream` names the direction, so that both have their own random numbers.
    pub(crate) fn new(badness: Badness, seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { badness, rng, held: VecDeque::new(), injected: Injected::default() }
    }

    /// Whether the bytes, possibly damaged, go on now. Delayed ones are kept for [`Self::release`].
    pub(crate) fn pass(&mut self, bytes: &mut [u8], peer: &Peer, now_us: u64) -> bool {
        let Badness { drop, corrupt, delay, delay_us, reach } = self.badness;
        if drop + corrupt + delay == 0.0 {
            return true;
        }
        if self.rng.random_bool(drop) {
            self.injected.dropped += 1;
            return false;
        }
        if self.rng.random_bool(corrupt) && !bytes.is_empty() {
            self.injected.corrupted += 1;
            let reach = reach.min(bytes.len());
            self.damage(&mut bytes[..reach]);
        }
        if self.rng.random_bool(delay) {
            self.injected.delayed += 1;
            self.held.push_back(Held { due_us: now_us + delay_us, bytes: bytes.to_vec(), peer: peer.clone() });
            return false;
        }
        true
    }

    /// When the next delayed frame is due.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.held.front().map(|held| held.due_us)
    }

    /// The next delayed frame, when it is due.
    pub(crate) fn release(&mut self, now_us: u64) -> Option<(Vec<u8>, Peer)> {
        if self.due_us()? > now_us {
            return None;
        }
        self.held.pop_front().map(|held| (held.bytes, held.peer))
    }

    /// What was done so far.
    pub(crate) fn injected(&self) -> Injected {
        self.injected
    }

    /// Flips bits of one to four bytes.
    fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.rng.random_range(1..=4) {
            let place = self.rng.random_range(0..bytes.len());
            bytes[place] ^= self.rng.random_range(1..=u8::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injector(drop: f64, corrupt: f64, delay: f64) -> Injector {
        Injector::new(Badness { drop, corrupt, delay, delay_us: 50, reach: usize::MAX }, 3, 0)
    }

    #[test]
    fn a_good_line_changes_nothing() {
        let (mut line, mut bytes) = (injector(0.0, 0.0, 0.0), *b"frame");
        assert!((0..1000).all(|now| line.pass(&mut bytes, &Peer::Line, now)));
        assert_eq!((bytes, line.injected()), (*b"frame", Injected::default()));
    }

    #[test]
    fn faults_come_as_often_as_asked() {
        let mut line = injector(0.1, 0.2, 0.0);
        let passed = (0..10_000).filter(|now| line.pass(&mut [0; 40], &Peer::Line, *now)).count() as u64;
        let Injected { dropped, corrupted, .. } = line.injected();
        assert_eq!(passed + dropped, 10_000);
        assert!((900..1100).contains(&dropped) && (1650..1950).contains(&corrupted), "{dropped} {corrupted}");
    }

    #[test]
    fn late_frames_come_in_order_when_due() {
        let mut line = injector(0.0, 0.0, 1.0);
        assert!(!line.pass(&mut [1], &Peer::Line, 100) && !line.pass(&mut [2], &Peer::Line, 120));
        assert_eq!(line.due_us(), Some(150));
        assert!(line.release(149).is_none());
        assert_eq!(line.release(200).map(|held| held.0), Some(vec![1]));
        assert_eq!(line.release(200).map(|held| held.0), Some(vec![2]));
        assert!(line.release(200).is_none());
    }
}
