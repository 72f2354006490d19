//! `fieldtune report`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fieldtune::telemetry::{Bucket, Chart, Curve, History, Series, page, write_events};
use serde_json::Value;

/// Draw what a run did.
///
/// Reads metrics.jsonl and, where there is one, report.json of a run folder; a run that is not finished and a
/// damaged metrics file are drawn as far as they can be read, and what was skipped is said. Page and drawing
/// are files of their own that load nothing from anywhere.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Run folder, metrics file (.jsonl) or report of a run (.json).
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write a page with all curves and numbers of one run.
    #[arg(long, value_name = "FILE.html", required_unless_present_any = ["svg", "tensorboard"])]
    out: Option<PathBuf>,
    /// Write the learning curves of all runs named, as one drawing.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Write the curves as TensorBoard event files, one folder per run in this one.
    #[arg(long, value_name = "FOLDER")]
    tensorboard: Option<PathBuf>,
}

/// What is known of one run.
struct Found {
    name: String,
    history: History,
    /// The report of its last process, or null.
    report: Value,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runs = args.runs.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(path) = &args.out {
        ensure!(runs.len() == 1, "--out draws one run; --svg draws several");
        write(path, &html(&runs[0]))?;
    }
    if let Some(path) = &args.svg {
        write(path, &learning_curves(&runs).file())?;
    }
    if let Some(folder) = &args.tensorboard {
        runs.iter().try_for_each(|run| events(folder, run))?;
    }
    for run in &runs {
        for remark in page::remarks(&run.history) {
            say!("{}: {remark}", run.name);
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say!("written: {}", path.display());
    Ok(())
}

/// One event file; it replaces that of an earlier report of the same run.
fn events(folder: &Path, run: &Found) -> anyhow::Result<()> {
    let inner = folder.join(run.name.replace('/', "-"));
    std::fs::create_dir_all(&inner).with_context(|| format!("cannot make {}", inner.display()))?;
    let path = inner.join("events.out.tfevents.0.fieldtune");
    let mut bytes = Vec::new();
    write_events(&run.history, &mut bytes)?;
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    say!("written: {}", path.display());
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Found> {
    let metrics = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_owned() };
    if path.extension().is_some_and(|e| e == "json") {
        let report = json(path)?;
        ensure!(report["episodes"].is_array(), "{} is not the report of a run", path.display());
        let name = format!("{} seed {}", text(&report["robot"]), report["seed"]);
        return Ok(Found { name, history: History::from_report(&report), report });
    }
    let history = History::read(&metrics).with_context(|| format!("cannot read {}", metrics.display()))?;
    ensure!(
        history.lines == 0 || history.lines > history.skipped.lines,
        "{} holds no metric records",
        metrics.display()
    );
    let beside = metrics.with_file_name("report.json");
    let report = if beside.exists() { json(&beside)? } else { Value::Null };
    let folder = std::path::absolute(&metrics)?;
    let name = folder.parent().and_then(Path::file_name).map_or_else(String::new, |n| n.to_string_lossy().into());
    Ok(Found { name, history, report })
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("run")
}

fn html(run: &Found) -> String {
    let mut remarks = page::remarks(&run.history);
    if run.history.after.is_empty() {
        remarks.push("no evaluation after learning: the run is not finished, or does not evaluate".into());
    }
    let paragraphs: Vec<_> = remarks.iter().map(|r| format!("<p class=\"remark\">{}</p>\n", page::escape(r))).collect();
    let remarks = paragraphs.concat();
    let charts: String = page::charts(&run.history).iter().map(page::figure).collect();
    let counted = if run.report.is_null() {
        "<p>The run folder holds no report.json: no process has ended orderly there.</p>".into()
    } else {
        page::entries(&run.report)
    };
    let body = format!(
        "{remarks}<div class=\"charts\">{charts}</div>\n<h2>Numbers</h2>\n{}\n<h2>What the last process counted</h2>\n{counted}",
        page::numbers(&run.history)
    );
    page::page(&format!("fieldtune: {}", run.name), &body)
}

/// Returns over control steps; diamonds are the deterministic episodes before and after.
fn learning_curves(runs: &[Found]) -> Chart {
    let curve = |run: &Found| {
        let buckets: Vec<Bucket> = run.history.named("return").map_or(&[][..], Series::buckets).to_vec();
        let extra = page::evaluations(&buckets, &run.history.before, &run.history.after);
        Curve { name: run.name.clone(), marks: buckets.len() <= 100, buckets, extra }
    };
    Chart {
        title: "Return of each episode".into(),
        x_label: "control steps (diamonds: mean of deterministic episodes, before and after)".into(),
        size: (820.0, 380.0),
        curves: runs.iter().map(curve).collect(),
    }
}
