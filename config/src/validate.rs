//! Every problem of every document at once, with a stable code, place, reason and remedy.
