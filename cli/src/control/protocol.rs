//! What goes over a control socket: one JSON object a line, each with the number of the format. docs/control.md describes it for users.

use hetmem_core::port;
use hetmem_core::stats::PackingCounters;
use hetmem_core::units::VirtAddr;
use hetmem_devices::kind::Footprint;
use hetmem_devices::spec::DeviceSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The number of the format. Fields may be added under the same number; what is there keeps its meaning.
pub(crate) const FORMAT: u32 = 1;
/// Bytes that a request may have.
pub(super) const LONGEST_REQUEST: usize = 4096;
/// Milliseconds from one message of a subscription to the next: if none are given, and what may be given.
pub(super) const INTERVAL_MS: u64 = 1000;
pub(super) const SHORTEST_INTERVAL_MS: u64 = 100;
pub(super) const LONGEST_INTERVAL_MS: u64 = 3_600_000;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Which run this is.
    Run {},
    /// What was counted, and where everything is.
    Statistics {},
    /// The same again and again.
    Subscribe { interval_ms: Option<u64> },
    /// What of a process is managed.
    Regions { pid: u32, from: Option<Address> },
    /// Where that is.
    Residency { pid: u32, from: Option<Address> },
    /// How warm that is, in `cells` parts.
    Heat { pid: u32, cells: Option<u32> },
    /// Another limit.
    Set { system_limit_bytes: u64 },
    /// Pages are to move, to `system` or a device, by its name.
    Migrate { pid: u32, start: Address, end: Address, to: String },
    /// Something is said of the use of a range; `to` is the device of `preferred_location`, by its name.
    Advise { pid: u32, start: Address, end: Address, advice: Said, to: Option<String> },
}

/// What can be said of the use of a range. Contents are given up by the program itself, and by nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    Pin,
    Unpin,
    PreferredLocation,
    ReadMostly,
    NoPreference,
    Soon,
    NotSoon,
}

impl Request {
    /// Reads a line; the error says what is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| format!("this is not JSON: {error}"))?;
        let Value::Object(mut fields) = value else { return Err("a request is an object".to_owned()) };
        match fields.remove("format") {
            Some(Value::Number(format)) if format.as_u64() == Some(u64::from(FORMAT)) => {}
            Some(format) => return Err(format!("this is format {FORMAT}, not {format}")),
            None => return Err(format!("`format` is missing; it is {FORMAT}")),
        }
        serde_json::from_value(Value::Object(fields)).map_err(|error| format!("this is no request: {error}"))
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> String {
        line(self)
    }
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one of them at a time")]
pub(crate) enum Answer {
    Run(Run),
    Statistics(Statistics),
    Regions(Regions),
    Residency(Residency),
    Heat(Heat),
    Set(Set),
    Migrate(Migrated),
    Advise(Advised),
    Error(String),
}

impl Answer {
    /// Reads a line; the error says what is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| format!("it answers no JSON: {error}"))?;
        let Value::Object(mut fields) = value else { return Err("it answers no object".to_owned()) };
        match fields.remove("format").and_then(|format| format.as_u64()) {
            Some(format) if format == u64::from(FORMAT) => {}
            _ => return Err("it answers in a format of another version of hetmem".to_owned()),
        }
        serde_json::from_value(Value::Object(fields)).map_err(|error| format!("its answer can't be read: {error}"))
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> String {
        line(self)
    }
}

/// Something as a line.
pub(crate) fn line(what: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Line<'a, T> {
        format: u32,
        #[serde(flatten)]
        what: &'a T,
    }
    let mut text = serde_json::to_string(&Line { format: FORMAT, what }).expect("numbers and strings are JSON");
    text.push('\n');
    text
}

/// An address, written as `"0x7f0012345000"`: as a number it would lose bits in programs that have none larger than 2^53.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Address(pub(crate) VirtAddr);

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let Some(number) = number else { return Err(format!("`{text}` is no address, such as 0x7f0012345000")) };
        let address = VirtAddr::new(number);
        if address.is_page_aligned() { Ok(Self(address)) } else { Err(format!("{text} is not the start of a page")) }
    }
}

impl From<Address> for String {
    fn from(Address(address): Address) -> Self {
        format!("{:#x}", address.get())
    }
}

/// A run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The process of `hetmem run`.
    pub(crate) pid: u32,
    /// The program, as it was called, and its process.
    pub(crate) program: String,
    pub(crate) program_pid: u32,
    pub(crate) policy: String,
    /// The limit that holds now, if the policy has one.
    pub(crate) system_limit_bytes: Option<u64>,
    /// Whether each process has that, and the sizes of devices, for itself.
    #[serde(default)]
    pub(crate) per_process: bool,
    pub(crate) seconds: f64,
    /// Managed processes that are there now.
    pub(crate) processes: u64,
    pub(crate) managed_bytes: u64,
    /// Of these, what is on devices.
    pub(crate) device_bytes: u64,
    pub(crate) cpu_faults: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Statistics {
    pub(crate) run: Run,
    /// System memory, then the devices in the order of the command line.
    pub(crate) places: Vec<Place>,
    /// Those that are there now.
    pub(crate) processes: Vec<Process>,
    /// Managed processes so far.
    pub(crate) processes_total: u64,
    /// Of all processes since the start.
    pub(crate) total: Sums,
    /// Since the message before, in a subscription.
    pub(crate) interval: Option<Interval>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// `system`, `coherent`, `private`.
    pub(crate) memory_type: String,
    /// How much of what is managed is there; `null` if nobody has counted yet.
    pub(crate) used_bytes: Option<u64>,
    /// How much may be there, in the processes that are there now; `null` without a limit.
    pub(crate) capacity_bytes: Option<u64>,
    /// How its pages are packed; absent where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packing: Option<Packing>,
}

/// How a device packs pages into less memory than they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Packing {
    pub(crate) pages: u64,
    pub(crate) same_filled_pages: u64,
    pub(crate) raw_pages: u64,
    pub(crate) packed_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) compacted_pages: u64,
}

impl Packing {
    /// What is counted of the device that `spec` describes; `None` if that packs nothing.
    pub(crate) fn of(spec: &DeviceSpec, counters: &PackingCounters) -> Option<Self> {
        let packs = matches!(spec.backend.kind().footprint(), Footprint::Limited { .. });
        packs.then(|| counters.get(spec.memory().get()).into())
    }
}

impl From<port::Packing> for Packing {
    fn from(packing: port::Packing) -> Self {
        let port::Packing { pages, same_filled_pages, raw_pages, packed_bytes, .. } = packing;
        let port::Packing { memory_bytes, peak_memory_bytes, memory_limit_bytes, compacted_pages, .. } = packing;
        Self {
            pages,
            same_filled_pages,
            raw_pages,
            packed_bytes,
            memory_bytes,
            peak_memory_bytes,
            memory_limit_bytes,
            compacted_pages,
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// `null` if it is in another process namespace.
    pub(crate) name: Option<String>,
    pub(crate) state: State,
    pub(crate) managed_bytes: u64,
    /// As it has counted last; `null` if it has not yet.
    pub(crate) system_bytes: Option<u64>,
    /// Whether it has counted since this was asked.
    pub(crate) is_fresh: bool,
    pub(crate) device_bytes: Vec<u64>,
    pub(crate) cpu_faults: u64,
    pub(crate) pages_migrated_to_device: u64,
    pub(crate) pages_migrated_to_system: u64,
    pub(crate) errors: u64,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Running,
    Sleeping,
    Stopped,
    /// It is in another process namespace.
    Unknown,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) pages_migrated_to_device: u64,
    pub(crate) pages_migrated_to_system: u64,
    pub(crate) bytes_copied: u64,
    pub(crate) cpu_faults: u64,
    /// Of these, touches of pages that were out as samples.
    #[serde(default)]
    pub(crate) sample_touches: u64,
    /// Pages that came home less than a minute after they had left.
    #[serde(default)]
    pub(crate) refaults: u64,
    /// For how long memory was turned over for nothing.
    #[serde(default)]
    pub(crate) thrashing_seconds: f64,
    #[serde(default)]
    pub(crate) errors: u64,
    pub(crate) fault_latency_us: Latency,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) sums: Sums,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Regions {
    pub(crate) pid: u32,
    pub(crate) regions: Vec<Range>,
    /// Where to go on, if these are not all.
    pub(crate) next: Option<Address>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) start: Address,
    pub(crate) end: Address,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Residency {
    pub(crate) pid: u32,
    /// `system`, then the names of the devices.
    pub(crate) places: Vec<String>,
    pub(crate) regions: Vec<Resident>,
    pub(crate) next: Option<Address>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Resident {
    pub(crate) start: Address,
    pub(crate) end: Address,
    /// Bytes in each place.
    pub(crate) bytes: Vec<u64>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Heat {
    pub(crate) pid: u32,
    pub(crate) cells: Vec<Cell>,
}

/// A part of what is managed: of several ranges, if the first goes no farther.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) start: Address,
    pub(crate) bytes: u64,
    /// 0 to 255.
    pub(crate) heat: u8,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Set {
    pub(crate) system_limit_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Migrated {
    pub(crate) pages_moved: u64,
    pub(crate) pages_kept: u64,
    /// Where to go on, if there was no time for all.
    pub(crate) next: Option<Address>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Advised {
    /// The first part of the range that is not managed; the others have the advice.
    pub(crate) unmanaged: Option<Range>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        let address = |address| Address(VirtAddr::new(address));
        for request in [
            Request::Run {},
            Request::Statistics {},
            Request::Subscribe { interval_ms: Some(500) },
            Request::Regions { pid: 3, from: None },
            Request::Residency { pid: 3, from: Some(address(0x7fff_ffff_f000)) },
            Request::Heat { pid: 3, cells: None },
            Request::Set { system_limit_bytes: 1 << 62 },
            Request::Migrate { pid: 3, start: address(0x1000), end: address(0x2000), to: "system".into() },
            Request::Advise { pid: 3, start: address(0x1000), end: address(0x2000), advice: Said::NotSoon, to: None },
        ] {
            let line = request.line();
            assert!(line.starts_with("{\"format\":1,\"request\":\"") && line.ends_with("}\n"), "{line}");
            assert_eq!(Request::read(line.as_bytes()), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_is_explained() {
        for (text, part) in [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[1]", "a request is an object"),
            ("{\"request\":\"run\"}", "`format` is missing; it is 1"),
            ("{\"format\":2,\"request\":\"run\"}", "this is format 1, not 2"),
            ("{\"format\":1}", "missing field `request`"),
            ("{\"format\":1,\"request\":\"fly\"}", "unknown variant `fly`"),
            ("{\"format\":1,\"request\":\"run\",\"x\":1}", "unknown field `x`"),
            ("{\"format\":1,\"request\":\"heat\"}", "missing field `pid`"),
            ("{\"format\":1,\"request\":\"heat\",\"pid\":-1}", "invalid value"),
            ("{\"format\":1,\"request\":\"regions\",\"pid\":1,\"from\":\"0x1\"}", "0x1 is not the start of a page"),
            ("{\"format\":1,\"request\":\"regions\",\"pid\":1,\"from\":\"12\"}", "`12` is no address"),
        ] {
            let error = Request::read(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn answers_are_read_as_they_are_written() {
        let answer = Answer::Heat(Heat {
            pid: 3,
            cells: vec![Cell { start: Address(VirtAddr::new(4096)), bytes: 8192, heat: 255 }],
        });
        let line = answer.line();
        assert_eq!(
            line,
            "{\"format\":1,\"heat\":{\"pid\":3,\"cells\":[{\"start\":\"0x1000\",\"bytes\":8192,\"heat\":255}]}}\n"
        );
        assert_eq!(Answer::read(line.as_bytes()), Ok(answer));
        assert!(Answer::read(b"{\"format\":2}").unwrap_err().contains("another version"));
    }
}
