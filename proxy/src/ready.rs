//! Which parts of the start are still missing.
