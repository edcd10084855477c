//! All services that one worker calls, by name; bounded, and forgotten when nobody calls them.

use super::upstream::Upstream;
use crate::{
    state::{Destination, Endpoint},
    telemetry::Telemetry,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

/// Services of one worker at most; more than that are not remembered.
const MOST: usize = 4096;

/// The services that one worker calls.
pub struct Upstreams {
    known: RefCell<HashMap<Arc<str>, Known>>,
    telemetry: Telemetry,
}

struct Known {
    upstream: Rc<Upstream>,
    // Whose endpoints it was tidied for, so that each push costs that once.
    tidied_for: Cell<*const Destination>,
}

impl Upstreams {
    /// None yet.
    pub fn new(telemetry: Telemetry) -> Self {
        Self { known: RefCell::default(), telemetry }
    }

    /// What is known of a destination. Ask again when the destination is another value.
    pub fn of(&self, destination: &Arc<Destination>) -> Rc<Upstream> {
        let (name, endpoints): (Arc<str>, &[Endpoint]) = match &**destination {
            Destination::Service(service) => {
                (format!("{}:{}", service.host, service.port).into(), &service.endpoints)
            }
            Destination::Workload(endpoint) if endpoint.workload.is_empty() => {
                (endpoint.dial.to_string().into(), std::slice::from_ref(endpoint))
            }
            Destination::Workload(endpoint) => {
                (format!("{}:{}", endpoint.workload, endpoint.port).into(), std::slice::from_ref(endpoint))
            }
            Destination::Outside { .. } => ("outside".into(), &[]),
        };
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST && !known.contains_key(&name) {
            known.retain(|_, known| Rc::strong_count(&known.upstream) > 1);
            if known.len() >= MOST {
                return Rc::new(Upstream::new(label(destination, &name), self.telemetry.clone()));
            }
        }
        let entry = known.entry(name.clone()).or_insert_with(|| Known {
            upstream: Rc::new(Upstream::new(label(destination, &name), self.telemetry.clone())),
            tidied_for: Cell::new(std::ptr::null()),
        });
        let current = Arc::as_ptr(destination);
        if entry.tidied_for.replace(current) != current {
            entry.upstream.retain(endpoints);
        }
        entry.upstream.clone()
    }
}

/// What metrics and logs call it: a name of the configuration, never an address that a caller chose.
fn label(destination: &Destination, name: &Arc<str>) -> Arc<str> {
    match destination {
        Destination::Workload(endpoint) if endpoint.workload.is_empty() => "outside".into(),
        _ => name.clone(),
    }
}
