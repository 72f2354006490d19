//! The replay's files and the control thread: no page fault of one is the other's, and locked memory holds none.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldtune::clock::Clock;
use fieldtune::config::{Exploration, PolicyConfig, ReplayConfig};
use fieldtune::control::{
    ControlLoop, ControlSettings, Limits, Offer, Person, QUEUE_STEPS, Rules, policy_slot, step_queue,
};
use fieldtune::nn::weights::{ActorWeights, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::policy::prepare;
use fieldtune::replay::{Layout, Replay, Seen, Store};
use fieldtune::robot::FirmwareRobot;
use fieldtune::robot::loopback::{LoopbackLink, ModelRobot};
use fieldtune::spaces::{FrameShape, Spaces, StepRecord};
use fieldtune::telemetry::ControlCounters;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::mm::{MlockAllFlags, mlockall, munlockall};

const PERIOD: Duration = Duration::from_millis(1);

/// What a test sees of the process's memory is its own.
static ALONE: Mutex<()> = Mutex::new(());

fn spaces() -> Spaces {
    Spaces { observation: ["a", "b", "c"].map(String::from).to_vec(), action: ["u", "v"].map(String::from).to_vec() }
}

/// Page faults of the calling thread so far, those that waited for the disk included.
fn faults(text: &mut String) -> u64 {
    use std::io::Read;
    text.clear();
    fs::File::open("/proc/thread-self/stat").unwrap().read_to_string(text).unwrap();
    // Behind the name in parentheses: state, five numbers, flags, minflt, cminflt, majflt.
    let mut fields = text[text.rfind(')').unwrap() + 1..].split_whitespace();
    let (minor, major) = (fields.nth(7).unwrap(), fields.nth(1).unwrap());
    minor.parse::<u64>().unwrap() + major.parse::<u64>().unwrap()
}

fn control(clock: &Clock) -> (ControlLoop, fieldtune::control::StepConsumer) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let layers = [3, 32, 4].windows(2).map(|d| LayerWeights {
        inputs: d[0],
        outputs: d[1],
        weight: (0..2 * d[0] * d[1]).map(|_| rng.random_range(-0.2..0.2)).collect(),
        bias: vec![0.01; 2 * d[1]],
        layer_norm: None,
    });
    let actor = ActorWeights {
        stack: StackWeights { members: 2, layers: layers.collect() },
        log_std: LogStdBounds::default(),
        eyes: None,
    };
    let policy = prepare(&actor, &spaces(), &PolicyConfig::default()).unwrap().backend;
    let (slot, handover) = policy_slot(Offer { policy, generation: 0 });
    // Without a publisher nobody hands over a policy; the slot keeps the first one.
    drop(handover);
    let (producer, consumer) = step_queue();
    let link = LoopbackLink::new(ModelRobot::new(&spaces(), PERIOD, Duration::from_millis(100)));
    let timeout = Duration::from_secs(1);
    let robot = FirmwareRobot::connect(Box::new(link), &spaces(), PERIOD, true, 100, timeout, clock.clone()).unwrap();
    let settings = ControlSettings {
        period: PERIOD,
        max_steps: 100,
        exploration: Exploration::Stochastic,
        limits: Limits { magnitude: 1.0, slew: 2.0 },
        stale_steps: 2,
        lost_steps: 10,
        reset_steps: 10,
        first_episode: 0,
        start_seed: 7,
        rules: Rules::default(),
        person: Person::default(),
    };
    let counters = Arc::new(ControlCounters::default());
    let rng = ChaCha8Rng::seed_from_u64(2);
    let mut control = ControlLoop::new(Box::new(robot), slot, producer, counters, clock.clone(), settings, rng);
    control.start().unwrap();
    (control, consumer)
}

#[test]
fn the_control_thread_takes_no_page_fault_while_the_recorder_takes_many() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::from(&spaces());
    let mut store = Store::create(dir.path(), layout, 50_000).unwrap();
    let clock = Clock::lockstep();
    let (mut control, mut consumer) = control(&clock);
    let (stop, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut text = String::with_capacity(4096);
    let (on_control, on_recorder, recorded) = std::thread::scope(|scope| {
        let recorder = scope.spawn(|| {
            let mut text = String::with_capacity(4096);
            let before = faults(&mut text);
            let mut recorded = 0;
            loop {
                let last_round = stop.load(Ordering::Acquire);
                while let Some(record) = consumer.pop() {
                    store.append(&record).unwrap();
                    recorded += 1;
                    taken.store(recorded, Ordering::Release);
                    // After a sync the pages are read-only, so the next append takes a fault.
                    if recorded.is_multiple_of(20) {
                        store.sync().unwrap();
                    }
                }
                if last_round {
                    return (faults(&mut text) - before, recorded);
                }
                std::thread::yield_now();
            }
        });
        let mut tick = || {
            control.tick().unwrap();
            clock.advance(PERIOD);
            Clock::Monotonic.sleep_until(Clock::Monotonic.now().plus(Duration::from_micros(50)));
        };
        // The first ticks touch the stack, the buffers of the link, and every slot of the queue. In a run the locked
        // memory sees to that.
        while taken.load(Ordering::Acquire) <= QUEUE_STEPS {
            tick();
        }
        faults(&mut text);
        let before = faults(&mut text);
        (0..4000).for_each(|_| tick());
        let on_control = faults(&mut text) - before;
        stop.store(true, Ordering::Release);
        let (on_recorder, recorded) = recorder.join().unwrap();
        (on_control, on_recorder, recorded)
    });
    eprintln!("page faults: {on_control} in 4000 ticks, {on_recorder} of the recorder in {recorded} records");
    assert!(recorded > 3000);
    assert!(on_recorder > 100, "the test sees the faults of a thread that writes the map: {on_recorder}");
    // 0 wherever it was measured; a host that takes pages back from an idle machine may cause a few.
    assert!(on_control <= 4, "{on_control}");
}

/// Kilobytes of locked memory.
fn locked() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn locked_memory_holds_no_replay() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (offline, online) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layout = Layout { observation_dim: 17, action_dim: 6, schema_hash: 0 };
    // 12.8 MB each.
    let make = |dir: &tempfile::TempDir| Store::create(dir.path(), layout, 100_000).unwrap();
    let replay = Replay::new(Some(make(&offline)), make(&online), &ReplayConfig::default()).unwrap();
    if let Err(error) = mlockall(MlockAllFlags::CURRENT) {
        eprintln!("skipped: locking memory needs more rights than this process has ({error})");
        return;
    }
    let with = locked();
    replay.unlock_memory();
    let without = locked();
    munlockall().unwrap();
    assert!(without > 0, "the rest of the process stays locked");
    assert!(with - without >= 25_000, "{with} kB locked, {without} kB without the replay");
}

/// Kilobytes of files in this process's memory.
fn mapped() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kb = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    kb("RssFile:") + kb("RssShmem:")
}

#[test]
fn frames_in_memory_stay_within_their_bound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { observation_dim: 3, action_dim: 2, schema_hash: 0 };
    let shape = FrameShape { width: 128, height: 128, channels: 6 };
    let before = mapped();
    // 98 MB of frames.
    let mut store = Store::create_with_frames(dir.path(), layout, 1000, shape).unwrap();
    let bound = 16 << 20;
    store.keep_resident(bound);
    let mut most = 0;
    for step in 0..1000 {
        let pixels = vec![step as u8; shape.bytes()];
        let mut record = StepRecord { step, ..StepRecord::default() };
        record.observation.extend([0.0; 3]);
        record.action.extend([0.0; 2]);
        store.append_with_frame(&record, Seen::New { pixels: &pixels, capture_ns: 0 }).unwrap();
        most = most.max(mapped());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..3000 {
        let sequence = rng.random_range(1..=1000);
        assert_eq!(store.frame(sequence).unwrap().2[77], (sequence - 1) as u8, "let go of, not lost");
        most = most.max(mapped());
    }
    eprintln!("{most} kB of files in memory at most, {before} kB before");
    assert!(most - before.min(most) <= (bound >> 10) + 4096, "{most} kB, {before} kB before");
    store.keep_resident(u64::MAX);
    (1..=1000).for_each(|sequence| {
        assert!(store.frame(sequence).is_ok_and(|(_, _, pixels)| pixels.iter().all(|p| *p == pixels[0])));
    });
    assert!(mapped() > before + 60_000, "the test sees mapped frames");
}
