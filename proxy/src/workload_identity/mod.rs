//! workload_identity
