//! One number for the meaning of all observation and action entries.

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a (64 bit) of the UTF-8 text `obs\0NAME\0...act\0NAME\0...`.
///
/// Two ends with the same hash agree on names, units (they are part of the names), order and split.
pub fn schema_hash<'a>(
    observation: impl IntoIterator<Item = &'a str>,
    action: impl IntoIterator<Item = &'a str>,
) -> u64 {
    let texts = core::iter::once("obs").chain(observation).chain(core::iter::once("act")).chain(action);
    texts
        .flat_map(|text| text.bytes().chain(core::iter::once(0)))
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_order_and_split_all_count() {
        let base = schema_hash(["a", "b"], ["c"]);
        assert_eq!(base, schema_hash(["a", "b"], ["c"]));
        for other in [
            schema_hash(["b", "a"], ["c"]),
            schema_hash(["a"], ["b", "c"]),
            schema_hash(["ab"], ["c"]),
            schema_hash(["a", "b", "c"], []),
        ] {
            assert_ne!(base, other);
        }
    }

    /// `h=0xcbf29ce484222325`, then `h=((h^b)*0x100000001b3)%2**64` over `b"obs\0x\0act\0u\0"` in Python.
    #[test]
    fn value_is_the_published_fnv_1a() {
        assert_eq!(schema_hash(["x"], ["u"]), 0x901a_7a4b_bec7_e2c2);
    }
}
