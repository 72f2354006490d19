//! The drive against late, wrong and repeated commands.

use super::*;
use crate::message::MAX_ACTION;
use proptest::prelude::*;

const MS: u64 = 1000;
const LIMITS: Limits = Limits { magnitude: 1.0, slew: 2.0 };
const CONFIG: DriveConfig = DriveConfig { n_action: 2, limits: LIMITS, watchdog_us: 100 * MS, fault_us: 500 * MS };

fn command(session: u32, valid_ms: u8, action: &[f32]) -> Command {
    Command { session, valid_ms, action: heapless::Vec::from_slice(action).unwrap() }
}

fn running(now_us: u64) -> Drive {
    let mut drive = Drive::new(CONFIG);
    drive.on_arm(1, now_us).unwrap();
    drive.on_command(&command(1, 255, &[0.5, -0.5]), 10, now_us).unwrap();
    drive
}

#[test]
fn armed_does_not_move_before_the_first_command_of_its_session() {
    let mut drive = Drive::new(CONFIG);
    assert_eq!(drive.on_command(&command(0, 100, &[1.0, 1.0]), 1, 0), Err(Rejection::NotArmed));
    drive.on_arm(7, 0).unwrap();
    assert_eq!(drive.on_command(&command(6, 100, &[1.0, 1.0]), 2, 0), Err(Rejection::WrongSession));
    assert_eq!((drive.poll(u64::MAX), drive.output()), (DriveState::Armed, [0.0, 0.0].as_slice()));
    drive.on_command(&command(7, 100, &[1.0, -1.0]), 3, 0).unwrap();
    assert_eq!((drive.state(), drive.output()), (DriveState::Run, [1.0, -1.0].as_slice()));
    assert_eq!(drive.counters().rejected_commands, 2);
}

#[test]
fn wrong_commands_change_nothing_and_are_counted() {
    let mut drive = running(0);
    let cases: [(Command, u16, Rejection); 8] = [
        (command(2, 255, &[0.0, 0.0]), 11, Rejection::WrongSession),
        (command(1, 255, &[0.0, 0.0]), 10, Rejection::OldSequence),
        (command(1, 255, &[0.0, 0.0]), 9, Rejection::OldSequence),
        (command(1, 255, &[0.0]), 11, Rejection::WrongLength),
        (command(1, 255, &[0.0, 0.0, 0.0]), 11, Rejection::WrongLength),
        (command(1, 255, &[0.0, f32::NAN]), 11, Rejection::OutOfRange),
        (command(1, 255, &[f32::NEG_INFINITY, 0.0]), 11, Rejection::OutOfRange),
        (command(1, 255, &[0.0, 1.000_001]), 11, Rejection::OutOfRange),
    ];
    for (command, seq, rejection) in cases {
        assert_eq!(drive.on_command(&command, seq, 0), Err(rejection));
        assert_eq!((drive.state(), drive.output()), (DriveState::Run, [0.5, -0.5].as_slice()));
    }
    assert_eq!((drive.counters().late_commands, drive.counters().rejected_commands), (2, 6));
}

#[test]
fn command_numbers_wrap() {
    let mut drive = Drive::new(CONFIG);
    drive.on_arm(1, 0).unwrap();
    for seq in [65_534, 65_535, 0, 1] {
        drive.on_command(&command(1, 255, &[0.0, 0.0]), seq, 0).unwrap();
    }
    assert_eq!(drive.on_command(&command(1, 255, &[0.0, 0.0]), 65_535, 0), Err(Rejection::OldSequence));
}

/// Every millisecond around both limits, for commands that are valid for less, as long, and longer than the watchdog.
#[test]
fn watchdog_holds_and_faults_on_the_millisecond() {
    for valid_ms in [1_u8, 40, 99, 100, 101, 255] {
        let hold_ms = u64::from(valid_ms).min(100);
        for silent_ms in 0..=600 {
            let mut drive = running(0);
            drive.on_command(&command(1, valid_ms, &[0.5, -0.5]), 11, 7 * MS).unwrap();
            let expected = match silent_ms {
                ms if ms >= 500 => DriveState::Fault,
                ms if ms >= hold_ms => DriveState::Hold,
                _ => DriveState::Run,
            };
            assert_eq!(drive.poll((7 + silent_ms) * MS), expected, "{valid_ms} {silent_ms}");
            assert_eq!(drive.output() == [0.0, 0.0], expected != DriveState::Run);
            assert_eq!(drive.faults().contains(Faults::WATCHDOG), expected == DriveState::Fault);
        }
    }
}

#[test]
fn hold_is_left_by_a_fresh_command_and_not_by_an_old_one() {
    let mut drive = running(0);
    assert_eq!(drive.poll(200 * MS), DriveState::Hold);
    assert_eq!(drive.on_command(&command(1, 255, &[0.1, 0.1]), 10, 200 * MS), Err(Rejection::OldSequence));
    assert_eq!(drive.state(), DriveState::Hold);
    drive.on_command(&command(1, 255, &[0.1, 0.1]), 11, 200 * MS).unwrap();
    assert_eq!((drive.state(), drive.output()), (DriveState::Run, [0.1, 0.1].as_slice()));
}

#[test]
fn a_command_that_comes_after_the_second_limit_finds_a_fault_even_when_nobody_polled() {
    let mut drive = running(0);
    assert_eq!(drive.on_command(&command(1, 255, &[0.1, 0.1]), 11, 500 * MS), Err(Rejection::Faulted));
    assert_eq!((drive.state(), drive.output()), (DriveState::Fault, [0.0, 0.0].as_slice()));
}

#[test]
fn fault_needs_reset_then_a_new_session_then_a_command() {
    let mut drive = running(0);
    drive.on_estop();
    assert_eq!(
        (drive.state(), drive.faults(), drive.output()),
        (DriveState::Fault, Faults::ESTOP, [0.0; 2].as_slice())
    );
    drive.on_disarm();
    drive.on_reset(0);
    assert_eq!(drive.on_arm(2, 0), Err(Rejection::Faulted));
    assert_eq!(drive.on_command(&command(1, 255, &[0.1, 0.1]), 11, 0), Err(Rejection::Faulted));
    drive.on_fault_reset();
    assert_eq!((drive.state(), drive.faults()), (DriveState::Disarmed, Faults::default()));
    assert_eq!(drive.on_arm(1, 0), Err(Rejection::SessionReused));
    drive.on_arm(2, 0).unwrap();
    assert_eq!(drive.on_command(&command(1, 255, &[0.1, 0.1]), 12, 0), Err(Rejection::WrongSession));
    assert_eq!(drive.output(), [0.0, 0.0]);
    drive.on_command(&command(2, 255, &[0.1, 0.1]), 1, 0).unwrap();
    assert_eq!(drive.state(), DriveState::Run);
}

#[test]
fn arming_twice_is_harmless_and_a_new_session_takes_over_standing_still() {
    let mut drive = running(0);
    drive.on_arm(1, 0).unwrap();
    assert_eq!(drive.state(), DriveState::Run);
    drive.on_arm(2, 0).unwrap();
    assert_eq!((drive.state(), drive.output()), (DriveState::Armed, [0.0, 0.0].as_slice()));
    assert_eq!(drive.on_arm(1, 0), Err(Rejection::SessionReused));
}

#[test]
fn a_pause_after_reset_is_no_fault_and_old_commands_stay_old() {
    let mut drive = running(0);
    drive.on_reset(1);
    assert_eq!((drive.poll(u64::MAX), drive.output()), (DriveState::Armed, [0.0, 0.0].as_slice()));
    assert_eq!(drive.on_command(&command(1, 255, &[0.1, 0.1]), 10, 2), Err(Rejection::OldSequence));
    let mut drive = Drive::new(CONFIG);
    drive.on_reset(0);
    assert_eq!(drive.state(), DriveState::Disarmed);
}

#[test]
fn an_impossible_configuration_does_not_panic() {
    let mut drive = Drive::new(DriveConfig { n_action: usize::MAX, ..CONFIG });
    drive.on_arm(1, 0).unwrap();
    assert_eq!(drive.on_command(&command(1, 255, &[0.0; 24]), 1, 0), Err(Rejection::WrongLength));
    assert_eq!(drive.output(), [0.0; MAX_ACTION]);
}

#[derive(Clone, Debug)]
enum Event {
    Arm(u32),
    Command(u32, u16),
    FaultReset,
    Reset,
    Estop,
    Disarm,
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0_u32..6).prop_map(Event::Arm),
        (0_u32..6, 0_u16..50).prop_map(|(session, seq)| Event::Command(session, seq)),
        Just(Event::FaultReset),
        Just(Event::Reset),
        Just(Event::Estop),
        Just(Event::Disarm),
        (0_u64..700).prop_map(|ms| Event::Wait(ms * MS)),
    ]
}

/// Whether the drive took the event.
fn happen(drive: &mut Drive, event: &Event, now_us: &mut u64) -> bool {
    match event {
        Event::Arm(session) => return drive.on_arm(*session, *now_us).is_ok(),
        Event::Command(session, seq) => {
            return drive.on_command(&command(*session, 200, &[0.3, 0.3]), *seq, *now_us).is_ok();
        }
        Event::FaultReset => drive.on_fault_reset(),
        Event::Reset => drive.on_reset(*now_us),
        Event::Estop => drive.on_estop(),
        Event::Disarm => drive.on_disarm(),
        Event::Wait(us) => {
            *now_us += us;
            drive.poll(*now_us);
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_output_is_zero_unless_the_drive_runs(events in prop::collection::vec(any_event(), 0..60)) {
        let (mut drive, mut now_us) = (Drive::new(CONFIG), 0);
        for event in &events {
            let before = drive.state();
            happen(&mut drive, event, &mut now_us);
            prop_assert!(drive.state() == DriveState::Run || drive.output() == [0.0, 0.0]);
            prop_assert!(drive.output().iter().all(|value| value.abs() <= LIMITS.magnitude));
            if before == DriveState::Fault && drive.state() != DriveState::Fault {
                prop_assert!(matches!(event, Event::FaultReset));
            }
        }
    }

    /// Everything the drive ever took, sent again to the drive in fault.
    #[test]
    fn a_replayed_stream_moves_nothing(mut events in prop::collection::vec(any_event(), 0..80)) {
        let (mut drive, mut now_us) = (Drive::new(CONFIG), 0);
        events.retain(|event| happen(&mut drive, event, &mut now_us));
        drive.on_estop();
        for event in &events {
            happen(&mut drive, event, &mut now_us);
            prop_assert!(matches!(drive.state(), DriveState::Fault | DriveState::Disarmed));
        }
    }
}
