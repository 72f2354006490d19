//! Camera frames beside the records: stored once, tied to their records, gone together with them.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};

use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, HeaderProblem, Layout, Replay, ReplayError, Seen, Store};
use fieldtune::spaces::{FrameShape, Minibatch, StepFlags, StepRecord};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYOUT: Layout = Layout { observation_dim: 2, action_dim: 1, schema_hash: 9 };
const SHAPE: FrameShape = FrameShape { width: 6, height: 5, channels: 3 };
const FRAMES_AT: usize = 4096;

/// What the camera saw at time `moment`.
fn pixels(moment: u64) -> Vec<u8> {
    let mut pixels = vec![0; SHAPE.bytes()];
    ChaCha8Rng::seed_from_u64(moment).fill_bytes(&mut pixels);
    pixels
}

/// Step `index` of a robot with episodes of 4 steps and a last observation.
fn record(index: u64) -> StepRecord {
    let (episode, step) = ((index / 5) as u32, (index % 5) as u32);
    let flags = if step == 4 { StepFlags::OBSERVATION_ONLY } else { StepFlags::default() };
    let mut record = StepRecord { episode, step, flags, ..StepRecord::default() };
    record.observation.extend([index as f32, 0.0]);
    if step != 4 {
        record.action.push(0.1).unwrap();
    }
    record
}

/// Appends step `index` with the newest frame of a camera that needs `every` steps for one.
fn append(store: &mut Store, index: u64, every: u64) {
    let frame = pixels(index / every);
    let new = Seen::New { pixels: &frame, capture_ns: index * 10 };
    let seen = if index.is_multiple_of(every) { new } else { Seen::Same };
    store.append_with_frame(&record(index), seen).unwrap();
}

fn assert_frames_are_genuine(store: &Store, every: u64) -> u64 {
    let (mut found, mut count) = (StepRecord::default(), 0);
    for sequence in store.first_sequence()..=store.last_sequence() {
        if store.record(sequence, &mut found).is_ok() {
            let index = sequence - 1;
            let (number, capture_ns, frame) = store.frame(sequence).unwrap();
            assert!(frame == pixels(index / every), "frame {number} is not what step {index} saw");
            assert_eq!((found.observation[0], capture_ns), (index as f32, index / every * every * 10));
            count += 1;
        }
    }
    count
}

#[test]
fn frames_are_stored_once_and_come_back_around_the_seam() {
    for every in [1, 2, 3] {
        for records in [1, 29, 30, 31, 60, 61, 100] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Store::create_with_frames(dir.path(), LAYOUT, 30, SHAPE).unwrap();
            (0..records).for_each(|index| append(&mut store, index, every));
            assert_eq!(assert_frames_are_genuine(&store, every), records.min(30));
            let newest = store.frame(records).unwrap().0;
            assert_eq!(newest, records.div_ceil(every), "a frame for every {every} steps");
            let transitions = store.transitions();
            drop(store);
            let store = Store::open(dir.path(), Access::ReadWrite).unwrap();
            assert_eq!((store.transitions(), store.bad_records().total()), (transitions, 0));
            assert_eq!(store.frame_shape(), Some(SHAPE));
            assert_eq!(assert_frames_are_genuine(&store, every), records.min(30));
        }
    }
}

#[test]
fn sampled_rows_get_their_own_frames_and_the_next_ones() {
    let dir = tempfile::tempdir().unwrap();
    let offline = dir.path().join("offline");
    let mut store = Store::create_with_frames(&offline, LAYOUT, 60, SHAPE).unwrap();
    (0..50).for_each(|index| append(&mut store, index, 1));
    drop(store);
    let offline = Store::open(&offline, Access::ReadOnly).unwrap();
    let online = Store::create_with_frames(&dir.path().join("online"), LAYOUT, 40, SHAPE).unwrap();
    let mut replay = Replay::new(Some(offline), online, &ReplayConfig::default()).unwrap();
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(1), Minibatch::default());
    let (mut frames, mut next) = (Vec::new(), Vec::new());
    for index in 0..300 {
        let frame = pixels(index);
        replay.append_with_frame(&record(index), Seen::New { pixels: &frame, capture_ns: 0 }).unwrap();
        replay.sample(SamplerKind::Balanced, 32, &mut rng, &mut batch).unwrap();
        replay.gather_frames(&batch.leaf, &mut frames, &mut next).unwrap();
        for row in 0..32 {
            let pick = |bytes: &[u8]| bytes[row * SHAPE.bytes()..(row + 1) * SHAPE.bytes()].to_vec();
            assert!(pick(&frames) == pixels(batch.observation[2 * row] as u64));
            assert!(pick(&next) == pixels(batch.next_observation[2 * row] as u64));
        }
    }
    // The oldest slot is about to go, and no leaf exists behind the last.
    assert!(replay.gather_frames(&[60 + 300 % 40], &mut frames, &mut next).is_err());
    assert!(replay.gather_frames(&[100], &mut frames, &mut next).is_err());
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::create_with_frames(dir.path(), LAYOUT, 10, SHAPE).unwrap();
    let frame = pixels(0);
    assert!(matches!(store.append(&record(0)), Err(ReplayError::NoFrame)));
    assert!(matches!(store.append_with_frame(&record(0), Seen::Same), Err(ReplayError::NoFrame)));
    let short = Seen::New { pixels: &frame[1..], capture_ns: 0 };
    let refused = store.append_with_frame(&record(0), short);
    assert!(matches!(refused, Err(ReplayError::Shape { what: "frame", found: 89, wanted: 90 })));
    assert!(store.is_empty());
    append(&mut store, 0, 1);
    drop(store);
    let mut store = Store::open(dir.path(), Access::ReadWrite).unwrap();
    let stale = store.append_with_frame(&record(1), Seen::Same);
    assert!(matches!(stale, Err(ReplayError::NoFrame)), "the frame of an earlier process is not what is seen now");
    let mut plain = Store::in_memory(LAYOUT, 10).unwrap();
    assert!(matches!(plain.append_with_frame(&record(0), Seen::Same), Err(ReplayError::NoFrames)));
    assert!(matches!(plain.frame(1), Err(ReplayError::NoFrames)));
    let huge = FrameShape { width: 4000, height: 4000, channels: 3 };
    let refused = Store::create_with_frames(&dir.path().join("huge"), LAYOUT, 10, huge);
    assert!(matches!(refused, Err(ReplayError::FrameShape { .. })));
}

/// Both files of a small ring that went round.
fn images(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let mut store = Store::create_with_frames(dir, LAYOUT, 10, SHAPE).unwrap();
    (0..13).for_each(|index| append(&mut store, index, 2));
    drop(store);
    (std::fs::read(dir.join("trans.rrb")).unwrap(), std::fs::read(dir.join("frames.rrb")).unwrap())
}

#[test]
fn every_changed_byte_of_the_frame_file_is_reported_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (records, frames) = images(dir.path());
    let open = |frames| Store::from_regions(Box::new(records.clone()), Box::new(frames), Access::ReadOnly);
    let mut reported = 0;
    for at in 0..frames.len() {
        let mut damaged = frames.clone();
        damaged[at] ^= 0x41;
        let Ok(store) = open(damaged) else {
            reported += 1;
            continue;
        };
        let genuine = assert_frames_are_genuine(&store, 2);
        assert_eq!(genuine + store.bad_records().frame, 10, "the change at {at} lost a record silently");
        assert!(genuine >= 8, "a frame belongs to two records");
        reported += usize::from(genuine < 10);
    }
    // The header's 64 bytes without the two reserved places, and 5 or 6 frames that records still use.
    let slot = 60 + 4 + SHAPE.bytes();
    assert!(reported >= 5 * slot && reported <= 64 + 6 * slot, "{reported} changes were noticed");
    for len in (0..frames.len()).step_by(64) {
        let refused = open(frames[..len].to_vec());
        assert!(matches!(refused, Err(ReplayError::Truncated { .. } | ReplayError::Header { .. })), "{len}");
    }
}

/// Opens frame files with damage behind a checksum that was made right again. Returns how many opened.
fn open_anything(inputs: u32) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let (records, good) = images(dir.path());
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let mut opened = 0;
    for _ in 0..inputs {
        let (mut records, mut frames) = (records.clone(), good.clone());
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..64);
            frames[at] = if rng.random() { rng.random() } else { [0, 0xFF, 0x7F][rng.random_range(0..3)] };
            let at = rng.random_range(FRAMES_AT..frames.len());
            frames[at] ^= u8::from(rng.random::<bool>());
        }
        let checksum = crc32c::crc32c(&frames[..60]);
        frames[60..64].copy_from_slice(&checksum.to_le_bytes());
        if rng.random_bool(0.1) {
            frames.truncate(rng.random_range(0..frames.len()));
        }
        if rng.random_bool(0.3) {
            // A record that is whole and names another frame.
            let record = 8192 + 64 * rng.random_range(0..10);
            records[record + 44 + rng.random_range(0..8)] ^= 1 << rng.random_range(0..8);
            let checksum = crc32c::crc32c(&records[record..record + 60]);
            records[record + 60..record + 64].copy_from_slice(&checksum.to_le_bytes());
        }
        let Ok(mut store) = Store::from_regions(Box::new(records), Box::new(frames), Access::ReadWrite) else {
            continue;
        };
        opened += 1;
        assert_frames_are_genuine(&store, 2);
        for index in 14..18 {
            // Refused where the damaged header speaks of other sizes.
            let _ = store.append_with_frame(&record(index), Seen::New { pixels: &pixels(index), capture_ns: 0 });
        }
    }
    opened
}

#[test]
fn the_opener_survives_any_frame_file() {
    let opened = open_anything(20_000);
    assert!((2000..19_000).contains(&opened), "{opened} of 20000 inputs opened: the generator is one-sided");
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/replay-1.0-frames")
}

/// The golden folder was made by `images(&golden())`. It is never made again, only added to.
#[test]
fn every_later_version_opens_the_golden_frames() {
    let store = Store::open(&golden(), Access::ReadOnly).unwrap();
    assert_eq!((store.len(), store.last_sequence(), store.frame_shape()), (10, 13, Some(SHAPE)));
    assert_eq!(assert_frames_are_genuine(&store, 2), 10);
    let dir = tempfile::tempdir().unwrap();
    let (records, frames) = images(dir.path());
    assert!(std::fs::read(golden().join("frames.rrb")).unwrap() == frames, "this version still writes the same bytes");
    assert!(std::fs::read(golden().join("trans.rrb")).unwrap()[8192..] == records[8192..]);
}

#[test]
fn a_frame_of_another_time_is_never_taken_for_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let (records, frames) = images(dir.path());
    // The same numbers in the same slots, but the camera saw something else: what a disk holds when a power cut
    // kept the record of one life and the frame of another.
    let other = dir.path().join("other");
    let mut store = Store::create_with_frames(&other, LAYOUT, 10, SHAPE).unwrap();
    for index in 0..13_u64 {
        let frame = pixels(index / 2 + 1000);
        let new = Seen::New { pixels: &frame, capture_ns: index / 2 * 20 };
        let seen = if index % 2 == 0 { new } else { Seen::Same };
        store.append_with_frame(&record(index), seen).unwrap();
    }
    drop(store);
    let foreign = std::fs::read(other.join("frames.rrb")).unwrap();
    let mut mixed = frames.clone();
    let slot = SHAPE.slot_bytes();
    let third = FRAMES_AT + 3 * slot..FRAMES_AT + 4 * slot;
    mixed[third.clone()].copy_from_slice(&foreign[third]);
    let store = Store::from_regions(Box::new(records.clone()), Box::new(mixed), Access::ReadOnly).unwrap();
    assert_eq!((assert_frames_are_genuine(&store, 2), store.bad_records().frame), (8, 2));
    // And a whole file of another robot is refused.
    let elsewhere = dir.path().join("elsewhere");
    drop(Store::create_with_frames(&elsewhere, Layout { schema_hash: 1, ..LAYOUT }, 10, SHAPE).unwrap());
    let foreign = std::fs::read(elsewhere.join("frames.rrb")).unwrap();
    let refused = Store::from_regions(Box::new(records), Box::new(foreign), Access::ReadOnly);
    assert!(matches!(refused, Err(ReplayError::Header { reason: HeaderProblem::Foreign, .. })));
}

/// Each sector of both files old or new, a few torn inside.
fn mix(old: &[u8], new: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut mixed = old.to_vec();
    let share = rng.random::<f64>();
    for (mixed, new) in mixed.chunks_mut(512).zip(new.chunks(512)) {
        let tear = if rng.random_bool(0.02) { rng.random_range(0..mixed.len()) } else { mixed.len() };
        if rng.random_bool(share) {
            mixed[..tear].copy_from_slice(&new[..tear]);
        }
    }
    mixed
}

#[test]
fn power_cuts_leave_only_records_with_the_frame_they_were_made_with() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut accepted, mut rejected) = (0, 0);
    for case in 0..400 {
        let dir = tempfile::tempdir().unwrap();
        let every = 1 + case % 3;
        let mut store = Store::create_with_frames(dir.path(), LAYOUT, 12, SHAPE).unwrap();
        let read = || ["trans.rrb", "frames.rrb"].map(|name| std::fs::read(dir.path().join(name)).unwrap());
        (0..rng.random_range(0..30)).for_each(|index| append(&mut store, index, every));
        store.sync().unwrap();
        let old = read();
        let from = store.last_sequence().next_multiple_of(every);
        (store.last_sequence()..from).for_each(|index| append(&mut store, index, every));
        (from..from + rng.random_range(1..12)).for_each(|index| append(&mut store, index, every));
        let new = read();
        drop(store);
        let [records, frames] = [0, 1].map(|file| mix(&old[file], &new[file], &mut rng));
        let store = Store::from_regions(Box::new(records), Box::new(frames), Access::ReadWrite).unwrap();
        accepted += assert_frames_are_genuine(&store, every);
        rejected += store.bad_records().total();
    }
    assert!(accepted > 2000 && rejected > 100, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn a_pixel_step_takes_little_more_than_its_frame() {
    let shape = FrameShape { width: 48, height: 48, channels: 3 };
    assert_eq!(shape.slot_bytes(), 6976, "1.01 of the raw frame");
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::create_with_frames(dir.path(), LAYOUT, 100, shape).unwrap();
    let frame = vec![7; shape.bytes()];
    for index in 0..100 {
        store.append_with_frame(&record(index), Seen::New { pixels: &frame, capture_ns: 0 }).unwrap();
    }
    let length = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    let per_step = (length("trans.rrb") + length("frames.rrb") - 8192 - 4096) / 100;
    assert!(per_step as f64 <= 1.05 * shape.bytes() as f64, "{per_step} bytes per step");
}
