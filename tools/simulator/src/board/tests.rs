use firmware_bridge::{Command, DriveState, Faults, Frame, Header, Hello, Message, Reply, TaskFlags};

use super::*;
use crate::pendulum::Pendulum;
use crate::task::StepOutcome;

const TIMING: Timing = Timing { period_us: 10_000, watchdog_ms: 50, fault_ms: 200 };

fn pendulum() -> Board {
    board(Box::new(Pendulum::default()), TIMING, 1)
}

fn frame(seq: u16, message: Message) -> Frame {
    Frame { header: Header { seq, ..Header::default() }, message }
}

fn command(session: u32, torque: f32) -> Message {
    Message::Command(Command { session, valid_ms: 255, action: [torque].into_iter().collect() })
}

/// A board in its first episode that runs since `now_us = 0` with the command of frame 3.
fn running() -> Board {
    let mut board = pendulum();
    board.take(&frame(0, Message::Hello(Hello { schema_hash: 0, session: 9 })), 0);
    board.take(&frame(1, Message::Arm { session: 9 }), 0);
    assert_eq!(board.take(&frame(2, Message::Reset { episode: 1, seed: 5 }), 0), Reply::State);
    assert_eq!(board.take(&frame(3, command(9, 0.5)), 0), Reply::Step);
    board
}

#[test]
fn the_watchdog_holds_and_then_faults_in_simulated_time() {
    let mut board = running();
    let mut seen = Vec::new();
    for tick in 1..=25 {
        board.period(tick * 10_000);
        let state = board.state();
        seen.push((state.drive, state.applied[0]));
    }
    assert!(seen[..4].iter().all(|s| *s == (DriveState::Run, 0.5)), "{seen:?}");
    assert!(seen[4..19].iter().all(|s| *s == (DriveState::Hold, 0.0)), "{seen:?}");
    assert!(seen[19..].iter().all(|s| *s == (DriveState::Fault, 0.0)), "{seen:?}");
    assert!(board.state().faults.contains(Faults::WATCHDOG));
    assert_eq!((board.totals().holds, board.totals().faults), (1, 1));
    assert_eq!(board.state().tick, 25, "the physics goes on without a host");

    // Neither the old session nor its old commands move it again.
    assert_eq!(board.take(&frame(4, command(9, 0.5)), 260_000), Reply::State);
    board.take(&frame(5, Message::FaultReset), 260_000);
    board.take(&frame(6, Message::Arm { session: 9 }), 260_000);
    board.take(&frame(7, command(9, 0.5)), 260_000);
    assert_eq!(board.state().drive, DriveState::Disarmed);
    board.take(&frame(8, Message::Arm { session: 10 }), 260_000);
    assert_eq!(board.take(&frame(9, command(10, 0.5)), 260_000), Reply::Step);
    assert_eq!(board.state().drive, DriveState::Run);
    assert_eq!(board.totals().rejected, 2);
}

#[test]
fn a_robot_in_its_start_state_waits_without_a_watchdog() {
    let mut board = pendulum();
    board.take(&frame(0, Message::Arm { session: 9 }), 0);
    board.take(&frame(1, Message::Reset { episode: 3, seed: 5 }), 0);
    let start = board.state();
    for tick in 1..1000 {
        board.period(tick * 10_000);
    }
    assert_eq!(board.state(), start);
    assert_eq!((start.tick, start.episode, start.drive), (0, 3, DriveState::Armed));
}

#[test]
fn frames_that_come_again_or_too_late_are_not_executed() {
    let mut board = running();
    board.period(10_000);
    let moved = board.state();
    assert_eq!(board.take(&frame(3, command(9, -1.0)), 20_000), Reply::LastState);
    assert_eq!(board.take(&frame(2, Message::Reset { episode: 1, seed: 5 }), 20_000), Reply::LastState);
    assert_eq!((board.state().observation, board.state().tick), (moved.observation, 1));
    assert_eq!(board.state().counters.late_commands, 1, "a repeated frame is not late, an older one is");
    assert_eq!((board.totals().commands, board.totals().episodes, board.totals().repeated), (1, 1, 2));

    // A command from before the RESET that overtook it.
    board.take(&frame(12, Message::Reset { episode: 2, seed: 5 }), 30_000);
    assert_eq!(board.take(&frame(11, command(9, 1.0)), 30_000), Reply::LastState);
    board.period(40_000);
    assert_eq!(board.state().tick, 0);
    // A new host counts from its own start.
    board.take(&frame(0, Message::Arm { session: 10 }), 50_000);
    assert_eq!(board.take(&frame(1, Message::Reset { episode: 0, seed: 1 }), 50_000), Reply::State);
}

#[test]
fn gaps_and_damage_reach_the_counters() {
    let mut board = running();
    board.take(&frame(7, command(9, 0.0)), 0);
    board.take_invalid();
    assert_eq!(board.state().counters.sequence_gaps, 3);
    assert_eq!(board.state().counters.crc_errors, 1);
    for bad in [f32::NAN, f32::INFINITY, 1.5] {
        assert_eq!(board.take(&frame(8, command(9, bad)), 0), Reply::State);
    }
    assert_eq!(board.state().counters.rejected_commands, 3);
}

/// Ends after two steps, with a reward that counts them.
struct Short(u32);

impl Task for Short {
    fn names(&self) -> crate::Names {
        crate::Names { observation: &["count"], action: &["a", "b"] }
    }
    fn control_hz(&self) -> f64 {
        100.0
    }
    fn reset(&mut self, _seed: u64) {
        self.0 = 0;
    }
    fn step(&mut self, _action: &[f32]) -> StepOutcome {
        self.0 += 1;
        StepOutcome { reward: f64::from(self.0), terminated: self.0 == 2 }
    }
    fn observation(&self, out: &mut [f64]) {
        out[0] = f64::from(self.0);
    }
}

#[test]
fn the_last_state_stays_until_a_reset() {
    let mut board = board(Box::new(Short(0)), TIMING, 1);
    let command = |seq| {
        let action = [0.25, -0.25].into_iter().collect();
        frame(seq, Message::Command(Command { session: 1, valid_ms: 100, action }))
    };
    board.take(&frame(0, Message::Arm { session: 1 }), 0);
    board.take(&frame(1, Message::Reset { episode: 1, seed: 0 }), 0);
    board.take(&command(2), 0);
    for tick in 1..100 {
        board.period(tick * 10_000);
        board.take(&command(2 + tick as u16), tick * 10_000);
    }
    let state = board.state();
    assert!(state.task.contains(TaskFlags::TERMINATED) && state.task.contains(TaskFlags::REWARD_VALID));
    assert_eq!((state.tick, state.reward, &state.observation[..]), (2, 2.0, &[2.0][..]));
    assert_eq!(state.applied[..], [0.25, -0.25]);
    for tick in 100..200 {
        board.period(tick * 10_000);
    }
    assert_eq!(board.state().drive, DriveState::Armed, "no fault between episodes");
    board.take(&frame(200, Message::Reset { episode: 2, seed: 0 }), 2_000_000);
    let state = board.state();
    assert_eq!((state.tick, state.episode, state.reward), (0, 2, 0.0));
    assert_eq!((&state.applied[..], state.task), (&[0.0, 0.0][..], TaskFlags::REWARD_VALID));
}

#[test]
fn an_emergency_stop_latches() {
    let mut board = running();
    board.take(&frame(0, Message::Estop), 5000);
    board.period(10_000);
    assert_eq!((board.state().drive, board.state().applied[0]), (DriveState::Fault, 0.0));
    assert_eq!(board.take(&frame(20, command(9, 0.5)), 10_000), Reply::State);
    assert!(board.state().faults.contains(Faults::ESTOP));
}

#[test]
fn hello_says_what_the_robot_is() {
    let board = pendulum();
    let ack = board.hello_ack();
    assert_eq!(ack.schema_hash, schema_hash(["cos_theta", "sin_theta", "theta_rad_s"], ["torque"]));
    assert_eq!((ack.n_observation, ack.n_action), (3, 1));
    assert_eq!((ack.control_period_us, ack.watchdog_ms, ack.boot_id), (10_000, 50, 1));
}
