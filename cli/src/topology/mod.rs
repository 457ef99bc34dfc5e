//! `hetmem topology`: the physical memory of a machine, as a tree and a table, as JSON, and as a picture.
//!
//! The crate `hetmem-topology` reads and concludes; here it is shown.

mod figures;
mod measure;
mod picture;
mod table;
mod tree;

use std::path::PathBuf;

use hetmem_topology::{Root, Topology};

use crate::failure::Failure;
use crate::shown;

/// Say what memory this machine has, who claims it, and which devices hetmem can make of it.
///
/// Reads the firmware's maps, the kernel's resources, memory blocks, NUMA nodes, DAX, CXL and PCI devices and the ACPI tables SRAT and
/// HMAT, and changes nothing. Sources that are missing, hidden from users, truncated or contradictory are named. Root sees most.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Read the files of another machine, recorded below this directory (its `sys` and `proc`)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Draw the physical address space into this file, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Measure the latency and bandwidth of each node's memory, from the processors next to it; about a second a node
    #[arg(long, conflicts_with = "root")]
    measure: bool,
}

/// Looks, and prints; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let root = match &args.root {
        Some(directory) => Root::open(directory).map_err(|error| Failure::Usage(format!("--root: {error}")))?,
        None => Root::this_machine(),
    };
    let mut found = hetmem_topology::look(&root);
    if args.measure {
        measure::measure(&mut found);
    }
    let name = if args.root.is_some() { format!("recorded machine {}", found.root) } else { "this machine".to_owned() };
    if let Some(path) = &args.svg {
        shown::Picture::prepare(path)?.write(&picture::draw(&found, &name))?;
    }
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&found).expect("texts and numbers are JSON");
        text.push('\n');
        text
    } else {
        text(&found, &name)
    };
    shown::print(&text, "the topology")?;
    Ok(0)
}

/// All of it, for people.
fn text(found: &Topology, name: &str) -> String {
    let parts = [
        tree::tree(found, name),
        table::measurement_notes(found),
        table::ranges(found),
        table::disagreements(found),
        table::sources(found),
    ];
    let text = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
    // What is read may hold anything; a terminal must not obey it.
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
