//! Faults that take the threads of a real run: a learner, a recorder, a control thread that dies.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::bounded;
use firmware_bridge::DriveState;

use super::world::{Answer, Line, PERIOD, Rig, World, rig, settings};
use crate::clock::Clock;
use crate::config::{Config, PretrainConfig, RealtimeConfig, SamplerKind};
use crate::control::{ControlSettings, Limits, Person};
use crate::learner::Dims;
use crate::learner::pretrain::Pretrainer;
use crate::policy::PolicyError;
use crate::replay::{Access, Layout, Region, Replay, Store};
use crate::runtime::classifier::Classifier;
use crate::runtime::event::{Event, Observer};
use crate::runtime::parts::{Shared, lock};
use crate::runtime::publisher::Publisher;
use crate::runtime::realtime;
use crate::runtime::recorder::Recorder;
use crate::runtime::run::{Outlet, Work};
use crate::runtime::trainer::Trainer;
use crate::telemetry::{ControlCounters, NullSink, Report};

/// Steps of a run.
const STEPS: u64 = 80;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The thread of this name panics when it touches the replay.
    Panic(&'static str),
    /// The replay cannot be synced.
    DiskFull,
    /// The success classifier fails.
    Classifier,
    /// The publisher's thread panics when it is asked for something.
    PublisherPanics,
    /// The learner cannot write its checkpoint.
    CheckpointRefused,
    /// The policy panics in the control thread.
    PolicyPanics,
}

/// One row of the table.
pub(super) struct Case {
    /// First cell of the row.
    pub fault: &'static str,
    /// Last cell of the row.
    pub exit_code: u8,
    trouble: Trouble,
    /// In one of the failures of the report.
    says: &'static str,
    /// Whether the control loop does all its steps.
    goes_on: bool,
}

pub(super) const CASES: &[Case] = &[
    Case {
        fault: "The learner panics",
        exit_code: 1,
        trouble: Trouble::Panic("learner"),
        says: "the learner thread panicked",
        goes_on: true,
    },
    Case {
        fault: "The learner fails",
        exit_code: 1,
        trouble: Trouble::CheckpointRefused,
        says: "the learner stopped, the policy in use stays",
        goes_on: true,
    },
    Case {
        fault: "The recorder panics",
        exit_code: 1,
        trouble: Trouble::Panic("recorder"),
        says: "the recorder thread panicked",
        goes_on: true,
    },
    Case {
        fault: "A write to the replay fails (disk full, I/O error)",
        exit_code: 1,
        trouble: Trouble::DiskFull,
        says: "recording stopped, steps are lost from now on",
        goes_on: true,
    },
    Case {
        fault: "The success classifier fails",
        exit_code: 1,
        trouble: Trouble::Classifier,
        says: "the success classifier failed, episodes go on without it",
        goes_on: true,
    },
    Case {
        fault: "The publisher panics",
        exit_code: 1,
        trouble: Trouble::PublisherPanics,
        says: "the publisher thread panicked",
        goes_on: true,
    },
    Case {
        fault: "The control thread panics",
        exit_code: 1,
        trouble: Trouble::PolicyPanics,
        says: "the control thread panicked",
        goes_on: false,
    },
];

/// The replay's bytes, with trouble.
#[derive(Debug)]
struct Troubled {
    bytes: Vec<u8>,
    trouble: Trouble,
}

impl Troubled {
    fn touched(&self) {
        if let Trouble::Panic(name) = self.trouble {
            assert!(std::thread::current().name() != Some(name), "injected");
        }
    }
}

impl Region for Troubled {
    fn bytes(&self) -> &[u8] {
        self.touched();
        &self.bytes
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        self.touched();
        Some(&mut self.bytes)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let full = self.trouble == Trouble::DiskFull && std::thread::current().name() == Some("recorder");
        if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

struct Nobody;

impl Observer for Nobody {
    fn event(&mut self, _: &Event) {}

    fn counters(&mut self, _: &ControlCounters, _: u64) {}
}

fn config(folder: &Path) -> Config {
    let mut config = Config::default();
    config.run.directory = folder.to_owned();
    config.learner.warmup_steps = 10;
    config.learner.batch_size = 4;
    config.learner.density_hidden = vec![4];
    config.learner.checkpoint_every = 1;
    config.replay.sampler = SamplerKind::Online;
    config.realtime = RealtimeConfig { priority: 0, lock_memory: false, ..RealtimeConfig::default() };
    config
}

fn troubled_replay(config: &Config, folder: &Path, trouble: Trouble) -> Replay {
    let layout = Layout { observation_dim: 3, action_dim: 1, schema_hash: 0 };
    let empty = folder.join("empty");
    drop(Store::create(&empty, layout, 1024).unwrap());
    let largest = std::fs::read_dir(&empty).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let region = Troubled { bytes: std::fs::read(largest).unwrap(), trouble };
    Replay::new(None, Store::from_region(Box::new(region), Access::ReadWrite).unwrap(), &config.replay).unwrap()
}

/// A robot that sends its states at its own pace until the flag is set.
fn live(world: &Arc<Mutex<World>>, over: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (world, over) = (Arc::clone(world), Arc::clone(over));
    let body = move || {
        let clock = Clock::Monotonic;
        let mut due = clock.now();
        while !over.load(Relaxed) {
            lock(&world).period();
            due = due.plus(PERIOD);
            clock.sleep_until(due);
        }
    };
    std::thread::Builder::new().name("robot".into()).spawn(body).unwrap()
}

fn run(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    if case.trouble == Trouble::PublisherPanics {
        config.policy.publish_every = 5;
    }
    let spaces = config.robot.spaces.clone();
    let (sender, events) = bounded(4096);
    let shared = Shared::new(sender, Arc::default());
    let pretrain = PretrainConfig { hidden: vec![4], ensemble_size: 2, ..PretrainConfig::default() };
    let weights = Pretrainer::new(Dims::from(&spaces), &pretrain, &config.learner, 0).unwrap().weights().unwrap();
    let replay = Arc::new(Mutex::new(troubled_replay(&config, folder.path(), case.trouble)));
    let trainer = Trainer::new(&weights, None, &config, Arc::clone(&replay), Arc::clone(&shared)).unwrap();
    if case.trouble == Trouble::CheckpointRefused {
        std::fs::write(folder.path().join("checkpoint"), "not a folder").unwrap();
    }
    let answer: fn(u32) -> Answer = match case.trouble {
        Trouble::PolicyPanics => |run| if run < 20 { Answer::Mean(0.1) } else { Answer::Panic },
        _ => |run| Answer::Mean(if run % 2 == 0 { 0.1 } else { -0.1 }),
    };
    let limits = Limits { magnitude: 1.0, slew: 2.0 };
    let counters = Arc::clone(&shared.counters);
    // Two seconds: a busy machine may stall the robot's thread, which is not what this looks for.
    let settings = ControlSettings { lost_steps: 400, ..settings(1000, limits, Person::default()) };
    let Rig { world, control, handover, steps, clock, .. } =
        rig(|_| Line::Good, answer, settings, Clock::Monotonic, counters, None);
    let over = Arc::new(AtomicBool::new(false));
    let robot = live(&world, &over);

    let classifier = (case.trouble == Trouble::Classifier).then(|| {
        let failing = Box::new(|_: &[f32]| Err(PolicyError::ObservationNotFinite { index: 0 }));
        Classifier::new(failing, 0.5, 1, Arc::clone(&shared.verdict))
    });
    let mut publisher = Publisher::new(spaces, config.policy.clone(), handover, Arc::clone(&shared));
    publisher.panics = case.trouble == Trouble::PublisherPanics;
    let work = Work {
        control,
        steps,
        recorder: Recorder::new(replay, Arc::clone(&shared), Duration::from_millis(50), classifier),
        trainer: Some(trainer),
        publisher,
        asked: bounded(1).1,
        shared: Arc::clone(&shared),
        period: PERIOD,
        clock,
        last_step: STEPS,
    };
    let observer = &mut Nobody;
    let mut outlet = Outlet::new(events, observer, Box::new(NullSink), Report::default());
    let ended = realtime::drive(work, &config.realtime, &mut outlet).unwrap();
    over.store(true, Relaxed);
    robot.join().unwrap();

    let counters = &shared.counters;
    let report = Report {
        dropped: counters.dropped_steps.load(Relaxed) + shared.unrecorded.load(Relaxed),
        stopped: ended.stopped.map(|fault| fault.to_string()),
        failures: shared.failures(),
        ..Report::default()
    };
    assert!(report.failures.iter().any(|failure| failure.contains(case.says)), "{}: {report:?}", case.fault);
    assert_eq!(u8::from(!report.is_clean()), case.exit_code, "{}: {report:?}", case.fault);
    assert_eq!(report.stopped, None, "{}", case.fault);
    let world = lock(&world);
    if case.goes_on {
        assert_eq!(counters.steps.load(Relaxed), STEPS, "{}: {report:?}", case.fault);
        assert_eq!(world.robot.drive(), DriveState::Disarmed, "{}", case.fault);
    } else {
        assert_eq!(world.robot.drive(), DriveState::Fault, "{}", case.fault);
        let last = world.commands.last().unwrap().0;
        assert_eq!(world.estops.len(), 3, "{}", case.fault);
        assert!(world.estops[0] - last <= 2, "{}: ESTOP in {} after {last}", case.fault, world.estops[0]);
    }
}

#[test]
fn no_dying_thread_keeps_the_robot_moving_or_the_loop_from_going_on() {
    for case in CASES {
        eprintln!("{}", case.fault);
        run(case);
    }
}
