//! Images of data sets, in and out: LeRobot sets with images in their data files, as files and in videos; logs.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fieldtune::episode::{Choices, Dataset, Ends, Images, lerobot_cameras, lerobot_images, read, write_npz};
use fieldtune::spaces::FrameShape;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sets").join(name)
}

/// Runs `fieldtune data VERB SOURCE --out OUT OPTIONS`.
fn data(verb: &str, source: &Path, out: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    command.arg("data").arg(verb).arg(source).arg("--out").arg(out).args(options).output().unwrap()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two episodes of 3 and 2 steps, the first of which ended, as two cameras saw them.
fn seen() -> Dataset {
    let shape = FrameShape { width: 7, height: 5, channels: 6 };
    let pixels = |images: usize, salt: usize| {
        (0..images * shape.bytes()).map(|i| ((i * i * 31 + i * 7) % 253 + salt) as u8).collect::<Vec<_>>()
    };
    Dataset {
        observation_dim: 2,
        action_dim: 1,
        observations: (0..10).map(|v| v as f32 / 8.0).collect(),
        actions: vec![-0.5, -0.25, 0.0, 0.25, 0.5],
        rewards: vec![0.0, 0.5, 1.0, 0.0, 0.25],
        terminated: vec![false, false, true, false, false],
        truncated: vec![false, false, false, false, true],
        episode_ends: vec![3, 5],
        final_observations: vec![9.0, 8.0, 7.0, 6.0],
        capture_us: vec![1_000, 51_020, 101_000, 7_000_000, 7_049_990],
        images: Some(Images { shape, steps: pixels(5, 0), finals: pixels(2, 2) }),
    }
}

#[test]
fn every_pixel_comes_back_through_a_lerobot_set_and_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let both = ["--camera", "observation.images.camera_00", "--camera", "observation.images.camera_01"].as_slice();
    write_npz(&at("seen.npz"), &seen()).unwrap();
    for (out, cameras) in [("set", both), ("log.mcap", &[])] {
        good(&data("export", &at("seen.npz"), &at(out), &[]));
        let back = at(&format!("{out}.npz"));
        let said = good(&data("import", &at(out), &back, cameras));
        assert!(said.contains("images of 7 x 5 x 6"), "{said}");
        assert_eq!(read(&back, &Choices::default()).unwrap(), seen(), "{out}");
    }
    // The order that is asked for is the order of the channels.
    let other = ["--camera", both[3], "--camera", both[1]];
    good(&data("import", &at("set"), &at("other.npz"), &other));
    let images = read(&at("other.npz"), &Choices::default()).unwrap().images.unwrap();
    let (found, wanted) = (&images.steps[..6], &seen().images.unwrap().steps[..6]);
    assert_eq!((&found[..3], &found[3..]), (&wanted[3..], &wanted[..3]));

    assert!(refusal(&data("import", &at("set"), &at("x.npz"), &[])).contains("--camera NAME"));
    let unknown = refusal(&data("import", &at("set"), &at("x.npz"), &["--camera", "wrist"]));
    assert!(unknown.contains("no camera `wrist`") && unknown.contains("camera_01"), "{unknown}");
    good(&data("import", &at("set"), &at("blind.npz"), &["--camera", "none"]));
    assert_eq!(read(&at("blind.npz"), &Choices::default()).unwrap(), Dataset { images: None, ..seen() });
}

/// The set that LeRobot made (`tools/interop/data_sets.py`), once with its images in the data file and once as a video.
const MADE: [&str; 2] = ["lerobot_images", "lerobot_video"];
const ENDS: [&str; 2] = ["--ends", "truncated"];

fn have_ffmpeg() -> bool {
    let there = Command::new("ffmpeg").arg("-version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: ffmpeg is not on the PATH");
    }
    there
}

#[test]
fn images_that_lerobot_wrote_have_its_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("read.npz");
    good(&data("import", &fixture(MADE[0]), &out, &ENDS));
    let expected = read(&fixture("lerobot_images.npz"), &Choices::default()).unwrap();
    assert_eq!(read(&out, &Choices::default()).unwrap(), expected);
    if have_ffmpeg() {
        good(&data("import", &fixture(MADE[1]), &out, &ENDS));
        let expected = read(&fixture("lerobot_video.npz"), &Choices::default()).unwrap().images.unwrap();
        let found = read(&out, &Choices::default()).unwrap().images.unwrap();
        assert_eq!((found.shape, found.steps.len()), (expected.shape, expected.steps.len()));
        // LeRobot's decoder interpolates colours in its own way; another image is off by far more.
        let off = found.steps.iter().zip(&expected.steps).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        assert!(off <= 2 * found.steps.len() as u64, "{off} over {} bytes", found.steps.len());
    }
}

#[test]
fn a_video_without_ffmpeg_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldtune"));
    command.env("PATH", folder.path()).args(["data", "import"]).arg(fixture(MADE[1])).args(ENDS);
    let said = refusal(&command.arg("--out").arg(folder.path().join("x.npz")).output().unwrap());
    assert!(said.contains("install ffmpeg") && said.contains("--camera none") && said.contains(".mp4"), "{said}");
    good(&data(
        "import",
        &fixture(MADE[1]),
        &folder.path().join("blind.npz"),
        &[&ENDS[..], &["--camera", "none"]].concat(),
    ));
}

#[test]
fn images_become_what_the_robots_camera_would_have_shown() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.npz");
    good(&data("import", &fixture(MADE[0]), &out, &[&ENDS[..], &["--image-size", "4x3"]].concat()));
    let small = read(&out, &Choices::default()).unwrap().images.unwrap();
    let large = read(&fixture("lerobot_images.npz"), &Choices::default()).unwrap().images.unwrap();
    assert_eq!(small.shape, FrameShape { width: 4, height: 3, channels: 3 });
    // 16 x 12: every pixel is the mean of 4 x 4.
    let pixel = |step: usize, x: usize, y: usize, colour: usize| {
        let at = |x: usize, y: usize| u32::from(large.steps[((step * 12 + y) * 16 + x) * 3 + colour]);
        let sum: u32 = (0..16).map(|i| at(4 * x + i % 4, 4 * y + i / 4)).sum();
        (f64::from(sum) / 16.0, f64::from(small.steps[((step * 3 + y) * 4 + x) * 3 + colour]))
    };
    for i in 0..small.steps.len() {
        let (mean, found) = pixel(i / 36, i / 3 % 4, i / 12 % 3, i % 3);
        assert!((mean - found).abs() <= 0.5, "byte {i}: {found} instead of {mean}");
    }
    let larger = [&ENDS[..], &["--image-size", "40x30"]].concat();
    assert!(refusal(&data("import", &fixture(MADE[0]), &out, &larger)).contains("never enlarged"));
}

#[test]
fn a_configuration_makes_them_the_robots_own() {
    let folder = tempfile::tempdir().unwrap();
    let (out, config) = (folder.path().join("own.npz"), folder.path().join("robot.toml"));
    let write = |source: &str| {
        let text = format!(
            "[run]\ndirectory = \"{}\"\n[robot]\nname = \"tester\"\n[robot.spaces]\n\
             observation = [\"a\", \"b\", \"c\", \"d\", \"e\"]\naction = [\"x\", \"y\"]\n\
             [camera]\nsource = {source}\nwidth = 4\nheight = 3\ncrop = [8, 6, 4, 3]\n",
            folder.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let options = [&ENDS[..], &["--config", config.to_str().unwrap()]].concat();
        data("import", &fixture(MADE[0]), &out, &options)
    };
    good(&write("\"synthetic\""));
    let own = read(&out, &Choices::default()).unwrap().images.unwrap();
    let large = read(&fixture("lerobot_images.npz"), &Choices::default()).unwrap().images.unwrap();
    assert_eq!(own.shape, FrameShape { width: 4, height: 3, channels: 3 });
    for (step, image) in own.steps.chunks_exact(own.shape.bytes()).enumerate() {
        for (row, pixels) in image.chunks_exact(12).enumerate() {
            let at = ((step * 12 + 6 + row) * 16 + 8) * 3;
            assert_eq!(pixels, &large.steps[at..at + 12], "step {step}, row {row}: the crop, pixel by pixel");
        }
    }
    assert!(refusal(&write("[\"synthetic\", \"synthetic\"]")).contains("this robot has images of 4 x 3 x 6"));
}

/// Copies a set and lets `change` do something to it.
fn changed(name: &str, change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(fixture(name)).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let set = folder.path().join(name);
    change(&set);
    refusal(&data("import", &set, &folder.path().join("x.npz"), &ENDS))
}

#[test]
fn images_that_do_not_fit_their_set_are_refused_with_the_reason() {
    let edit = |set: &Path, from: &str, to: &str| {
        let path = set.join("meta/info.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    let said = changed(MADE[0], |set| edit(set, "12,", "13,"));
    assert!(said.contains("16 x 12 pixels instead of 16 x 13"), "{said}");
    let said = changed(MADE[0], |set| edit(set, "12,", "5000,"));
    assert!(said.contains("states no size"), "{said}");
    let said = changed(MADE[0], |set| edit(set, "observation.images.front", "observation.images.side"));
    assert!(said.contains("observation.images.side/episode-000000/frame-000000.png"), "{said}");
    if have_ffmpeg() {
        let video = "videos/observation.images.front/chunk-000/file-000.mp4";
        let said = changed(MADE[1], |set| std::fs::write(set.join(video), b"no video").unwrap());
        assert!(said.contains("ends after 0 images"), "{said}");
        let said = changed(MADE[1], |set| std::fs::remove_file(set.join(video)).unwrap());
        assert!(said.contains("file-000.mp4") && said.contains("cannot read"), "{said}");
    }
}

/// Files beside the data, as the path in the set's folder says.
#[test]
fn images_in_files_of_their_own_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let blind = Dataset { images: None, ..seen() };
    write_npz(&folder.path().join("blind.npz"), &blind).unwrap();
    good(&data("export", &folder.path().join("blind.npz"), &set, &[]));
    let path = set.join("meta/info.json");
    let mut info: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    info["features"]["observation.images.top"] =
        serde_json::json!({"dtype": "image", "shape": [3, 7, 5], "names": ["channels", "height", "width"]});
    std::fs::write(&path, info.to_string()).unwrap();
    for (episode, steps) in [(0, 3), (1, 2)] {
        let images = set.join(format!("images/observation.images.top/episode-{episode:06}"));
        std::fs::create_dir_all(&images).unwrap();
        for step in 0..steps {
            let png = fieldtune::pixels::to_png(5, 7, &[10 * episode + step; 105]).unwrap();
            std::fs::write(images.join(format!("frame-{step:06}.png")), png).unwrap();
        }
    }
    let cameras = lerobot_cameras(&set).unwrap();
    let mut found = Vec::new();
    lerobot_images(&set, &cameras[0], &mut |picture| {
        found.push((picture.size, picture.bytes[0]));
        Ok(())
    })
    .unwrap();
    assert_eq!(found, [0, 1, 2, 10, 11].map(|value| ((5, 7), value)));
    let choices = Choices { ends: Some(Ends::Truncated), ..Choices::default() };
    assert!(read(&set, &choices).is_err(), "the set says its ends itself");
}
