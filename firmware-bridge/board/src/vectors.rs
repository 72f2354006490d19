//! Arbitrary actions through the limiter, the same ones on every machine.

use firmware_bridge::{Limiter, Limits};

/// Entries of a vector.
pub const ENTRIES: usize = 4;
/// Vectors of the comparison.
pub const VECTORS: u32 = 1_000_000;
/// Limits of the comparison.
pub const LIMITS: Limits = Limits { magnitude: 0.9, slew: 0.3 };

/// Marsaglia's xorshift32.
pub struct Vectors(u32);

impl Vectors {
    /// From the first vector on.
    pub const fn new() -> Self {
        Self(0x2545_f491)
    }

    /// The next vector: mostly values around the limits, sometimes any bits at all.
    pub fn next_vector(&mut self) -> [f32; ENTRIES] {
        core::array::from_fn(|_| {
            let bits = self.next_bits();
            match bits % 64 {
                0 => f32::from_bits(self.next_bits()),
                1 => LIMITS.magnitude,
                2 => -0.0,
                // 24 bits are exact in an f32: a value in [-1.1, 1.1).
                _ => ((bits >> 8) as f32 - 8_388_608.0) * (1.1 / 8_388_608.0),
            }
        })
    }

    fn next_bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

/// FNV-1a over the bits of all limited vectors.
pub fn digest() -> u32 {
    let (mut vectors, mut limiter, mut hash) = (Vectors::new(), Limiter::new(LIMITS), 0x811c_9dc5_u32);
    for _ in 0..VECTORS {
        let mut vector = vectors.next_vector();
        limiter.limit(&mut vector);
        for entry in vector {
            hash = (hash ^ entry.to_bits()).wrapping_mul(0x0100_0193);
        }
    }
    hash
}
