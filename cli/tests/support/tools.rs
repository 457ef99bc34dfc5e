//! What the tests find on the host.

use std::env;
use std::path::PathBuf;

/// Whether the environment says yes to `name`.
pub(crate) fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty() && value != "false")
}

/// The path of an installed program. The distribution's own folders come first: wrappers that a developer's PATH may hold
/// are other programs.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    ["/usr/bin", "/bin", "/usr/sbin"]
        .iter()
        .map(PathBuf::from)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
