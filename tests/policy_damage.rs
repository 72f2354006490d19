//! Damaged bundles and checkpoints are refused, with a reason, without a panic and without taking memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod places;
mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fieldtune::nn::weights::{ActorWeights, EnsembleWeights, LayerWeights, LogStdBounds, StackWeights};
use fieldtune::policy::import::{Given, Kind, detect, import};
use fieldtune::policy::manifest::Description;
use fieldtune::policy::{Bundle, foreign, torch_legacy, torch_zip, weights_file};
use fieldtune::spaces::{FrameShape, Spaces};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

mod damage;

use damage::{mutate, peak_of};

fn bundle() -> Bundle {
    let stack = |inputs: usize, outputs: usize| {
        let layer = |inputs: usize, outputs: usize| LayerWeights {
            inputs,
            outputs,
            weight: (0..3 * inputs * outputs).map(|i| (i as f32 * 0.7).sin()).collect(),
            bias: (0..3 * outputs).map(|i| (i as f32).cos()).collect(),
            layer_norm: None,
        };
        StackWeights { members: 3, layers: vec![layer(inputs, 8), layer(8, outputs)] }
    };
    let weights = EnsembleWeights {
        actor: ActorWeights { stack: stack(3, 2), log_std: LogStdBounds::default(), eyes: None },
        critic1: stack(4, 1),
        critic2: stack(4, 1),
        targets: None,
        log_alpha: Some(0.0),
        encoder: None,
    };
    let description = Description {
        name: String::from("pendulum"),
        control_hz: 20.0,
        algorithm: String::from("CQL"),
        discount: 0.99,
        training_log_std: None,
        residual: None,
        spaces: Spaces {
            observation: ["cos_theta", "sin_theta", "theta_rad_s"].map(String::from).to_vec(),
            action: vec![String::from("torque")],
        },
        provenance: BTreeMap::from([(String::from("data"), String::from("made for a test"))]),
    };
    Bundle::new(description, weights).expect("a good bundle")
}

/// The same for a policy with eyes.
fn seeing() -> Bundle {
    let shape = FrameShape { width: 12, height: 9, channels: 3 };
    sight::bundle(
        sight::actor(3, sight::eyes(1, shape, 3, true, 1), 1, 1),
        bundle().manifest().description.spaces.clone(),
    )
}

#[test]
fn two_hundred_damaged_bundles_are_refused() {
    two_hundred_damaged(&bundle());
}

#[test]
fn two_hundred_damaged_bundles_with_eyes_are_refused() {
    two_hundred_damaged(&seeing());
}

fn two_hundred_damaged(good: &Bundle) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    good.save(&path).unwrap();
    let names = ["manifest.toml", "policy.onnx", "weights.safetensors", "golden.safetensors"];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut reasons = BTreeSet::new();
    for round in 0..200 {
        let name = names[round % names.len()];
        let original = fs::read(path.join(name)).unwrap();
        let mut bytes = original.clone();
        while bytes == original {
            mutate(&mut bytes, &mut rng);
        }
        fs::write(path.join(name), &bytes).unwrap();
        let (loaded, peak) = peak_of(|| Bundle::load(&path));
        let error = loaded.err().unwrap_or_else(|| panic!("round {round}: changed {name} was accepted"));
        assert!(peak < 1 << 20, "round {round}: {peak} bytes of memory for a changed {name}");
        reasons.insert(error.to_string());
        fs::write(path.join(name), original).unwrap();
    }
    assert_eq!(&Bundle::load(&path).unwrap(), good);
    assert!(reasons.len() > 20, "every refusal sounds the same: {reasons:?}");
}

#[test]
fn each_fault_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    bundle().save(&path).unwrap();
    let refusal = |name: &str, change: &dyn Fn(&Path)| {
        let saved = fs::read(path.join(name)).unwrap();
        change(&path.join(name));
        let error = Bundle::load(&path).expect_err("accepted").to_string();
        fs::write(path.join(name), saved).unwrap();
        error
    };
    let truncate = |p: &Path| fs::write(p, &fs::read(p).unwrap()[..100]).unwrap();
    let flip = |p: &Path| {
        let mut bytes = fs::read(p).unwrap();
        bytes[500] ^= 4;
        fs::write(p, bytes).unwrap();
    };
    let rename = |p: &Path| fs::write(p, fs::read_to_string(p).unwrap().replace("sin_theta", "cos_theta")).unwrap();
    assert!(refusal("policy.onnx", &|p| fs::remove_file(p).unwrap()).contains("policy.onnx: No such file"));
    assert!(refusal("policy.onnx", &truncate).contains("policy.onnx has 100 bytes"));
    assert!(refusal("weights.safetensors", &flip).contains("weights.safetensors has SHA-256"));
    assert!(refusal("manifest.toml", &rename).contains("manifest.toml was changed"));
}

#[test]
fn parts_of_two_bundles_contradict_each_other_even_with_right_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let good = bundle();
    good.save(&path).unwrap();
    let mut other = good.weights().clone();
    other.actor.stack.layers[0].bias[0] += 0.5;
    let bytes = weights_file::encode(&other).unwrap();
    let entry = &good.manifest().files["weights.safetensors"];
    let mut manifest = good.manifest().clone();
    manifest.files.insert(
        String::from("weights.safetensors"),
        fieldtune::policy::manifest::FileEntry {
            size: entry.size,
            sha256: fieldtune::policy::manifest::sha256(&bytes),
        },
    );
    fs::write(path.join("weights.safetensors"), bytes).unwrap();
    fs::write(path.join("manifest.toml"), manifest.to_text().unwrap()).unwrap();
    let error = Bundle::load(&path).expect_err("accepted").to_string();
    assert!(error.contains("the actors of policy.onnx and weights.safetensors differ"), "{error}");
}

#[test]
fn saving_replaces_a_bundle_whole_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let first = bundle();
    first.save(&path).unwrap();
    let mut weights = first.weights().clone();
    weights.log_alpha = Some(1.0);
    let second = Bundle::new(first.manifest().description.clone(), weights).unwrap();
    second.save(&path).unwrap();
    assert_eq!(Bundle::load(&path).unwrap(), second);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");

    fs::write(path.join("notes.txt"), "mine").unwrap();
    let error = first.save(&path).expect_err("replaced a folder with other files").to_string();
    assert!(error.contains("notes.txt"), "{error}");
    assert!(path.join("notes.txt").exists());
}

#[test]
fn there_is_a_whole_bundle_at_every_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let good = bundle();
    good.save(&path).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..50).for_each(|_| good.save(&path).unwrap()));
        while !writer.is_finished() {
            assert!(path.join("manifest.toml").exists(), "for a moment there was no bundle");
        }
    });
}

#[test]
fn mutated_checkpoints_neither_panic_nor_take_memory() {
    let actor = "checkpoints/off2onrl_halfcheetah_medium_v0/seed0/actor.pt";
    let Some(original) = places::shared(actor).and_then(|path| fs::read(path).ok()) else { return };
    let description = 1208;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = original[..description].to_vec();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut bytes, &mut rng);
        }
        bytes.extend(&original[description..]);
        let (readable, peak) = peak_of(|| torch_legacy::read(&bytes).is_ok());
        accepted += usize::from(readable);
        assert!(peak <= 2 * bytes.len(), "{peak} bytes of memory for a file of {}", bytes.len());
    }
    eprintln!("{accepted} of 20000 mutations left a readable file");
    assert!((1..10_000).contains(&accepted), "the mutations do not reach the tensors");
}

/// Reads a fixture that `tools/interop/checkpoints.py` wrote.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import").join(name)).expect("a fixture")
}

/// Changes bytes of `data.pkl`, or of any entry where there is none, and mends the checksum of the archive, so that the
/// change gets past it.
fn mutate_entry(bytes: &mut [u8], rng: &mut ChaCha8Rng) {
    fn number(bytes: &[u8], at: usize, n: usize) -> usize {
        bytes[at..at + n].iter().rev().fold(0, |v, b| v << 8 | usize::from(*b))
    }
    let end = (0..bytes.len() - 21).rev().find(|at| bytes[*at..].starts_with(b"PK\x05\x06")).expect("an archive");
    let (count, mut head) = (number(bytes, end + 10, 2), number(bytes, end + 16, 4));
    let mut heads = Vec::new();
    for _ in 0..count {
        heads.push(head);
        head += 46 + number(bytes, head + 28, 2) + number(bytes, head + 30, 2) + number(bytes, head + 32, 2);
    }
    let is_pickle = |head: &&usize| bytes[**head + 46..][..number(bytes, **head + 28, 2)].ends_with(b"data.pkl");
    let head = *heads.iter().find(is_pickle).unwrap_or(&heads[rng.random_range(0..heads.len())]);
    let local = number(bytes, head + 42, 4);
    let start = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
    let end = start + number(bytes, head + 24, 4);
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(start..end);
        bytes[at] = match rng.random_range(0..3) {
            0 => bytes[at] ^ 1 << rng.random_range(0..8),
            1 => rng.random(),
            _ => bytes[rng.random_range(start..end)],
        };
    }
    let checksum = crc32fast::hash(&bytes[start..end]).to_le_bytes();
    bytes[head + 16..head + 20].copy_from_slice(&checksum);
}

/// Runs `read` on 20,000 mutations and says how many it took. Memory stays within `factor` times the bytes.
fn fuzz(original: &[u8], factor: usize, seed: u64, mut read: impl FnMut(&[u8]) -> bool, zip: bool) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut bytes = original.to_vec();
        if zip && round % 4 != 0 {
            mutate_entry(&mut bytes, &mut rng);
        } else {
            for _ in 0..rng.random_range(1..4) {
                mutate(&mut bytes, &mut rng);
            }
        }
        let (readable, peak) = peak_of(|| read(&bytes));
        accepted += usize::from(readable);
        assert!(peak <= factor * bytes.len() + 4096, "{peak} bytes for a file of {}", bytes.len());
    }
    accepted
}

#[test]
fn mutated_zip_checkpoints_neither_panic_nor_take_memory() {
    let accepted = fuzz(&fixture("corl_cal_ql.pt"), 32, 3, |bytes| torch_zip::read(bytes).is_ok(), true);
    eprintln!("{accepted} of 20000 mutations left a readable file");
    assert!((1..16_000).contains(&accepted), "the mutations do not reach the tensors");
}

#[test]
fn mutated_d3rlpy_and_sb3_files_neither_panic_nor_take_memory() {
    let folder = tempfile::tempdir().unwrap();
    let raw = Given { raw_state: true, ..Given::default() };
    let cases = [("d3rlpy_cql.d3", Kind::D3rlpy, Given::default(), false), ("sb3_sac.zip", Kind::Sb3, raw, true)];
    for (name, kind, given, zip) in cases {
        let path = folder.path().join(name);
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let _ = detect(&path);
            import(kind, &[&path], &given).is_ok()
        };
        let accepted = fuzz(&fixture(name), 64, 4, read, zip);
        eprintln!("{name}: {accepted} of 20000 mutations left a readable file");
        assert!((0..19_000).contains(&accepted));
    }
}

#[test]
fn mutated_onnx_actors_neither_panic_nor_take_memory() {
    let original = fixture("d3rlpy_cql.onnx");
    let accepted = fuzz(&original, 400, 5, |bytes| foreign::inspect(bytes, None).is_ok(), false);
    eprintln!("{accepted} of 20000 mutations left a readable file");
    assert!((1..19_000).contains(&accepted));
}

#[test]
fn an_onnx_file_of_many_empty_parts_is_refused_before_it_takes_memory() {
    // A graph of 16 million nodes without anything in them, two bytes each.
    let nodes = [0x0a, 0x00].repeat(16 << 20);
    let bytes = [&[0x3a, 0x80, 0x80, 0x80, 0x10][..], &nodes].concat();
    let (refused, peak) = peak_of(|| foreign::inspect(&bytes, None).is_err());
    assert!(refused && peak < 1 << 20, "{peak} bytes");
}

#[test]
fn a_long_description_is_refused_before_it_takes_memory() {
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.resize(64 << 20, b'N');
    let (refused, peak) = peak_of(|| torch_legacy::read(&bytes).is_err());
    assert!(refused && peak < 32 << 20, "{peak} bytes");
}
