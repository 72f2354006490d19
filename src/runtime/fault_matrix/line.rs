//! Faults of the line, the robot and the policy, in lockstep.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use firmware_bridge::DriveState;

use super::world::{
    Answer, LOST_STEPS, Line, PERIOD, Rig, SHAPE, STALE_STEPS, Shot, TestCamera, World, offer, rig, settings,
};
use crate::clock::Clock;
use crate::config::PersonLost;
use crate::control::{Fault, Limits, Offer, Person, PersonSlot, QUEUE_STEPS, SwapRequest};
use crate::robot::RobotError;
use crate::runtime::parts::lock;
use crate::spaces::{FrameShape, StepFlags, StepRecord};
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
    /// Settings of a person who may take over.
    person: fn() -> Person,
    /// What the person does in a period, on the run's clock in microseconds.
    commands: fn(u32, u64, &PersonSlot),
    /// What the camera does, if there is one.
    camera: Option<fn(u32) -> Shot>,
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
    person: Person::default,
    commands: |_, _, _| {},
    camera: None,
    offered: None,
    stopped: None,
    safe_at: None,
    check: |_, _| {},
};

/// The image of a period is too old in the third one behind it.
const OLDEST: Duration = Duration::from_micros(5 * PERIOD.as_micros() as u64 / 2);
/// Periods from the first missing image until the last one is too old.
const UNTIL_STALE: u32 = 2;

/// What the person commands: beyond what the limits of the case allow.
const PERSON: f32 = 0.9;

fn person(lost: PersonLost) -> Person {
    Person { longest_age: 4 * PERIOD, blend_steps: 4, lost, ..Person::default() }
}

/// In control from the tenth period, until the source falls silent so that the loop notices in period [`FAULT_AT`].
fn falls_silent(tick: u32, now_us: u64, slot: &PersonSlot) {
    if (10..=FAULT_AT - 5).contains(&tick) {
        slot.command(&[PERSON], now_us).unwrap();
    }
}

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
        fault: "The robot sends subnormal numbers",
        line: |t| if t >= FAULT_AT { Line::Subnormal } else { Line::Good },
        // The scripted policy refuses to see one.
        check: |world, _| assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on"),
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
        fault: "An image is late, for fewer than `safety.stale_steps` steps",
        camera: Some(|t| if t >= FAULT_AT && t % 8 < 3 { Shot::Missing } else { Shot::Good }),
        check: |world, counters| {
            assert!(counters.blind.load(Relaxed) >= 6, "{:?}", counters.blind);
            assert!(world.commands.iter().all(|(_, action)| action[0] > 0.0), "acts on the image that it has");
        },
        ..NORMAL
    },
    Case {
        fault: "No image to act on for `safety.stale_steps` steps",
        camera: Some(|t| if (FAULT_AT..FAULT_AT + 7).contains(&t) { Shot::Missing } else { Shot::Good }),
        safe_at: Some(FAULT_AT + UNTIL_STALE + STALE_STEPS - 1),
        check: |world, _| assert!(world.commands.last().unwrap().1[0] > 0.0, "goes on afterwards"),
        ..NORMAL
    },
    Case {
        fault: "The camera dies",
        exit_code: 1,
        camera: Some(|t| if t >= FAULT_AT { Shot::Missing } else { Shot::Good }),
        stopped: Some(|fault| matches!(fault, Fault::Blind { ticks: LOST_STEPS })),
        safe_at: Some(FAULT_AT + UNTIL_STALE + STALE_STEPS - 1),
        check: |world, _| assert_eq!(world.estops, [FAULT_AT + UNTIL_STALE + LOST_STEPS - 1; 3]),
        ..NORMAL
    },
    Case {
        fault: "The camera's image stands still",
        exit_code: 1,
        camera: Some(|t| if t >= FAULT_AT { Shot::Frozen } else { Shot::Good }),
        stopped: Some(|fault| matches!(fault, Fault::Blind { .. })),
        safe_at: Some(FAULT_AT + STALE_STEPS - 1),
        ..NORMAL
    },
    Case {
        fault: "Pixels of an image are damaged",
        answer: |_| Answer::Sees(SHAPE),
        limits: Limits { magnitude: 0.25, slew: 0.125 },
        camera: Some(|t| if t >= FAULT_AT && t % 3 == 0 { Shot::Damaged } else { Shot::Good }),
        check: |world, _| {
            assert!(world.commands.iter().all(|(_, action)| action[0].abs() <= 0.25), "the limits hold");
            assert!(world.commands.len() > 70, "goes on");
        },
        ..NORMAL
    },
    Case {
        fault: "A new policy looks at images of another size",
        camera: Some(|_| Shot::Good),
        offered: Some(|| offer(|_| Answer::Sees(FrameShape { width: 5, ..SHAPE }), 1, 1)),
        check: |_, counters| {
            assert_eq!(counters.refused_policies.load(Relaxed), 1);
            assert_eq!(counters.generation.load(Relaxed), 0);
        },
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
        fault: "A person takes over and lets go",
        person: || person(PersonLost::Hold),
        commands: |tick, now_us, slot| match tick {
            20..40 => slot.command(&[PERSON], now_us).unwrap(),
            40 => slot.release(now_us).unwrap(),
            _ => {}
        },
        limits: Limits { magnitude: 0.5, slew: 0.25 },
        check: |world, counters| {
            assert!(world.commands.iter().all(|(_, action)| action[0] > 0.0 && action[0] <= 0.5));
            assert!(world.commands.windows(2).all(|w| (w[1].1[0] - w[0].1[0]).abs() <= 0.25), "no jump");
            assert_eq!(world.commands[30].1[0], 0.5, "the limit, not the person's {PERSON}");
            assert!(world.commands.last().unwrap().1[0] < 0.11, "the policy's again");
            // Twenty in control, three while it passes back.
            assert_eq!((counters.person_steps.load(Relaxed), counters.person_silent.load(Relaxed)), (23, 0));
        },
        ..NORMAL
    },
    Case {
        fault: "The person in control is silent, `intervention.lost = \"hold\"`",
        person: || person(PersonLost::Hold),
        commands: |tick, now_us, slot| match tick {
            40 => slot.release(now_us).unwrap(),
            _ => falls_silent(tick, now_us, slot),
        },
        safe_at: Some(FAULT_AT),
        check: |world, counters| {
            let still = |tick: u32| (FAULT_AT..40).contains(&tick);
            assert!(world.commands.iter().all(|(tick, action)| (action[0] == 0.0) == still(*tick)));
            assert_eq!(counters.person_silent.load(Relaxed), 20);
            assert!(world.commands[41].1[0] < 0.11 && world.commands.last().unwrap().1[0] > 0.09, "blended back");
        },
        ..NORMAL
    },
    Case {
        fault: "The person in control is silent, `intervention.lost = \"policy\"`",
        person: || person(PersonLost::Policy),
        commands: falls_silent,
        check: |world, counters| {
            let action = |tick: u32| world.commands.iter().find(|(at, _)| *at == tick).unwrap().1[0];
            assert!(action(FAULT_AT - 1) > 0.7 && action(FAULT_AT) < action(FAULT_AT - 1), "passes back at once");
            assert!(action(FAULT_AT + 4) < 0.11 && counters.person_silent.load(Relaxed) == 0);
        },
        ..NORMAL
    },
    Case {
        fault: "The person in control is silent, `intervention.lost = \"stop\"`",
        exit_code: 1,
        person: || person(PersonLost::Stop),
        commands: falls_silent,
        stopped: Some(|fault| matches!(fault, Fault::PersonLost)),
        safe_at: Some(FAULT_AT),
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
    let person = (case.person)();
    let slot = std::sync::Arc::clone(&person.slot);
    let settings = settings(case.max_steps, case.limits, person);
    let clock = Clock::lockstep();
    let (mut camera, sight) = TestCamera::new(OLDEST);
    camera.shoot(Shot::Good, clock.now());
    let sight = case.camera.map(|_| sight);
    let Rig { world, mut control, mut handover, mut steps, counters, .. } =
        rig(case.line, case.answer, settings, clock.clone(), std::sync::Arc::default(), sight);
    let mut recorded = 0;
    let mut stopped = None;
    for tick in 0..case.ticks {
        if let Some(offered) = case.offered.filter(|_| tick == FAULT_AT) {
            handover.send(SwapRequest::Offer(offered()), Duration::ZERO).unwrap();
        }
        (case.commands)(tick, clock.now().0, &slot);
        if let Some(shot) = case.camera {
            camera.shoot(shot(tick), clock.now());
        }
        if let Err(fault) = control.tick() {
            control.stop();
            stopped = Some(fault);
            break;
        }
        lock(&world).period();
        clock.advance(PERIOD);
        while case.recorded
            && let Some(step) = steps.pop()
        {
            fits(case, &step);
            recorded += u64::from(step.flags.contains(StepFlags::INTERVENTION));
        }
    }
    control.finish();
    recorded += std::iter::from_fn(|| steps.pop()).filter(|s| s.flags.contains(StepFlags::INTERVENTION)).count() as u64;
    assert_eq!(recorded, counters.person_steps.load(Relaxed), "{}: flagged steps", case.fault);
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

/// A step record has an image where there is a camera; what was held for want of one is no transition.
fn fits(case: &Case, step: &StepRecord) {
    assert_eq!(step.frame.is_some(), case.camera.is_some(), "{}", case.fault);
    let transition = !step.flags.contains(StepFlags::OBSERVATION_ONLY);
    assert!(case.camera.is_none() || !transition || step.action[0] > 0.0, "{}: {step:?}", case.fault);
}
