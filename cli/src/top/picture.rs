//! A frame as a picture: each cell of the screen where a terminal has it.

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

/// The size of a cell, and where the baseline of its text is.
const WIDTH: u16 = 8;
const HEIGHT: u16 = 18;
const BASE: u16 = 13;
/// Around the cells.
const MARGIN: u16 = 12;
const BACKGROUND: &str = "#1d1f21";
const FOREGROUND: &str = "#e0e0e0";

/// Draws the cells, without the lines that are empty at the end.
pub(super) fn draw(cells: &Buffer, name: &str) -> Document {
    let columns = usize::from(cells.area.width).max(1);
    let rows: Vec<&[Cell]> = cells.content.chunks(columns).collect();
    let is_empty = |row: &&[Cell]| row.iter().all(|cell| cell.symbol() == " ");
    let height = rows.len() - rows.iter().rev().take_while(|row| is_empty(row)).count();
    let of_cells = |number: usize, size: u16| u16::try_from(number).unwrap_or(u16::MAX).saturating_mul(size);
    let (page_width, page_height) = (of_cells(columns, WIDTH) + 2 * MARGIN, of_cells(height, HEIGHT) + 2 * MARGIN);
    let mut drawn = Document::new()
        .set("viewBox", (0, 0, page_width, page_height))
        .set("font-family", "monospace")
        .set("font-size", 13)
        .add(Title::new(name))
        .add(rectangle(0, 0, page_width, page_height, BACKGROUND).set("rx", 6));
    for (row, y) in rows[..height].iter().zip((MARGIN..).step_by(usize::from(HEIGHT))) {
        let mut at = 0;
        while let Some(first) = row.get(at) {
            // Neighbours that look alike are one text, or one rectangle.
            let is_alike = |cell: &&Cell| {
                (cell.fg, cell.modifier) == (first.fg, first.modifier)
                    && filled(cell) == filled(first)
                    && (filled(cell).is_none() || cell.symbol() == first.symbol())
            };
            let alike = row[at..].iter().take_while(is_alike).count();
            let (x, width) = (MARGIN + of_cells(at, WIDTH), of_cells(alike, WIDTH));
            let is_reversed = first.modifier.contains(Modifier::REVERSED);
            if is_reversed {
                drawn = drawn.add(rectangle(x, y, width, HEIGHT, colour(first.fg)));
            }
            if let Some((eighths, opacity)) = filled(first) {
                let tall = HEIGHT * eighths / 8;
                let part = rectangle(x, y + HEIGHT - tall, width, tall, colour(first.fg)).set("fill-opacity", opacity);
                drawn = drawn.add(part);
            } else {
                let text: String = row[at..at + alike].iter().map(Cell::symbol).collect();
                let begin = text.chars().take_while(|c| *c == ' ').count();
                let text = text.trim();
                if !text.is_empty() {
                    let mut label = Text::new(text)
                        .set("x", x + of_cells(begin, WIDTH))
                        .set("y", y + BASE)
                        // Whatever font there is, columns are below one another.
                        .set("textLength", of_cells(text.chars().count(), WIDTH))
                        .set("xml:space", "preserve")
                        .set("fill", if is_reversed { BACKGROUND } else { colour(first.fg) });
                    if first.modifier.contains(Modifier::BOLD) {
                        label = label.set("font-weight", "bold");
                    }
                    drawn = drawn.add(label);
                }
            }
            at += alike;
        }
    }
    drawn
}

/// What bars are made of: how much of the cell is filled, in eighths from below, and how opaque that is. Fonts leave gaps between them.
fn filled(cell: &Cell) -> Option<(u16, f32)> {
    let symbol = cell.symbol().chars().next()?;
    match symbol {
        '▁'..='█' => u16::try_from(u32::from(symbol) - u32::from('▁') + 1).ok().map(|eighths| (eighths, 1.0)),
        '░' => Some((8, 0.25)),
        _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "frames have these colours, and what is in none is as the terminal has it"
)]
const fn colour(of: Color) -> &'static str {
    match of {
        Color::Green => "#8cbf5f",
        Color::Cyan => "#5fbfbf",
        Color::Magenta => "#c080c8",
        Color::Blue => "#6f9fd8",
        Color::Yellow => "#e6c35c",
        Color::Red => "#e07060",
        _ => FOREGROUND,
    }
}

fn rectangle(x: u16, y: u16, width: u16, height: u16, colour: &str) -> Rectangle {
    Rectangle::new().set("x", x).set("y", y).set("width", width).set("height", height).set("fill", colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    #[test]
    fn cells_are_drawn_where_a_terminal_has_them() {
        let mut cells = Buffer::empty(Rect::new(0, 0, 20, 5));
        cells.set_string(0, 0, "title <&>", Style::new().add_modifier(Modifier::REVERSED));
        cells.set_string(0, 1, "bar  ███░░▄", Style::new().fg(Color::Green));
        cells.set_string(2, 2, "é", Style::new().add_modifier(Modifier::BOLD));
        let text = draw(&cells, "a frame").to_string();
        // Three lines of 20 cells, with the margin.
        assert!(text.contains(r#"viewBox="0 0 184 78""#), "{text}");
        let elements: Vec<&str> =
            text.lines().filter(|line| line.starts_with("<rect") || line.starts_with("<text")).collect();
        let has =
            |parts: &[&str]| elements.iter().filter(|element| parts.iter().all(|part| element.contains(part))).count();
        // The title, reversed; full, light, and half cells; the page.
        assert_eq!(has(&["<rect"]), 5, "{text}");
        assert_eq!(has(&["<rect", r#"x="12""#, r#"width="72""#, r#"height="18""#, FOREGROUND]), 1, "{text}");
        assert_eq!(has(&["<rect", r#"x="52""#, r#"width="24""#, r#"fill-opacity="1""#, "#8cbf5f"]), 1, "{text}");
        assert_eq!(has(&["<rect", r#"x="76""#, r#"width="16""#, r#"fill-opacity="0.25""#]), 1, "{text}");
        assert_eq!(has(&["<rect", r#"x="92""#, r#"y="39""#, r#"width="8""#, r#"height="9""#]), 1, "{text}");
        assert_eq!(has(&["<text", r#"x="28""#, r#"y="61""#, r#"font-weight="bold""#]), 1, "{text}");
        assert!(text.contains("title &lt;&amp;&gt;") && text.contains("\nbar\n") && text.contains("\né\n"), "{text}");
    }
}
