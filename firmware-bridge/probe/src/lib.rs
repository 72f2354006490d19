//! Everything a microcontroller calls in `firmware-bridge`, behind one symbol. `tests/panic_free.rs` links it and looks
//! for `core::panicking`.
#![no_std]

use core::hint::black_box;
use core::panic::PanicInfo;

use firmware_bridge::{
    Board, BoardConfig, Frame, Header, IMAGE_HEADER, ImageHeader, Limits, MAX_WIRE, Message, Outcome, Plant, Reply, StreamDecoder, crc32c,
    schema_hash,
};

struct Echo([f32; 4]);

impl Plant for Echo {
    fn reset(&mut self, seed: u64) {
        self.0 = [seed as f32; 4];
    }

    fn step(&mut self, action: &[f32]) -> Outcome {
        for (value, action) in self.0.iter_mut().zip(action) {
            *value += *action;
        }
        Outcome { reward: 0.0, terminated: black_box(false) }
    }

    fn observe(&self, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(self.0) {
            *out = value;
        }
    }
}

fn answer(board: &mut Board<Echo>, frame: &Frame, now_us: u64, out: &mut [u8]) -> usize {
    let message = match board.take(frame, now_us) {
        Reply::HelloAck => Message::HelloAck(board.hello_ack()),
        Reply::Time { t1_us } => Message::TimeReply { t1_us, t2_us: now_us, t3_us: now_us },
        Reply::Step | Reply::State | Reply::LastState => Message::State(board.state()),
        Reply::Silence => return 0,
    };
    let frame = Frame { header: Header { ack: board.ack(), ..frame.header }, message };
    frame.encode_stream(out).unwrap_or_default() + frame.encode(out).unwrap_or_default()
}

/// Bytes, times and a configuration that the compiler knows nothing about, through every public function.
// The name has to survive to the linker.
#[unsafe(no_mangle)]
pub extern "C" fn probe() -> usize {
    let config = black_box(BoardConfig {
        schema_hash: schema_hash(black_box(["x", "y"]), black_box(["u"])),
        n_observation: 2,
        n_action: 1,
        limits: Limits { magnitude: 1.0, slew: 0.1 },
        firmware: 1,
        boot_id: 1,
        period_us: 10_000,
        watchdog_ms: 100,
        fault_ms: 500,
    });
    let mut board = Board::new(Echo([0.0; 4]), config);
    let mut decoder = StreamDecoder::new();
    let mut written = crc32c(&black_box([0_u8; 16])) as usize;
    let bytes = black_box([0_u8; 600]);
    let mut out = [0; MAX_WIRE];
    for byte in bytes {
        let now_us = black_box(0);
        match decoder.push(byte) {
            Some(Ok(frame)) => written += answer(&mut board, &frame, now_us, &mut out),
            Some(Err(_)) => board.take_invalid(),
            None => board.take_overruns(black_box(0)),
        }
        board.period(now_us);
        board.poll(now_us);
    }
    if let Ok(frame) = Frame::decode(bytes.get(..black_box(100)).unwrap_or_default()) {
        written += answer(&mut board, &frame, black_box(0), &mut out);
    }
    if let Ok(header) = ImageHeader::decode(&black_box([0; IMAGE_HEADER])) {
        written += usize::from(header.encode().is_ok());
    }
    #[cfg(feature = "panics")]
    {
        written += usize::from(bytes[black_box(0_usize)]);
    }
    black_box(out);
    written + board.totals().steps as usize
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
