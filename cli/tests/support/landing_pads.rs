//! The functions of a library that stand in front of the C library's, and their landing pads: a thread that is cancelled asynchronously is unwound
//! from any instruction, which a function with landing pads can't be.

use std::path::Path;

use elf::ElfBytes;
use elf::endian::AnyEndian;
use gimli::{BaseAddresses, EhFrame, NativeEndian, UnwindSection};

/// In the names of functions that the interposed `syscall` calls, where they were not made a part of it.
const UNDER_SYSCALL: [&str; 3] = ["6direct6before", "6direct6attend", "6direct4fail"];

/// The names of all functions that `library` exports, and of those that can't be unwound through from everywhere.
pub(crate) fn exported(library: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let bytes = std::fs::read(library).map_err(|error| error.to_string())?;
    look(&bytes).map_err(|error| format!("{}: {error}", library.display()))
}

fn look(bytes: &[u8]) -> Result<(Vec<String>, Vec<String>), Box<dyn std::error::Error>> {
    let elf = ElfBytes::<AnyEndian>::minimal_parse(bytes)?;
    let header = elf.section_header_by_name(".eh_frame")?.ok_or("it has no unwind tables")?;
    let (frames, _) = elf.section_data(&header)?;
    let frames = EhFrame::new(frames, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(header.sh_addr);
    let (symbols, names) = elf.dynamic_symbol_table()?.ok_or("it exports nothing")?;
    let (mut all, mut padded) = (Vec::new(), Vec::new());
    // A function without a table ends the unwinding, too.
    let is_padded = |address| {
        frames.fde_for_address(&bases, address, EhFrame::cie_from_offset).map_or(true, |frame| frame.lsda().is_some())
    };
    if let Some((symbols, names)) = elf.symbol_table()? {
        for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined()) {
            let name = names.get(usize::try_from(symbol.st_name)?)?;
            if UNDER_SYSCALL.iter().any(|part| name.contains(part)) && is_padded(symbol.st_value) {
                padded.push(name.to_owned());
            }
        }
    }
    for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined() && symbol.st_bind() != elf::abi::STB_LOCAL) {
        let name = names.get(usize::try_from(symbol.st_name)?)?.to_owned();
        if is_padded(symbol.st_value) {
            padded.push(name.clone());
        }
        all.push(name);
    }
    Ok((all, padded))
}
