//! What happened, told once: the record, and where it goes (access log, metrics, spans).
pub mod record;
pub use record::{Direction, Record};
use std::sync::Arc;
/// Sinks shared by all workers. Clones are cheap.
#[derive(Clone)]
pub struct Telemetry(#[allow(dead_code)] Arc<()>);
