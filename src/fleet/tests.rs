//! Promises of the protocol, without a network: each step exactly once, and no byte believed unchecked.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::*;
use crate::config::{ReplayConfig, SamplerKind};
use crate::replay::{Access, Layout, Replay, Store};
use crate::spaces::{StepFlags, StepRecord};

const LAYOUT: Layout = Layout { observation_dim: 3, action_dim: 1, schema_hash: 77 };
const CAPACITY: u64 = 20_000;

/// A robot that makes steps, with its spool.
struct Robot {
    name: String,
    folder: TempDir,
    store: Store,
    #[expect(clippy::option_option, reason = "not asked yet, and nothing taken yet, are two things")]
    known: Option<Option<Mark>>,
    next: StepRecord,
}

impl Robot {
    fn new(name: &str) -> Self {
        let store = Store::in_memory(LAYOUT, CAPACITY).unwrap();
        let next = StepRecord { observation: [0.0; 3].into_iter().collect(), ..StepRecord::default() };
        Self { name: name.into(), folder: TempDir::new().unwrap(), store, known: None, next }
    }

    /// One step; sometimes the end of an episode, a gap, or a kill in the middle of an episode.
    fn step(&mut self, rng: &mut ChaCha8Rng) {
        let mut record = self.next.clone();
        record.observation = [rng.random(), rng.random(), self.store.last_sequence() as f32].into_iter().collect();
        record.action = [rng.random()].into_iter().collect();
        record.reward = rng.random();
        record.flags = StepFlags::default();
        let ends = rng.random_bool(0.04);
        if ends {
            record.flags.insert(if rng.random() { StepFlags::TERMINATED } else { StepFlags::TRUNCATED });
        }
        if rng.random_bool(0.02) {
            record.flags.insert(StepFlags::GAP);
            record.step += 1;
        }
        self.store.append(&record).unwrap();
        self.next.step = record.step + 1;
        if ends {
            record.step += 1;
            record.flags = StepFlags::OBSERVATION_ONLY;
            self.store.append(&record).unwrap();
        }
        if ends || rng.random_bool(0.01) {
            (self.next.episode, self.next.step) = (self.next.episode + 1, 0);
        }
    }

    /// One exchange over a network that loses messages on either way.
    fn exchange(&mut self, learner: &mut Learner, rng: &mut ChaCha8Rng, loss: f64) {
        let spool = Spool::open(self.folder.path()).unwrap();
        let message = match self.known {
            None => spool.question(&self.store),
            Some(mark) => spool.batch(&self.store, mark, rng.random_range(1..40)).0,
        };
        if rng.random_bool(loss) {
            return;
        }
        let mark = learner.take(&self.name, &message);
        if !rng.random_bool(loss) {
            self.known = Some(mark);
        }
    }
}

/// A learner's side on disk.
struct Learner {
    folder: TempDir,
    open: Option<(Replay, Intake)>,
}

fn config() -> ReplayConfig {
    ReplayConfig { sampler: SamplerKind::Online, ..ReplayConfig::default() }
}

impl Learner {
    fn new() -> Self {
        let mut learner = Self { folder: TempDir::new().unwrap(), open: None };
        learner.reopen();
        learner
    }

    fn reopen(&mut self) {
        self.open = None;
        let dir = self.folder.path().join("replay");
        let store =
            if dir.exists() { Store::open(&dir, Access::ReadWrite) } else { Store::create(&dir, LAYOUT, CAPACITY) };
        let mut replay = Replay::new(None, store.unwrap(), &config()).unwrap();
        let intake = Intake::open(&dir, &mut replay).unwrap();
        self.open = Some((replay, intake));
    }

    fn take(&mut self, robot: &str, message: &[u8]) -> Option<Mark> {
        let (replay, intake) = self.open.as_mut().unwrap();
        let batch = Batch::decode(message, LAYOUT).unwrap().unwrap();
        intake.take(replay, robot, &batch).unwrap().mark
    }

    fn save(&mut self) {
        let (replay, intake) = self.open.as_mut().unwrap();
        intake.save(replay).unwrap();
    }

    /// Killed: what was not saved is known from the records alone. With `power`, some of those are gone, too.
    fn die(&mut self, rng: &mut ChaCha8Rng, power: bool) {
        let (replay, _) = self.open.take().unwrap();
        let last = replay.online().last_sequence();
        drop(replay);
        let dir = self.folder.path().join("replay");
        let ledger = std::fs::read_to_string(dir.join("fleet.json")).unwrap_or_default();
        let saved = serde_json::from_str::<serde_json::Value>(&ledger).map_or(0, |l| l["sequence"].as_u64().unwrap());
        if power && last > saved {
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new().write(true).open(dir.join("trans.rrb")).unwrap();
            for _ in 0..rng.random_range(1..4) {
                let lost = rng.random_range(saved + 1..=last);
                let at = 8192 + (lost - 1) * LAYOUT.record_size() as u64;
                file.write_at(&vec![0; LAYOUT.record_size()], at).unwrap();
            }
        }
        self.reopen();
    }

    fn records(&self) -> Vec<StepRecord> {
        let store = self.open.as_ref().unwrap().0.online();
        let mut record = StepRecord::default();
        let all = (1..=store.last_sequence()).map(|q| store.record(q, &mut record).map(|()| record.clone()).unwrap());
        all.filter(|record| !record.flags.contains(StepFlags::SEAM)).collect()
    }

    /// Whether the newest record is an observation lent to the step before: 1 or 0 transitions.
    fn lent(&self) -> u64 {
        let store = self.open.as_ref().unwrap().0.online();
        let mut record = StepRecord::default();
        store.record(store.last_sequence(), &mut record).unwrap();
        u64::from(record.flags.contains(StepFlags::SEAM))
    }
}

/// All records of a robot but a newest one whose end nobody knows yet.
fn whole(robot: &Robot) -> Vec<StepRecord> {
    let mut record = StepRecord::default();
    let held = robot.store.first_sequence()..=robot.store.last_sequence();
    let mut all: Vec<_> = held.map(|q| robot.store.record(q, &mut record).map(|()| record.clone()).unwrap()).collect();
    if all.last().is_some_and(|newest| !newest.flags.contains(StepFlags::OBSERVATION_ONLY)) {
        all.pop();
    }
    all
}

fn assert_exactly_once(learner: &Learner, robots: &[Robot]) {
    let (replay, intake) = learner.open.as_ref().unwrap();
    let found = learner.records();
    let mut steps = 0;
    for number in 0..intake.robots() {
        let (name, _) = intake.robot(number).unwrap();
        let robot = robots.iter().find(|robot| robot.name == name).unwrap();
        let own = found
            .iter()
            .filter(|record| episode_of(record).0 as usize == number)
            .map(|record| StepRecord { episode: episode_of(record).1, ..record.clone() });
        let own: Vec<_> = own.collect();
        let wanted = whole(robot);
        assert_eq!(own.len(), wanted.len(), "records of {name}");
        assert_eq!(own, wanted, "records of {name}");
        steps += wanted.iter().filter(|record| !record.flags.contains(StepFlags::OBSERVATION_ONLY)).count() as u64;
    }
    assert_eq!(intake.steps(), steps);
    let transitions: u64 = robots.iter().map(|robot| robot.store.transitions()).sum();
    assert_eq!(replay.online_transitions(), transitions, "each transition once");
}

#[test]
fn each_step_of_each_robot_arrives_exactly_once_whatever_dies_and_gets_lost() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut robots: Vec<_> = ["a", "b", "c"].map(Robot::new).into();
        let mut learner = Learner::new();
        for _ in 0..400 {
            let robot = &mut robots[rng.random_range(0..3)];
            for _ in 0..rng.random_range(0..12) {
                robot.step(&mut rng);
            }
            robot.exchange(&mut learner, &mut rng, 0.2);
            match rng.random_range(0..100) {
                0..6 => learner.save(),
                6..9 => learner.die(&mut rng, false),
                9..12 => learner.die(&mut rng, true),
                // A robot that starts again knows nothing of the learner.
                12..15 => robots[0].known = None,
                _ => {}
            }
        }
        for _ in 0..2 {
            for robot in &mut robots {
                for _ in 0..400 {
                    robot.exchange(&mut learner, &mut rng, 0.0);
                }
            }
            assert_exactly_once(&learner, &robots);
            learner.die(&mut rng, true);
        }
    }
}

#[test]
fn of_a_ring_that_ran_over_what_is_left_arrives_and_nothing_is_joined_across_the_gap() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut learner = Learner::new();
    let mut robot = Robot::new("a");
    robot.store = Store::in_memory(LAYOUT, 64).unwrap();
    for _ in 0..40 {
        robot.step(&mut rng);
        robot.exchange(&mut learner, &mut rng, 0.0);
    }
    let (before, lent) = (learner.records(), learner.lent());
    // Nobody answers.
    for _ in 0..200 {
        robot.step(&mut rng);
    }
    for _ in 0..40 {
        robot.exchange(&mut learner, &mut rng, 0.0);
    }
    let (arrived, left) = (learner.records(), whole(&robot));
    assert!(before.len() > 30 && left.len() > 60, "{} before, {} left", before.len(), left.len());
    assert_eq!(arrived[..before.len()], before);
    assert_eq!(arrived[before.len()..], left);
    let follows = |pair: &&[StepRecord]| {
        (pair[0].episode, pair[0].step + 1) == (pair[1].episode, pair[1].step)
            && !pair[1].flags.contains(StepFlags::GAP)
            && !pair[0].flags.contains(StepFlags::OBSERVATION_ONLY)
    };
    let pairs = |records: &[StepRecord]| records.windows(2).filter(follows).count() as u64;
    let wanted = pairs(&before) + lent + pairs(&left) + learner.lent();
    assert_eq!(learner.open.as_ref().unwrap().0.online_transitions(), wanted);
}

#[test]
fn robots_of_one_name_and_a_robot_with_a_new_replay_are_told_apart() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut learner = Learner::new();
    let mut robots = [Robot::new("arm"), Robot::new("arm")];
    for robot in &mut robots {
        for _ in 0..30 {
            robot.step(&mut rng);
        }
        for _ in 0..20 {
            robot.exchange(&mut learner, &mut rng, 0.0);
        }
    }
    let records = learner.records();
    for (number, robot) in robots.iter().enumerate() {
        let count = records.iter().filter(|record| episode_of(record).0 as usize == number).count();
        assert_eq!(count, whole(robot).len());
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_of_it_taken() {
    let mut learner = Learner::new();
    let (replay, intake) = learner.open.as_mut().unwrap();
    let far = StepRecord {
        episode: 1 << 20,
        observation: [0.0; 3].into_iter().collect(),
        action: [0.0].into_iter().collect(),
        ..StepRecord::default()
    };
    let batch = Batch { spool: [1; 16], after: None, records: vec![far.clone(), StepRecord { step: 1, ..far }] };
    assert!(matches!(intake.take(replay, "a", &batch), Err(FleetError::Episode { .. })));
    assert_eq!(replay.online().last_sequence(), 0);
    let other = Layout { schema_hash: 78, ..LAYOUT };
    assert_eq!(Batch::decode(&Batch::encode([0; 16], None, other, &[]), LAYOUT), Ok(None));
    std::fs::write(learner.folder.path().join("replay/fleet.json"), r#"{"sequence":9,"steps":0,"robots":[]}"#).unwrap();
    let (replay, _) = learner.open.as_mut().unwrap();
    let refused = Intake::open(&learner.folder.path().join("replay"), replay);
    assert!(matches!(refused, Err(FleetError::File { .. })), "a ledger ahead of its replay");
}

/// A message of each kind.
fn samples() -> [Vec<u8>; 4] {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut robot = Robot::new("a");
    (0..6).for_each(|_| robot.step(&mut rng));
    let spool = Spool::open(robot.folder.path()).unwrap();
    let files = vec![("manifest.toml".into(), vec![1, 2, 3]), ("policy.onnx".into(), vec![0; 40])];
    let (parcel, offer) = Parcel { files }.encode(7);
    let answer = Answer { mark: Some(Mark { episode: 2, step: 5 }), offer: Some(offer) };
    assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    let request = ChunkRequest { hash: offer.hash, offset: 1 << 20 };
    assert_eq!(ChunkRequest::decode(&request.encode()), Ok(request));
    assert_eq!(Parcel::decode(&parcel, &offer).unwrap().files.len(), 2);
    [answer.encode(), request.encode(), parcel, spool.batch(&robot.store, None, 10).0]
}

/// Whether any decoder takes the bytes for a message, the parcel's without the help of its hash.
fn accepted(bytes: &[u8]) -> bool {
    Answer::decode(bytes).is_ok()
        || ChunkRequest::decode(bytes).is_ok()
        || Parcel::parse(bytes).is_ok()
        || matches!(Batch::decode(bytes, LAYOUT), Ok(Some(_)))
}

#[test]
fn a_message_with_one_bit_changed_or_a_byte_missing_is_refused() {
    for message in samples() {
        assert!(accepted(&message));
        for bit in 0..message.len() * 8 {
            let mut damaged = message.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!accepted(&damaged), "bit {bit}");
        }
        for length in 0..message.len() {
            assert!(!accepted(&message[..length]), "{length} bytes");
        }
    }
}

#[test]
fn no_bytes_make_a_decoder_panic_or_ask_for_more_memory_than_they_have() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let samples = samples();
    for _ in 0..200_000 {
        let mut message = samples[rng.random_range(0..4)].clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..message.len());
            message[at] = [0, 1, 0x7f, 0xff, rng.random()][rng.random_range(0..5)];
        }
        message.truncate(rng.random_range(0..=message.len()));
        // With a checksum that fits, so that what is behind it is reached.
        for length in [message.len(), message.len().min(56)] {
            if length >= 8 {
                let checksum = crc32c::crc32c(&message[..length - 4]).to_le_bytes();
                message[length - 4..length].copy_from_slice(&checksum);
            }
            let _ = accepted(&message);
        }
    }
}

#[test]
fn a_parcel_comes_in_pieces_and_only_whole_and_only_with_plain_names() {
    let files = vec![("policy.onnx".to_owned(), (0..CHUNK * 2 + 10).map(|i| i as u8).collect::<Vec<_>>())];
    let (parcel, offer) = Parcel { files: files.clone() }.encode(1);
    let mut arrived = Vec::new();
    while (arrived.len() as u64) < offer.size {
        let request = ChunkRequest { hash: offer.hash, offset: arrived.len() as u64 };
        arrived.extend_from_slice(request.of(&parcel));
    }
    assert_eq!(Parcel::decode(&arrived, &offer).unwrap().files, files);
    arrived[CHUNK] ^= 1;
    assert_eq!(Parcel::decode(&arrived, &offer), Err(WireError::Hash));
    for name in ["../evil", "", ".hidden", "a/b", "a\0"] {
        let (parcel, offer) = Parcel { files: vec![(name.to_owned(), vec![1])] }.encode(1);
        assert_eq!(Parcel::decode(&parcel, &offer), Err(WireError::Name), "{name:?}");
    }
    let beyond = ChunkRequest { hash: offer.hash, offset: u64::MAX };
    assert!(beyond.of(&parcel).is_empty());
}
