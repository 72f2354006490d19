//! Charts as SVG text: axes with round numbers, curves with the range of what they average.

use std::fmt::Write;

use super::series::{Bucket, condense};

/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];

/// Buckets of one curve that are drawn.
const DRAWN: usize = 160;

/// Room around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [56.0, 14.0, 30.0, 40.0];

/// A curve of a chart.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Its points, left to right.
    pub buckets: Vec<Bucket>,
    /// Whether every point gets a mark.
    pub marks: bool,
    /// Single points beside the curve, drawn as diamonds, with what they mean.
    pub extra: Vec<(f64, f64, String)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What the horizontal axis counts.
    pub x_label: String,
    /// Size in pixels.
    pub size: (f64, f64),
    /// Its curves.
    pub curves: Vec<Curve>,
}

/// From numbers to pixels.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    size: (f64, f64),
}

impl Frame {
    fn of(chart: &Chart) -> Self {
        // What the horizontal axis counts begins at 0.
        let (mut x, mut y) = ((0.0f64, f64::NEG_INFINITY), (f64::INFINITY, f64::NEG_INFINITY));
        let mut take = |from: f64, to: f64, low: f64, high: f64| {
            x = (x.0.min(from), x.1.max(to));
            y = (y.0.min(low), y.1.max(high));
        };
        for curve in &chart.curves {
            curve.buckets.iter().for_each(|b| take(b.from, b.to, b.low, b.high));
            curve.extra.iter().for_each(|(x, value, _)| take(*x, *x, *value, *value));
        }
        Self { x: widen(x, 0.0), y: widen(y, 0.05), size: chart.size }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, right, top, bottom] = MARGIN;
        let (width, height) = (self.size.0 - left - right, self.size.1 - top - bottom);
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (left + width * across, top + height * (1.0 - up))
    }
}

/// A range with some room; one that is empty or a single number becomes one around it.
fn widen((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let span = high - low;
    if !span.is_finite() {
        return (0.0, 1.0);
    }
    if span <= low.abs().max(high.abs()) * 1e-9 {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return (low - room, high + room);
    }
    (low - share * span, high + share * span)
}

/// Round numbers in a range, about `count` of them, and their step.
fn ticks((low, high): (f64, f64), count: f64) -> (Vec<f64>, f64) {
    let raw = (high - low) / count;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw * 0.999).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    ((first..=last).take(50).map(|i| i as f64 * step).collect(), step)
}

/// A tick's number with as many decimals as its step needs.
fn number(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let (value, step, unit) = match value.abs() {
        size if size >= 1e9 => return format!("{value:.1e}"),
        size if size >= 1e6 => (value / 1e6, step / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, step / 1e3, "k"),
        size if size < 1e-3 => return format!("{value:.0e}"),
        _ => (value, step, ""),
    };
    let decimals = (-(step * 1.001).log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}{unit}")
}

/// Text that may stand in HTML and SVG, in attributes too.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

impl Chart {
    /// As an `svg` element that needs nothing from outside: text and axes have the colour of the text around it.
    pub fn svg(&self) -> String {
        let (width, height) = self.size;
        let title = escape(&self.title);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"currentColor\"><title>{title}</title>\
             <text x=\"{left}\" y=\"17\" font-size=\"13\" font-weight=\"600\">{title}</text>",
            left = MARGIN[0],
        );
        let frame = Frame::of(self);
        self.axes(&frame, &mut svg);
        for (curve, colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            draw(curve, colour, &frame, &mut svg);
        }
        self.legend(&mut svg);
        svg.push_str("</svg>");
        svg
    }

    /// As a file of its own, on white.
    pub fn file(&self) -> String {
        let drawn = self.svg();
        let behind = "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>";
        let on_white = drawn.replacen("fill=\"currentColor\">", &format!("fill=\"#222222\">{behind}"), 1);
        on_white.replace("currentColor", "#222222") + "\n"
    }

    fn axes(&self, frame: &Frame, svg: &mut String) {
        let (width, height) = self.size;
        let (left, right, bottom) = (MARGIN[0], width - MARGIN[1], height - MARGIN[3]);
        let (marks, step) = ticks(frame.y, (height / 45.0).max(2.0));
        for mark in marks {
            let (_, y) = frame.at(frame.x.0, mark);
            let label = number(mark, step);
            let _ = write!(
                svg,
                "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"currentColor\" stroke-opacity=\".13\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 6.0,
                y + 4.0,
            );
        }
        let (marks, step) = ticks(frame.x, (width / 90.0).max(2.0));
        for mark in marks {
            let (x, _) = frame.at(mark, frame.y.0);
            let label = number(mark, step);
            let _ = write!(
                svg,
                "<path d=\"M{x:.1} {bottom:.1}v4\" stroke=\"currentColor\" stroke-opacity=\".5\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 16.0,
            );
        }
        let _ = write!(
            svg,
            "<path d=\"M{left:.1} {bottom:.1}H{right:.1}\" stroke=\"currentColor\" stroke-opacity=\".5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill-opacity=\".7\">{}</text>",
            f64::midpoint(left, right),
            height - 8.0,
            escape(&self.x_label),
        );
        if self.curves.iter().all(|c| c.buckets.is_empty() && c.extra.is_empty()) {
            let (x, y) = (f64::midpoint(left, right), f64::midpoint(MARGIN[2], bottom));
            let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">no data yet</text>");
        }
    }

    /// Names of the curves, right of the title; one curve alone is named by the title.
    fn legend(&self, svg: &mut String) {
        if self.curves.len() < 2 {
            return;
        }
        let mut right = self.size.0 - MARGIN[1];
        for (i, curve) in self.curves.iter().enumerate().rev() {
            let colour = COLOURS[i % COLOURS.len()];
            let text = right - 6.2 * curve.name.chars().count() as f64;
            let _ = write!(
                svg,
                "<text x=\"{text:.1}\" y=\"17\">{}</text>\
                 <path d=\"M{:.1} 13h14\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
                escape(&curve.name),
                text - 19.0,
            );
            right = text - 32.0;
        }
    }
}

fn draw(curve: &Curve, colour: &str, frame: &Frame, svg: &mut String) {
    let points = condense(&curve.buckets, DRAWN);
    let middle = |b: &Bucket| f64::midpoint(b.from, b.to);
    let path = |ys: &mut dyn Iterator<Item = (f64, f64)>| {
        let mut text = String::new();
        for (x, y) in ys.map(|(x, y)| frame.at(x, y)) {
            let _ = write!(text, "{}{x:.1} {y:.1}", if text.is_empty() { "M" } else { "L" });
        }
        text
    };
    if points.iter().any(|b| b.low < b.high) {
        let upper = points.iter().map(|b| (middle(b), b.high));
        let lower = points.iter().rev().map(|b| (middle(b), b.low));
        let band = path(&mut upper.chain(lower));
        let _ = write!(svg, "<path d=\"{band}Z\" fill=\"{colour}\" fill-opacity=\".16\"/>");
    }
    let line = path(&mut points.iter().map(|b| (middle(b), b.mean)));
    let _ = write!(
        svg,
        "<path d=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>"
    );
    let single = points.len() == 1;
    for b in points.iter().filter(|_| curve.marks || single) {
        let (x, y) = frame.at(middle(b), b.mean);
        let _ = write!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"{colour}\"><title>{} at {:.0}: {:.1}</title></circle>",
            escape(&curve.name),
            middle(b),
            b.mean
        );
    }
    for (x, y, meaning) in &curve.extra {
        let (x, y) = frame.at(*x, *y);
        let _ = write!(
            svg,
            "<path d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6Z\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\">\
             <title>{}</title></path>",
            y - 6.0,
            escape(meaning)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
        let buckets = points.iter().map(|(x, y)| Bucket::of(*x, *y)).collect();
        Curve { name: name.into(), buckets, marks: true, extra: Vec::new() }
    }

    fn chart(curves: Vec<Curve>) -> Chart {
        Chart { title: "Return <of> & run".into(), x_label: "steps".into(), size: (480.0, 260.0), curves }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for range in [(0.0, 1.0), (-1419.3, -2.2), (0.3, 0.3001), (1e-7, 9e-7), (-5.0, 1e6)] {
            let (found, step) = ticks(range, 5.0);
            assert!((2..=11).contains(&found.len()), "{range:?}: {found:?}");
            assert!(found.iter().all(|t| *t >= range.0 - step * 1e-6 && *t <= range.1 + step * 1e-6), "{found:?}");
        }
        assert_eq!(ticks((-1419.0, -2.0), 5.0).0, [-1000.0, -500.0]);
        assert_eq!(number(-1000.0, 500.0), "-1000");
        assert_eq!(number(250_000.0, 50_000.0), "250k");
        assert_eq!(number(0.25, 0.05), "0.25");
        assert_eq!(number(2e-5, 1e-5), "2e-5");
    }

    #[test]
    fn points_lie_where_the_axes_say() {
        let svg = chart(vec![curve("seed 0", &[(0.0, 0.0), (100.0, 10.0)])]).svg();
        // Left edge and right edge of the plot; 5 % of room above and below.
        assert!(svg.contains("M56.0 211.4L466.0 38.6"), "{svg}");
        assert!(svg.contains("Return &lt;of&gt; &amp; run") && !svg.contains("<of>"));
        assert!(!svg.contains("seed 0</text>"), "a single curve needs no legend");
    }

    #[test]
    fn odd_data_makes_charts_all_the_same() {
        let nothing = chart(vec![]).svg();
        assert!(nothing.contains("no data yet"));
        for points in [&[(5.0, 5.0)][..], &[(0.0, 0.0)], &[(0.0, 3.0), (1.0, 3.0)], &[(0.0, 1e300), (1.0, -1e300)]] {
            let svg = chart(vec![curve("a", points), curve("b", &[])]).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
            assert!(svg.contains("a</text>") && svg.contains("b</text>"));
        }
    }

    #[test]
    fn a_file_of_its_own_has_its_own_colours() {
        let svg = chart(vec![curve("a", &[(0.0, 1.0), (1.0, 2.0)])]).file();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("currentColor") && svg.contains("fill=\"#ffffff\""));
    }
}
