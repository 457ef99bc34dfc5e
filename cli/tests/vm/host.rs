//! What this host has: QEMU, kernels, tools, and the binaries that go into machines of its own architecture. [`super::arm64`] has those for arm64.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::Hardware;
use crate::{Outcome, Problem, tools, users};

/// The folder of the crate.
const CRATE: &str = env!("CARGO_MANIFEST_DIR");
/// Where cargo builds for tests.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/..");
/// The example of `runtime/examples` that is taken along.
const EXAMPLE: &str = "shared_structure";
/// The tests of other crates that run in the machine: package, test or `None` for the unit tests, name there.
const TESTS: [(&str, Option<&str>, &str); 6] = [
    ("hetmem-devices", Some("node"), "device-node"),
    ("hetmem-devices", Some("dax"), "device-dax"),
    ("hetmem", Some("node"), "runtime-node"),
    ("hetmem", Some("node_fork"), "runtime-node-fork"),
    ("hetmem", Some("semantics"), "runtime-semantics"),
    ("hetmem", None, "runtime-unit"),
];

/// Whether this is the project's CI, where nothing may be missing, unless it has said that what is from elsewhere could not be fetched.
pub(crate) fn in_ci(hardware: Hardware) -> bool {
    let optional = if hardware.is_arm64() { "HETMEM_ARM64_OPTIONAL" } else { "HETMEM_VM_OPTIONAL" };
    tools::is_set("CI") && !tools::is_set(optional)
}

/// A kernel and the folder of its modules.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

/// Where cargo builds for tests.
pub(crate) fn target() -> PathBuf {
    PathBuf::from(TARGET)
}

/// Where `.ci/kernel` unpacks what it fetches.
pub(crate) fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../vm")
}

/// The kernel to boot such a machine with.
pub(crate) fn kernel(hardware: Hardware) -> Outcome<Kernel> {
    match hardware {
        Hardware::Nodes { .. } => kernel_with_modules(),
        Hardware::Arm64 { flavour } => {
            let images = std::fs::read_dir(unpacked().join("arm64/boot")).into_iter().flatten().flatten();
            let is_it = |path: &PathBuf| version(path).is_some_and(|version| version.ends_with(&format!("-{flavour}")));
            let image = images.map(|entry| entry.path()).filter(is_it).max();
            let missing = || {
                Problem::Missing(format!(
                    "no kernel {flavour}: `bash .ci/kernel target/vm/arm64 arm64` fetches Debian's"
                ))
            };
            Ok(Kernel { image: image.ok_or_else(missing)?, modules: PathBuf::new() })
        }
    }
}

fn kernel_with_modules() -> Outcome<Kernel> {
    let unpacked = unpacked();
    let (image, above) = match env::var_os("HETMEM_VM_KERNEL") {
        Some(path) => (PathBuf::from(path), PathBuf::from("/")),
        None => {
            let boot = unpacked.join("boot");
            let images = std::fs::read_dir(&boot).into_iter().flatten().flatten().map(|entry| entry.path());
            let image = images.filter(|path| version(path).is_some()).max();
            let missing = || Problem::Missing("no kernel to boot: `bash .ci/kernel` fetches Debian's".to_owned());
            (image.ok_or_else(missing)?, unpacked.join("usr"))
        }
    };
    if !image.is_file() {
        return Err(Problem::Missing(format!("there is no kernel {}", image.display())));
    }
    let modules = match (env::var_os("HETMEM_VM_MODULES"), version(&image)) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(version)) => above.join("lib/modules").join(version),
        (None, None) => return Err(Problem::Missing("HETMEM_VM_MODULES must name the kernel's modules".to_owned())),
    };
    Ok(Kernel { image, modules })
}

/// What follows `vmlinuz-` in the name of an image.
fn version(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// A module of the kernel, unpacked.
pub(crate) fn module(kernel: &Kernel, name: &str) -> Outcome<Vec<u8>> {
    let plain = kernel.modules.join("kernel/drivers/dax").join(format!("{name}.ko"));
    if plain.is_file() {
        return Ok(std::fs::read(plain)?);
    }
    for (suffix, tool) in [("xz", "xz"), ("zst", "zstd")] {
        let packed = plain.with_extension(format!("ko.{suffix}"));
        if packed.is_file() {
            let output = Command::new(program(tool)?).args(["-dc"]).arg(&packed).output()?;
            if output.status.success() {
                return Ok(output.stdout);
            }
        }
    }
    Err(Problem::Missing(format!("the kernel has no module {}", plain.display())))
}

/// The path of an installed program.
pub(crate) fn program(name: &str) -> Outcome<PathBuf> {
    tools::installed(name).ok_or_else(|| Problem::Missing(format!("{name} is not installed")))
}

/// Compiles the C program `programs/c/NAME.c` to `to`.
pub(crate) fn compile(name: &str, to: &Path) -> Outcome {
    cc(&Path::new("programs/c").join(name), &[], to)
}

/// Compiles the C program `c_interface/c/NAME.c`, which is linked with the library, to `to`; as a library itself if it is to be `loaded`.
pub(crate) fn compile_linked(name: &str, loaded: bool, to: &Path) -> Outcome {
    let library = users::built("libhetmem.so");
    let mut flags = vec!["-I".into(), Path::new(CRATE).join("../include").into_os_string(), library.into()];
    // Where it is in the machine.
    flags.push("-Wl,-rpath,/hetmem".into());
    if loaded {
        flags.extend(["-shared", "-fPIC"].map(OsString::from));
    }
    cc(&Path::new("c_interface/c").join(name), &flags, to)
}

/// Compiles a source of the tests.
fn cc(source: &Path, flags: &[OsString], to: &Path) -> Outcome {
    compile_by("cc", source, flags, to)
}

/// Compiles a source of the tests by that compiler.
pub(crate) fn compile_by(compiler: &str, source: &Path, flags: &[OsString], to: &Path) -> Outcome {
    let source = Path::new(CRATE).join("tests").join(source).with_extension("c");
    let mut cc = Command::new(program(compiler)?);
    let output = cc.args(["-std=gnu11", "-O2", "-pthread", "-o"]).arg(to).arg(source).args(flags).output()?;
    if output.status.success() { Ok(()) } else { Err(Problem::Wrong(text(&output.stderr))) }
}

/// A script of `programs/scripts`, and with it what runs it: Python, which comes first, and the files of the modules that the
/// script imports.
pub(crate) fn script(name: &str) -> Outcome<(PathBuf, Vec<PathBuf>)> {
    const ASK: &str = "import ast, os, sys\n\
        tree = ast.parse(open(sys.argv[1]).read())\n\
        for node in list(sys.modules), [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]:\n\
        \x20   for name in node: __import__(name)\n\
        print(os.path.realpath(sys.executable))\n\
        for module in list(sys.modules.values()):\n\
        \x20   if getattr(module, '__file__', None): print(os.path.realpath(module.__file__))\n";
    let script = Path::new(CRATE).join("tests/programs/scripts").join(name);
    let output = Command::new(program("python3")?).args(["-I", "-S", "-c", ASK]).arg(&script).output()?;
    if !output.status.success() {
        return Err(Problem::Wrong(text(&output.stderr)));
    }
    Ok((script, text(&output.stdout).lines().map(PathBuf::from).collect()))
}

/// A file beside this one.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(CRATE).join("tests/vm").join(name)
}

/// Builds what goes into the machine: the binary and the library that users get, an example, and tests of other crates.
/// The result is pairs of a binary and its path in the machine.
pub(crate) fn binaries() -> Outcome<Vec<(PathBuf, String)>> {
    cargo(&["build", "--quiet", "--package", "hetmem", "--example", EXAMPLE])?;
    let library = users::built("libhetmem.so");
    let mut found = vec![
        (users::built("hetmem"), "hetmem/hetmem".to_owned()),
        (library.clone(), "hetmem/libhetmem.so".to_owned()),
        // As programs that are linked with it know it.
        (library, "hetmem/libhetmem.so.0".to_owned()),
        (Path::new(TARGET).join("release/examples").join(EXAMPLE), format!("programs/{EXAMPLE}")),
    ];
    let mut arguments = vec!["test", "--quiet", "--no-run", "--message-format=json"];
    for (package, test, _) in TESTS {
        arguments.extend(["--package", package]);
        arguments.extend(test.map_or(vec!["--lib"], |test| vec!["--test", test]));
    }
    let built = cargo(&arguments)?;
    for (package, test, name) in TESTS {
        found.push((executable(&built, package, test)?, format!("tests/{name}")));
    }
    Ok(found)
}

/// Where cargo has put a test, or the unit tests, of a package, by what it said.
pub(crate) fn executable(built: &str, package: &str, test: Option<&str>) -> Outcome<PathBuf> {
    let target = test.unwrap_or(package);
    let executable = built.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let of = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let package_id = of(&message["package_id"])?;
        // `…/devices#hetmem-devices@0.1.0` or, where the folder has the package's name, `…/hetmem#0.1.0`.
        let is_it = package_id.contains(&format!("#{package}@")) || package_id.contains(&format!("/{package}#"));
        let named = of(&message["target"]["name"])?.replace('-', "_") == target.replace('-', "_");
        (is_it && named).then(|| of(&message["executable"]))?
    });
    executable.map(PathBuf::from).ok_or_else(|| Problem::Wrong(format!("cargo built no test {package}::{target}")))
}

/// Runs cargo for the release profile, as the machine is emulated and slow; returns what it prints.
fn cargo(arguments: &[&str]) -> Outcome<String> {
    run_cargo(|cargo| cargo.args(arguments).args(["--release", "--target-dir", TARGET]))
}

/// Runs cargo with what `more` adds; returns what it prints.
pub(crate) fn run_cargo(more: impl FnOnce(&mut Command) -> &mut Command) -> Outcome<String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    let manifest = ["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")];
    let output = more(&mut cargo).args(manifest).env_remove("CARGO_BUILD_TARGET").output()?;
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(Problem::Wrong(text(&output.stderr))) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
