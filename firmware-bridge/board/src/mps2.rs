//! The devices of an mps2-an386 board: first serial line, free-running counter, a word that survives a reset.
//!
//! The only place of the image with `unsafe`: fixed addresses of device registers (ARM DAI0386 and the CMSDK
//! manual). The main loop and one interrupt share the receive queue and nothing else.

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cortex_m::interrupt::{InterruptNumber, Mutex};
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{NVIC, Peripherals};
use cortex_m_rt::exception;
use heapless::spsc::{Consumer, Producer, Queue};

/// Core clock.
const CORE_HZ: u32 = 25_000_000;
/// How often the core wakes up when nothing comes.
const WAKE_HZ: u32 = 1000;
/// Line rate; the divider of QEMU's line has no effect.
const BAUD: u32 = 921_600;
/// Received bytes that may wait: four of the longest frames.
const QUEUE: usize = 1024;

mod uart {
    pub(super) const DATA: usize = 0x4000_4000;
    pub(super) const STATE: usize = DATA + 0x4;
    pub(super) const CONTROL: usize = DATA + 0x8;
    pub(super) const INTERRUPT: usize = DATA + 0xc;
    pub(super) const DIVIDER: usize = DATA + 0x10;
    pub(super) const TX_FULL: u32 = 1;
    pub(super) const RX_FULL: u32 = 1 << 1;
    pub(super) const RX_OVERRUN: u32 = 1 << 3;
    /// Transmitter, receiver, receive interrupt.
    pub(super) const ENABLE: u32 = 1 | 1 << 1 | 1 << 3;
    pub(super) const RX_INTERRUPT: u32 = 1 << 1;
}
const COUNTER: usize = 0x4002_8018;
const PRESCALER: usize = 0x4002_801c;

/// Interrupt 0: the receiver of the first serial line.
#[derive(Clone, Copy)]
struct Receiver;

#[allow(unsafe_code, reason = "the number names an interrupt of this chip")]
// SAFETY: always the same number, and one that the chip has.
unsafe impl InterruptNumber for Receiver {
    fn number(self) -> u16 {
        0
    }
}

static RECEIVED: Mutex<Cell<Option<Producer<'static, u8>>>> = Mutex::new(Cell::new(None));
/// Bytes that came too fast.
static OVERRUNS: AtomicU32 = AtomicU32::new(0);

#[allow(unsafe_code, reason = "device registers")]
fn read(register: usize) -> u32 {
    // SAFETY: every caller passes one of the constants above: aligned device registers of this board.
    unsafe { core::ptr::read_volatile(register as *const u32) }
}

#[allow(unsafe_code, reason = "device registers")]
fn write(register: usize, value: u32) {
    // SAFETY: as in `read`; the values enable the line and the counter and reach no memory.
    unsafe { core::ptr::write_volatile(register as *mut u32, value) }
}

/// Starts of this board since power came, this one included.
#[allow(unsafe_code, reason = "a word that start-up does not clear")]
pub(crate) fn starts() -> u32 {
    #[unsafe(link_section = ".uninit.STARTS")]
    static mut STARTS: MaybeUninit<u32> = MaybeUninit::uninit();
    let place = (&raw mut STARTS).cast::<u32>();
    // SAFETY: called once, in front of the main loop, with nothing else that knows the place. Whatever the memory
    // held at power-up is a valid number.
    unsafe {
        let starts = core::ptr::read_volatile(place).wrapping_add(1);
        core::ptr::write_volatile(place, starts);
        starts
    }
}

/// The serial line and the clock.
pub(crate) struct Board {
    received: Consumer<'static, u8>,
    overruns: u32,
    /// Of the counter, for its wraps.
    last: u32,
    wraps: u32,
}

impl Board {
    /// Starts the devices; `None` the second time.
    pub(crate) fn start() -> Option<Self> {
        let mut core = Peripherals::take()?;
        let queue = cortex_m::singleton!(: Queue<u8, QUEUE> = Queue::new())?;
        let (producer, received) = queue.split();
        cortex_m::interrupt::free(|token| RECEIVED.borrow(token).set(Some(producer)));
        write(PRESCALER, CORE_HZ / 1_000_000 - 1);
        write(uart::DIVIDER, CORE_HZ / BAUD);
        write(uart::CONTROL, uart::ENABLE);
        core.SYST.set_clock_source(SystClkSource::Core);
        core.SYST.set_reload(CORE_HZ / WAKE_HZ - 1);
        core.SYST.clear_current();
        core.SYST.enable_counter();
        core.SYST.enable_interrupt();
        #[allow(unsafe_code, reason = "the interrupt may come from here on")]
        // SAFETY: its handler finds the producer in place, and no code relies on the interrupt being masked.
        unsafe {
            NVIC::unmask(Receiver);
        }
        Some(Self { received, overruns: 0, last: 0, wraps: 0 })
    }

    /// Microseconds since the start, of a hardware counter: it goes on whatever the core does. Call it at least once
    /// an hour.
    pub(crate) fn now_us(&mut self) -> u64 {
        let count = read(COUNTER);
        self.wraps = self.wraps.wrapping_add(u32::from(count < self.last));
        self.last = count;
        u64::from(self.wraps) << 32 | u64::from(count)
    }

    /// The next byte of the line.
    pub(crate) fn receive(&mut self) -> Option<u8> {
        self.received.dequeue()
    }

    /// Bytes lost since the last call.
    pub(crate) fn overruns(&mut self) -> u16 {
        let total = OVERRUNS.load(Relaxed);
        let lost = total.wrapping_sub(self.overruns);
        self.overruns = total;
        lost as u16
    }

    /// Sends `bytes`, as fast as the line takes them.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            while read(uart::STATE) & uart::TX_FULL != 0 {}
            write(uart::DATA, u32::from(*byte));
        }
    }

    /// Sleeps until a byte comes, at most for a millisecond.
    pub(crate) fn sleep(&mut self) {
        // With interrupts held back a byte that comes in between still ends the sleep.
        cortex_m::interrupt::free(|_| {
            if !self.received.ready() {
                cortex_m::asm::wfi();
            }
        });
    }
}

/// Every interrupt of a device.
#[allow(unsafe_code, reason = "the form that the vector table asks for")]
// SAFETY: called by the hardware alone.
#[exception]
unsafe fn DefaultHandler(_number: i16) {
    // Cleared first: a byte that comes while the line is drained asks again.
    write(uart::INTERRUPT, uart::RX_INTERRUPT);
    cortex_m::interrupt::free(|token| {
        let Some(mut producer) = RECEIVED.borrow(token).take() else { return };
        while read(uart::STATE) & uart::RX_FULL != 0 {
            let byte = read(uart::DATA) as u8;
            if producer.enqueue(byte).is_err() {
                OVERRUNS.fetch_add(1, Relaxed);
            }
        }
        RECEIVED.borrow(token).set(Some(producer));
    });
    if read(uart::STATE) & uart::RX_OVERRUN != 0 {
        write(uart::STATE, uart::RX_OVERRUN);
        OVERRUNS.fetch_add(1, Relaxed);
    }
}

/// Wakes the core, no more.
#[exception]
fn SysTick() {}
