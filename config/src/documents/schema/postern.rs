//! Tables of the fields of our own objects: PolicyTest.
use super::{Object, Shape, kubernetes::OBJECT_META};
use Shape::{Any, Boolean, Integer, List, MapOf, Text, Word};

/// `PolicyTest` (docs/policy.md).
pub const POLICY_TEST: Shape = Shape::Object(&Object {
    fields: &[("apiVersion", Text), ("kind", Text), ("metadata", OBJECT_META), ("tests", List(&CASE))],
    required: &["metadata", "tests"],
    nullable: false,
});
const CASE: Shape = Shape::Object(&Object {
    fields: &[
        ("name", Text),
        ("from", Text),
        ("to", Text),
        ("method", Text),
        ("path", Text),
        ("headers", MapOf(&Text)),
        ("host", Text),
        ("port", Integer),
        ("claims", MapOf(&Any)),
        ("tcp", Boolean),
        ("plaintext", Boolean),
        ("expect", Word(&["allow", "deny"])),
        ("because", Text),
    ],
    required: &["from", "to", "expect"],
    nullable: false,
});
