//! Meshes that the tests of one program share, since each takes seconds to start.

use crate::up::{Up, User};
use std::sync::{Arc, Mutex, Weak};

/// One mesh for each user, shared by the tests of a program that run at the same time; it ends with the last of them.
#[derive(Default)]
pub struct Shared(Mutex<Vec<(User, Weak<Up>)>>);

impl Shared {
    /// None yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Those of every user who may have one, started from `yaml` where none is running.
    pub fn meshes(&self, yaml: &str) -> Vec<Arc<Up>> {
        let users = User::with_namespaces();
        let mut shared = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut all = Vec::new();
        for user in users {
            let running = shared.iter().find_map(|(of, mesh)| mesh.upgrade().filter(|_| *of == user));
            let mesh = running.unwrap_or_else(|| Arc::new(Up::start(user, yaml, &[])));
            shared.retain(|(of, _)| *of != user);
            shared.push((user, Arc::downgrade(&mesh)));
            all.push(mesh);
        }
        all
    }
}
