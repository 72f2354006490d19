//! Pages about a run: charts and numbers in one file that loads nothing from anywhere. Text goes in escaped.

use std::fmt::Write;

use serde_json::Value;

pub use super::chart::escape;
use super::chart::{Chart, Curve};
use super::history::{History, PANELS};
use super::series::{Bucket, Series};

/// Looks of the report and of the live page.
pub const STYLE: &str = include_str!("page.css");

/// Every panel of a history as a chart.
pub fn charts(history: &History) -> Vec<Chart> {
    let of = |(p, panel): (usize, &super::history::Panel)| {
        let curves = panel.curves.iter().enumerate().map(|(c, (name, _))| Curve {
            name: (*name).into(),
            buckets: history.curve(p, c).map_or(&[][..], Series::buckets).to_vec(),
            marks: p == 0 && history.curve(p, c).is_some_and(|s| s.buckets().len() <= 100),
            extra: Vec::new(),
        });
        let curves = curves.collect();
        Chart { title: panel.title.into(), x_label: panel.x_label.into(), size: (480.0, 250.0), curves }
    };
    let mut charts: Vec<_> = PANELS.iter().enumerate().map(of).collect();
    if let Some(returns) = charts[0].curves.first_mut() {
        returns.extra = evaluations(&returns.buckets, &history.before, &history.after);
    }
    charts
}

/// Means of the deterministic episodes before and after, at the two ends of a learning curve.
pub fn evaluations(curve: &[Bucket], before: &[f64], after: &[f64]) -> Vec<(f64, f64, String)> {
    let end = curve.last().map_or(0.0, |b| b.to);
    let mean = |returns: &[f64]| returns.iter().sum::<f64>() / returns.len() as f64;
    let found = [(0.0, before, "before"), (end, after, "after")];
    let measured = found.into_iter().filter(|(_, returns, _)| !returns.is_empty());
    let point = |(x, returns, when): (f64, &[f64], &str)| {
        let mean = mean(returns);
        (x, mean, format!("{when}: mean of {} deterministic episodes: {mean:.1}", returns.len()))
    };
    measured.map(point).collect()
}

/// A chart's place in a page.
pub fn figure(chart: &Chart) -> String {
    format!("<figure>{}</figure>", chart.svg())
}

/// First, last and extreme values of every curve.
pub fn numbers(history: &History) -> String {
    let mut rows = String::new();
    for (p, panel) in PANELS.iter().enumerate() {
        for (c, (name, _)) in panel.curves.iter().enumerate() {
            let Some(series) = history.curve(p, c) else { continue };
            let (Some(first), Some(all), Some(end)) = (series.buckets().first(), series.whole(), series.last_tenth())
            else {
                continue;
            };
            let _ = write!(rows, "<tr><th>{name}</th>");
            for value in [first.mean, end.mean, all.mean, all.low, all.high] {
                let _ = write!(rows, "<td>{}</td>", short(value));
            }
            let _ = write!(rows, "<td>{}</td></tr>", all.points);
        }
    }
    format!(
        "<table class=\"numbers\"><tr><th></th><th>first</th><th>last tenth</th><th>mean</th><th>least</th><th>greatest</th>\
         <th>records</th></tr>{rows}</table>"
    )
}

/// A number for people: four significant digits.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if !(1e-4..1e7).contains(&size) => format!("{value:.3e}"),
        _ => format!("{value:.*}", (3 - size.log10().floor() as i32).clamp(0, 6) as usize),
    }
}

/// The entries of a report that are single numbers or words, as table rows; objects of numbers one level deep.
pub fn entries(report: &Value) -> String {
    let mut rows = String::new();
    for (key, value) in report.as_object().into_iter().flatten() {
        row(key, value, &mut rows);
        for (inner, value) in value.as_object().into_iter().flatten() {
            row(&format!("{key}, {inner}"), value, &mut rows);
        }
    }
    format!("<table>{rows}</table>")
}

fn row(key: &str, value: &Value, rows: &mut String) {
    let shown = match value {
        Value::String(text) => escape(text),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(n) if n.is_f64() => short(n.as_f64().unwrap_or(f64::NAN)),
        Value::Number(n) => n.to_string(),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            list.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join("<br>")
        }
        Value::Null => "none".into(),
        _ => return,
    };
    let _ = write!(rows, "<tr><th>{}</th><td>{shown}</td></tr>", escape(&key.replace('_', " ")));
}

/// What a reader must know about the file behind the charts: skipped lines, refused policies. Empty when nothing.
pub fn remarks(history: &History) -> Vec<String> {
    let mut remarks = Vec::new();
    let skipped = &history.skipped;
    if skipped.lines > 0 {
        let first: Vec<_> = skipped.first.iter().map(u64::to_string).collect();
        let more = if skipped.lines > first.len() as u64 { ", ..." } else { "" };
        remarks.push(format!(
            "{} of {} lines of the metrics file are damaged or unfinished and were skipped (line {}{more})",
            skipped.lines,
            history.lines,
            first.join(", ")
        ));
    }
    if history.refused > 0 {
        let reason = history.last_refusal.as_deref().unwrap_or("without a reason");
        remarks.push(format!("{} policies were refused, the last one: {reason}", history.refused));
    }
    if let Some(reason) = &history.last_roll_back {
        let count = history.rolled_back;
        remarks.push(format!("{count} policies from outside went back by themselves, the last one: {reason}"));
    }
    remarks
}

/// A page from its parts; `body` is HTML, `title` is text.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        let shown = [0.0, 1234.56, -0.012_345, 3.0, 99_999.9, 1e-9].map(short);
        assert_eq!(shown, ["0", "1235", "-0.01235", "3.000", "100000", "1.000e-9"]);
    }

    #[test]
    fn names_from_outside_are_text_in_a_page() {
        let bad = "<script>alert('x')</script>";
        let report =
            serde_json::json!({"robot": bad, bad: 1, "failures": [bad], "wake": {"p50_us": 7}, "after": [1.0]});
        let html = page(bad, &entries(&report));
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("<tr><th>wake, p50 us</th><td>7</td></tr>"), "{html}");
    }

    #[test]
    fn an_empty_history_is_a_page_of_empty_charts() {
        let history = History::default();
        let drawn = charts(&history);
        assert_eq!(drawn.len(), PANELS.len());
        assert!(drawn.iter().all(|c| c.svg().contains("no data yet")));
        assert!(remarks(&history).is_empty());
    }
}
