//! Sum tree over priorities: width 8, `f32` nodes, every parent recomputed from its children.
//!
//! Recomputing bounds the error of the root by the depth (below 1e-6 relative), however many updates there were;
//! adding differences would let it drift.

use rand::Rng;

use super::error::ReplayError;

const WIDTH: usize = 8;

/// Priorities with sums over blocks of 8, 64, 512, ... of them.
#[derive(Clone, Debug)]
pub struct SumTree {
    leaves: usize,
    /// `levels[0]`: the leaves; the last level: the root. All but the root are padded with zeros to full nodes.
    levels: Vec<Vec<f32>>,
    touched: Vec<u32>,
    values: Vec<f64>,
}

impl SumTree {
    /// A tree of `leaves` zeros.
    pub fn new(leaves: usize) -> Self {
        let mut levels = Vec::new();
        let mut nodes = leaves.max(1);
        loop {
            let padded = nodes.next_multiple_of(WIDTH);
            levels.push(vec![0.0; padded]);
            nodes = padded / WIDTH;
            if nodes == 1 {
                levels.push(vec![0.0]);
                break;
            }
        }
        Self { leaves, levels, touched: Vec::new(), values: Vec::new() }
    }

    /// Number of leaves.
    pub fn len(&self) -> usize {
        self.leaves
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.leaves == 0
    }

    /// Largest priority a leaf may have; with it in every leaf the root is still finite.
    pub fn largest(&self) -> f32 {
        f32::MAX / 16.0 / self.leaves.max(1) as f32
    }

    /// Sum of all priorities.
    pub fn total(&self) -> f32 {
        self.levels[self.levels.len() - 1][0]
    }

    /// Priority of a leaf; 0 for one that does not exist.
    pub fn get(&self, leaf: usize) -> f32 {
        if leaf < self.leaves { self.levels[0][leaf] } else { 0.0 }
    }

    /// Sum of the priorities of the leaves in front of `end`.
    pub fn prefix(&self, end: usize) -> f64 {
        let mut sum = 0.0;
        let mut node = end.min(self.leaves);
        for level in &self.levels[..self.levels.len() - 1] {
            let first = node - node % WIDTH;
            sum += level[first..node].iter().map(|p| f64::from(*p)).sum::<f64>();
            node /= WIDTH;
        }
        if node == 0 { sum } else { f64::from(self.total()) }
    }

    /// Sets one priority.
    ///
    /// # Errors
    /// When the leaf does not exist or the priority is NaN, negative or too large; nothing was written then.
    pub fn set(&mut self, leaf: usize, priority: f32) -> Result<(), ReplayError> {
        self.check(leaf as u32, priority)?;
        self.levels[0][leaf] = priority;
        let mut node = leaf;
        for level in 1..self.levels.len() {
            node /= WIDTH;
            self.recompute(level, node);
        }
        Ok(())
    }

    /// Sets many priorities. Of several for one leaf the last one counts.
    ///
    /// # Errors
    /// As [`SumTree::set`], or when the lengths differ; nothing was written then.
    pub fn set_batch(&mut self, leaves: &[u32], priorities: &[f32]) -> Result<(), ReplayError> {
        if leaves.len() != priorities.len() {
            return Err(ReplayError::Lengths { leaves: leaves.len(), priorities: priorities.len() });
        }
        for (leaf, priority) in leaves.iter().zip(priorities) {
            self.check(*leaf, *priority)?;
        }
        self.touched.clear();
        for (leaf, priority) in leaves.iter().zip(priorities) {
            self.levels[0][*leaf as usize] = *priority;
            self.touched.push(leaf / WIDTH as u32);
        }
        self.touched.sort_unstable();
        let mut touched = std::mem::take(&mut self.touched);
        for level in 1..self.levels.len() {
            touched.dedup();
            for node in &mut touched {
                self.recompute(level, *node as usize);
                *node /= WIDTH as u32;
            }
        }
        self.touched = touched;
        Ok(())
    }

    /// Sets all priorities at once, in O(leaves).
    ///
    /// # Errors
    /// As [`SumTree::set_batch`].
    pub fn set_all(&mut self, priorities: &[f32]) -> Result<(), ReplayError> {
        if priorities.len() != self.leaves {
            return Err(ReplayError::Lengths { leaves: self.leaves, priorities: priorities.len() });
        }
        for (leaf, priority) in priorities.iter().enumerate() {
            self.check(leaf as u32, *priority)?;
        }
        self.levels[0][..self.leaves].copy_from_slice(priorities);
        for level in 1..self.levels.len() {
            for node in 0..self.levels[level - 1].len() / WIDTH {
                self.recompute(level, node);
            }
        }
        Ok(())
    }

    /// Draws `rows` leaves with probability proportional to their priorities, one from each of `rows` equal
    /// parts of the total. Without any priority above zero `into` stays empty.
    ///
    /// A leaf of priority 0 is never drawn, whatever rounding does. The published code redraws a minibatch that
    /// holds one, which gives the same distribution.
    pub fn sample_stratified(&mut self, rows: usize, rng: &mut impl Rng, into: &mut Vec<u32>) {
        into.clear();
        if self.total() <= 0.0 {
            return;
        }
        let part = f64::from(self.total()) / rows as f64;
        self.values.clear();
        self.values.extend((0..rows).map(|row| (row as f64 + rng.random::<f64>()) * part));
        into.resize(rows, 0);
        for level in self.levels[..self.levels.len() - 1].iter().rev() {
            let nodes = level.as_chunks::<WIDTH>().0;
            for (node, value) in into.iter_mut().zip(&mut self.values) {
                *node = *node * WIDTH as u32 + pick(&nodes[*node as usize], value);
            }
        }
    }

    fn check(&self, leaf: u32, priority: f32) -> Result<(), ReplayError> {
        if leaf as usize >= self.leaves {
            return Err(ReplayError::Leaf { leaf, leaves: self.leaves });
        }
        let most = self.largest();
        if (0.0..=most).contains(&priority) {
            return Ok(());
        }
        Err(ReplayError::Priority { leaf, value: priority, most })
    }

    fn recompute(&mut self, level: usize, node: usize) {
        let children = self.levels[level - 1].as_chunks::<WIDTH>().0[node];
        // In f64, so that each level adds one rounding only.
        self.levels[level][node] = children.iter().map(|c| f64::from(*c)).sum::<f64>() as f32;
    }
}

/// The child in which `value` falls, counted from the node's left end; `value` becomes the rest within that child.
fn pick(children: &[f32; WIDTH], value: &mut f64) -> u32 {
    let mut sum = 0.0;
    let mut below = 0.0;
    let mut child = 0;
    for priority in children {
        sum += f64::from(*priority);
        let passed = *value >= sum;
        below = if passed { sum } else { below };
        child += u32::from(passed);
    }
    if child == WIDTH as u32 {
        // Rounding put the value at or behind the right end: the last child that has any priority.
        child = children.iter().rposition(|p| *p > 0.0).unwrap_or(0) as u32;
        *value = f64::from(children[child as usize]);
    } else {
        *value -= below;
    }
    child
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn draw(tree: &mut SumTree, draws: usize, seed: u64) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut counts, mut drawn) = (vec![0; tree.len()], Vec::new());
        for _ in 0..draws / 250 {
            tree.sample_stratified(250, &mut rng, &mut drawn);
            for leaf in &drawn {
                counts[*leaf as usize] += 1;
            }
        }
        counts
    }

    proptest! {
        #[test]
        fn sums_agree_with_naive_ones(
            leaves in 1_usize..700,
            updates in prop::collection::vec((0_usize..700, 0.0_f32..10.0), 0..200),
            batches in prop::collection::vec(prop::collection::vec((0_u32..700, 0.0_f32..10.0), 0..40), 0..5),
        ) {
            let mut tree = SumTree::new(leaves);
            let mut naive = vec![0.0_f32; leaves];
            for (leaf, priority) in updates {
                tree.set(leaf % leaves, priority).unwrap();
                naive[leaf % leaves] = priority;
            }
            for batch in batches {
                let (keys, priorities): (Vec<u32>, Vec<f32>) =
                    batch.iter().map(|(leaf, p)| (leaf % leaves as u32, *p)).unzip();
                tree.set_batch(&keys, &priorities).unwrap();
                for (leaf, priority) in keys.iter().zip(&priorities) {
                    naive[*leaf as usize] = *priority;
                }
            }
            for end in 0..=leaves {
                let exact: f64 = naive[..end].iter().map(|p| f64::from(*p)).sum();
                prop_assert!((tree.prefix(end) - exact).abs() <= 1e-6 * exact);
            }
            let mut rebuilt = SumTree::new(leaves);
            rebuilt.set_all(&naive).unwrap();
            prop_assert_eq!(&rebuilt.levels, &tree.levels);
        }

        #[test]
        fn each_stratum_draws_the_leaf_that_a_linear_search_finds(
            priorities in prop::collection::vec(prop_oneof![Just(0.0_f32), 0.0_f32..10.0], 1..300),
            seed in any::<u64>(),
        ) {
            let mut tree = SumTree::new(priorities.len());
            tree.set_all(&priorities).unwrap();
            let mut drawn = Vec::new();
            tree.sample_stratified(64, &mut ChaCha8Rng::seed_from_u64(seed), &mut drawn);
            if priorities.iter().all(|p| *p == 0.0) {
                prop_assert!(drawn.is_empty());
                return Ok(());
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let total: f64 = priorities.iter().map(|p| f64::from(*p)).sum();
            for (row, leaf) in drawn.iter().enumerate() {
                let value = (row as f64 + rng.random::<f64>()) * total / 64.0;
                let before: f64 = priorities[..*leaf as usize].iter().map(|p| f64::from(*p)).sum();
                let slack = 1e-5 * total;
                let own = f64::from(priorities[*leaf as usize]);
                prop_assert!(own > 0.0, "a leaf of priority 0 was drawn");
                prop_assert!(before - slack <= value && value <= before + own + slack);
            }
        }
    }

    #[test]
    fn draws_follow_the_priorities() {
        let priorities: Vec<f32> = (1..=100).map(|k| k as f32 * 0.01).collect();
        let mut tree = SumTree::new(100);
        tree.set_all(&priorities).unwrap();
        let total: f64 = priorities.iter().map(|p| f64::from(*p)).sum();
        let counts = draw(&mut tree, 1_000_000, 3);
        let chi: f64 = counts
            .iter()
            .zip(&priorities)
            .map(|(count, p)| {
                let expected = 1e6 * f64::from(*p) / total;
                (f64::from(*count) - expected).powi(2) / expected
            })
            .sum();
        // Strata make the counts more even than independent draws, so there is no lower bound.
        assert!(chi < 148.2, "chi-square {chi} of 99 degrees exceeds its 99.9 % quantile");
    }

    #[test]
    fn zero_is_never_drawn_not_even_in_the_padding() {
        let mut tree = SumTree::new(1001);
        let priorities: Vec<f32> = (0..1001).map(|k| if k % 3 == 0 { 0.1 + k as f32 } else { 0.0 }).collect();
        tree.set_all(&priorities).unwrap();
        let counts = draw(&mut tree, 1_000_000, 4);
        assert!(counts.iter().zip(&priorities).all(|(count, p)| *p > 0.0 || *count == 0));
        tree.set_all(&[0.0; 1001]).unwrap();
        tree.set(1000, 1e-30).unwrap();
        assert_eq!(draw(&mut tree, 1000, 5)[1000], 1000);
    }

    #[test]
    fn a_tiny_priority_beside_many_large_ones_disturbs_nothing() {
        for place in [0, 5000, 10_000] {
            let mut priorities = vec![0.3; 10_001];
            priorities[place] = 1e-15;
            let mut tree = SumTree::new(10_001);
            tree.set_all(&priorities).unwrap();
            let counts = draw(&mut tree, 1_000_000, 6);
            assert!(counts[place] <= 1, "drawn {} times instead of 3e-10 times", counts[place]);
            let least = counts.iter().enumerate().filter(|(k, _)| *k != place).map(|(_, c)| *c).min();
            assert!(least.unwrap() > 40, "a leaf of 100 expected draws was drawn {least:?} times");
        }
    }

    #[test]
    fn updates_do_not_accumulate_error() {
        let mut tree = SumTree::new(5000);
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (mut leaves, mut priorities) = (vec![0_u32; 256], vec![0.0_f32; 256]);
        for _ in 0..4000 {
            leaves.fill_with(|| rng.random_range(0..5000));
            priorities.fill_with(|| 10.0_f32.powf(rng.random_range(-3.0..3.0)));
            tree.set_batch(&leaves, &priorities).unwrap();
        }
        let exact: f64 = (0..5000).map(|leaf| f64::from(tree.get(leaf))).sum();
        let error = (f64::from(tree.total()) / exact - 1.0).abs();
        assert!(error < 1e-6, "relative error {error} after a million updates");
    }

    #[test]
    #[ignore = "long: 3e7 updates"]
    fn thirty_million_updates_do_not_accumulate_error() {
        let mut tree = SumTree::new(1_000_000);
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let (mut leaves, mut priorities) = (vec![0_u32; 256], vec![0.0_f32; 256]);
        for _ in 0..=30_000_000 / 256 {
            leaves.fill_with(|| rng.random_range(0..1_000_000));
            priorities.fill_with(|| 10.0_f32.powf(rng.random_range(-3.0..3.0)));
            tree.set_batch(&leaves, &priorities).unwrap();
        }
        let exact: f64 = (0..1_000_000).map(|leaf| f64::from(tree.get(leaf))).sum();
        let error = (f64::from(tree.total()) / exact - 1.0).abs();
        assert!(error < 1e-6, "relative error {error}");
    }

    #[test]
    fn poison_is_refused_and_nothing_is_written() {
        let mut tree = SumTree::new(10);
        for bad in [f32::NAN, -1.0, f32::INFINITY, f32::MAX] {
            assert!(tree.set(3, bad).is_err());
            assert!(tree.set_batch(&[1, 2], &[1.0, bad]).is_err());
            assert!(tree.set_all(&[bad; 10]).is_err());
        }
        assert!(tree.set_batch(&[1, 10], &[1.0, 1.0]).is_err());
        assert!(tree.set_batch(&[1], &[1.0, 1.0]).is_err());
        assert_eq!(tree.total(), 0.0);
        tree.set_all(&[tree.largest(); 10]).unwrap();
        assert!(tree.total().is_finite());
    }
}
