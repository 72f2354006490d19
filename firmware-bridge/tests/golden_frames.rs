//! Promise: this crate and `include/fieldtune_frames.h` read and write the same bytes, those of
//! `include/fieldtune_frames.txt`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command as Process;

use firmware_bridge::{
    Command, Counters, DriveState, Faults, Frame, Header, Heartbeat, Hello, HelloAck, MAX_FRAME, MAX_WIRE, Message,
    State, StreamDecoder, TaskFlags,
};

const GOLDEN: &str = include_str!("../include/fieldtune_frames.txt");

fn state(values: usize) -> Message {
    let applied = (0..values.min(24)).map(|i| 0.5 - i as f32 / 16.0).collect();
    let observation = (0..values.saturating_sub(24).max(3)).map(|i| 1.5 * i as f32 - 2.0).collect();
    Message::State(State {
        tick: 3,
        episode: 9,
        drive: DriveState::Run,
        faults: Faults::WATCHDOG,
        task: TaskFlags(3),
        reward: -0.25,
        counters: Counters {
            crc_errors: 1,
            sequence_gaps: 2,
            late_commands: 3,
            rejected_commands: 4,
            overruns: 0x0506,
        },
        applied,
        observation,
    })
}

/// One frame of every kind, and the longest.
fn frames() -> Vec<Frame> {
    let messages = [
        Message::Hello(Hello { schema_hash: 0x0123_4567_89ab_cdef, session: 7 }),
        Message::HelloAck(HelloAck {
            schema_hash: 0x0123_4567_89ab_cdef,
            firmware: 0x0001_0203,
            boot_id: 0xdead_beef,
            control_period_us: 2000,
            watchdog_ms: 100,
            n_observation: 17,
            n_action: 6,
            drive: DriveState::Armed,
        }),
        Message::Command(Command { session: 0xa1b2_c3d4, valid_ms: 150, action: [0.5, -1.0].into_iter().collect() }),
        state(1),
        state(49),
        Message::Heartbeat(Heartbeat { drive: DriveState::Hold, boot_id: 0xdead_beef }),
        Message::TimeRequest { t1_us: 0x0102_0304_0506_0708 },
        Message::TimeReply { t1_us: 0x0102_0304_0506_0708, t2_us: 1 << 40, t3_us: (1 << 40) + 55 },
        Message::Estop,
        Message::Arm { session: 7 },
        Message::FaultReset,
        Message::Reset { episode: 2, seed: u64::MAX },
        Message::Disarm,
    ];
    let number = |(n, message)| Frame {
        header: Header { flags: 0, seq: 0xfffe_u16.wrapping_add(n), ack: 0x0304, t_us: 0x0506_0708 },
        message,
    };
    (0..).zip(messages).map(number).collect()
}

fn bits(values: &[f32]) -> String {
    values.iter().map(|value| format!("{:08x}", value.to_bits())).collect::<Vec<_>>().join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn name_and_fields(message: &Message) -> (&'static str, String) {
    match message {
        Message::Hello(m) => ("HELLO", format!(" schema_hash={} session={}", m.schema_hash, m.session)),
        Message::HelloAck(m) => (
            "HELLO_ACK",
            format!(
                " schema_hash={} firmware={} boot_id={} control_period_us={} watchdog_ms={} n_observation={} \
                 n_action={} drive={}",
                m.schema_hash,
                m.firmware,
                m.boot_id,
                m.control_period_us,
                m.watchdog_ms,
                m.n_observation,
                m.n_action,
                m.drive as u8
            ),
        ),
        Message::Command(m) => {
            ("COMMAND", format!(" session={} valid_ms={} action={}", m.session, m.valid_ms, bits(&m.action)))
        }
        Message::State(m) => {
            let c = m.counters;
            let fields = format!(
                " tick={} episode={} drive={} task={} faults={} reward={:08x} crc_errors={} sequence_gaps={} \
                 late_commands={} rejected_commands={} overruns={} applied={} observation={}",
                m.tick,
                m.episode,
                m.drive as u8,
                m.task.0,
                m.faults.0,
                m.reward.to_bits(),
                c.crc_errors,
                c.sequence_gaps,
                c.late_commands,
                c.rejected_commands,
                c.overruns,
                bits(&m.applied),
                bits(&m.observation)
            );
            ("STATE", fields)
        }
        Message::Heartbeat(m) => ("HEARTBEAT", format!(" boot_id={} drive={}", m.boot_id, m.drive as u8)),
        Message::TimeRequest { t1_us } => ("TIME_REQUEST", format!(" t1_us={t1_us}")),
        Message::TimeReply { t1_us, t2_us, t3_us } => {
            ("TIME_REPLY", format!(" t1_us={t1_us} t2_us={t2_us} t3_us={t3_us}"))
        }
        Message::Estop => ("ESTOP", String::new()),
        Message::Arm { session } => ("ARM", format!(" session={session}")),
        Message::FaultReset => ("FAULT_RESET", String::new()),
        Message::Reset { episode, seed } => ("RESET", format!(" episode={episode} seed={seed}")),
        Message::Disarm => ("DISARM", String::new()),
    }
}

fn lines(frames: &[Frame]) -> String {
    let mut text = String::new();
    for frame in frames {
        let (mut plain, mut wire) = ([0; MAX_FRAME], [0; MAX_WIRE]);
        let (plain_len, wire_len) = (frame.encode(&mut plain).unwrap(), frame.encode_stream(&mut wire).unwrap());
        let Header { seq, ack, t_us, .. } = frame.header;
        let (name, fields) = name_and_fields(&frame.message);
        let (plain, wire) = (hex(&plain[..plain_len]), hex(&wire[..wire_len]));
        writeln!(text, "{name} seq={seq} ack={ack} t_us={t_us}{fields} frame={plain} wire={wire}").unwrap();
    }
    text
}

fn golden() -> String {
    GOLDEN.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect()
}

/// A change of these bytes is a new version of the protocol: old firmware does not understand them.
#[test]
fn this_crate_writes_the_golden_frames() {
    let ours = lines(&frames());
    assert!(ours == golden(), "the bytes of the protocol have changed; now they are\n{ours}");
}

#[test]
fn this_crate_reads_the_golden_frames() {
    let mut decoder = StreamDecoder::new();
    let mut read = Vec::new();
    for line in golden().lines() {
        let wire = line.split(" wire=").nth(1).unwrap();
        let bytes = (0..wire.len()).step_by(2).map(|at| u8::from_str_radix(&wire[at..at + 2], 16).unwrap());
        read.extend(bytes.filter_map(|byte| decoder.push(byte)).map(|frame| frame.unwrap()));
    }
    assert_eq!(read, frames());
}

#[test]
fn firmware_in_c_reads_and_writes_the_golden_frames() {
    if Process::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: the C header of the frames: no C compiler (cc)");
        return;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("frames");
    let mut cc = Process::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(&program).arg(here.join("tests/frames.c"));
    let compiled = cc.arg("-I").arg(here.join("include")).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Process::new(program).arg(here.join("include/fieldtune_frames.txt")).output().unwrap();
    assert!(ran.status.success(), "{:?}", ran.status);
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), golden());
}
