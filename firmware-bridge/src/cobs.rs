//! Consistent overhead byte stuffing: a block of bytes without a single zero, so that zero can delimit frames.

/// Writes the stuffed form of `bytes` into `out` and returns its length, `None` when it does not fit.
pub(crate) fn encode(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut code_at = 0;
    let mut end = 1;
    let mut code = 1_u8;
    for &byte in bytes {
        if code == u8::MAX {
            *out.get_mut(code_at)? = code;
            (code_at, end, code) = (end, end + 1, 1);
        }
        if byte == 0 {
            *out.get_mut(code_at)? = code;
            (code_at, end, code) = (end, end + 1, 1);
        } else {
            *out.get_mut(end)? = byte;
            end += 1;
            code += 1;
        }
    }
    *out.get_mut(code_at)? = code;
    Some(end)
}

/// Undoes [`encode`] in place and returns the length, `None` when `bytes` is not a stuffed block.
pub(crate) fn decode(bytes: &mut [u8]) -> Option<usize> {
    let (mut written, mut run, mut zero_due) = (0, 0, false);
    for read in 0..bytes.len() {
        let byte = *bytes.get(read)?;
        if byte == 0 {
            return None;
        }
        if run > 0 {
            *bytes.get_mut(written)? = byte;
            (written, run) = (written + 1, run - 1);
            continue;
        }
        // A code: the run in front of it ended in a zero unless it was the longest one.
        if zero_due {
            *bytes.get_mut(written)? = 0;
            written += 1;
        }
        (run, zero_due) = (byte - 1, byte != u8::MAX);
    }
    if run > 0 {
        return None;
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The examples of Cheshire and Baker's paper, in the form of the usual tables.
    #[test]
    fn published_examples() {
        let run: Vec<u8> = (1..=254).collect();
        let mut stuffed_run = std::vec![0xff];
        stuffed_run.extend(&run);
        let cases: [(&[u8], &[u8]); 6] = [
            (&[], &[1]),
            (&[0], &[1, 1]),
            (&[0, 0], &[1, 1, 1]),
            (&[0x11, 0x22, 0, 0x33], &[3, 0x11, 0x22, 2, 0x33]),
            (&[0x11, 0, 0, 0], &[2, 0x11, 1, 1, 1]),
            (&run, &stuffed_run),
        ];
        for (plain, stuffed) in cases {
            let mut out = [0; 300];
            let n = encode(plain, &mut out).unwrap();
            assert_eq!(&out[..n], stuffed);
            assert_eq!(decode(&mut out[..n]), Some(plain.len()));
            assert_eq!(&out[..plain.len()], plain);
        }
    }

    proptest! {
        #[test]
        fn round_trip(plain in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>(), Just(7)], 0..600)) {
            let mut out = std::vec![0; plain.len() + plain.len() / 254 + 2];
            let n = encode(&plain, &mut out).unwrap();
            prop_assert!(!out[..n].contains(&0));
            prop_assert!(n <= plain.len() + plain.len() / 254 + 1);
            let m = decode(&mut out[..n]).unwrap();
            prop_assert_eq!(&out[..m], &plain[..]);
        }

        #[test]
        fn any_bytes_and_any_room_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..300), room in 0_usize..300) {
            let mut out = std::vec![0; room];
            let _ = encode(&bytes, &mut out);
            let _ = decode(&mut bytes);
        }
    }
}
