//! Frame numbers of 16 bits that wrap: which is newer, and how many are missing.

/// Whether `seq` was sent after `last`, seen through a window of half the number range (32768).
pub const fn is_newer(seq: u16, last: u16) -> bool {
    let ahead = seq.wrapping_sub(last);
    ahead != 0 && ahead <= 0x8000
}

/// What a frame number says about its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first one, or the one that was due.
    Next,
    /// Newer, with so many missing in front of it.
    After(u16),
    /// Seen before or overtaken.
    Old,
}

/// Follows the frame numbers of one sender.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence {
    last: Option<u16>,
}

impl Sequence {
    /// A follower that takes any number as the first.
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// Judges `seq` and remembers it unless it is old.
    pub fn observe(&mut self, seq: u16) -> Arrival {
        let arrival = match self.last {
            None => Arrival::Next,
            Some(last) if !is_newer(seq, last) => return Arrival::Old,
            Some(last) => match seq.wrapping_sub(last) {
                1 => Arrival::Next,
                ahead => Arrival::After(ahead - 1),
            },
        };
        self.last = Some(seq);
        arrival
    }

    /// The newest number so far.
    pub const fn last(&self) -> Option<u16> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_all_numbers_are_newer_than_any_number() {
        for last in [0_u16, 1, 0x7fff, 0x8000, u16::MAX] {
            let newer = (0..=u16::MAX).filter(|seq| is_newer(*seq, last)).count();
            assert_eq!(newer, 0x8000);
            assert!(!is_newer(last, last));
            assert!(is_newer(last.wrapping_add(1), last));
            assert!(is_newer(last.wrapping_add(0x8000), last));
            assert!(!is_newer(last.wrapping_sub(1), last));
        }
    }

    #[test]
    fn numbering_wraps_and_gaps_are_counted_across_the_wrap() {
        let mut sequence = Sequence::new();
        assert_eq!(sequence.observe(65_534), Arrival::Next);
        assert_eq!(sequence.observe(65_535), Arrival::Next);
        assert_eq!(sequence.observe(0), Arrival::Next);
        assert_eq!(sequence.observe(0), Arrival::Old);
        assert_eq!(sequence.observe(65_535), Arrival::Old);
        assert_eq!(sequence.observe(4), Arrival::After(3));
        assert_eq!(sequence.last(), Some(4));
    }
}
