//! Heat as a picture: time goes down, addresses go across, from dark (cold) to light.
//!
//! *Limits:* gaps between ranges are left out, so that what comes to be managed before other memory, in order of address, moves that to the right.

use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

use super::Row;
use crate::control::protocol::{Address, Run};
use crate::failure::one_line;
use crate::run::report::short;

/// Where cells begin, how wide all of them are, and the height of a line.
const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const WIDTH: f64 = 1000.0;
const LINE: f64 = 8.0;
/// Lines from one time that is written beside them to the next.
const TIMES: usize = 10;
/// The scale: its colours.
const SCALE: u8 = 10;

/// Draws what was seen of a run.
pub(super) fn draw(run: &Run, rows: &[Row]) -> Document {
    #[expect(clippy::cast_precision_loss, reason = "lines are few")]
    let height = rows.len() as f64 * LINE;
    let (page_width, page_height) = (LEFT + WIDTH + 20.0, TOP + height + 50.0);
    let mut drawn = Document::new()
        .set("viewBox", (0, 0, page_width, page_height))
        .set("font-family", "sans-serif")
        .set("font-size", 11)
        .add(Rectangle::new().set("width", page_width).set("height", page_height).set("fill", "white"));
    let pid = rows.first().map_or(run.program_pid, |row| row.heat.pid);
    let name = format!("Heat of {} ({pid}), policy {}", one_line(&run.program), one_line(&run.policy));
    drawn = drawn.add(Title::new(name.clone())).add(label(&name, LEFT, 20.0).set("font-size", 14));
    let bytes = |row: &Row| row.heat.cells.iter().fold(0_u64, |sum, cell| sum.saturating_add(cell.bytes));
    let most = rows.iter().map(bytes).max().unwrap_or(0).max(1);
    #[expect(clippy::cast_precision_loss, reason = "places in a picture")]
    let across = |bytes: u64| bytes as f64 / most as f64 * WIDTH;
    let mut y = TOP;
    for (number, row) in rows.iter().enumerate() {
        if number % TIMES == 0 {
            let time = format!("{:.1} s", row.time.as_secs_f64());
            drawn = drawn.add(label(&time, LEFT - 6.0, y + LINE).set("text-anchor", "end"));
        }
        let (mut at, mut cells) = (0_u64, row.heat.cells.as_slice());
        while let Some(first) = cells.first() {
            // Neighbours of one heat are one rectangle.
            let alike = cells.iter().take_while(|cell| cell.heat == first.heat).count();
            let wide = cells[..alike].iter().fold(0_u64, |sum, cell| sum.saturating_add(cell.bytes));
            let cell = rectangle(LEFT + across(at), y, across(wide), first.heat).set("class", "cell");
            drawn = drawn.add(cell);
            at = at.saturating_add(wide);
            cells = &cells[alike..];
        }
        y += LINE;
    }
    let address = |address: Option<Address>| address.map(String::from).unwrap_or_default();
    if let Some(row) = rows.last() {
        let (first, last) = (row.heat.cells.first(), row.heat.cells.last());
        drawn = drawn.add(label(&address(first.map(|cell| cell.start)), LEFT, TOP - 8.0));
        let end = label(&address(last.map(|cell| cell.start)), LEFT + across(bytes(row)), TOP - 8.0)
            .set("text-anchor", "end");
        drawn = drawn.add(end).add(label(&format!("{} managed", short(bytes(row))), LEFT, y + 30.0));
    }
    for step in 0..=SCALE {
        let heat = u8::try_from(u32::from(step) * 255 / u32::from(SCALE)).unwrap_or(u8::MAX);
        drawn = drawn.add(rectangle(LEFT + 400.0 + f64::from(step) * 16.0, y + 20.0, 16.0, heat));
    }
    drawn.add(label("cold", LEFT + 370.0, y + 30.0)).add(label("hot", LEFT + 582.0, y + 30.0))
}

fn rectangle(x: f64, y: f64, width: f64, heat: u8) -> Rectangle {
    let colour = colorous::VIRIDIS.eval_rational(usize::from(heat), 256);
    // To a hundredth, which nobody sees.
    let place = |place: f64| (place * 100.0).round() / 100.0;
    Rectangle::new()
        .set("x", place(x))
        .set("y", y)
        .set("width", place(width))
        .set("height", LINE)
        .set("fill", format!("#{colour:x}"))
}

fn label(text: &str, x: f64, y: f64) -> Text {
    Text::new(text).set("x", x).set("y", y)
}
