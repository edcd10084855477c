//! Table of the fields of Istio's Telemetry. Fields that Postern does not act on are here, too, so that validation can say so of
//! each by name.
use super::{Object, Shape, kubernetes::OBJECT_META};
use Shape::{Any, Boolean, List, MapOf, Number, Text, Word};

const fn object(object: &'static Object) -> Shape {
    Shape::Object(object)
}

/// `Telemetry` (reference 4.11).
pub const TELEMETRY: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&SPEC)),
        ("status", Any),
    ],
    required: &["metadata"],
    nullable: false,
});
const SPEC: Object = Object::open(&[
    ("selector", object(&Object::open(&[("matchLabels", MapOf(&Text))]))),
    ("targetRef", Any),
    ("targetRefs", List(&Any)),
    ("accessLogging", List(&object(&ACCESS_LOGGING))),
    ("tracing", List(&object(&TRACING))),
    ("metrics", List(&object(&METRICS))),
]);
const MODE: Shape = Word(&["CLIENT_AND_SERVER", "CLIENT", "SERVER"]);
const MATCH: Shape = object(&Object::open(&[("mode", MODE)]));
const PROVIDERS: Shape =
    List(&object(&Object { fields: &[("name", Text)], required: &["name"], nullable: false }));
const ACCESS_LOGGING: Object = Object::open(&[
    ("match", MATCH),
    ("providers", PROVIDERS),
    ("disabled", Boolean),
    (
        "filter",
        object(&Object { fields: &[("expression", Text)], required: &["expression"], nullable: false }),
    ),
]);
const TRACING: Object = Object::open(&[
    ("match", MATCH),
    ("providers", PROVIDERS),
    ("randomSamplingPercentage", Number),
    ("disableSpanReporting", Boolean),
    ("customTags", MapOf(&object(&CUSTOM_TAG))),
    ("useRequestIdForTraceSampling", Boolean),
    ("enableIstioTags", Boolean),
    ("disableContextPropagation", Boolean),
]);
const CUSTOM_TAG: Object = Object::open(&[
    ("literal", object(&Object { fields: &[("value", Text)], required: &["value"], nullable: false })),
    (
        "header",
        object(&Object {
            fields: &[("name", Text), ("defaultValue", Text)],
            required: &["name"],
            nullable: false,
        }),
    ),
    ("environment", Any),
    ("formatter", Any),
]);
const METRICS: Object = Object::open(&[
    ("providers", PROVIDERS),
    ("overrides", List(&object(&OVERRIDE))),
    ("reportingInterval", Any),
]);
const OVERRIDE: Object = Object::open(&[
    (
        "match",
        object(&Object::open(&[
            (
                "metric",
                Word(&[
                    "ALL_METRICS",
                    "REQUEST_COUNT",
                    "REQUEST_DURATION",
                    "REQUEST_SIZE",
                    "RESPONSE_SIZE",
                    "TCP_OPENED_CONNECTIONS",
                    "TCP_CLOSED_CONNECTIONS",
                    "TCP_SENT_BYTES",
                    "TCP_RECEIVED_BYTES",
                    "GRPC_REQUEST_MESSAGES",
                    "GRPC_RESPONSE_MESSAGES",
                ]),
            ),
            ("customMetric", Any),
            ("mode", MODE),
        ])),
    ),
    ("disabled", Boolean),
    ("tagOverrides", Any),
]);
