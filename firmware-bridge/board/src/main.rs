//! The image: bytes of the line to the board of `firmware-bridge`, its answers to the line, one STATE per period.
#![no_std]
#![no_main]

mod mps2;
mod plant;

use core::panic::PanicInfo;

use cortex_m_rt::entry;
use firmware_bridge::{Board, Frame, Header, Heartbeat, MAX_WIRE, Message, Reply, StreamDecoder};

use plant::{Joints, PERIOD_US};

/// The line and what is needed to speak on it.
struct Firmware {
    devices: mps2::Board,
    board: Board<Joints>,
    boot_id: u32,
    /// Somebody listens: a HELLO came.
    greeted: bool,
    seq: u16,
}

#[entry]
fn main() -> ! {
    // Knuth's multiplicative hash: starts that follow each other look nothing alike.
    let boot_id = mps2::starts().wrapping_mul(0x9e37_79b9);
    let Some(devices) = mps2::Board::start() else { halt() };
    let board = Board::new(Joints::default(), plant::config(boot_id));
    Firmware { devices, board, boot_id, greeted: false, seq: 0 }.run()
}

impl Firmware {
    fn run(&mut self) -> ! {
        let mut decoder = StreamDecoder::new();
        let mut due_us = self.devices.now_us();
        loop {
            while let Some(byte) = self.devices.receive() {
                match decoder.push(byte) {
                    Some(Ok(frame)) => self.take(&frame),
                    Some(Err(_)) => self.board.take_invalid(),
                    None => {}
                }
            }
            let lost = self.devices.overruns();
            self.board.take_overruns(lost);
            self.watch();
            let now_us = self.devices.now_us();
            if now_us >= due_us {
                due_us += u64::from(PERIOD_US);
                // Periods that were missed are skipped: the phase stays.
                while now_us >= due_us {
                    due_us += u64::from(PERIOD_US);
                }
                self.board.period(now_us);
                self.send_state();
            }
            self.devices.sleep();
        }
    }

    /// The watchdog; when it stops the drive, that is said at once.
    fn watch(&mut self) {
        let before = self.board.drive();
        let now_us = self.devices.now_us();
        self.board.poll(now_us);
        let drive = self.board.drive();
        if drive != before {
            let boot_id = self.boot_id;
            self.send(Message::Heartbeat(Heartbeat { drive, boot_id }), self.board.ack());
        }
    }

    fn take(&mut self, frame: &Frame) {
        let now_us = self.devices.now_us();
        self.greeted |= matches!(frame.message, Message::Hello(_));
        match self.board.take(frame, now_us) {
            Reply::HelloAck => self.send(Message::HelloAck(self.board.hello_ack()), frame.header.seq),
            Reply::Time { t1_us } => {
                let t3_us = self.devices.now_us();
                self.send(Message::TimeReply { t1_us, t2_us: now_us, t3_us }, frame.header.seq);
            }
            Reply::LastState => self.send_state(),
            // Answered by the STATE of the period.
            Reply::Step | Reply::State | Reply::Silence => {}
        }
    }

    fn send_state(&mut self) {
        self.send(Message::State(self.board.state()), self.board.ack());
    }

    fn send(&mut self, message: Message, ack: u16) {
        if !self.greeted {
            return;
        }
        self.seq = self.seq.wrapping_add(1);
        let header = Header { flags: 0, seq: self.seq, ack, t_us: self.devices.now_us() as u32 };
        let mut bytes = [0; MAX_WIRE];
        if let Ok(len) = (Frame { header, message }).encode_stream(&mut bytes) {
            self.devices.send(bytes.get(..len).unwrap_or_default());
        }
    }
}

fn halt() -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}

/// Nothing in this image panics (`tools/firmware-qemu` looks for it): the compiler asks for a handler all the same.
#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    halt()
}
