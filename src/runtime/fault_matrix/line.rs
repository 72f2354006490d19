//! Faults of the line, the robot and the policy, in lockstep.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use firmware_bridge::DriveState;

use super::world::{Answer, LOST_STEPS, Line, PERIOD, Rig, STALE_STEPS, World, offer, rig};
use crate::clock::Clock;
use crate::control::{Fault, Limits, Offer, QUEUE_STEPS, SwapRequest};
use crate::robot::RobotError;
use crate::runtime::parts::lock;
use crate::telemetry::ControlCounters;

/// Period in which the fault begins.
const FAULT_AT: u32 = 20;
/// What the policy answers while nothing is wrong.
const MEAN: f32 = 0.1;

/// One row of the table.
pub(super) struct Case {
    /// First cell of the row.
    pub fault: &'static str,
    /// Last cell of the row.
    pub exit_code: u8,
    line: fn(u32) -> Line,
    answer: fn(u32) -> Answer,
    limits: Limits,
    max_steps: u32,
    ticks: u32,
    /// Whether somebody takes the step records.
    recorded: bool,
    /// Offered in period [`FAULT_AT`].
    offered: Option<fn() -> Offer>,
    /// The fault for which the robot is stopped.
    stopped: Option<fn(&Fault) -> bool>,
    /// Period of the first command that is zero, or ESTOP; counted in the control loop's ticks.
    safe_at: Option<u32>,
    check: fn(&World, &ControlCounters),
}

const NORMAL: Case = Case {
    fault: "",
    exit_code: 0,
    line: |_| Line::Good,
    answer: |_| Answer::Mean(MEAN),
    limits: Limits { magnitude: 1.0, slew: 2.0 },
    max_steps: 10_000,
    ticks: 80,
    recorded: true,
    offered: None,
    stopped: None,
    safe_at: None,
    check: |_, _| {},
};

/// The policy's n-th run is in the control loop's tick n + 1.
fn faulty(run: u32) -> bool {
    (FAULT_AT - 1..FAULT_AT + 5).contains(&run)
}

pub(super) const CASES: &[Case] = &[
    Case {
        fault: "A state is lost, or fewer than `safety.stale_steps` in a row",
        line: |t| if t >= FAULT_AT && t % 7 == 0 { Line::Lost } else { Line::Good },
        check: |world, counters| {
            assert!(counters.stale.load(Relaxed) >= 8);
            assert!(world.commands.iter().all(|(_, action)| action[0] > 0.0), "never held at zero");
        },
        ..NORMAL
    },
    Case {
        fault: "No fresh observation for `safety.stale_steps` ticks",
        line: |t| if (FAULT_AT..FAULT_AT + 5).contains(&t) { Line::Lost } else { Line::Good },
        safe_at: Some(FAULT_AT + STALE_STEPS),
        check: |world, _| assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on afterwards"),
        ..NORMAL
    },
    Case {
        fault: "No fresh observation for `safety.lost_steps` ticks",
        exit_code: 1,
        line: |t| if t >= FAULT_AT { Line::Lost } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Lost { ticks: LOST_STEPS })),
        safe_at: Some(FAULT_AT + STALE_STEPS),
        check: |world, _| assert_eq!(world.estops, [FAULT_AT + LOST_STEPS; 3]),
        ..NORMAL
    },
    Case {
        fault: "States come late",
        line: |t| if t >= FAULT_AT && t % 16 < 4 { Line::Late(3) } else { Line::Good },
        check: |world, counters| {
            assert!(counters.stale.load(Relaxed) > 0);
            assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on afterwards");
        },
        ..NORMAL
    },
    Case {
        fault: "States come damaged",
        line: |t| if t >= FAULT_AT && t % 5 == 0 { Line::Damaged } else { Line::Good },
        check: |world, counters| {
            assert_eq!(world.refused, 12);
            assert_eq!(counters.stale.load(Relaxed), 12, "a damaged state is one that did not come");
        },
        ..NORMAL
    },
    Case {
        fault: "States come out of order",
        line: |t| if t >= FAULT_AT && t % 5 == 0 { Line::Overtaken } else { Line::Good },
        check: |world, counters| {
            assert!(counters.stale.load(Relaxed) >= 10);
            assert!(world.commands.last().unwrap().1[0] > 0.0);
        },
        ..NORMAL
    },
    Case {
        fault: "The robot repeats an old state",
        exit_code: 1,
        line: |t| if t >= FAULT_AT { Line::Repeated } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Lost { .. })),
        safe_at: Some(FAULT_AT + STALE_STEPS),
        ..NORMAL
    },
    Case {
        fault: "Commands come damaged",
        line: |t| if (FAULT_AT..FAULT_AT + 4).contains(&t) { Line::CommandDamaged } else { Line::Good },
        check: |world, _| {
            assert!(world.refused >= 2);
            assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on afterwards");
        },
        ..NORMAL
    },
    Case {
        fault: "The robot's drive is in FAULT",
        exit_code: 1,
        line: |t| if t == FAULT_AT { Line::DriveFault } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Drive { .. })),
        safe_at: Some(FAULT_AT + 1),
        ..NORMAL
    },
    Case {
        fault: "The microcontroller restarts, or another host disarms it",
        exit_code: 1,
        line: |t| if t == FAULT_AT { Line::Restart } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Restarted)),
        safe_at: Some(FAULT_AT + 1),
        ..NORMAL
    },
    Case {
        fault: "The robot sends NaN or infinity",
        exit_code: 1,
        line: |t| if t == FAULT_AT { Line::NotFinite } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::NotFinite { what: "observation" })),
        safe_at: Some(FAULT_AT + 1),
        ..NORMAL
    },
    Case {
        fault: "The robot sends another number of values",
        exit_code: 1,
        line: |t| if t == FAULT_AT { Line::Longer } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Robot(RobotError::Dimensions { .. }))),
        safe_at: Some(FAULT_AT + 1),
        ..NORMAL
    },
    Case {
        fault: "A reset does not come within `robot.timeout_ms`",
        exit_code: 1,
        // The time limit ends the episode; the answer to the RESET does not come.
        max_steps: 15,
        line: |t| if t >= 16 { Line::Lost } else { Line::Good },
        stopped: Some(|fault| matches!(fault, Fault::Reset { episode: 1, .. })),
        ..NORMAL
    },
    Case {
        fault: "The policy's action is not finite",
        answer: |run| Answer::Mean(if faulty(run) { f32::NAN } else { MEAN }),
        safe_at: Some(FAULT_AT),
        check: |world, counters| {
            assert_eq!(counters.bad_actions.load(Relaxed), 6);
            assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on afterwards");
        },
        ..NORMAL
    },
    Case {
        fault: "An action is too large or changes too fast",
        answer: |run| Answer::Mean(if run % 8 < 4 { 9.0 } else { -9.0 }),
        limits: Limits { magnitude: 0.25, slew: 0.125 },
        check: |world, counters| {
            assert!(world.commands.iter().all(|(_, action)| action[0].abs() <= 0.25));
            assert!(world.commands.windows(2).all(|w| (w[1].1[0] - w[0].1[0]).abs() <= 0.125));
            assert!(counters.limited_actions.load(Relaxed) > 60);
        },
        ..NORMAL
    },
    Case {
        fault: "The policy's run fails",
        exit_code: 1,
        answer: |run| if faulty(run) { Answer::Error } else { Answer::Mean(MEAN) },
        stopped: Some(|fault| matches!(fault, Fault::Policy)),
        safe_at: Some(FAULT_AT),
        ..NORMAL
    },
    Case {
        fault: "The policy answers with another number of actions",
        exit_code: 1,
        answer: |run| if faulty(run) { Answer::Wider } else { Answer::Mean(MEAN) },
        stopped: Some(|fault| matches!(fault, Fault::Robot(RobotError::ActionLength { expected: 1, got: 2 }))),
        safe_at: Some(FAULT_AT),
        ..NORMAL
    },
    Case {
        fault: "A new policy answers NaN on the present observation",
        offered: Some(|| offer(|_| Answer::Mean(f32::NAN), 1, 1)),
        check: |_, counters| {
            assert_eq!(counters.refused_policies.load(Relaxed), 1);
            assert_eq!(counters.generation.load(Relaxed), 0);
        },
        ..NORMAL
    },
    Case {
        fault: "A new policy has another shape",
        offered: Some(|| offer(|_| Answer::Mean(MEAN), 2, 1)),
        check: |_, counters| {
            assert_eq!(counters.refused_policies.load(Relaxed), 1);
            assert_eq!(counters.generation.load(Relaxed), 0);
        },
        ..NORMAL
    },
    Case {
        fault: "The step queue is full",
        exit_code: 1,
        ticks: QUEUE_STEPS as u32 + 50,
        answer: |run| Answer::Mean(if run % 2 == 0 { MEAN } else { -MEAN }),
        recorded: false,
        check: |world, counters| {
            assert!(counters.dropped_steps.load(Relaxed) > 0);
            assert!(world.commands.len() > QUEUE_STEPS, "the loop goes on");
        },
        ..NORMAL
    },
];

#[test]
fn every_fault_of_line_robot_and_policy_leaves_the_robot_still() {
    for case in CASES {
        eprintln!("{}", case.fault);
        run(case);
    }
}

fn run(case: &Case) {
    let Rig { world, mut control, handover, mut steps, counters, clock } =
        rig(case.line, case.answer, case.max_steps, case.limits, Clock::lockstep(), std::sync::Arc::default());
    let mut stopped = None;
    for tick in 0..case.ticks {
        if let Some(offered) = case.offered.filter(|_| tick == FAULT_AT) {
            handover.send(SwapRequest::Offer(offered()), Duration::ZERO).unwrap();
        }
        if let Err(fault) = control.tick() {
            control.stop();
            stopped = Some(fault);
            break;
        }
        lock(&world).period();
        clock.advance(PERIOD);
        while case.recorded && steps.pop().is_some() {}
    }
    control.finish();
    let world = lock(&world);
    match (&stopped, case.stopped) {
        (None, None) => {
            assert_eq!(world.robot.drive(), DriveState::Disarmed, "{}", case.fault);
            assert!(world.estops.is_empty(), "{}", case.fault);
        }
        (Some(fault), Some(expected)) => {
            assert!(expected(fault), "{}: {fault}", case.fault);
            assert_eq!(world.robot.drive(), DriveState::Fault, "{}", case.fault);
            assert_eq!(world.estops.len(), 3, "{}", case.fault);
            let after = world.commands.iter().filter(|(tick, _)| *tick > world.estops[0]).count();
            assert_eq!(after, 0, "{}: commands after ESTOP", case.fault);
        }
        _ => panic!("{}: {stopped:?}", case.fault),
    }
    let zero = world.commands.iter().filter(|(_, action)| action[0] == 0.0).map(|(tick, _)| *tick);
    let safe = zero.chain(world.estops.iter().copied()).filter(|tick| *tick >= FAULT_AT).min();
    if case.safe_at.is_some() {
        assert_eq!(safe, case.safe_at, "{}: first safe command", case.fault);
    }
    let clean = stopped.is_none() && counters.dropped_steps.load(Relaxed) == 0;
    assert_eq!(u8::from(!clean), case.exit_code, "{}: exit code", case.fault);
    (case.check)(&world, &counters);
}
