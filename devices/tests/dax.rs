//! Device-DAX memory: on the machine's own devices where there are any, and the same mechanics on a plain file, which plays the
//! device everywhere.

mod common;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::skip;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Device;
use hetmem_core::units::{ByteLen, DeviceId};
use hetmem_devices::spec::{DeviceSpec, parse_all};
use hetmem_devices::{DaxStore, conformance};
use hetmem_sys::dax::{DaxDevice, DaxError};

/// A file of that size, which is no DAX device: it plays one.
fn stand_in(size: u64) -> (tempfile::NamedTempFile, DaxDevice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (file, DaxDevice { path, size: ByteLen::new(size), align: ByteLen::new(2 << 20) })
}

fn open_as(memory_type: MemoryType, on: &DaxDevice, size: u64) -> Result<DaxStore, DaxError> {
    let spec: DeviceSpec = format!("{}:dax=/dev/dax0.0,size={size}", memory_type.label()).parse().unwrap();
    DaxStore::on(DeviceId::new(0), Owner::new(1), &spec, on)
}

fn open(on: &DaxDevice, size: u64) -> Result<DaxStore, DaxError> {
    open_as(MemoryType::DevicePrivate, on, size)
}

fn both_types_conform(device: &DaxDevice) {
    for memory_type in [MemoryType::DevicePrivate, MemoryType::DeviceCoherent] {
        conformance::check(|capacity| Box::new(open_as(memory_type, device, capacity.bytes().get()).unwrap()));
    }
}

/// One test at a time has the real device.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn real() -> Option<DaxDevice> {
    let devices: Vec<PathBuf> = hetmem_sys::probe::Capabilities::probe().devdax;
    let found = devices.iter().find_map(|path| DaxDevice::find(path.to_str()?).ok());
    if found.is_none() {
        skip("this machine has no /dev/daxX.Y that can be used");
    }
    found
}

#[test]
fn a_file_in_its_place_conforms() {
    let (_file, device) = stand_in(8 << 20);
    both_types_conform(&device);
}

#[test]
fn a_real_device_conforms() {
    let _turn = turn();
    let Some(device) = real() else { return };
    both_types_conform(&device);
}

#[test]
fn what_is_held_is_refused_until_it_is_given_back() {
    let _turn = turn();
    let (_file, plain) = stand_in(8 << 20);
    for device in [Some(plain), real()].into_iter().flatten() {
        let all = device.size.get();
        let first = open(&device, all).unwrap();
        assert_eq!(first.pagemap().frames.capacity().bytes(), device.size);
        let refusal = open(&device, device.align.get()).err().unwrap();
        assert!(matches!(refusal, DaxError::InUse { .. }), "{refusal}");
        let said = refusal.to_string();
        assert!(said.contains("is in use") && said.contains("size="), "{said}");
        drop(first);
        let parts: Vec<_> = (0..2).map(|_| open(&device, all / 2).unwrap()).collect();
        assert!(matches!(open(&device, all / 2), Err(DaxError::InUse { slices: 2, .. })));
        drop(parts);
    }
}

#[test]
fn a_process_that_dies_gives_its_part_back() {
    let _turn = turn();
    let (_file, plain) = stand_in(4 << 20);
    for device in [Some(plain), real()].into_iter().flatten() {
        let all = device.size.get();
        let mut holder = std::process::Command::new("/proc/self/exe")
            .args(["--exact", "--ignored", "--nocapture", "holds_all_of_a_device"])
            .env("HETMEM_TEST_DEVICE", format!("{}:{all}", device.path))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(holder.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("holding")));
        assert!(matches!(open(&device, all), Err(DaxError::InUse { slices: 1, .. })));
        holder.kill().unwrap();
        holder.wait().unwrap();
        open(&device, all).unwrap();
    }
}

/// The other process of the test above.
#[test]
#[ignore = "is run by a_process_that_dies_gives_its_part_back"]
fn holds_all_of_a_device() {
    let Ok(what) = std::env::var("HETMEM_TEST_DEVICE") else { return };
    let (path, size) = what.rsplit_once(':').unwrap();
    let size = size.parse().unwrap();
    let device = DaxDevice { path: path.to_owned(), size: ByteLen::new(size), align: ByteLen::new(2 << 20) };
    let _held = open(&device, size).unwrap();
    std::io::Write::write_all(&mut std::io::stdout(), b"holding\n").unwrap();
    // Until killed, or until the other test is gone.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

#[test]
fn sizes_that_a_real_device_cannot_have_are_refused() {
    let Some(device) = real() else { return };
    let said = |size: u64| {
        parse_all(&[format!("private:dax={},size={size}", device.path)], ByteLen::new(1 << 40)).unwrap_err().to_string()
    };
    assert!(said(device.size.get() + device.align.get()).contains("is more than"));
    if device.align.get() > 4096 {
        assert!(said(4096).contains("is not a multiple of the alignment"));
    }
    let whole = parse_all(&[format!("private:dax={}", device.path)], ByteLen::new(1)).unwrap();
    assert_eq!(whole[0].size, device.size);
}
