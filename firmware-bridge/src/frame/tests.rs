//! Frames against golden bytes, damage, noise and arbitrary input.

use super::*;
use crate::message::{Command, Counters, DriveState, Faults, Heartbeat, Hello, HelloAck, State, TaskFlags};
use heapless::Vec;
use proptest::prelude::*;

fn encoded(frame: &Frame) -> Vec<u8, MAX_FRAME> {
    let mut out = Vec::from_slice(&[0xAA; MAX_FRAME]).unwrap();
    let len = frame.encode(&mut out).unwrap();
    out.truncate(len);
    out
}

fn on_wire(frame: &Frame) -> Vec<u8, MAX_WIRE> {
    let mut out = Vec::from_slice(&[0xAA; MAX_WIRE]).unwrap();
    let len = frame.encode_stream(&mut out).unwrap();
    out.truncate(len);
    out
}

fn command(seq: u16, action: &[f32]) -> Frame {
    Frame {
        header: Header { flags: 0, seq, ack: 0x0304, t_us: 0x0506_0708 },
        message: Message::Command(Command {
            session: 0xa1b2_c3d4,
            valid_ms: 150,
            action: Vec::from_slice(action).unwrap(),
        }),
    }
}

fn state(applied: &[f32], observation: &[f32]) -> Frame {
    Frame {
        header: Header { flags: 0, seq: 7, ack: 6, t_us: 1_000_000 },
        message: Message::State(State {
            tick: 3,
            episode: 9,
            drive: DriveState::Run,
            faults: Faults::WATCHDOG,
            task: TaskFlags(3),
            reward: -0.25,
            counters: Counters { crc_errors: 1, sequence_gaps: 2, late_commands: 3, rejected_commands: 4, overruns: 0 },
            applied: Vec::from_slice(applied).unwrap(),
            observation: Vec::from_slice(observation).unwrap(),
        }),
    }
}

fn frames_in(decoder: &mut StreamDecoder, bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| matches!(decoder.push(**byte), Some(Ok(_)))).count()
}

fn hex(text: &str) -> Vec<u8, MAX_WIRE> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

// Written by Python, which knows the tables of the protocol and not this code:
//   def frame(kind, seq, ack, t, payload):
//       body = struct.pack('<BBBBHHI', 1, kind, 0, len(payload), seq, ack, t) + payload
//       return (body + struct.pack('<I', crc32c(body))).hex()
//   frame(0x10, 0x0102, 0x0304, 0x05060708, struct.pack('<IBBH2f', 0xa1b2c3d4, 150, 2, 0, 0.5, -1.0))
//   frame(0x11, 7, 6, 1000000, struct.pack('<IIBBHf4HBBH', 3, 9, 2, 3, 1, -0.25, 1, 2, 3, 4, 1, 2, 0)
//         + struct.pack('<3f', 0.5, 1.5, -2.0))
const GOLDEN_COMMAND: &str = "011000100201040308070605d4c3b2a1960200000000003f000080bf08e521c6";
const GOLDEN_STATE: &str = "011100280700060040420f00030000000900000002030100000080be0100020003000400\
                            010200000000003f0000c03f000000c08502f2ee";
/// The same command, its parts between zeros joined by `bytes([len(part) + 1]) + part`.
const GOLDEN_WIRE: &str = "0003011010100201040308070605d4c3b2a1960201010101023f010780bf08e521c600";

#[test]
fn golden_bytes() {
    let cases = [(command(0x0102, &[0.5, -1.0]), GOLDEN_COMMAND), (state(&[0.5], &[1.5, -2.0]), GOLDEN_STATE)];
    for (frame, golden) in cases {
        assert_eq!(encoded(&frame), hex(golden));
        assert_eq!(Frame::decode(&hex(golden)), Ok(frame));
    }
    assert_eq!(on_wire(&command(0x0102, &[0.5, -1.0])), hex(GOLDEN_WIRE));
}

#[test]
fn largest_frames_fit_and_larger_ones_are_refused() {
    let full = state(&[1.0; 24], &[2.0; 25]);
    assert!(encoded(&full).len() <= MAX_FRAME && on_wire(&full).len() <= MAX_WIRE);
    assert_eq!(Frame::decode(&encoded(&full)), Ok(full));
    let values = EncodeError::TooManyValues { values: 50 };
    assert_eq!(state(&[1.0; 24], &[2.0; 26]).encode(&mut [0; MAX_FRAME]), Err(values));
    for available in 0..encoded(&command(1, &[0.0; 5])).len() {
        let error = EncodeError::NoRoom { available };
        assert_eq!(command(1, &[0.0; 5]).encode(&mut std::vec![0; available]), Err(error));
    }
}

/// Every flip of one bit and of two bits in a command (5 entries, 44 bytes) and in a state (17 values, 112 bytes).
#[test]
fn flipped_bits_are_rejected() {
    for (frame, len) in [(command(1, &[0.1; 5]), 44), (state(&[0.1; 6], &[0.2; 11]), 112)] {
        let mut bytes = encoded(&frame);
        assert_eq!(bytes.len(), len);
        let bits = 8 * len;
        for first in 0..bits {
            bytes[first / 8] ^= 1 << (first % 8);
            assert_eq!(Frame::decode(&bytes), Err(DecodeError::Checksum), "bit {first}");
            for second in first + 1..bits {
                bytes[second / 8] ^= 1 << (second % 8);
                assert_eq!(Frame::decode(&bytes), Err(DecodeError::Checksum), "bits {first} and {second}");
                bytes[second / 8] ^= 1 << (second % 8);
            }
            bytes[first / 8] ^= 1 << (first % 8);
        }
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }
}

#[test]
fn a_frame_cut_anywhere_does_not_take_the_next_one_with_it() {
    for frame in [command(1, &[0.1; 5]), state(&[0.1; 6], &[0.2; 11])] {
        let wire = on_wire(&frame);
        for cut in 0..wire.len() - 1 {
            let mut decoder = StreamDecoder::new();
            assert_eq!(frames_in(&mut decoder, &wire[..cut]), 0, "cut at {cut}");
            assert_eq!(frames_in(&mut decoder, &wire), 1, "cut at {cut}");
        }
    }
}

#[test]
fn other_versions_kinds_and_forms_are_named() {
    let resealed = |frame: &Frame, at: usize, byte: u8| {
        let mut bytes = encoded(frame);
        bytes[at] = byte;
        let body = bytes.len() - CHECKSUM;
        let checksum = crc32c(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&checksum);
        Frame::decode(&bytes)
    };
    let frame = command(1, &[0.1, 0.2]);
    assert_eq!(resealed(&frame, 0, 2), Err(DecodeError::Version { got: 2 }));
    assert_eq!(resealed(&frame, 1, 0x77), Err(DecodeError::Kind { got: 0x77 }));
    assert_eq!(resealed(&frame, 3, 15), Err(DecodeError::Length { bytes: 32 }));
    for (at, byte) in [(1, 0x30), (17, 1), (17, 25), (18, 1)] {
        assert!(matches!(resealed(&frame, at, byte), Err(DecodeError::Payload { .. })), "byte {at}");
    }
    assert_eq!(Frame::decode(&[0; 15]), Err(DecodeError::Length { bytes: 15 }));
    assert_eq!(resealed(&state(&[0.0], &[]), HEADER + 8, 5), Err(DecodeError::Payload { kind: 0x11 }));
}

fn any_drive() -> impl Strategy<Value = DriveState> {
    use DriveState::{Armed, Disarmed, Fault, Hold, Run};
    prop::sample::select(std::vec![Disarmed, Armed, Run, Hold, Fault])
}

fn any_values<const N: usize>(most: usize) -> impl Strategy<Value = Vec<f32, N>> {
    prop::collection::vec(any::<f32>(), 0..=most).prop_map(|values| Vec::from_slice(&values).unwrap())
}

prop_compose! {
    fn any_state()(
        numbers in any::<(u32, u32, u16, u8, f32)>(),
        drive in any_drive(),
        counts in any::<(u16, u16, u16, u16, u16)>(),
        applied in any_values(24),
        observation in any_values(25),
    ) -> Message {
        let (tick, episode, faults, task, reward) = numbers;
        let (crc_errors, sequence_gaps, late_commands, rejected_commands, overruns) = counts;
        Message::State(State {
            tick, episode, drive, faults: Faults(faults), task: TaskFlags(task), reward,
            counters: Counters { crc_errors, sequence_gaps, late_commands, rejected_commands, overruns },
            applied, observation,
        })
    }
}

prop_compose! {
    fn any_hello_ack()(
        hash in any::<u64>(), words in any::<(u32, u32, u32, u16, u8, u8)>(), drive in any_drive(),
    ) -> Message {
        let (firmware, boot_id, control_period_us, watchdog_ms, n_observation, n_action) = words;
        Message::HelloAck(HelloAck {
            schema_hash: hash, firmware, boot_id, control_period_us, watchdog_ms, n_observation, n_action, drive,
        })
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any::<(u64, u32)>().prop_map(|(schema_hash, session)| Message::Hello(Hello { schema_hash, session })),
        any_hello_ack(),
        (any::<(u32, u8)>(), any_values(24)).prop_map(|((session, valid_ms), action)| Message::Command(Command {
            session,
            valid_ms,
            action
        })),
        any_state(),
        (any_drive(), any::<u32>()).prop_map(|(drive, boot_id)| Message::Heartbeat(Heartbeat { drive, boot_id })),
        any::<u64>().prop_map(|t1_us| Message::TimeRequest { t1_us }),
        any::<(u64, u64, u64)>().prop_map(|(t1_us, t2_us, t3_us)| Message::TimeReply { t1_us, t2_us, t3_us }),
        any::<u32>().prop_map(|session| Message::Arm { session }),
        any::<(u32, u64)>().prop_map(|(episode, seed)| Message::Reset { episode, seed }),
        prop::sample::select(std::vec![Message::Estop, Message::FaultReset, Message::Disarm]),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    (any::<(u8, u16, u16, u32)>(), any_message())
        .prop_map(|((flags, seq, ack, t_us), message)| Frame { header: Header { flags, seq, ack, t_us }, message })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// `{:?}` compares every field and takes NaN for what it is.
    #[test]
    fn frames_come_back(frame in any_frame()) {
        let bytes = encoded(&frame);
        let decoded = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(std::format!("{:?}", decoded), std::format!("{:?}", frame));
        prop_assert_eq!(encoded(&decoded), bytes);
    }

    #[test]
    fn arbitrary_datagrams_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    /// Bytes with a right checksum around them reach the payload readers; what they take is canonical.
    #[test]
    fn arbitrary_payloads_are_refused_or_canonical(
        kind in prop::sample::select(std::vec![1_u8, 2, 0x10, 0x11, 0x12, 0x20, 0x21, 0x30, 0x31, 0x32, 0x33, 0x34]),
        payload in prop::collection::vec(prop_oneof![0_u8..30, any::<u8>()], 0..=MAX_PAYLOAD),
    ) {
        let mut bytes = std::vec![VERSION, kind, 0, payload.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(payload);
        bytes.extend(crc32c(&bytes).to_le_bytes());
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(&encoded(&frame)[..], &bytes[..]);
        }
    }

    #[test]
    fn a_stream_recovers_from_noise_at_once(
        noise in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..2000),
        frames in prop::collection::vec(any_frame(), 1..4),
    ) {
        let mut decoder = StreamDecoder::new();
        frames_in(&mut decoder, &noise);
        for frame in &frames {
            prop_assert_eq!(frames_in(&mut decoder, &on_wire(frame)), 1);
        }
    }
}

/// Streams of damaged frames, spliced frames and noise through decoder and board; every frame that comes out is one that
/// was written.
fn fuzz(streams: u64) -> (u64, u64) {
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        bits
    };
    let mut decoder = StreamDecoder::new();
    let mut board = crate::Board::new(Still, STILL);
    let (mut good, mut bad) = (0, 0);
    for stream in 0..streams {
        let seq = stream as u16;
        let message = match next() % 6 {
            0 => command(seq, &[0.1; 5]).message,
            1 => state(&[0.1; 6], &[0.2; 11]).message,
            2 => Message::Arm { session: 0xa1b2_c3d4_u32.wrapping_add(seq.into()) },
            3 => Message::Reset { episode: seq.into(), seed: next() },
            4 => Message::TimeRequest { t1_us: next() },
            _ => Message::FaultReset,
        };
        let mut bytes = on_wire(&Frame { header: Header { seq, ..Header::default() }, message });
        for _ in 0..next() % 4 {
            let at = next() as usize % bytes.len();
            match next() % 5 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes[at] = next() as u8,
                2 => bytes.truncate(at.max(1)),
                3 => bytes.rotate_left(at),
                _ => drop(bytes.push(next() as u8)),
            }
        }
        for byte in &bytes {
            match decoder.push(*byte) {
                Some(Ok(frame)) => {
                    good += 1;
                    board.take(&frame, stream * 100);
                }
                Some(Err(_)) => {
                    bad += 1;
                    board.take_invalid();
                }
                None => {}
            }
        }
        board.period(stream * 100);
        assert!(board.drive() == DriveState::Run || board.state().applied.iter().all(|value| *value == 0.0));
    }
    (good, bad)
}

struct Still;

impl crate::Plant for Still {
    fn reset(&mut self, _seed: u64) {}
    fn step(&mut self, _action: &[f32]) -> crate::Outcome {
        crate::Outcome::default()
    }
    fn observe(&self, _out: &mut [f32]) {}
}

const STILL: crate::BoardConfig = crate::BoardConfig {
    schema_hash: 1,
    n_observation: 11,
    n_action: 5,
    limits: crate::Limits { magnitude: 1.0, slew: 2.0 },
    firmware: 1,
    boot_id: 1,
    period_us: 100,
    watchdog_ms: 10,
    fault_ms: 50,
};

#[test]
fn a_million_fuzzed_streams_are_survived() {
    let (good, bad) = fuzz(1_000_000);
    assert!(good > 200_000 && bad > 200_000, "{good} {bad}");
}
