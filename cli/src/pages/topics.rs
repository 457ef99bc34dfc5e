//! hetmem-devices(7) and hetmem-policies(7): what is written behind `--device` and `--policy`.

use std::path::PathBuf;

use hetmem_core::policy::POLICIES;
use hetmem_devices::kind::KINDS;

use super::text::Page;

/// Each with where it belongs.
pub(super) fn pages() -> [(PathBuf, Vec<u8>); 2] {
    [devices(), policies()]
}

fn devices() -> (PathBuf, Vec<u8>) {
    let mut page = Page::new("hetmem-devices", "7", "devices that pages can be moved to, and how they are written");
    page.heading("Synopsis")
        .text("`hetmem run --device` `TYPE:BACKEND`[`,KEY=VALUE`]… `-- PROGRAM`")
        .heading("Description")
        .text(
            "A device is memory that pages of a program can be moved to while the program runs. `hetmem run --device` names one, and may be given up to 16 \
             times. Where none is named there is one `coherent:emulated`. The same texts name devices to hetmem_config_add_device() in C and to the crate \
             hetmem in Rust.\n\nOf what there is on a machine, `hetmem topology` says which texts name it.",
        )
        .heading("Types")
        .entry("coherent", "Processors use the pages in place, as MEMORY_DEVICE_COHERENT in the kernel.")
        .entry("private", "A touch brings the page home to system memory first, as MEMORY_DEVICE_PRIVATE in the kernel.")
        .heading("Backends");
    for kind in KINDS {
        page.entry(kind.syntax(), &format!("{}.", capitalised(kind.help())));
    }
    page.heading("Keys")
        .entry(
            "size=SIZE",
            "How much fits. SIZE is in bytes, or with K, M, G, T in powers of 1024; a multiple of the page, on device-DAX of what the device is aligned to. \
             If none is given: 1G, or a quarter of the memory (of the node) if that is less; all of a DAX device.",
        )
        .entry("memory=SIZE", "Of `compressed`: how much memory it may take: a multiple of 64 KiB, at most the size; half of it if none is given.")
        .entry("name=NAME", "Up to 32 letters, digits, and `_`, `-` or `.`; if none is given coherent0, private0 and so on.")
        .entry("latency=TIME", "Is added to each copy, once for those that are asked for together. TIME takes ns, us, ms, s; at most 10s.")
        .entry("bandwidth=SIZE", "Copies are slowed down to so many bytes a second.")
        .entry("fail=N", "Every N-th copy fails: for tests.")
        .heading("Examples")
        .example(
            "hetmem run --device coherent:emulated,size=64M -- ./program\n\
             hetmem run --device private:emulated,size=2G,latency=2us,bandwidth=8G \\\n    --policy limit=256M -- ./program\n\
             hetmem run --device coherent:node=1 --policy limit=8G -- ./program\n\
             hetmem run --device private:file=/var/tmp,size=64G --policy limit=8G -- ./program",
        )
        .heading("See also")
        .text("hetmem-run(1), hetmem-topology(1), hetmem-policies(7), libhetmem(3)");
    page.end()
}

fn policies() -> (PathBuf, Vec<u8>) {
    let mut page = Page::new("hetmem-policies", "7", "which pages of a program go where, and when");
    page.heading("Synopsis").text("`hetmem run --policy` `POLICY -- PROGRAM`").heading("Description").text(
        "A policy decides which pages of the programs of a run leave system memory, for which device, and which come back. Whatever it decides, a touch \
         brings a page of a private device home, and a program reads what it has written.",
    );
    page.heading("Policies");
    for policy in POLICIES {
        page.entry(&policy.to_string(), &format!("{}.", capitalised(policy.help)));
    }
    page.heading("Limits")
        .text(
            "The limit of `limit` and `clock` is what all processes of the run together may have in system memory. What is kept populated for pages on their \
             way home (`--stock`) counts against it. With `--per-process` each process has the limit for itself. While a run is under way, `hetmem set PID \
             system-limit=SIZE` changes it.\n\nA limit that is too low for what a program uses all the time makes it slow, and no more: `hetmem top` shows \
             how many pages come and go, and `hetmem replay` what other limits would have made of a recorded run.",
        )
        .heading("Advice")
        .text(
            "A program can say how it uses its memory (hetmem_advise() of libhetmem(3)), and who runs it can say it of it (hetmem-advise(1)). `limit` and \
             `clock` go by all of it, the others by what pins, brings and discards.",
        )
        .heading("See also")
        .text("hetmem-run(1), hetmem-set(1), hetmem-top(1), hetmem-replay(1), hetmem-devices(7)");
    page.end()
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
