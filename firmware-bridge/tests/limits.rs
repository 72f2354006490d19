//! Promise: the host's limiter and the drive behind frames give the same bits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../board/src/vectors.rs"]
#[allow(unreachable_pub, dead_code, clippy::new_without_default, reason = "a file of the board image")]
mod vectors;

use firmware_bridge::{Command, Drive, DriveConfig, DriveState, Frame, Header, Limited, Limiter, MAX_FRAME, Message};
use vectors::{ENTRIES, LIMITS, VECTORS, Vectors};

/// The digest that the image `limits` computes on a Cortex-M4F (`tools/firmware-qemu` compares it there).
#[test]
fn the_digest_of_the_limited_vectors_is_the_one_of_the_board() {
    assert_eq!(format!("{:08x}", vectors::digest()), "28e1263b");
}

#[test]
fn a_million_vectors_through_limiter_and_drive() {
    let mut drive = Drive::new(DriveConfig { n_action: ENTRIES, limits: LIMITS, watchdog_us: 1000, fault_us: 2000 });
    drive.on_arm(1, 0).unwrap();
    let (mut limiter, mut vectors, mut bytes) = (Limiter::new(LIMITS), Vectors::new(), [0; MAX_FRAME]);
    let (mut taken, mut refused, mut cut) = (0_u32, 0_u32, 0_u32);
    for n in 0..VECTORS {
        let vector = vectors.next_vector();
        let command = Command { session: 1, valid_ms: 1, action: vector.into_iter().collect() };
        let header = Header { seq: n as u16, ..Header::default() };
        let len = Frame { header, message: Message::Command(command) }.encode(&mut bytes).unwrap();
        let Message::Command(command) = Frame::decode(&bytes[..len]).unwrap().message else { unreachable!() };
        let before: Vec<u32> = drive.output().iter().map(|value| value.to_bits()).collect();
        let good = drive.on_command(&command, n as u16, 0).is_ok();
        let after: Vec<u32> = drive.output().iter().map(|value| value.to_bits()).collect();

        let mut limited = vector;
        assert_eq!(good, limited.iter().all(|value| value.abs() <= LIMITS.magnitude), "{vector:?}");
        if !good {
            // What the host would have cut or zeroed the drive does not take at all.
            assert_eq!(before, after);
            refused += 1;
            continue;
        }
        taken += 1;
        cut += u32::from(limiter.limit(&mut limited) == Limited::Yes);
        assert_eq!(after, limited.map(f32::to_bits), "vector {n}: {vector:?}");
        assert_eq!(drive.state(), DriveState::Run);
    }
    assert_eq!(taken + refused, VECTORS);
    assert!(taken > 300_000 && refused > 300_000 && cut > 200_000, "{taken} {refused} {cut}");
}
