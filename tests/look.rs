//! Promises to people who look at a run: the report draws what there is and loads nothing from anywhere.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skips")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fieldtune::clock::{Clock, monotonic};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fieldtune");

fn fieldtune(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A page or drawing that would load or run something would name it in one of these ways.
fn loads_nothing(text: &str) {
    let foreign = text.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!foreign.contains(word), "{word} in {text}");
    }
    assert!(!text.contains("NaN"));
}

#[test]
fn a_lockstep_run_is_reported_whole_and_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("swing");
    let directory = format!("run.directory={}", run.display());
    let settings = [
        "run.clock=lockstep",
        "run.steps=300",
        "run.evaluate_episodes=1",
        "learner.utd_ratio=1",
        "episode.max_steps=50",
        &directory,
    ];
    let mut arguments = vec!["run", "--config", "config/quickstart.toml", "--quiet"];
    arguments.extend(settings.iter().flat_map(|s| ["--set", s]));
    let ran = fieldtune(&arguments);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));

    let page = folder.path().join("report.html");
    let report = |out: &Path| fieldtune(&["report", run.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let said = report(&page);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let whole = text(&page);
    loads_nothing(&whole);
    assert_eq!(whole.matches("<svg ").count(), 11);
    assert!(whole.contains("fieldtune: swing") && whole.contains("<tr><th>robot</th><td>pendulum</td></tr>"));
    assert!(!whole.contains("no data yet") && !whole.contains("class=\"remark\""), "nothing is missing");
    assert_eq!(whole.matches("<circle").count(), 6, "one mark per episode");

    let board = folder.path().join("board");
    let said = fieldtune(&["report", run.to_str().unwrap(), "--tensorboard", board.to_str().unwrap()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let events = std::fs::metadata(board.join("swing/events.out.tfevents.0.fieldtune")).unwrap();
    assert!(events.len() > 1000);

    // Cut in the middle of a record, with a damaged line before.
    let metrics = run.join("metrics.jsonl");
    let mut bytes = std::fs::read(&metrics).unwrap();
    bytes.truncate(bytes.len() * 2 / 3);
    let end = bytes.iter().position(|b| *b == b'\n').unwrap();
    bytes[end + 1..end + 4].copy_from_slice(&[0, 0xff, b'{']);
    std::fs::write(&metrics, bytes).unwrap();
    let said = report(&page);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains("were skipped (line 2, "), "{said:?}");
    let damaged = text(&page);
    loads_nothing(&damaged);
    assert!(damaged.contains("were skipped (line 2, "));
    assert!(damaged.matches("<circle").count() >= 3, "the rest is drawn");
}

#[test]
fn learning_curves_of_several_runs_share_a_drawing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("curves.svg");
    let seeds = [0, 1, 2].map(|seed| format!("docs/results/quickstart-seed{seed}.json"));
    let said = fieldtune(&["report", &seeds[0], &seeds[1], &seeds[2], "--svg", out.to_str().unwrap()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let drawing = text(&out);
    loads_nothing(&drawing);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/quickstart.svg");
    assert!(drawing == text(&kept), "docs/quickstart.svg is old: docs/watching.md has the command");
}

#[test]
fn what_is_no_run_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.html");
    for (wrong, word) in
        [("config", "config/metrics.jsonl"), ("models/pendulum-cql/manifest.toml", "no metric records")]
    {
        let said = fieldtune(&["report", wrong, "--out", out.to_str().unwrap()]);
        let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && stderr.contains(word), "{wrong}: {stderr}");
    }
    let without_result = fieldtune(&["report", "docs/results/quickstart-seed0.json"]);
    assert!(!without_result.status.success());
}

#[test]
fn recorded_steps_become_a_log_with_the_robots_names() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("swing");
    let directory = format!("run.directory={}", run.display());
    let mut arguments = vec!["run", "--config", "config/quickstart.toml", "--quiet"];
    let settings =
        ["run.clock=lockstep", "run.steps=60", "run.evaluate_episodes=0", "learner.enabled=false", &directory];
    arguments.extend(settings.iter().flat_map(|s| ["--set", s]));
    assert!(fieldtune(&arguments).status.success());

    let out = folder.path().join("run.mcap");
    let export = |more: &[&str]| {
        let named = ["data", "export", run.to_str().unwrap(), "--out", out.to_str().unwrap()];
        fieldtune(&[&named, more].concat())
    };
    let topics = |field: &str| {
        let bytes = std::fs::read(&out).unwrap();
        let messages = mcap::MessageStream::new(&bytes).unwrap().map(Result::unwrap);
        let mut counts = std::collections::BTreeMap::new();
        for message in messages {
            *counts.entry(message.channel.topic.clone()).or_insert(0) += 1;
            let fields: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
            assert!(message.channel.topic != "/observation" || fields[field].is_number(), "{fields}");
        }
        counts.into_iter().collect::<Vec<_>>()
    };
    let said = export(&["--names", "models/pendulum-cql"]);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(topics("theta_rad_s"), [("/action".into(), 60), ("/observation".into(), 61), ("/step".into(), 60)]);

    // A run without a bundle of its own, and a bundle of another robot.
    if run.join("bundle").exists() {
        std::fs::remove_dir_all(run.join("bundle")).unwrap();
    }
    let said = export(&[]);
    assert!(said.status.success() && !String::from_utf8_lossy(&said.stdout).contains("numbered"), "{said:?}");
    topics("theta_rad_s");
    std::fs::remove_file(run.join("config.toml")).unwrap();
    let said = export(&[]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("entries are numbered"), "{said:?}");
    topics("observation_2");
    let said = export(&["--names", "models"]);
    assert!(!said.status.success(), "no bundle there");
}

/// The page after its script has run, as Chromium's document; `None` where there is no Chromium.
fn dumped(url: &str, folder: &Path) -> Option<String> {
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    for browser in ["chromium", "chromium-browser", "google-chrome"] {
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000", "--dump-dom"]);
        if let Ok(output) = command.args([&profile, url]).output() {
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
    }
    None
}

#[test]
fn chromium_shows_the_live_page_and_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let Some(empty) = dumped("about:blank", folder.path()) else {
        return println!("skipped: no Chromium on this machine; the pages are not opened in a browser");
    };
    assert!(empty.contains("<html>"), "{empty}");
    let run = folder.path().join("swing");
    let sensor = folder.path().join("thermal/thermal_zone0");
    std::fs::create_dir_all(&sensor).unwrap();
    std::fs::write(sensor.join("type"), "soc-thermal\n").unwrap();
    std::fs::write(sensor.join("temp"), "51250\n").unwrap();
    let zones = format!("thermal.zones={}", folder.path().join("thermal").display());
    let directory = format!("run.directory={}", run.display());
    let short = ["run.steps=100000", "run.evaluate_episodes=0", "episode.max_steps=10", "realtime.priority=0"];
    let settings = [&short[..], &[directory.as_str(), zones.as_str()]].concat();
    let mut running = Command::new(PROGRAM);
    running.current_dir(env!("CARGO_MANIFEST_DIR"));
    running.args(["run", "--config", "config/quickstart.toml", "--quiet", "--serve", "127.0.0.1:0"]);
    running.args(settings.iter().flat_map(|s| ["--set", s])).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Stopped(running.spawn().unwrap());
    let mut said = String::new();
    let mut lines = BufReader::new(running.0.stderr.take().unwrap());
    while !said.starts_with("live page: ") {
        said.clear();
        assert!(lines.read_line(&mut said).unwrap() > 0, "it ended without a page");
    }
    // An episode has to end before there is a curve.
    let metrics = run.join("metrics.jsonl");
    while std::fs::read_to_string(&metrics).unwrap_or_default().matches("\"episode\"").count() < 3 {
        Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(100)));
    }
    let page = dumped(said.trim_start_matches("live page: ").trim(), folder.path()).unwrap();
    drop(running);
    for words in [
        "Running.",
        "policy generation",
        "steps dropped",
        "<b>51.3</b><span>degrees at soc-thermal</span>",
        "Calibration gap",
        "Return of each episode",
        "<th>return</th>",
    ] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
    assert_eq!(page.matches("<svg ").count(), 11);
    assert!(!page.contains("undefined") && !page.contains("NaN"), "a number is missing: {page}");

    let out = folder.path().join("report.html");
    assert!(fieldtune(&["report", run.to_str().unwrap(), "--out", out.to_str().unwrap()]).status.success());
    let page = dumped(&format!("file://{}", out.display()), folder.path()).unwrap();
    assert!(page.contains("fieldtune: swing") && page.matches("<svg ").count() == 11);
}

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
