//! A set of slot numbers from which members are drawn uniformly.

use rand::Rng;

/// Below one member in this many slots, drawing by trial would be slow.
const SPARSE: usize = 8;

/// One bit per slot. Its draws depend on the members only, not on the order in which they came.
#[derive(Clone, Debug)]
pub(crate) struct SlotSet {
    words: Vec<u64>,
    len: usize,
    /// One past the largest member, 0 for an empty set.
    bound: usize,
}

impl SlotSet {
    pub(crate) fn new(slots: usize) -> Self {
        Self { words: vec![0; slots.div_ceil(64)], len: 0, bound: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, slot: usize) -> bool {
        self.words.get(slot / 64).is_some_and(|w| w >> (slot % 64) & 1 == 1)
    }

    pub(crate) fn insert(&mut self, slot: usize) {
        if !self.contains(slot) {
            self.words[slot / 64] |= 1 << (slot % 64);
            self.len += 1;
            self.bound = self.bound.max(slot + 1);
        }
    }

    pub(crate) fn remove(&mut self, slot: usize) {
        if self.contains(slot) {
            self.words[slot / 64] &= !(1 << (slot % 64));
            self.len -= 1;
            while self.bound > 0 && !self.contains(self.bound - 1) {
                self.bound -= 1;
            }
        }
    }

    /// Members from small to large.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.bound).filter(|slot| self.contains(*slot))
    }

    /// A member, each with the same probability; `None` when empty.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        if self.len * SPARSE < self.bound {
            return self.nth(rng.random_range(0..self.len));
        }
        loop {
            let slot = rng.random_range(0..self.bound);
            if self.contains(slot) {
                return Some(slot);
            }
        }
    }

    /// The member with `rank` smaller ones.
    fn nth(&self, rank: usize) -> Option<usize> {
        let mut left = rank;
        for (index, word) in self.words.iter().enumerate() {
            let members = word.count_ones() as usize;
            if left < members {
                return (0..64).filter(|bit| word >> bit & 1 == 1).nth(left).map(|bit| index * 64 + bit);
            }
            left -= members;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn dense_and_sparse_sets_draw_all_members_alike() {
        for (slots, stride) in [(200, 2), (20_000, 200)] {
            let mut set = SlotSet::new(slots);
            for slot in (0..slots).step_by(stride) {
                set.insert(slot);
            }
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut counts = vec![0_u32; slots];
            for _ in 0..100_000 {
                counts[set.draw(&mut rng).unwrap()] += 1;
            }
            let drawn: Vec<u32> = counts.iter().copied().step_by(stride).collect();
            assert_eq!(drawn.iter().sum::<u32>(), 100_000, "only members are drawn");
            let chi: f64 = drawn.iter().map(|c| (f64::from(*c) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 148.0, "chi-square {chi} of 99 degrees exceeds its 99.9 % quantile");
        }
    }

    #[test]
    fn the_bound_follows_removals() {
        let mut set = SlotSet::new(130);
        for slot in [3, 64, 129] {
            set.insert(slot);
        }
        set.remove(129);
        set.remove(129);
        assert_eq!((set.len(), set.bound), (2, 65));
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 64]);
        set.remove(64);
        set.remove(3);
        assert_eq!((set.len(), set.bound), (0, 0));
        assert_eq!(set.draw(&mut ChaCha8Rng::seed_from_u64(0)), None);
    }
}
