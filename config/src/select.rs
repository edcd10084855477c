//! Which documents concern a workload: scope, selectors, oldest wins (reference 1.2, 2.2).
use crate::{documents::Documents, snapshot::{InboundSpec, Workload, DeclaredPort}};
/// All that `workload` needs to enforce, picked from `documents`.
pub fn inbound_spec(_documents: &Documents, _workload: Workload, _ports: Vec<DeclaredPort>) -> InboundSpec { todo!() }
