//! Damaged data sets are errors or other numbers, never a panic, and take no memory that their length does not explain.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it counted")]

use std::path::{Path, PathBuf};

use fieldtune::episode::{About, Choices, Ends, Images, lerobot_cameras, lerobot_images, read, write_lerobot};
use fieldtune::spaces::{FrameShape, Spaces};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

mod damage;

use damage::{mutate, peak_of};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sets").join(name)
}

/// Changes `file` of the set `source` many times; returns how many of them were read nevertheless.
fn damaged(source: &Path, file: &Path, choices: &Choices, rounds: usize) -> usize {
    assert!(read(source, choices).is_ok(), "the undamaged set is readable");
    let original = std::fs::read(file).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut accepted = 0;
    for round in 0..rounds {
        let mut bytes = original.clone();
        (0..=round % 3).for_each(|_| mutate(&mut bytes, &mut rng));
        std::fs::write(file, &bytes).unwrap();
        let (readable, peak) = peak_of(|| read(source, choices).is_ok());
        accepted += usize::from(readable);
        // Deflate makes up to 1032 bytes of one; what a file claims is held to that before it is believed.
        let most = 1100 * original.len() + (8 << 20);
        assert!(peak <= most, "round {round}: {peak} bytes for a file of {}", bytes.len());
    }
    std::fs::write(file, original).unwrap();
    accepted
}

#[test]
fn hdf5_of_every_layout_and_filter() {
    let folder = tempfile::tempdir().unwrap();
    let both = Choices {
        ends: Some(Ends::Terminated),
        observation: ["robot0_eef_pos", "object"].map(String::from).to_vec(),
        ..Choices::default()
    };
    let cut = Choices { ends: Some(Ends::At(8)), ..Choices::default() };
    for (name, choices) in [("d4rl.hdf5", &Choices::default()), ("d4rl_v0.hdf5", &cut), ("robomimic.hdf5", &both)] {
        let file = folder.path().join(name);
        std::fs::copy(fixture(name), &file).unwrap();
        let accepted = damaged(&file, &file, choices, 500);
        eprintln!("{name}: {accepted} of 500 mutations left a readable file");
        assert!((1..500).contains(&accepted), "the mutations do not reach the reader");
    }
}

/// Every image of a set, without keeping it.
fn all_images(set: &Path) -> bool {
    lerobot_cameras(set).is_ok_and(|cameras| cameras.iter().all(|c| lerobot_images(set, c, &mut |_| Ok(())).is_ok()))
}

#[test]
fn images_of_lerobot() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let mut data = read(&fixture("d4rl.npz"), &Choices::default()).unwrap();
    let shape = FrameShape { width: 12, height: 10, channels: 3 };
    let pixels = |count: usize| (0..count * shape.bytes()).map(|i| (i * i % 251) as u8).collect();
    data.images = Some(Images { shape, steps: pixels(data.steps()), finals: Vec::new() });
    let named = |n: usize| (0..n).map(|i| i.to_string()).collect();
    let spaces = Spaces { observation: named(5), action: named(2) };
    write_lerobot(&set, &data, &About { spaces: &spaces, nominal_hz: Some(20.0), task: "" }).unwrap();
    assert!(all_images(&set));
    let file = set.join("data/chunk-000/file-000.parquet");
    let original = std::fs::read(&file).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut accepted = 0;
    for round in 0..500 {
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut rng);
        std::fs::write(&file, &bytes).unwrap();
        let (readable, peak) = peak_of(|| all_images(&set));
        accepted += usize::from(readable);
        assert!(peak <= 1100 * original.len() + (8 << 20), "round {round}: {peak} bytes");
    }
    eprintln!("{accepted} of 500 mutations left readable images");
    assert!((1..500).contains(&accepted), "the mutations do not reach the reader");
}

#[test]
fn parquet_of_lerobot() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let data = read(&fixture("d4rl.npz"), &Choices::default()).unwrap();
    let named = |n: usize| (0..n).map(|i| i.to_string()).collect();
    let spaces = Spaces { observation: named(5), action: named(2) };
    write_lerobot(&set, &data, &About { spaces: &spaces, nominal_hz: Some(20.0), task: "" }).unwrap();
    let file = set.join("data/chunk-000/file-000.parquet");
    let accepted = damaged(&set, &file, &Choices::default(), 500);
    eprintln!("{accepted} of 500 mutations left a readable file");
    assert!((1..500).contains(&accepted), "the mutations do not reach the reader");
}
