//! YAML text to documents: spans, nearest keys, many documents a file.
