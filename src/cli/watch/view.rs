//! The terminal view as a pure function of what is known.

use fieldtune::telemetry::{Bucket, History, Series, page::short};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Sparkline, Wrap};
use serde_json::Value;

/// What is drawn.
pub(super) struct View<'a> {
    pub folder: String,
    pub running: bool,
    /// The answer to the last question that was answered; null before.
    pub status: &'a Value,
    /// Ticks, steps, updates and camera frames per second.
    pub rates: Option<[f64; 4]>,
    pub history: &'a History,
    pub unreadable: Option<&'a str>,
}

impl View<'_> {
    fn count(&self, pointer: &str) -> Option<u64> {
        self.status.pointer(pointer)?.as_u64()
    }

    fn curve(&self, name: &str) -> &[Bucket] {
        self.history.named(name).map_or(&[], Series::buckets)
    }

    fn newest(&self, name: &str) -> String {
        self.history.named(name).and_then(Series::newest).map_or("-".into(), short)
    }

    fn rate(&self, which: usize) -> String {
        self.rates.map_or("-".into(), |rates| format!("{:.1}", rates[which]))
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let faults = faults(view);
    let rows = [
        Constraint::Length(1),
        Constraint::Length(12),
        Constraint::Min(6),
        Constraint::Length(4),
        Constraint::Length(faults.len().clamp(1, 6) as u16),
    ];
    let [head, tables, returns, sparks, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(headline(view), head);
    let [control, learner, policies] = Layout::horizontal([Constraint::Fill(1); 3]).areas(tables);
    frame.render_widget(table("control", &control_lines(view)), control);
    frame.render_widget(table("learner", &learner_lines(view)), learner);
    frame.render_widget(table("policies and data", &policy_lines(view)), policies);
    draw_returns(frame, view, returns);
    let names = ["offline share", "Q", "critic loss", "temperature"];
    for (area, name) in Layout::horizontal([Constraint::Fill(1); 4]).split(sparks).iter().zip(names) {
        spark(frame, view, name, *area);
    }
    frame.render_widget(Paragraph::new(faults).wrap(Wrap { trim: true }), foot);
}

fn headline(view: &View<'_>) -> Line<'static> {
    let state = if view.running {
        " running ".black().on_green()
    } else {
        " no process runs there, waiting ".black().on_yellow()
    };
    let steps = match (view.count("/steps"), view.count("/total_steps")) {
        (Some(steps), Some(total)) => {
            format!("  {steps} of {total} steps, {:.0} %", 100.0 * steps as f64 / total.max(1) as f64)
        }
        _ => String::new(),
    };
    Line::from(vec![
        Span::from("fieldtune ").bold(),
        Span::from(view.folder.clone()),
        " ".into(),
        state,
        steps.into(),
        "   s success, f failure, q quits".dim(),
    ])
}

/// Name, value, and whether it deserves attention.
type Entry = (&'static str, String, bool);

fn counted(view: &View<'_>, name: &'static str, pointer: &str, unit: &str, bad_above: u64) -> Entry {
    let value = view.count(pointer);
    let shown = value.map_or("-".into(), |v| format!("{v}{unit}"));
    (name, shown, value.is_some_and(|v| v > bad_above))
}

/// Frames and bytes that either end of the link could not read.
const LINK_ERRORS: [&str; 3] = ["/robot/crc_errors", "/robot/malformed", "/robot/robot_crc_errors"];

fn sum(view: &View<'_>, pointers: &[&str]) -> String {
    let counts: Option<Vec<_>> = pointers.iter().map(|pointer| view.count(pointer)).collect();
    counts.map_or("-".into(), |counts| counts.iter().sum::<u64>().to_string())
}

fn control_lines(view: &View<'_>) -> Vec<Entry> {
    let never = u64::MAX;
    vec![
        ("ticks per second", view.rate(0), false),
        ("steps per second", view.rate(1), false),
        counted(view, "wake-up p50", "/wake/p50_us", " us", never),
        counted(view, "wake-up p99", "/wake/p99_us", " us", never),
        counted(view, "wake-up p99.9", "/wake/p999_us", " us", never),
        counted(view, "wake-up max", "/wake/max_us", " us", never),
        counted(view, "longest tick", "/max_work_us", " us", never),
        counted(view, "late ticks", "/late_ticks", "", 0),
        counted(view, "stale ticks", "/stale_ticks", "", never),
        ("link errors", sum(view, &LINK_ERRORS), false),
    ]
}

fn learner_lines(view: &View<'_>) -> Vec<Entry> {
    let share = view.history.named("offline share").and_then(Series::newest);
    vec![
        counted(view, "updates", "/updates", "", u64::MAX),
        ("updates per second", view.rate(2), false),
        ("offline share", share.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s)), false),
        ("Q", view.newest("Q"), false),
        ("calibration gap", view.newest("calibration gap"), false),
        ("critic loss", view.newest("critic loss"), false),
        ("actor loss", view.newest("actor loss"), false),
        ("temperature", view.newest("temperature"), false),
        ("entropy", view.newest("entropy"), false),
        ("JS estimate", view.newest("JS estimate"), false),
    ]
}

fn policy_lines(view: &View<'_>) -> Vec<Entry> {
    vec![
        counted(view, "generation", "/generation", "", u64::MAX),
        counted(view, "swaps", "/swaps", "", u64::MAX),
        counted(view, "roll-backs", "/rollbacks", "", u64::MAX),
        counted(view, "refused", "/refused_policies", "", 0),
        counted(view, "episodes", "/episodes", "", u64::MAX),
        counted(view, "steps dropped", "/dropped", "", 0),
        counted(view, "states missed", "/missed_states", "", u64::MAX),
        counted(view, "commands too late", "/robot/robot_late_commands", "", u64::MAX),
        ("success, failure", outcomes(view), false),
    ]
}

/// Episodes that ended as one or the other.
fn outcomes(view: &View<'_>) -> String {
    match (view.count("/successes"), view.count("/task_failures")) {
        (Some(successes), Some(failures)) => format!("{successes}, {failures}"),
        _ => "-".into(),
    }
}

fn table<'a>(title: &'a str, entries: &[Entry]) -> Paragraph<'a> {
    let line = |(name, value, bad): &Entry| {
        let value = if *bad { Span::from(value.clone()).red().bold() } else { Span::from(value.clone()).bold() };
        Line::from(vec![Span::from(format!("{name:<20} ")), value])
    };
    Paragraph::new(entries.iter().map(line).collect::<Vec<_>>()).block(Block::bordered().title(title))
}

fn draw_returns(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    let curve = view.curve("return");
    let points: Vec<_> = curve.iter().map(|b| (b.to, b.mean)).collect();
    let low = curve.iter().map(|b| b.mean).fold(f64::INFINITY, f64::min);
    let high = curve.iter().map(|b| b.mean).fold(f64::NEG_INFINITY, f64::max);
    let block = Block::bordered().title(format!("return of each episode, last {}", view.newest("return")));
    if points.is_empty() {
        return frame.render_widget(Paragraph::new("no episode has ended yet").dim().block(block), area);
    }
    let room = if low < high { 0.0 } else { low.abs().max(1.0) * 0.1 };
    let (low, high) = (low - room, high + room);
    let end = points[points.len() - 1].0;
    let middle = f64::midpoint(low, high);
    let chart = Chart::new(vec![
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(if points.len() == 1 { GraphType::Scatter } else { GraphType::Line })
            .style(Style::from(Color::Cyan))
            .data(&points),
    ])
    .block(block)
    .x_axis(Axis::default().bounds([0.0, end]).labels(["0".to_owned(), format!("{end:.0} steps")]))
    .y_axis(Axis::default().bounds([low, high]).labels([low, middle, high].map(|v| format!("{v:.0}"))));
    frame.render_widget(chart, area);
}

/// The last points of a curve as bars between its least and greatest value.
fn spark(frame: &mut Frame<'_>, view: &View<'_>, name: &str, area: Rect) {
    let curve = view.curve(name);
    let width = usize::from(area.width.saturating_sub(2)).max(1);
    let shown = &curve[curve.len().saturating_sub(width)..];
    let low = shown.iter().map(|b| b.mean).fold(f64::INFINITY, f64::min);
    let high = shown.iter().map(|b| b.mean).fold(f64::NEG_INFINITY, f64::max);
    let height = |b: &Bucket| if high > low { (1.0 + 99.0 * (b.mean - low) / (high - low)) as u64 } else { 50 };
    let bars: Vec<u64> = shown.iter().map(height).collect();
    let block = Block::bordered().title(format!("{name} {}", view.newest(name)));
    frame.render_widget(Sparkline::default().data(&bars).max(100).style(Style::from(Color::Cyan)).block(block), area);
}

/// Counters of images that were refused.
const REFUSED_IMAGES: [&str; 7] = [
    "/camera/truncated",
    "/camera/damaged",
    "/camera/wrong_size",
    "/camera/wrong_format",
    "/camera/stream_errors",
    "/camera/clock_backwards",
    "/camera/clock_ahead",
];

/// The cameras, where there are any.
fn camera_line(view: &View<'_>) -> Option<Line<'static>> {
    let count = |name: &str| view.count(&format!("/camera/{name}")).unwrap_or(0);
    let (cameras, connected, frozen) = (count("cameras"), count("connected"), count("frozen"));
    if cameras == 0 {
        return None;
    }
    let line = Line::from(format!(
        "camera: {connected} of {cameras} there, {} frames/s, newest {} ms old, {} missing, {} refused, {} dropped{}",
        view.rate(3),
        count("age_us") / 1000,
        count("sequence_gaps"),
        sum(view, &REFUSED_IMAGES),
        count("dropped"),
        if frozen > 0 { ", THE IMAGE STANDS STILL" } else { "" },
    ));
    Some(if connected < cameras || frozen > 0 { line.red().bold() } else { line })
}

/// What needs attention, newest knowledge first.
fn faults(view: &View<'_>) -> Vec<Line<'static>> {
    let failures = view.status["failures"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut lines: Vec<_> = failures.map(|f| Line::from(format!("FAILURE {f}")).red().bold()).collect();
    lines.extend(view.unreadable.map(|why| Line::from(why.to_owned()).yellow()));
    if let Some(heat) = view.status.pointer("/learner/heat").and_then(Value::as_str).filter(|heat| *heat != "cool") {
        let celsius = view.status.pointer("/learner/celsius").and_then(Value::as_f64).unwrap_or(f64::NAN);
        let word = if heat == "hot" { "paused" } else { "slowed" };
        lines.push(Line::from(format!("the learner is {word}: {celsius:.1} degrees")).yellow());
    }
    let refusal = view.history.last_refusal.as_ref();
    lines.extend(refusal.map(|why| Line::from(format!("last refused policy: {why}")).yellow()));
    let gone_back = view.history.last_roll_back.as_ref();
    lines.extend(gone_back.map(|why| Line::from(format!("a policy from outside went back by itself: {why}")).yellow()));
    let skipped = view.history.skipped.lines;
    lines.extend((skipped > 0).then(|| Line::from(format!("{skipped} damaged metric lines skipped")).yellow()));
    lines.extend(camera_line(view));
    if lines.is_empty() {
        lines.push(Line::from("no faults").dim());
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn screen(view: &View<'_>, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).collect::<Vec<_>>().join("\n")
    }

    fn history() -> History {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut text = String::new();
        for i in 1..=40 {
            let update = json!({"event": "update", "updates": 10 * i, "q_mean": -100.5, "offline_share": 0.42,
                "critic_loss": 3.25, "actor_loss": 99.0, "temperature": 0.5, "density": {"js_estimate": 0.125}});
            let episode = json!({"event": "episode", "at_step": 200 * i, "episode_return": -1000 + 10 * i});
            text.extend([update.to_string(), "\n".into(), episode.to_string(), "\n".into()]);
        }
        text += "{damaged\n{\"event\":\"refused\",\"reason\":\"weights are not finite\"}\n";
        text += "{\"event\":\"diagnosis\",\"updates\":10,\"calibration_gap\":12.5}\n";
        text += "{\"event\":\"rolled_back\",\"generation\":3,\"reason\":\"its mean return is low\"}\n";
        std::fs::write(&path, text).unwrap();
        History::read(&path).unwrap()
    }

    #[test]
    fn the_numbers_are_on_the_screen() {
        let status = json!({"steps": 1500, "total_steps": 2000, "updates": 400, "ticks": 1510, "late_ticks": 3,
            "stale_ticks": 14, "missed_states": 7, "dropped": 0, "generation": 98, "swaps": 99, "rollbacks": 1,
            "refused_policies": 2, "episodes": 8, "successes": 3, "task_failures": 4, "wake": {"p50_us": 64, "p99_us": 128, "max_us": 1203},
            "max_work_us": 801, "robot": {"crc_errors": 2, "malformed": 1, "robot_crc_errors": 4, "robot_late_commands": 5}, "failures": ["the learner stopped"],
            "learner": {"heat": "hot", "celsius": 97.3},
            "camera": {"cameras": 2, "connected": 1, "frozen": 1, "age_us": 41900, "sequence_gaps": 6, "truncated": 2, "damaged": 1,
                "wrong_size": 0, "wrong_format": 0, "stream_errors": 0, "clock_backwards": 3, "clock_ahead": 0, "dropped": 9}});
        let history = history();
        let view = View {
            folder: "runs/quickstart".into(),
            running: true,
            status: &status,
            rates: Some([20.04, 19.5, 80.0, 30.02]),
            history: &history,
            unreadable: None,
        };
        let shown = screen(&view, 120, 36);
        for words in [
            "runs/quickstart",
            " running ",
            "1500 of 2000 steps, 75 %",
            "ticks per second     20.0",
            "updates per second   80.0",
            "wake-up p99          128 us",
            "wake-up max          1203 us",
            "late ticks           3",
            "link errors          7",
            "commands too late    5",
            "generation           98",
            "roll-backs           1",
            "offline share        42 %",
            "JS estimate          0.1250",
            "return of each episode, last -600.0",
            "8000 steps",
            "critic loss 3.250",
            "1 damaged metric lines skipped",
            "a policy from outside went back by itself: its mean return is low",
            "calibration gap      12.50",
            "success, failure     3, 4",
            "FAILURE the learner stopped",
            "the learner is paused: 97.3 degrees",
            "last refused policy: weights are not finite",
            "camera: 1 of 2 there, 30.0 frames/s, newest 41 ms old, 6 missing, 6 refused, 9 dropped, THE IMAGE",
        ] {
            assert!(shown.contains(words), "{words} is not in\n{shown}");
        }
        assert!(shown.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "the curve is drawn\n{shown}");
    }

    #[test]
    fn without_a_process_and_on_any_window_it_draws_what_it_can() {
        let history = History::default();
        let view = View {
            folder: "runs/later".into(),
            running: false,
            status: &Value::Null,
            rates: None,
            history: &history,
            unreadable: Some("metrics.jsonl: no such file"),
        };
        let shown = screen(&view, 120, 36);
        for words in ["no process runs there, waiting", "no episode has ended yet", "metrics.jsonl: no such file"] {
            assert!(shown.contains(words), "{words} is not in\n{shown}");
        }
        for (width, height) in [(1, 1), (2, 40), (200, 2), (30, 8), (80, 24)] {
            let _ = screen(&view, width, height);
        }
    }
}
