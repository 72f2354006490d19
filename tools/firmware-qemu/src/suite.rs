//! The checks. Each says what was asked and what was seen; none trusts the host's clock for more than a bound.

use std::time::Duration;

use anyhow::Context as _;
use fieldtune::clock::{Clock, monotonic};
use fieldtune::robot::{ClockEstimate, FirmwareRobot, Link as _, Observed, Robot as _, TimeSync};
use fieldtune::spaces::Spaces;
use firmware_bridge::{DriveState, Message};
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::host::Host;
use crate::image::Images;
use crate::machine::{Line, Machine, pause};
use crate::plant::{ACTION, OBSERVATION, PERIOD_US};
use crate::vectors;

const PERIOD: Duration = Duration::from_micros(PERIOD_US as u64);
const ZERO: [f32; 2] = [0.0, 0.0];

/// One line of the table.
pub struct Row {
    /// What was checked.
    pub check: &'static str,
    /// What was asked for.
    pub asked: &'static str,
    /// What came out.
    pub seen: String,
    /// Whether that is enough.
    pub passed: bool,
}

pub(crate) fn row(check: &'static str, asked: &'static str, passed: bool, seen: String) -> Row {
    Row { check, asked, seen, passed }
}

/// Runs every check on the built images.
pub(crate) fn all(images: &Images) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![size(images)?, panics(images)?, limits(images)?];
    let (machine, line) = Machine::start(&images.path("board"))?;
    let mut host = Host::new(line.again()?);
    host.hello()?;
    rows.push(echo(&mut host).context("echo")?);
    rows.push(real_host(line.again()?).context("the host's own loop")?);
    rows.push(watchdog(&mut host).context("watchdog")?);
    rows.push(bit_flips(&mut host).context("bit flips")?);
    rows.push(garbage(&mut host).context("garbage")?);
    rows.push(time(&mut host).context("time")?);
    rows.push(restart(&machine, &mut host).context("restart")?);
    Ok(rows)
}

fn size(images: &Images) -> anyhow::Result<Row> {
    let bytes = images.flash_bytes("board")?;
    Ok(row("size of the image", "at most 32 KiB of flash", bytes <= 32 * 1024, format!("{bytes} bytes")))
}

fn panics(images: &Images) -> anyhow::Result<Row> {
    let can = images.can_panic("board")? || images.can_panic("limits")?;
    let seen = if can { "there is one" } else { "none" };
    Ok(row("panics in the image", "no `panicking` symbol", !can, seen.into()))
}

/// A million vectors through the limiter on both processors.
fn limits(images: &Images) -> anyhow::Result<Row> {
    let (_machine, mut line) = Machine::start(&images.path("limits"))?;
    let theirs = line.read_text(Duration::from_mins(2))?;
    let ours = format!("{:08x}", vectors::digest());
    let seen = format!("{} vectors, digest {theirs} on the board, {ours} here", vectors::VECTORS);
    Ok(row("limits on the board and here", "the same bits", theirs == ours, seen))
}

/// Commands at 100 Hz: every one has to be taken, and comes back as the applied action.
fn echo(host: &mut Host) -> anyhow::Result<Row> {
    const COMMANDS: u32 = 500;
    host.begin()?;
    let before = host.state_now()?.counters;
    let lost_before = host.line.counters();
    let mut due = monotonic();
    let (mut echoed, mut trips) = (0, Vec::new());
    for n in 0..COMMANDS {
        let action = [(n as f32 * 0.1).sin() * 0.4, (n as f32 * 0.1).cos() * 0.4];
        let sent = monotonic();
        let seq = host.command(action, 100)?;
        let state = host.state("STATE for a command", |header, state| header.ack == seq && state.applied[..] == action);
        trips.push(monotonic().since(sent).as_micros() as u64);
        echoed += u32::from(state?.drive == DriveState::Run);
        due = due.plus(PERIOD);
        // A machine that was starved catches up with nothing: the next command is one period later.
        due = due.max(monotonic());
        Clock::Monotonic.sleep_until(due);
    }
    let after = host.state_now()?.counters;
    let lost = host.line.counters();
    trips.sort_unstable();
    let clean = after == before && lost.crc_errors + lost.malformed == lost_before.crc_errors + lost_before.malformed;
    let seen = format!(
        "{echoed} of {COMMANDS}, counters {}; command to STATE p50 {:.1} ms, p99 {:.1} ms (of a 10 ms period)",
        if clean { "unchanged" } else { "changed" },
        trips[trips.len() / 2] as f64 / 1e3,
        trips[trips.len() * 99 / 100] as f64 / 1e3,
    );
    Ok(row("echo at 100 Hz", "every command applied, nothing counted", echoed == COMMANDS && clean, seen))
}

/// The host's real half of the protocol, in its real-time form.
fn real_host(line: Line) -> anyhow::Result<Row> {
    const TICKS: u32 = 200;
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let spaces = Spaces { observation: names(&OBSERVATION), action: names(&ACTION) };
    let patience = Duration::from_secs(10);
    let link = Box::new(line);
    let mut robot = FirmwareRobot::connect(link, &spaces, PERIOD, false, 100, patience, Clock::Monotonic)?;
    robot.arm()?;
    let mut seen = Observed::default();
    robot.request_reset(7, 0)?;
    let (mut due, mut states, mut skipped, mut oldest) = (monotonic(), 0, 0, Duration::ZERO);
    let until = due.plus(patience);
    while states < TICKS && monotonic() < until {
        if robot.observe(&mut seen)? && seen.episode == 7 {
            states += 1;
            skipped += seen.skipped;
            oldest = oldest.max(monotonic().since(seen.capture));
            robot.apply(&[0.1, -0.1])?;
        }
        due = due.plus(PERIOD);
        Clock::Monotonic.sleep_until(due.max(monotonic()));
    }
    let clock = robot.clock_estimate().unwrap_or_default();
    robot.disarm();
    let passed = states == TICKS && seen.drive == DriveState::Run && clock.exchanges > 16;
    let seen = format!(
        "{states} states, {skipped} skipped, oldest {:.1} ms at use; clock known to {} us",
        oldest.as_secs_f64() * 1e3,
        clock.uncertainty_us
    );
    Ok(row("the host's own robot", "arms, resets, runs 200 ticks", passed, seen))
}

/// A command that is valid for 20 ms, then silence.
fn watchdog(host: &mut Host) -> anyhow::Result<Row> {
    const TRIALS: u32 = 20;
    const VALID_MS: u8 = 20;
    let (mut tripped, mut earliest, mut latest) = (0, u32::MAX, 0);
    for _ in 0..TRIALS {
        host.begin()?;
        // The board's clock in front of the command and behind it.
        let before = host.exchange()?.t3_us;
        let seq = host.command([0.5, -0.5], VALID_MS)?;
        let behind = host.exchange()?.t2_us;
        let is_hold =
            |h: &crate::host::Heard| matches!(&h.message, Message::Heartbeat(beat) if beat.drive == DriveState::Hold);
        let hold = host.wait("HEARTBEAT of the watchdog", is_hold)?.header.t_us;
        earliest = earliest.min(hold.wrapping_sub(before as u32));
        latest = latest.max(hold.wrapping_sub(behind as u32));
        let held = host.state("STATE in HOLD", |_, state| state.drive == DriveState::Hold && state.applied[..] == ZERO);
        held?;
        host.state("STATE in FAULT", |header, state| state.drive == DriveState::Fault && header.ack == seq)?;
        // The stream goes on as if nothing had happened.
        for _ in 0..3 {
            host.command([0.5, -0.5], VALID_MS)?;
        }
        let state = host.state_now()?;
        let dead = state.drive == DriveState::Fault && state.applied[..] == ZERO && state.observation[2..] == ZERO;
        tripped += u32::from(dead);
    }
    let seen = format!(
        "{tripped} of {TRIALS}; on the board's clock never within {:.1} ms after the time in front of the command, always \
         within {:.1} ms after the time behind it",
        f64::from(earliest) / 1e3,
        f64::from(latest) / 1e3
    );
    let passed = tripped == TRIALS && earliest >= u32::from(VALID_MS) * 1000;
    Ok(row("watchdog, command valid for 20 ms", "20 of 20, not early, zero, then FAULT", passed, seen))
}

/// Between two good commands one with a flipped bit, anywhere in its bytes on the line.
fn bit_flips(host: &mut Host) -> anyhow::Result<Row> {
    const FLIPS: u32 = 400;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    host.begin()?;
    host.command([0.1, 0.1], 100)?;
    let before = host.state_now()?.counters;
    let mut accepted = 0;
    for _ in 0..FLIPS {
        let (flipped, mut bytes) = host.command_bytes([0.9, 0.9], 100)?;
        let bit = rng.random_range(0..8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        host.line.send_bytes(&bytes)?;
        let good = host.command([0.1, 0.1], 100)?;
        let mut moved = false;
        host.state("STATE for a good command", |header, state| {
            moved |= header.ack == flipped || state.applied[0] > 0.5;
            header.ack == good
        })?;
        accepted += u32::from(moved);
    }
    let after = host.state_now()?.counters;
    // A frame that was taken would leave no gap in the numbers.
    let missing = after.sequence_gaps.wrapping_sub(before.sequence_gaps);
    let damaged = after.crc_errors.wrapping_sub(before.crc_errors);
    let passed = accepted == 0 && u32::from(missing) == FLIPS;
    let seen = format!("{accepted} accepted of {FLIPS}; {missing} missing numbers, {damaged} damaged frames counted");
    Ok(row("bit flips in commands", "0 accepted of 400", passed, seen))
}

/// Noise, then a frame: that frame has to arrive.
fn garbage(host: &mut Host) -> anyhow::Result<Row> {
    const TRIALS: u32 = 20;
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut lost = 0;
    for _ in 0..TRIALS {
        host.begin()?;
        let mut noise = vec![0; 2000];
        rng.fill_bytes(&mut noise);
        host.line.send_bytes(&noise)?;
        let first = host.command([0.2, 0.2], 100)?;
        let mut arrived = false;
        // The exchange is the second frame after the noise.
        host.exchange()?;
        host.state("STATE after noise", |header, _| {
            arrived = header.ack == first;
            true
        })?;
        lost += u32::from(!arrived);
    }
    let seen = format!("{lost} of {TRIALS} first frames lost after 2000 bytes of noise");
    Ok(row("garbage, then a frame", "the first frame after it arrives", lost == 0, seen))
}

/// The estimate of the host against exchanges it has not seen: cause comes before effect. The emulated board's clock
/// stands still while a busy machine runs something else, so that an estimate gets three chances.
fn time(host: &mut Host) -> anyhow::Result<Row> {
    const BOUND_US: f64 = 200.0;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let off = judge_estimate(host)?;
        let passed = off.violation_us <= BOUND_US && off.middle_us <= BOUND_US;
        seen.push(off.to_string());
        if passed {
            return Ok(row("time of the board on the host's clock", "within 200 us", true, seen.join("; then ")));
        }
    }
    Ok(row("time of the board on the host's clock", "within 200 us", false, seen.join("; then ")))
}

/// How far an estimate is off, by exchanges made after it.
struct Off {
    /// How much an effect came before its cause, at most.
    violation_us: f64,
    /// In the middle of the shortest exchange.
    middle_us: f64,
    estimate: ClockEstimate,
}

impl std::fmt::Display for Off {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { violation_us, middle_us, estimate } = self;
        write!(
            f,
            "{middle_us:.0} us off in the middle of the shortest of {HELD_OUT} new exchanges, cause after effect by \
             {violation_us:.0} us at most; drift {:.1} ppm, stated uncertainty {} us",
            estimate.drift_ppm, estimate.uncertainty_us
        )
    }
}

const HELD_OUT: u32 = 128;

fn judge_estimate(host: &mut Host) -> anyhow::Result<Off> {
    const LEARNED: u32 = 6 * 64;
    let mut sync = TimeSync::new();
    for _ in 0..LEARNED {
        sync.take(host.exchange()?);
        pause(Duration::from_millis(5));
    }
    let estimate = sync.estimate().unwrap_or_default();
    let (mut violation_us, mut shortest) = (0.0_f64, (u64::MAX, 0.0));
    for _ in 0..HELD_OUT {
        let exchange = host.exchange()?;
        let came = sync.host_time(exchange.t2_us).map_or(0, |stamp| stamp.0) as f64;
        let left = sync.host_time(exchange.t3_us).map_or(0, |stamp| stamp.0) as f64;
        violation_us = violation_us.max(exchange.t1_us as f64 - came).max(left - exchange.t4_us as f64);
        let round = (exchange.t4_us - exchange.t1_us).saturating_sub(exchange.t3_us - exchange.t2_us);
        let middle = (exchange.t1_us as f64 + exchange.t4_us as f64 - came - left) / 2.0;
        if round < shortest.0 {
            shortest = (round, middle.abs());
        }
        pause(Duration::from_millis(5));
    }
    Ok(Off { violation_us, middle_us: shortest.1, estimate })
}

/// The reset button in the middle of a stream that goes on.
fn restart(machine: &Machine, host: &mut Host) -> anyhow::Result<Row> {
    host.begin()?;
    let before = host.hello()?.boot_id;
    host.command([0.5, 0.5], 100)?;
    host.state("STATE in RUN", |_, state| state.drive == DriveState::Run && state.observation[2] == 0.5)?;
    for n in 0..200 {
        if n == 50 {
            machine.reset()?;
        }
        host.command([0.5, 0.5], 100)?;
        pause(Duration::from_millis(5));
    }
    let ack = host.hello()?;
    for _ in 0..20 {
        host.command([0.5, 0.5], 100)?;
        pause(Duration::from_millis(5));
    }
    let state = host.state_now()?;
    let still = state.drive == DriveState::Disarmed && state.applied[..] == ZERO && state.observation[..] == [0.0; 4];
    let refused = state.counters.rejected_commands;
    host.begin()?;
    host.command([0.5, 0.5], 100)?;
    host.state("STATE in RUN, armed afresh", |_, state| state.drive == DriveState::Run)?;
    let seen = format!(
        "{}, {refused} commands refused, boot id {}; moves again after ARM",
        if still { "stands still" } else { "MOVES" },
        if ack.boot_id == before { "THE SAME" } else { "new" }
    );
    let passed = still && refused > 20 && ack.boot_id != before;
    Ok(row("restart in the middle of a stream", "motion does not resume", passed, seen))
}
