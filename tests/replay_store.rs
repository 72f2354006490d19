//! The store on real files: locks, full disks, read-only openers, later versions, the golden file.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};
use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, HeaderProblem, Layout, Replay, ReplayError, Store};
use fieldtune::spaces::{Minibatch, Source, StepFlags, StepRecord};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const LAYOUT: Layout = Layout { observation_dim: 3, action_dim: 2, schema_hash: 0x1234_5678_9abc_def0 };

/// Record `index` of a made-up robot with episodes of 5 steps and a last observation.
fn record(index: u32) -> StepRecord {
    let (episode, step) = (index / 6, index % 6);
    let mut record = StepRecord {
        episode,
        step,
        policy_generation: episode / 2,
        capture_us: u64::from(index) * 50_000,
        use_us: u64::from(index) * 50_000 + 700,
        ..StepRecord::default()
    };
    record.observation.extend([index as f32, -(index as f32), 0.5]);
    if step == 5 {
        record.flags = StepFlags::OBSERVATION_ONLY;
        return record;
    }
    if step == 4 {
        record.flags = if episode % 2 == 0 { StepFlags::TERMINATED } else { StepFlags::TRUNCATED };
    }
    record.reward = index as f32 * 0.25;
    record.action.extend([index as f32 * 0.01, -0.5]);
    record
}

fn filled(dir: &Path, capacity: u64, records: u32) -> Store {
    let mut store = Store::create(dir, LAYOUT, capacity).unwrap();
    for index in 0..records {
        assert_eq!(store.append(&record(index)).unwrap(), u64::from(index) + 1);
    }
    store
}

fn assert_holds(store: &Store, sequences: std::ops::RangeInclusive<u64>) {
    let mut found = StepRecord::default();
    for sequence in sequences {
        store.record(sequence, &mut found).unwrap();
        assert_eq!(found, record(sequence as u32 - 1), "sequence {sequence}");
    }
}

#[test]
fn a_buffer_comes_back_as_it_was_at_every_fill_around_the_seam() {
    for records in [0, 1, 29, 30, 31, 59, 60, 61, 100] {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path(), 30, records);
        let before = (store.len(), store.transitions(), store.first_sequence(), store.last_sequence());
        let sampleable: Vec<bool> = (0..30).map(|slot| store.is_sampleable(slot)).collect();
        drop(store);
        let store = Store::open(dir.path(), Access::ReadWrite).unwrap();
        assert_eq!(before, (store.len(), store.transitions(), store.first_sequence(), store.last_sequence()));
        assert_eq!(sampleable, (0..30).map(|slot| store.is_sampleable(slot)).collect::<Vec<_>>());
        assert_eq!(store.bad_records().total(), 0);
        assert!(store.was_closed_cleanly());
        assert_eq!(store.usable_headers(), 2);
        assert_eq!(store.next_episode(), records.div_ceil(6));
        assert_eq!(store.watermark(), u64::from(records));
        assert_holds(&store, store.first_sequence()..=store.last_sequence());
        let mut found = StepRecord::default();
        for gone in [0, u64::from(records) + 1, u64::MAX] {
            assert!(matches!(store.record(gone, &mut found), Err(ReplayError::NoRecord { .. })));
        }
        assert_eq!(store.overwritten(), u64::from(records.saturating_sub(30)));
    }
}

#[test]
fn the_seam_joins_nothing_even_where_episode_and_step_would_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::create(dir.path(), LAYOUT, 4).unwrap();
    for step in [6, 1, 2, 5] {
        // The oldest record, beside the newest in the ring, has the step that would follow it.
        store.append(&StepRecord { episode: 0, step, ..record(0) }).unwrap();
    }
    assert_eq!(store.transitions(), 1);
    drop(store);
    let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
    assert_eq!((store.transitions(), store.is_sampleable(1)), (1, true));
}

/// A test beside this one that starts a process holds every lock until that process has begun.
fn open_when_free(dir: &Path, access: Access) -> Store {
    for _ in 0..500 {
        match Store::open(dir, access) {
            Err(ReplayError::Locked { .. }) => {
                Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(10)));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("the buffer stays locked")
}

#[test]
fn a_second_opener_is_refused_and_told_who_holds_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 30, 7);
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = Store::open(dir.path(), access).unwrap_err();
        let ReplayError::Locked { holder, .. } = &error else { panic!("{error}") };
        match holder {
            Some(holder) => assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}"),
            None => eprintln!("skipped: the name of the holder, /proc/locks does not list it here"),
        }
    }
    assert!(matches!(Store::create(dir.path(), LAYOUT, 30), Err(ReplayError::Exists { .. })));
    drop(store);
    let readers: Vec<Store> = (0..3).map(|_| open_when_free(dir.path(), Access::ReadOnly)).collect();
    assert!(matches!(Store::open(dir.path(), Access::ReadWrite), Err(ReplayError::Locked { .. })));
    assert_holds(&readers[2], 1..=7);
    drop(readers);
    open_when_free(dir.path(), Access::ReadWrite);
}

#[test]
fn a_run_goes_on_in_the_buffer_it_finds() {
    let dir = tempfile::tempdir().unwrap();
    let open = |layout, capacity| Store::open_or_create(&dir.path().join("replay"), layout, capacity);
    let mut store = open(LAYOUT, 30).unwrap();
    store.append(&record(0)).unwrap();
    drop(store);
    let store = open(LAYOUT, 50).unwrap();
    assert_eq!((store.len(), store.capacity()), (1, 30));
    drop(store);
    assert!(matches!(open(Layout { schema_hash: 0, ..LAYOUT }, 30), Err(ReplayError::LayoutMismatch { .. })));
}

#[test]
fn readers_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 30, 40));
    let file = dir.path().join("trans.rrb");
    let before = std::fs::read(&file).unwrap();
    let mut store = Store::open(dir.path(), Access::ReadOnly).unwrap();
    assert!(matches!(store.append(&record(0)), Err(ReplayError::ReadOnly { .. })));
    assert!(matches!(store.sync(), Err(ReplayError::ReadOnly { .. })));
    drop(store);
    assert_eq!(before, std::fs::read(&file).unwrap());
}

#[test]
fn records_that_do_not_fit_are_refused_and_nothing_is_written() {
    let mut store = Store::in_memory(LAYOUT, 10).unwrap();
    let mut short = record(0);
    short.observation.pop();
    assert!(matches!(store.append(&short), Err(ReplayError::Shape { what: "observation", .. })));
    let mut short = record(0);
    short.action.pop();
    assert!(matches!(store.append(&short), Err(ReplayError::Shape { what: "action", .. })));
    for poison in [f32::NAN, f32::INFINITY] {
        let mut bad = record(0);
        bad.observation[1] = poison;
        assert!(matches!(store.append(&bad), Err(ReplayError::NotFinite { what: "observation", .. })));
        let mut bad = record(0);
        bad.action[1] = poison;
        assert!(matches!(store.append(&bad), Err(ReplayError::NotFinite { what: "action", .. })));
        let mut bad = record(0);
        bad.reward = poison;
        assert!(matches!(store.append(&bad), Err(ReplayError::NotFinite { what: "reward", .. })));
    }
    assert!(store.is_empty());
}

#[test]
fn a_capacity_that_no_disk_holds_is_a_clean_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::create(dir.path(), LAYOUT, u32::MAX.into()).unwrap_err();
    let ReplayError::NoSpace { needed, available, .. } = &error else {
        eprintln!("skipped: this disk holds 256 GiB: {error}");
        return;
    };
    assert!(*needed > 256 << 30 && available < needed);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    Store::create(dir.path(), LAYOUT, 10).unwrap();
}

#[test]
fn a_small_full_file_system_is_a_clean_error() {
    let mount = tempfile::tempdir().unwrap();
    let command = |name: &str, arguments: &[&str]| {
        std::process::Command::new(name).args(arguments).arg(mount.path()).output().is_ok_and(|o| o.status.success())
    };
    if !command("mount", &["-t", "tmpfs", "-o", "size=1m", "none"]) {
        eprintln!("skipped: mounting a tmpfs needs more rights than this process has");
        return;
    }
    let dir = mount.path().join("buffer");
    let refused = Store::create(&dir, LAYOUT, 1 << 20);
    let left = std::fs::read_dir(mount.path()).unwrap().count();
    let fitting = Store::create(&dir, LAYOUT, 4000).map(|mut store| {
        (0..10_000).try_for_each(|index| store.append(&record(index)).map(drop)).and_then(|()| store.sync())
    });
    // Filled up around the buffer, the buffer itself still works: its space is its own.
    let filled_up = Store::open(&dir, Access::ReadWrite).map(|mut store| {
        let _ = std::fs::write(mount.path().join("junk"), vec![1; 2 << 20]);
        (10_000..30_000).try_for_each(|index| store.append(&record(index)).map(drop)).and_then(|()| store.sync())
    });
    assert!(command("umount", &[]));
    assert!(matches!(refused, Err(ReplayError::NoSpace { .. })), "{refused:?}");
    assert_eq!(left, 0, "nothing is left behind");
    fitting.unwrap().unwrap();
    filled_up.unwrap().unwrap();
}

/// Rewrites both header slots with `change` applied and the checksum made right again.
fn edit_header(dir: &Path, change: impl Fn(&mut [u8])) {
    let path = dir.join("trans.rrb");
    let mut bytes = std::fs::read(&path).unwrap();
    for slot in [0, 4096] {
        change(&mut bytes[slot..slot + 128]);
        let checksum = crc32c::crc32c(&bytes[slot..slot + 124]);
        bytes[slot + 124..slot + 128].copy_from_slice(&checksum.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn other_versions_and_impossible_headers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 30, 10));
    let path = dir.path().join("trans.rrb");
    let good = std::fs::read(&path).unwrap();
    let open = |access| Store::open(dir.path(), access);
    let header_problem = |change: fn(&mut [u8])| {
        std::fs::write(&path, &good).unwrap();
        edit_header(dir.path(), change);
        match open(Access::ReadOnly).unwrap_err() {
            ReplayError::Header { reason, .. } => reason,
            other => panic!("{other}"),
        }
    };
    assert_eq!(header_problem(|h| h[8] = 2), HeaderProblem::Major(2));
    assert_eq!(header_problem(|h| h[12..16].reverse()), HeaderProblem::Endian);
    assert_eq!(header_problem(|h| h[4] = b'\n'), HeaderProblem::Magic);
    assert_eq!(header_problem(|h| h[28] = 2), HeaderProblem::Unsupported);
    assert_eq!(header_problem(|h| h[30] = 2), HeaderProblem::Unsupported);
    assert_eq!(header_problem(|h| h[30] = 1), HeaderProblem::Geometry, "a record with a frame number is larger");
    assert_eq!(header_problem(|h| h[16] = 127), HeaderProblem::Geometry);
    assert_eq!(header_problem(|h| h[20] = 0), HeaderProblem::Geometry);
    assert_eq!(header_problem(|h| h[32..40].fill(0)), HeaderProblem::Geometry);
    assert_eq!(header_problem(|h| h[32..40].fill(0xFF)), HeaderProblem::Geometry);
    // A capacity that the file does not have.
    std::fs::write(&path, &good).unwrap();
    edit_header(dir.path(), |h| h[34] = 1);
    assert!(matches!(open(Access::ReadOnly), Err(ReplayError::Truncated { .. })));
    // A later minor version may be read.
    std::fs::write(&path, &good).unwrap();
    edit_header(dir.path(), |h| h[10] = 1);
    assert!(matches!(open(Access::ReadWrite), Err(ReplayError::NewerMinor { minor: 1, .. })));
    assert_holds(&open(Access::ReadOnly).unwrap(), 1..=10);
}

#[test]
fn a_buffer_of_another_robot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 30, 10);
    store.expect_layout(LAYOUT).unwrap();
    let other = Layout { schema_hash: 1, ..LAYOUT };
    assert!(matches!(store.expect_layout(other), Err(ReplayError::LayoutMismatch { .. })));
    let online = Store::in_memory(other, 10).unwrap();
    assert!(Replay::new(Some(store), online, &ReplayConfig::default()).is_err());
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/replay-1.0")
}

/// The golden folder was made by `drop(filled(&golden(), 30, 40))`. It is never made again, only added to.
#[test]
fn every_later_version_opens_the_golden_file() {
    let golden = golden();
    let store = Store::open(&golden, Access::ReadOnly).unwrap();
    assert_eq!((store.len(), store.last_sequence(), store.next_episode()), (30, 40, 7));
    assert_eq!(store.layout(), LAYOUT);
    assert_eq!(store.bad_records().total(), 0);
    assert_holds(&store, 11..=40);
    // And this version still writes the same bytes. How often it writes headers is its own affair.
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 30, 40));
    let read = |dir: &Path, name| std::fs::read(dir.join(name)).unwrap();
    assert!(read(&golden, "meta.json") == read(dir.path(), "meta.json"));
    let (old, new) = (read(&golden, "trans.rrb"), read(dir.path(), "trans.rrb"));
    assert!(old[8192..] == new[8192..], "records");
    for slot in [0, 4096] {
        assert!(old[slot..slot + 48] == new[slot..slot + 48], "header up to the generation");
    }
}

#[test]
fn a_resumed_run_draws_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let config = ReplayConfig::default();
    let offline = || {
        let mut store = Store::in_memory(LAYOUT, 50).unwrap();
        (0..40).for_each(|index| _ = store.append(&record(index)).unwrap());
        store
    };
    let mut replay = Replay::new(Some(offline()), filled(dir.path(), 30, 0), &config).unwrap();
    (0..45).for_each(|index| replay.append(&record(index)).unwrap());
    let mut batch = Minibatch::default();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..20 {
        replay.sample(SamplerKind::Balanced, 32, &mut rng, &mut batch).unwrap();
        let priorities: Vec<f32> = (0..32).map(|row| (row + round) as f32 * 0.7).collect();
        replay.set_priorities(&batch.leaf, &priorities).unwrap();
    }
    replay.save_priorities().unwrap();
    let mut draw = |replay: &mut Replay| {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        replay.sample(SamplerKind::Balanced, 64, &mut rng, &mut batch).unwrap();
        (batch.clone(), replay.stats())
    };
    let expected = draw(&mut replay);
    drop(replay);
    let reopen = || Store::open(dir.path(), Access::ReadWrite).unwrap();
    let mut replay = Replay::new(Some(offline()), reopen(), &config).unwrap();
    assert_eq!(expected, draw(&mut replay));
    drop(replay);
    // Damaged or foreign, the snapshot is set aside.
    let mut replay = Replay::new(None, reopen(), &config).unwrap();
    assert_ne!(expected.0, draw(&mut replay).0);
    drop(replay);
    let path = dir.path().join("prio.rrb");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let replay = Replay::new(Some(offline()), reopen(), &config).unwrap();
    assert_ne!(expected.1.online_share, replay.stats().online_share);
    assert_eq!(replay.priorities().get(0), 1.0);
}

#[test]
fn balanced_replay_follows_the_published_rules() {
    let mut offline = Store::in_memory(LAYOUT, 5000).unwrap();
    (0..4800).for_each(|index| _ = offline.append(&record(index)).unwrap());
    let transitions = offline.transitions();
    let config = ReplayConfig::default();
    let mut replay = Replay::new(Some(offline), Store::in_memory(LAYOUT, 1000).unwrap(), &config).unwrap();
    let first = transitions as f32 * 3.0 / 1000.0;
    assert!((replay.stats().running_maximum - first).abs() < 1e-4 * first, "P0 = M rho0 / ((1 - rho0) 1000)");
    assert_eq!(replay.priorities().get(0), 1.0);
    assert_eq!(replay.priorities().get(5), 0.0, "an observation alone is no transition");
    replay.append(&record(0)).unwrap();
    assert_eq!(replay.online_transitions(), 0, "no successor yet");
    replay.append(&record(1)).unwrap();
    assert_eq!(replay.priorities().get(5000), replay.stats().running_maximum);
    // Clamped, the last of two wins, the maximum follows; unsampled leaves stay.
    replay.set_priorities(&[0, 1, 1], &[1e9, 500.0, 0.0]).unwrap();
    assert_eq!(replay.priorities().get(0), 1e3);
    assert_eq!(replay.priorities().get(1), 1e-3);
    assert_eq!(replay.priorities().get(2), 1.0);
    assert_eq!(replay.stats().running_maximum, 1e3);
    replay.append(&record(2)).unwrap();
    assert_eq!(replay.priorities().get(5001), 1e3);
    // Poison and nonsense change nothing.
    let before = replay.priorities().total();
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        assert!(matches!(replay.set_priorities(&[3, 4], &[7.0, bad]), Err(ReplayError::Priority { .. })));
    }
    assert!(matches!(replay.set_priorities(&[6000], &[1.0]), Err(ReplayError::Leaf { .. })));
    assert!(matches!(replay.set_priorities(&[1, 2], &[1.0]), Err(ReplayError::Lengths { .. })));
    assert_eq!(before, replay.priorities().total());
    // A leaf without a transition is not woken up.
    replay.set_priorities(&[5, 5999], &[7.0, 7.0]).unwrap();
    assert_eq!(before, replay.priorities().total());
    let state = replay.state();
    let mut other = Replay::new(None, Store::in_memory(LAYOUT, 1000).unwrap(), &config).unwrap();
    assert_eq!(other.stats().running_maximum, 1.0, "without offline data new transitions get 1");
    other.restore(&state).unwrap();
    assert_eq!(other.state(), state);
    assert!(other.restore(&fieldtune::replay::ReplayState { running_maximum: f32::NAN }).is_err());
}

#[test]
fn the_first_thousand_online_samples_get_their_share() {
    let mut offline = Store::in_memory(LAYOUT, 20_000).unwrap();
    (0..12_000).for_each(|index| _ = offline.append(&record(index)).unwrap());
    let online = Store::in_memory(LAYOUT, 2000).unwrap();
    let mut replay = Replay::new(Some(offline), online, &ReplayConfig::default()).unwrap();
    (0..1201).for_each(|index| replay.append(&record(index)).unwrap());
    assert_eq!(replay.online_transitions(), 1000);
    assert!((replay.stats().online_share - 0.75).abs() < 1e-3, "{}", replay.stats().online_share);
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(1), Minibatch::default());
    let mut share = 0.0;
    for _ in 0..200 {
        replay.sample(SamplerKind::Balanced, 256, &mut rng, &mut batch).unwrap();
        share += f64::from(batch.offline_share()) / 200.0;
    }
    assert!((share - 0.25).abs() < 0.005, "offline share {share}");
}

#[test]
fn all_zero_priorities_fall_back_to_uniform_and_nothing_at_all_is_an_error() {
    let config = ReplayConfig { priority_min: 0.0, ..ReplayConfig::default() };
    let mut replay = Replay::new(None, Store::in_memory(LAYOUT, 200).unwrap(), &config).unwrap();
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(1), Minibatch::default());
    for kind in [SamplerKind::Balanced, SamplerKind::Uniform, SamplerKind::Online] {
        assert!(matches!(replay.sample(kind, 4, &mut rng, &mut batch), Err(ReplayError::Empty { .. })));
    }
    assert!(replay.sample_source(Source::Offline, 4, &mut rng, &mut batch).is_err());
    (0..120).for_each(|index| replay.append(&record(index)).unwrap());
    let leaves: Vec<u32> = (0..120).collect();
    replay.set_priorities(&leaves, &[0.0; 120]).unwrap();
    assert_eq!(replay.priorities().total(), 0.0);
    let mut counts = [0_u32; 120];
    for _ in 0..100 {
        replay.sample(SamplerKind::Balanced, 100, &mut rng, &mut batch).unwrap();
        batch.leaf.iter().for_each(|leaf| counts[*leaf as usize] += 1);
    }
    let drawn: Vec<u32> = counts.iter().copied().filter(|c| *c > 0).collect();
    assert_eq!(drawn.len(), 100, "120 records in 20 episodes are 100 transitions");
    assert!(drawn.iter().all(|c| (50..160).contains(c)));
}
