//! The small words of all rules: exact, prefix, suffix, presence, CIDR, template.
