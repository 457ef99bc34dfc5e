//! A frame: what is shown of a run, as cells of a screen of any size.

use std::time::Duration;

use hetmem_core::units::PAGE_SIZE;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use crate::control::protocol::{Heat, Interval, Place, Process, State, Statistics};
use crate::failure::one_line;
use crate::ps;
use crate::run::report::{grouped, short};
use crate::shown;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) statistics: Option<Statistics>,
    pub(super) heat: Option<Heat>,
    /// Whether what was asked of heat was answered, be it with nothing.
    pub(super) heat_is_answered: bool,
    /// How long there were no news, if that is long.
    pub(super) silent_for: Option<Duration>,
}

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    has_colours: bool,
    /// Whether the terminal shows more than ASCII.
    is_unicode: bool,
}

/// Columns of the names before bars, and of bars.
const NAME: usize = 10;
const LEAST_BAR: usize = 10;
/// Columns behind a bar: how much of how much.
const FIGURES: usize = 36;
/// Lines that processes have, at least: a head, and two of them.
const LEAST_PROCESSES: u16 = 3;
/// Lines of everything but places and processes.
const OTHERS: u16 = 10;

impl Look {
    /// As the environment asks for.
    pub(super) fn of_environment() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let is_unicode = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_uppercase();
            locale.contains("UTF-8") || locale.contains("UTF8")
        });
        Self { has_colours: !is_set("NO_COLOR"), is_unicode }
    }

    /// For text.
    pub(super) const fn plain() -> Self {
        Self { has_colours: false, is_unicode: false }
    }

    /// For a picture.
    pub(super) const fn full() -> Self {
        Self { has_colours: true, is_unicode: true }
    }

    fn colour(self, colour: Color) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new() }
    }
}

/// Lines from the top down, as many as there is room for.
struct Lines<'a> {
    cells: &'a mut Buffer,
    area: Rect,
    next: u16,
}

impl Lines<'_> {
    const fn left(&self) -> u16 {
        self.area.height.saturating_sub(self.next)
    }

    /// Texts beside one another, each in its style.
    fn add(&mut self, parts: &[(&str, Style)]) {
        let y = self.area.y + self.next;
        if self.left() > 0 {
            let (mut x, end) = (self.area.x, self.area.right());
            for (text, style) in parts {
                let width = usize::from(end.saturating_sub(x));
                x = self.cells.set_stringn(x, y, text, width, *style).0;
            }
            self.next += 1;
        }
    }

    fn plain(&mut self, text: &str) {
        self.add(&[(text, Style::new())]);
    }
}

/// Draws what is known.
pub(super) fn draw(shown: &Shown, look: Look, area: Rect, cells: &mut Buffer) {
    let mut lines = Lines { cells, area, next: 0 };
    let width = usize::from(area.width);
    let Some(statistics) = &shown.statistics else {
        return lines.plain("hetmem top: waiting for the run …");
    };
    lines.add(&[(&title(statistics, shown.silent_for, width), Style::new().add_modifier(Modifier::REVERSED))]);
    lines.plain("");
    let room = usize::from(lines.left().saturating_sub(OTHERS - 2 + LEAST_PROCESSES)).max(1);
    let places = &statistics.places;
    let fit = if places.len() > room { room.saturating_sub(1) } else { places.len() };
    for place in &places[..fit] {
        let colour = match place.memory_type.as_str() {
            "system" => Color::Green,
            "coherent" => Color::Cyan,
            _ => Color::Magenta,
        };
        let [name, bar, figures] = place_line(place, look, width);
        lines.add(&[(&name, Style::new()), (&bar, look.colour(colour)), (&figures, Style::new())]);
    }
    if fit < places.len() {
        lines.plain(&format!("and {} more devices", places.len() - fit));
    }
    lines.plain("");
    rates(statistics, &mut lines);
    lines.plain("");
    strip(shown, look, width, &mut lines);
    lines.plain("");
    processes(statistics, look, &mut lines);
}

fn title(statistics: &Statistics, silent_for: Option<Duration>, width: usize) -> String {
    let run = &statistics.run;
    let program = one_line(&run.program);
    let what =
        format!("hetmem top  {program} ({})  {}  {}", run.program_pid, ps::policy(run), shown::time(run.seconds));
    let right = match silent_for {
        Some(time) => format!("no answer for {} s", time.as_secs()),
        None => "q quits".to_owned(),
    };
    let room = width.saturating_sub(right.chars().count() + 1);
    let what: String = what.chars().take(room).collect();
    format!("{what:<room$} {right}")
}

/// Name, bar, and how much.
fn place_line(place: &Place, look: Look, width: usize) -> [String; 3] {
    let name: String = one_line(&place.name).chars().take(NAME).collect();
    let bar_width = width.saturating_sub(NAME + 1 + FIGURES).max(LEAST_BAR);
    let used = place.used_bytes.map_or_else(|| "not counted yet".to_owned(), short);
    let figures = match place.capacity_bytes {
        Some(capacity) => format!(" {used} of {}{}", short(capacity), share(place.used_bytes, capacity)),
        None => format!(" {used}"),
    };
    let bar = match (place.used_bytes, place.capacity_bytes) {
        (Some(used), Some(capacity)) => bar(used, capacity, bar_width, look),
        _ => " ".repeat(bar_width),
    };
    [format!("{name:<NAME$} "), bar, figures]
}

fn share(used: Option<u64>, capacity: u64) -> String {
    match used {
        Some(used) if capacity > 0 => format!(" ({} %)", u128::from(used) * 100 / u128::from(capacity)),
        _ => String::new(),
    }
}

fn bar(used: u64, capacity: u64, width: usize, look: Look) -> String {
    let (full, empty) = if look.is_unicode { ("█", "░") } else { ("#", ".") };
    let filled = match capacity {
        0 => 0,
        // What is there at all is seen.
        _ => usize::try_from((u128::from(used) * width as u128).div_ceil(u128::from(capacity)))
            .unwrap_or(width)
            .min(width),
    };
    full.repeat(filled) + &empty.repeat(width - filled)
}

fn rates(statistics: &Statistics, lines: &mut Lines<'_>) {
    let total = &statistics.total;
    let Some(interval) = &statistics.interval else {
        lines.plain("flow       …");
        lines.plain(&format!("faults     {} so far", grouped(total.cpu_faults)));
        return;
    };
    let flow = |pages: u64| {
        let each_second = per_second(pages, interval);
        format!("{} pages/s ({}/s)", grouped(each_second), short(each_second.saturating_mul(PAGE_SIZE)))
    };
    let (out, home) = (flow(interval.sums.pages_migrated_to_device), flow(interval.sums.pages_migrated_to_system));
    lines.plain(&format!("flow       {out} to devices"));
    let thrashes = if interval.sums.thrashing_seconds > 0.0 { ": thrashing" } else { "" };
    lines.plain(&format!("           {home} home{thrashes}"));
    let latency = interval.sums.fault_latency_us;
    let times = match interval.sums.cpu_faults {
        0 => String::new(),
        _ => format!(", p50 {:.1} us, p99 {:.1} us", latency.p50, latency.p99),
    };
    lines.plain(&format!(
        "faults     {}/s{times}; {} so far, {} errors",
        grouped(per_second(interval.sums.cpu_faults, interval)),
        grouped(total.cpu_faults),
        grouped(total.errors)
    ));
}

fn per_second(count: u64, interval: &Interval) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a figure for people; casts of floats saturate"
    )]
    let each = (count as f64 / interval.seconds.max(0.001)).round() as u64;
    each
}

/// Heat by address: from cold to the hottest.
fn strip(shown: &Shown, look: Look, width: usize, lines: &mut Lines<'_>) {
    let Some(heat) = shown.heat.as_ref().filter(|heat| !heat.cells.is_empty()) else {
        return lines.plain(if shown.heat_is_answered { "heat       not told" } else { "heat       …" });
    };
    let columns = width.saturating_sub(NAME + 1).clamp(1, heat.cells.len());
    // Neighbours share a column: the hottest of them is seen.
    let hottest = |column: usize| {
        let from = column * heat.cells.len() / columns;
        let to = ((column + 1) * heat.cells.len() / columns).max(from + 1);
        heat.cells[from..to].iter().map(|cell| cell.heat).max().unwrap_or(0)
    };
    let name = format!("{:<NAME$} ", format!("heat {}", heat.pid));
    let mut parts = vec![(name, Style::new())];
    for column in 0..columns {
        let heat = hottest(column);
        parts.push((level(heat, look).to_string(), look.colour(colour_of(heat))));
    }
    let parts: Vec<(&str, Style)> = parts.iter().map(|(text, style)| (text.as_str(), *style)).collect();
    lines.add(&parts);
}

fn level(heat: u8, look: Look) -> char {
    if look.is_unicode {
        const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        LEVELS[usize::from(heat) * LEVELS.len() / 256]
    } else {
        crate::heat::digit(heat)
    }
}

const fn colour_of(heat: u8) -> Color {
    match heat {
        0..64 => Color::Blue,
        64..128 => Color::Cyan,
        128..192 => Color::Yellow,
        192.. => Color::Red,
    }
}

fn processes(statistics: &Statistics, look: Look, lines: &mut Lines<'_>) {
    let mut all: Vec<&Process> = statistics.processes.iter().collect();
    all.sort_by_key(|process| (std::cmp::Reverse(process.managed_bytes), process.pid));
    let room = usize::from(lines.left()).saturating_sub(1);
    let fit = if all.len() > room { room.saturating_sub(1) } else { all.len() };
    let head =
        ["PID", "NAME", "STATE", "MANAGED", "SYSTEM", "DEVICES", "FAULTS", "TO DEVICE", "HOME"].map(str::to_owned);
    let row = |process: &&Process| {
        let state = match process.state {
            State::Running => "runs",
            State::Sleeping => "sleeps",
            State::Stopped => "stopped",
            State::Unknown => "?",
        };
        [
            process.pid.to_string(),
            one_line(process.name.as_deref().unwrap_or("?")).chars().take(15).collect(),
            state.to_owned(),
            short(process.managed_bytes),
            process.system_bytes.map_or_else(|| "?".to_owned(), short),
            short(process.device_bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))),
            count(process.cpu_faults),
            count(process.pages_migrated_to_device),
            count(process.pages_migrated_to_system),
        ]
    };
    let rows: Vec<[String; 9]> = std::iter::once(head).chain(all[..fit].iter().map(row)).collect();
    let text = shown::columns(&rows, &[1, 2]);
    for (at, line) in text.lines().enumerate() {
        let style = if at == 0 { look.colour(Color::Yellow).add_modifier(Modifier::BOLD) } else { Style::new() };
        lines.add(&[(line, style)]);
    }
    if fit < all.len() {
        lines.plain(&format!("and {} more processes", all.len() - fit));
    }
}

/// A count in few columns: `12,345`, `1234k`, `56M`.
fn count(number: u64) -> String {
    match number {
        0..100_000 => grouped(number),
        100_000..10_000_000 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// A frame as lines of text, without what is empty at its end.
pub(super) fn text(cells: &Buffer) -> String {
    let width = usize::from(cells.area.width);
    let lines =
        cells.content.chunks(width.max(1)).map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
    let text = lines.map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Address, Cell, Latency, Run, Sums};
    use hetmem_core::units::VirtAddr;

    fn example(devices: usize, processes: usize) -> Shown {
        let run = Run {
            pid: 41,
            program: "redis-server".into(),
            program_pid: 42,
            policy: "limit=1G".into(),
            system_limit_bytes: Some(256 << 20),
            per_process: false,
            seconds: 3725.5,
            processes: 1,
            managed_bytes: 512 << 20,
            device_bytes: 256 << 20,
            cpu_faults: 1_234_567,
        };
        let place = |name: &str, memory_type: &str, used_bytes, capacity| Place {
            name: name.into(),
            memory_type: memory_type.into(),
            used_bytes,
            capacity_bytes: capacity,
            packing: None,
        };
        let mut places = vec![place("system", "system", Some(256 << 20), Some(256 << 20))];
        places.extend((0..devices).map(|at| place(&format!("private{at}"), "private", Some(64 << 20), Some(1 << 30))));
        let latency = Latency { p50: 8.7, p99: 360.4, max: 1000.0 };
        let process = |at: usize| Process {
            pid: 42 + u32::try_from(at).unwrap(),
            name: Some("redis\u{1b}[2J".into()),
            state: State::Running,
            managed_bytes: 512 << 20,
            system_bytes: (at == 0).then_some(256 << 20),
            is_fresh: true,
            device_bytes: vec![64 << 20; devices],
            cpu_faults: 1_234_567,
            pages_migrated_to_device: 12_345,
            pages_migrated_to_system: 99_000_000,
            errors: 0,
        };
        let statistics = Statistics {
            run,
            places,
            processes: (0..processes).map(process).collect(),
            processes_total: 3,
            total: Sums {
                pages_migrated_to_device: 12_345,
                pages_migrated_to_system: 2,
                bytes_copied: 3,
                cpu_faults: 1_234_567,
                sample_touches: 0,
                refaults: 0,
                thrashing_seconds: 0.0,
                errors: 0,
                fault_latency_us: latency,
            },
            interval: Some(Interval {
                seconds: 0.5,
                sums: Sums {
                    pages_migrated_to_device: 1024,
                    pages_migrated_to_system: 512,
                    bytes_copied: 1 << 20,
                    cpu_faults: 500,
                    sample_touches: 0,
                    refaults: 0,
                    thrashing_seconds: 0.0,
                    errors: 0,
                    fault_latency_us: latency,
                },
            }),
        };
        let cell = |at: u64| Cell {
            start: Address(VirtAddr::new(at << 20)),
            bytes: 1 << 20,
            heat: u8::try_from(at * 255 / 159).unwrap(),
        };
        let heat = Some(Heat { pid: 42, cells: (0..160).map(cell).collect() });
        Shown { statistics: Some(statistics), heat, heat_is_answered: true, silent_for: None }
    }

    fn drawn(shown: &Shown, look: Look, width: u16, height: u16) -> String {
        let area = Rect::new(0, 0, width, height);
        let mut cells = Buffer::empty(area);
        draw(shown, look, area, &mut cells);
        text(&cells)
    }

    #[test]
    fn a_frame_has_everything() {
        let text = drawn(&example(1, 2), Look::plain(), 80, 24);
        let strip = text.lines().find_map(|line| line.strip_prefix("heat 42    ")).unwrap();
        assert!(
            strip.len() == 69 && strip.starts_with("000") && strip.ends_with("999") && strip.bytes().is_sorted(),
            "{text}"
        );
        let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with("heat ")).collect();
        assert_eq!(
            rest,
            [
                "hetmem top  redis-server (42)  limit=256M  1:02:05                       q quits",
                "",
                "system     ################################# 256 MiB of 256 MiB (100 %)",
                "private0   ###.............................. 64 MiB of 1 GiB (6 %)",
                "",
                "flow       2,048 pages/s (8 MiB/s) to devices",
                "           1,024 pages/s (4 MiB/s) home",
                "faults     1,000/s, p50 8.7 us, p99 360.4 us; 1,234,567 so far, 0 errors",
                "",
                "",
                "PID  NAME            STATE  MANAGED   SYSTEM  DEVICES  FAULTS  TO DEVICE  HOME",
                " 42  redis\\u{1b}[2J  runs   512 MiB  256 MiB   64 MiB   1234k     12,345   99M",
                " 43  redis\\u{1b}[2J  runs   512 MiB        ?   64 MiB   1234k     12,345   99M",
            ]
        );
    }

    #[test]
    fn whatever_the_size_it_is_drawn() {
        for (devices, processes) in [(0, 0), (1, 1), (16, 100)] {
            for look in [Look::plain(), Look { has_colours: true, is_unicode: true }] {
                for (width, height) in [(80, 24), (0, 0), (1, 1), (20, 3), (300, 100), (80, 12)] {
                    let text = drawn(&example(devices, processes), look, width, height);
                    assert!(text.lines().count() <= usize::from(height).max(1), "{text}");
                    drawn(&Shown::default(), look, width, height);
                }
            }
        }
        let text = drawn(&example(16, 100), Look::plain(), 80, 24);
        assert!(text.contains("more devices") && text.contains("more processes"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let mut shown = example(1, 1);
        let statistics = shown.statistics.as_mut().unwrap();
        (statistics.interval, statistics.places[0].used_bytes) = (None, None);
        (shown.heat, shown.silent_for) = (None, Some(Duration::from_secs(7)));
        let text = drawn(&shown, Look::plain(), 80, 24);
        for part in ["not counted yet of 256 MiB", "1,234,567 so far", "heat       not told", "no answer for 7 s"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn memory_that_thrashes_is_told() {
        let mut shown = example(1, 1);
        shown.statistics.as_mut().unwrap().interval.as_mut().unwrap().sums.thrashing_seconds = 0.5;
        let text = drawn(&shown, Look::plain(), 80, 24);
        assert!(text.contains("1,024 pages/s (4 MiB/s) home: thrashing\n"), "{text}");
    }
}
