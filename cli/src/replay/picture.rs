//! The share of touches that miss, by the limit: a line for each policy, as SVG that needs nothing else.
//!
//! The limit is on a scale of powers of two, from the lowest to the highest; the share on one from none to the highest that there is.

use svg::Document;
use svg::node::element::{Circle, Line, Polyline, Rectangle, Text, Title};

use super::Done;
use super::table::share;

const SIZE: (f64, f64) = (960.0, 540.0);
/// Left, top, right and bottom of the field.
const FIELD: (f64, f64, f64, f64) = (90.0, 70.0, 760.0, 480.0);
/// Colours that are told apart by who sees few (Okabe and Ito).
const COLOURS: [&str; 8] = ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933"];

/// Draws it.
#[expect(clippy::cast_precision_loss, reason = "places on paper")]
pub(super) fn draw(done: &Done) -> Document {
    let (left, top, right, bottom) = FIELD;
    let all = &done.outcomes.all;
    let ratio = |misses: f64| share(misses, done.outcomes.touches);
    let highest = all.iter().map(|outcome| ratio(outcome.misses)).fold(0.0_f64, f64::max).max(1e-9);
    let log = |pages: u64| (pages.max(1) as f64).log2();
    let bounds = (done.limits.first(), done.limits.last());
    let (low, high) = (bounds.0.map_or(0.0, |p| log(p.get())), bounds.1.map_or(1.0, |p| log(p.get())));
    let x = |pages: u64| {
        if high > low { left + (log(pages) - low) / (high - low) * (right - left) } else { f64::midpoint(left, right) }
    };
    let y = |share: f64| bottom - share / highest * (bottom - top);
    let title = format!("Misses by limit: {}", crate::failure::one_line(&done.file));
    let line = |from: (f64, f64), to: (f64, f64)| {
        Line::new().set("x1", from.0).set("y1", from.1).set("x2", to.0).set("y2", to.1).set("stroke", "#dddddd")
    };
    let mut picture = Document::new()
        .set("width", SIZE.0)
        .set("height", SIZE.1)
        .set("viewBox", (0, 0, SIZE.0, SIZE.1))
        .set("font-family", "DejaVu Sans, Helvetica, Arial, sans-serif")
        .set("font-size", 12)
        .set("role", "img")
        .add(Title::new(title.as_str()))
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "#ffffff"))
        .add(words(left, 34.0, &title).set("font-size", 17).set("font-weight", "bold"))
        .add(words(left, 54.0, "share of touches that find their page on a device").set("fill", "#555555"));
    for step in 0..=4 {
        let share = highest * f64::from(step) / 4.0;
        let label = words(left - 8.0, y(share) + 4.0, &format!("{:.3} %", share * 100.0)).set("text-anchor", "end");
        picture = picture.add(line((left, y(share)), (right, y(share)))).add(label);
    }
    let mut last = f64::NEG_INFINITY;
    for limit in &done.limits {
        let at = x(limit.get());
        picture = picture.add(line((at, top), (at, bottom)));
        // Where there are many, some have no words.
        if at - last >= 70.0 {
            picture = picture.add(words(at, bottom + 20.0, &limit.bytes().to_string()).set("text-anchor", "middle"));
            last = at;
        }
    }
    let mut names: Vec<(&str, bool)> = Vec::new();
    for outcome in all {
        if !names.contains(&(&outcome.policy, outcome.is_real)) {
            names.push((&outcome.policy, outcome.is_real));
        }
    }
    for (at, (name, is_real)) in names.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let of = all.iter().filter(|outcome| outcome.policy == *name && outcome.is_real == *is_real);
        let points: Vec<(f64, f64)> = of.map(|outcome| (x(outcome.limit.get()), y(ratio(outcome.misses)))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let mut curve = Polyline::new().set("points", path.join(" ")).set("fill", "none").set("stroke", colour);
        curve = curve.set("stroke-width", if *is_real { 3 } else { 1 });
        if !is_real {
            curve = curve.set("stroke-dasharray", "5 3");
        }
        picture = picture.add(curve);
        for (x, y) in points {
            picture = picture.add(Circle::new().set("cx", x).set("cy", y).set("r", 3).set("fill", colour));
        }
        let row = top + 10.0 + 22.0 * at as f64;
        let mark = Line::new().set("x1", right + 20.0).set("x2", right + 50.0).set("y1", row).set("y2", row);
        let mark = mark.set("stroke", colour).set("stroke-width", if *is_real { 3 } else { 1 });
        picture = picture.add(mark).add(words(right + 58.0, row + 4.0, name));
    }
    picture
}

fn words(x: f64, y: f64, text: &str) -> Text {
    Text::new(text).set("x", x).set("y", y)
}
