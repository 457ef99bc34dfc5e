//! `hetmem_config`: what a runtime is to be like.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::c_char;
use std::mem::MaybeUninit;

use hetmem_core::units::{ByteLen, PAGE_SIZE};
use hetmem_devices::spec::{DeviceSpec, parse_all};
use hetmem_interpose::cancel::uncancelled;

use super::failure::{Answer, Failure, answer};
use super::pointers::{Out, borrow_mut, take, text};

/// What `hetmem_config` points to: the devices and the options that were asked for.
#[derive(Default)]
pub(crate) struct Config {
    /// As written: names and sizes that are not given depend on the whole list.
    texts: Vec<String>,
    /// The devices that the texts describe, each with its name and size.
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) stock: Option<ByteLen>,
    pub(crate) strict_stock: bool,
    pub(crate) sigbus: bool,
    pub(crate) forks_exec_at_once: bool,
}

impl Config {
    fn add_device(&mut self, spec: &str) -> Result<(), Failure> {
        self.texts.push(spec.to_owned());
        match parse_all(&self.texts, memory()) {
            Ok(devices) => {
                self.devices = devices;
                Ok(())
            }
            Err(error) => {
                self.texts.pop();
                Err(Failure::invalid(error.to_string()))
            }
        }
    }

    fn set_stock(&mut self, stock: ByteLen) -> Result<(), Failure> {
        if stock.whole_pages().is_none() {
            return Err(Failure::invalid(format!("a stock of {stock} is not a multiple of the page, {PAGE_SIZE} B")));
        }
        if stock > memory() {
            return Err(Failure::invalid(format!("a stock of {stock} is more than this machine's memory")));
        }
        self.stock = Some(stock);
        Ok(())
    }
}

/// The machine's memory.
fn memory() -> ByteLen {
    let mut info = MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: writes the struct.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        // It fails for a bad address only.
        return ByteLen::new(u64::MAX);
    }
    // SAFETY: written above.
    let info = unsafe { info.assume_init() };
    ByteLen::new(info.totalram.saturating_mul(u64::from(info.mem_unit)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_new(out: *mut *mut Config) -> Answer {
    // SAFETY: the header's contract.
    answer(unsafe { Out::one(out, "out") }.map(|mut out| out.put(Box::into_raw(Box::default()))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_free(config: *mut Config) {
    // SAFETY: the header's contract.
    drop(unsafe { take(config) });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_add_device(config: *mut Config, spec: *const c_char) -> Answer {
    // SAFETY: the header's contract.
    let config = unsafe { borrow_mut(config, "config") };
    // SAFETY: the header's contract.
    let spec = unsafe { text(spec, "spec") };
    // What the host has is read from files.
    uncancelled(|| answer(config.and_then(|config| config.add_device(spec?))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_set_stock(config: *mut Config, bytes: u64) -> Answer {
    // SAFETY: the header's contract.
    answer(unsafe { borrow_mut(config, "config") }.and_then(|config| config.set_stock(ByteLen::new(bytes))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_strict_stock(config: *mut Config) -> Answer {
    // SAFETY: the header's contract.
    answer(unsafe { borrow_mut(config, "config") }.map(|config| config.strict_stock = true))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_allow_sigbus(config: *mut Config) -> Answer {
    // SAFETY: the header's contract.
    answer(unsafe { borrow_mut(config, "config") }.map(|config| config.sigbus = true))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_config_forks_exec_at_once(config: *mut Config) -> Answer {
    // SAFETY: the header's contract.
    answer(unsafe { borrow_mut(config, "config") }.map(|config| config.forks_exec_at_once = true))
}
