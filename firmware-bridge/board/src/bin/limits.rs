//! A second image: a million vectors through the limiter on this processor; the digest goes to the line as text.
#![no_std]
#![no_main]

#[path = "../mps2.rs"]
#[allow(dead_code, reason = "sends only")]
mod mps2;
#[path = "../vectors.rs"]
mod vectors;

use core::panic::PanicInfo;

use cortex_m_rt::entry;

#[entry]
fn main() -> ! {
    let digest = vectors::digest();
    if let Some(mut devices) = mps2::Board::start() {
        for nibble in (0..8).rev().map(|place| (digest >> (4 * place)) as u8 & 0xf) {
            devices.send(&[if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble }]);
        }
        devices.send(b"\n");
    }
    halt()
}

fn halt() -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    halt()
}
