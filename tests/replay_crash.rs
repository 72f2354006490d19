//! What a buffer is after its writer was killed, the power was cut, or its file was damaged.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stderr, reason = "the counts of a run are what the long tests are for")]

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldtune::config::{ReplayConfig, SamplerKind};
use fieldtune::replay::{Access, Layout, Region, Replay, ReplayError, Store};
use fieldtune::spaces::{Minibatch, StepFlags, StepRecord};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const RECORDS_AT: usize = 8192;
const SECTOR: usize = 512;

/// Layouts with records of 64, 128, 256 and 512 bytes.
const LAYOUTS: [(usize, usize); 4] = [(3, 1), (17, 6), (30, 8), (48, 24)];

fn layout(dims: (usize, usize)) -> Layout {
    Layout { observation_dim: dims.0, action_dim: dims.1, schema_hash: 5 }
}

/// What the writer appends as record `sequence`: episodes of 9 steps and a last observation.
fn record(layout: Layout, sequence: u64) -> StepRecord {
    let (episode, step) = (sequence / 10, sequence % 10);
    let mut record = StepRecord {
        episode: episode as u32,
        step: step as u32,
        flags: if step == 9 { StepFlags::OBSERVATION_ONLY } else { StepFlags::default() },
        capture_us: sequence * 1000,
        use_us: sequence * 1000 + 3,
        ..StepRecord::default()
    };
    record.observation.extend((0..layout.observation_dim).map(|k| sequence as f32 + k as f32 * 0.01));
    if step != 9 {
        record.reward = -(sequence as f32);
        record.action.extend((0..layout.action_dim).map(|k| (sequence % 7) as f32 * 0.1 - k as f32 * 0.01));
    }
    record
}

/// All records of the store are the ones that were appended under their numbers; returns how many there are.
fn assert_records_are_genuine(store: &Store) -> u64 {
    let (mut found, mut count) = (StepRecord::default(), 0);
    for sequence in store.first_sequence()..=store.last_sequence() {
        if store.record(sequence, &mut found).is_ok() {
            assert_eq!(found, record(store.layout(), sequence), "record {sequence} was never appended");
            count += 1;
        }
    }
    assert_eq!(count, store.len());
    count
}

// --- Death of the writer ---

/// Few acknowledgements, so that most kills strike while a record is being written.
const ACKNOWLEDGED_TOGETHER: u64 = 64;

/// The process to kill: appends until it dies, and acknowledges what `append` has returned for.
#[test]
#[ignore = "helper: the writing process of the kill tests"]
fn writer() {
    let Ok(dir) = std::env::var("FIELDTUNE_TEST_WRITER") else {
        return;
    };
    let mut store = Store::open(Path::new(&dir), Access::ReadWrite).unwrap();
    let path = Path::new(&dir).join("acknowledged");
    let mut acknowledged = std::fs::File::options().create(true).append(true).open(path).unwrap();
    loop {
        let sequence = store.append(&record(store.layout(), store.last_sequence() + 1)).unwrap();
        if sequence.is_multiple_of(ACKNOWLEDGED_TOGETHER) {
            acknowledged.write_all(&sequence.to_le_bytes()).unwrap();
        }
        if sequence.is_multiple_of(1_000_000) {
            store.sync().unwrap();
        }
    }
}

/// The last whole number in the file of acknowledgements, 0 before there is one.
fn last_acknowledged(dir: &Path) -> u64 {
    let read = || -> io::Result<u64> {
        let mut file = std::fs::File::open(dir.join("acknowledged"))?;
        let whole = file.metadata()?.len() / 8 * 8;
        file.seek(SeekFrom::Start(whole.checked_sub(8).ok_or(io::ErrorKind::UnexpectedEof)?))?;
        let mut word = [0; 8];
        file.read_exact(&mut word)?;
        Ok(u64::from_le_bytes(word))
    };
    read().unwrap_or(0)
}

fn kill_writers(kills: u32) {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path(), layout((17, 6)), 20_000).unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(kills.into());
    let (mut torn, mut acknowledged_in_all) = (0, 0);
    for kill in 0..kills {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--ignored"])
            .env("FIELDTUNE_TEST_WRITER", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let before = last_acknowledged(dir.path());
        while last_acknowledged(dir.path()) == before {
            assert!(writer.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let acknowledged = last_acknowledged(dir.path());
        let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
        assert!(store.last_sequence() >= acknowledged, "kill {kill}: acknowledged {acknowledged} is lost");
        assert!(store.last_sequence() < acknowledged + 2 * ACKNOWLEDGED_TOGETHER, "kill {kill}: records from nowhere");
        assert!(!store.was_closed_cleanly());
        let bad = store.bad_records().total();
        assert!(bad <= 1, "kill {kill}: {bad} bad records");
        let genuine = assert_records_are_genuine(&store);
        assert_eq!(genuine + bad, store.last_sequence().min(20_000), "kill {kill}");
        torn += bad;
        acknowledged_in_all = acknowledged;
    }
    eprintln!("{kills} kills, {acknowledged_in_all} acknowledged records, 0 lost, {torn} half-written ones rejected");
}

#[test]
fn twenty_kills_lose_nothing() {
    kill_writers(20);
}

#[test]
#[ignore = "long: 500 kills"]
fn five_hundred_kills_lose_nothing() {
    kill_writers(500);
}

// --- Power cut ---

/// A disk with a cache in front: `sync` makes what was written durable, until the power fails.
#[derive(Debug)]
struct CrashImage {
    current: Vec<u8>,
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    /// What was in the cache when the power failed.
    lost: Vec<u8>,
    power_failed: bool,
}

impl CrashImage {
    fn new(bytes: Vec<u8>) -> (Self, Arc<Mutex<Disk>>) {
        let disk = Arc::new(Mutex::new(Disk { durable: bytes.clone(), ..Disk::default() }));
        (Self { current: bytes, disk: disk.clone() }, disk)
    }
}

impl Region for CrashImage {
    fn bytes(&self) -> &[u8] {
        &self.current
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(&mut self.current)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        if disk.power_failed {
            return Err(io::Error::other("the power failed"));
        }
        disk.durable.clone_from(&self.current);
        Ok(())
    }
}

impl Drop for CrashImage {
    fn drop(&mut self) {
        self.disk.lock().unwrap().lost = std::mem::take(&mut self.current);
    }
}

/// Fails the power under `store`: returns the durable image and the one that was never synced.
fn cut(store: Store, disk: &Mutex<Disk>) -> (Vec<u8>, Vec<u8>) {
    disk.lock().unwrap().power_failed = true;
    drop(store);
    let mut disk = disk.lock().unwrap();
    (std::mem::take(&mut disk.durable), std::mem::take(&mut disk.lost))
}

/// What the disk holds afterwards: each sector old or new, a few torn inside.
fn mix(old: &[u8], new: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut mixed = old.to_vec();
    let share = rng.random::<f64>();
    for (mixed, new) in mixed.chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
        let tear = rng.random_range(0..mixed.len());
        match rng.random::<f64>() {
            p if p < 0.01 => mixed[..tear].copy_from_slice(&new[..tear]),
            p if p < 0.02 => mixed[tear..].copy_from_slice(&new[tear..]),
            _ if rng.random_bool(share) => mixed.copy_from_slice(new),
            _ => {}
        }
    }
    mixed
}

/// Empty image of a new buffer, as a file on disk would start.
fn new_image(layout: Layout, capacity: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path(), layout, capacity).unwrap());
    std::fs::read(dir.path().join("trans.rrb")).unwrap()
}

/// Three power cuts in a row on one buffer. Returns records accepted and rejected.
fn power_cuts(mut image: Vec<u8>, capacity: u64, rng: &mut ChaCha8Rng) -> (u64, u64) {
    let (mut accepted, mut rejected) = (0, 0);
    for _ in 0..3 {
        let (region, disk) = CrashImage::new(image);
        let mut store = Store::from_region(Box::new(region), Access::ReadWrite).unwrap();
        for _ in 0..rng.random_range(0..3 * capacity) {
            let next = store.last_sequence() + 1;
            store.append(&record(store.layout(), next)).unwrap();
            if rng.random_range(0..10) == 0 {
                store.sync().unwrap();
            }
        }
        let size = store.layout().record_size();
        let mut found = StepRecord::default();
        // An earlier cut may have left holes.
        let live: Vec<u64> = (store.first_sequence()..=store.last_sequence())
            .filter(|sequence| store.record(*sequence, &mut found).is_ok())
            .collect();
        let (old, new) = cut(store, &disk);
        image = mix(&old, &new, rng);
        let store = Store::from_region(Box::new(image.clone()), Access::ReadOnly).unwrap();
        accepted += assert_records_are_genuine(&store);
        rejected += store.bad_records().total();
        let slot_of = |sequence: u64| RECORDS_AT + ((sequence - 1) % capacity) as usize * size;
        for sequence in live {
            let bytes = slot_of(sequence)..slot_of(sequence) + size;
            let whole = store.record(sequence, &mut found).is_ok();
            if whole {
                let is = &image[bytes.clone()];
                assert!(is == &old[bytes.clone()] || is == &new[bytes.clone()], "a record that never was");
            }
            // Synced and not being replaced: acknowledged, so it must be there.
            assert!(whole || old[bytes.clone()] != new[bytes], "synced record {sequence} is lost");
        }
        assert_transitions_are_genuine(&store);
    }
    (accepted, rejected)
}

/// Every transition that may be sampled joins two records that followed each other.
fn assert_transitions_are_genuine(store: &Store) {
    let (mut this, mut next) = (StepRecord::default(), StepRecord::default());
    let capacity = store.capacity();
    for sequence in store.first_sequence()..=store.last_sequence() {
        let slot = ((sequence - 1) % capacity) as usize;
        if store.is_sampleable(slot) && store.record(sequence, &mut this).is_ok() {
            store.record(sequence + 1, &mut next).unwrap();
            assert_eq!((this.episode, this.step + 1), (next.episode, next.step));
        }
    }
}

#[test]
fn a_power_cut_leaves_only_records_that_once_were() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut accepted, mut rejected, mut cases) = (0, 0, 0);
    for dims in LAYOUTS {
        for capacity in [3, 8, 23, 64] {
            let image = new_image(layout(dims), capacity);
            for _ in 0..60 {
                let counts = power_cuts(image.clone(), capacity, &mut rng);
                (accepted, rejected, cases) = (accepted + counts.0, rejected + counts.1, cases + 3);
            }
        }
    }
    eprintln!("{cases} power cuts: {accepted} records accepted, all genuine; {rejected} rejected");
    assert!(cases >= 2000 && accepted > 10_000 && rejected > 100);
}

#[test]
fn after_a_failed_sync_nothing_more_is_accepted() {
    let (region, disk) = CrashImage::new(new_image(layout((3, 1)), 10));
    let mut store = Store::from_region(Box::new(region), Access::ReadWrite).unwrap();
    store.append(&record(store.layout(), 1)).unwrap();
    disk.lock().unwrap().power_failed = true;
    assert!(matches!(store.sync(), Err(ReplayError::Io { .. })));
    disk.lock().unwrap().power_failed = false;
    assert!(matches!(store.append(&record(store.layout(), 2)), Err(ReplayError::Poisoned { .. })));
    assert!(matches!(store.sync(), Err(ReplayError::Poisoned { .. })));
    drop(store);
    let image = disk.lock().unwrap().lost.clone();
    let store = Store::from_region(Box::new(image), Access::ReadOnly).unwrap();
    assert!(!store.was_closed_cleanly(), "a poisoned buffer is not marked as closed");
}

/// Records between two acknowledgements of the writer whose machine loses power.
const SYNCED_TOGETHER: u64 = 1000;

/// Runs in the guest of `tools/power-cut` until the machine is gone: acknowledges what `sync` has returned for.
#[test]
#[ignore = "helper: the writing process of tools/power-cut"]
fn power_cut_writer() {
    let (Ok(dir), Ok(capacity)) = (std::env::var("FIELDTUNE_TEST_DISK"), std::env::var("FIELDTUNE_TEST_CAPACITY"))
    else {
        return;
    };
    let mut store = Store::open_or_create(Path::new(&dir), layout((17, 6)), capacity.parse().unwrap()).unwrap();
    loop {
        let sequence = store.append(&record(store.layout(), store.last_sequence() + 1)).unwrap();
        if sequence.is_multiple_of(SYNCED_TOGETHER) {
            store.sync().unwrap();
            // Not through the test harness, which would keep it until the end.
            writeln!(io::stdout(), "ACK {sequence}").unwrap();
        }
    }
}

/// Looks at what the disk of `tools/power-cut` holds afterwards.
#[test]
#[ignore = "helper: the check after tools/power-cut"]
fn power_cut_survivor() {
    let (Ok(dir), Ok(acknowledged)) =
        (std::env::var("FIELDTUNE_TEST_DISK"), std::env::var("FIELDTUNE_TEST_ACKNOWLEDGED"))
    else {
        return;
    };
    let acknowledged: u64 = acknowledged.parse().unwrap();
    let store = Store::open(Path::new(&dir), Access::ReadOnly).unwrap();
    let genuine = assert_records_are_genuine(&store);
    assert_transitions_are_genuine(&store);
    let last = store.last_sequence();
    // The last acknowledgement may have been under way on the console.
    assert!(last >= acknowledged && last < acknowledged + 2 * SYNCED_TOGETHER, "{last} of {acknowledged} acknowledged");
    // Older ones may have been in the middle of being replaced.
    let safe = (acknowledged + 2 * SYNCED_TOGETHER).saturating_sub(store.capacity()).max(1);
    let mut found = StepRecord::default();
    let lost = (safe..=acknowledged).filter(|sequence| store.record(*sequence, &mut found).is_err()).count();
    assert_eq!(lost, 0, "acknowledged records are lost");
    let bad = store.bad_records().total();
    writeln!(
        io::stdout(),
        "acknowledged {acknowledged}, recovered up to {last}; {genuine} records genuine, {bad} rejected, 0 lost"
    )
    .unwrap();
}

// --- Damage ---

/// A ring of 10 that went round once, closed.
fn small_image() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::create(dir.path(), layout((3, 1)), 10).unwrap();
    (1..=13).for_each(|sequence| _ = store.append(&record(layout((3, 1)), sequence)).unwrap());
    drop(store);
    std::fs::read(dir.path().join("trans.rrb")).unwrap()
}

#[test]
fn every_changed_byte_is_reported_or_harmless() {
    let image = small_image();
    let mut reported = 0;
    for at in 0..image.len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut damaged = image.clone();
            damaged[at] ^= change;
            let Ok(store) = Store::from_region(Box::new(damaged), Access::ReadOnly) else {
                reported += 1;
                continue;
            };
            let genuine = assert_records_are_genuine(&store);
            let seen = store.bad_records().total() > 0 || store.usable_headers() < 2;
            assert!(seen || genuine == 10, "the change at {at} lost a record silently");
            assert!(genuine >= 9, "the change at {at} cost more than its record");
            reported += usize::from(seen);
        }
    }
    assert_eq!(reported, 3 * (2 * 128 + 10 * 64), "every byte of headers and records counts, no other does");
}

#[test]
fn every_changed_byte_of_an_empty_slot_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path(), layout((3, 1)), 3).unwrap());
    let image = std::fs::read(dir.path().join("trans.rrb")).unwrap();
    for at in RECORDS_AT..image.len() {
        let mut damaged = image.clone();
        damaged[at] = 1;
        let store = Store::from_region(Box::new(damaged), Access::ReadOnly).unwrap();
        assert_eq!((store.len(), store.bad_records().checksum), (0, 1));
    }
}

#[test]
fn every_truncation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = small_image();
    for len in (0..image.len()).step_by(64).chain([1, image.len() - 1]) {
        std::fs::write(dir.path().join("trans.rrb"), &image[..len]).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = Store::open(dir.path(), access).unwrap_err();
            assert!(matches!(error, ReplayError::Truncated { .. } | ReplayError::Header { .. }), "{len}: {error}");
        }
        assert_eq!(std::fs::read(dir.path().join("trans.rrb")).unwrap(), image[..len], "refused and unchanged");
    }
}

// --- Anything ---

/// An input for the opener: a good image with damage, often with checksums made right again.
fn anything(good: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.random_range(0..6) {
        let region = [0..128, 4096..4224, RECORDS_AT..good.len()][rng.random_range(0..3)].clone();
        let at = rng.random_range(region);
        match rng.random_range(0..4) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at..(at + 8).min(good.len())].fill([0, 0xFF, 0x7F][rng.random_range(0..3)]),
            _ => {
                let from = rng.random_range(0..good.len() - 64);
                let to = at.min(good.len() - 64);
                bytes.copy_within(from..from + 64, to);
            }
        }
    }
    if rng.random_bool(0.8) {
        let parts = [0, 4096].map(|slot| slot..slot + 128).into_iter();
        for part in parts.chain((RECORDS_AT..good.len()).step_by(64).map(|at| at..at + 64)) {
            let part = &mut bytes[part];
            let body = part.len() - 4;
            if part.iter().any(|b| *b != 0) {
                let checksum = crc32c::crc32c(&part[..body]);
                part[body..].copy_from_slice(&checksum.to_le_bytes());
            }
        }
    }
    if rng.random_bool(0.1) {
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    if rng.random_bool(0.02) {
        rng.fill(&mut bytes[..]);
    }
    bytes
}

/// Opens inputs and uses what opens. Returns how many did.
fn open_anything(inputs: u32) -> u32 {
    let good = small_image();
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let (mut opened, mut batch, mut found) = (0, Minibatch::default(), StepRecord::default());
    for input in 0..inputs {
        let bytes = anything(&good, &mut rng);
        let access = if input % 2 == 0 { Access::ReadWrite } else { Access::ReadOnly };
        let Ok(mut store) = Store::from_region(Box::new(bytes), access) else {
            continue;
        };
        opened += 1;
        for sequence in store.first_sequence()..=store.last_sequence() {
            let _ = store.record(sequence, &mut found);
        }
        if access == Access::ReadWrite {
            for sequence in 1..=4 {
                let _ = store.append(&record(store.layout(), sequence));
            }
        }
        if let Ok(mut replay) = Replay::new(None, store, &ReplayConfig::default())
            && replay.sample(SamplerKind::Balanced, 8, &mut rng, &mut batch).is_ok()
        {
            let numbers = batch.observation.iter().chain(&batch.next_observation).chain(&batch.action);
            assert!(numbers.chain(&batch.reward).all(|v| v.is_finite()));
            replay.set_priorities(&batch.leaf, &[1.0; 8]).unwrap();
        }
    }
    opened
}

#[test]
fn the_opener_survives_anything() {
    let opened = open_anything(20_000);
    assert!((4000..20_000).contains(&opened), "{opened} of 20000 inputs opened: the generator is one-sided");
}

#[test]
#[ignore = "long: a million inputs"]
fn the_opener_survives_a_million_inputs() {
    eprintln!("{} of 1000000 inputs opened", open_anything(1_000_000));
}
