//! What both programs do to their own process before it holds a key.

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// As many descriptors as we may have; no core dump with keys in it, and no debugger of an equal user. Best effort: a
/// platform that refuses one of these is no reason not to serve.
///
/// For a process of our own alone: its children inherit the limits.
pub fn harden() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}
