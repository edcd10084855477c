//! Tables of the fields of Istio's networking objects: ServiceEntry, DestinationRule. Fields that Postern does not act on
//! are here, too, so that validation can say so of each by name.
use super::{Object, Shape, kubernetes::OBJECT_META};
use Shape::{Any, Boolean, Integer, List, MapOf, Text, Word};

const TEXTS: Shape = List(&Text);
const fn object(object: &'static Object) -> Shape {
    Shape::Object(object)
}

/// `ServiceEntry` (reference 4.12).
pub const SERVICE_ENTRY: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&SERVICE_ENTRY_SPEC)),
        ("status", Any),
    ],
    required: &["metadata", "spec"],
    nullable: false,
});
const SERVICE_ENTRY_SPEC: Object = Object {
    fields: &[
        ("hosts", TEXTS),
        ("addresses", TEXTS),
        ("ports", List(&object(&ENTRY_PORT))),
        ("location", Word(&["MESH_EXTERNAL", "MESH_INTERNAL"])),
        ("resolution", Word(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"])),
        ("endpoints", List(&object(&ENTRY_ENDPOINT))),
        ("exportTo", TEXTS),
        ("workloadSelector", Any),
        ("subjectAltNames", TEXTS),
    ],
    required: &["hosts", "ports"],
    nullable: false,
};
const ENTRY_PORT: Object = Object {
    fields: &[
        ("number", Integer),
        ("name", Text),
        (
            "protocol",
            Word(&[
                "HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "TLS", "TCP", "MONGO", "REDIS", "MYSQL", "UDP",
                "",
            ]),
        ),
        ("targetPort", Integer),
    ],
    required: &["number", "name"],
    nullable: false,
};
const ENTRY_ENDPOINT: Object = Object {
    fields: &[
        ("address", Text),
        ("ports", MapOf(&Integer)),
        ("labels", MapOf(&Text)),
        ("network", Text),
        ("locality", Text),
        ("weight", Integer),
        ("serviceAccount", Text),
    ],
    required: &["address"],
    nullable: false,
};

/// `DestinationRule` (reference 4.12).
pub const DESTINATION_RULE: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&DESTINATION_RULE_SPEC)),
        ("status", Any),
    ],
    required: &["metadata", "spec"],
    nullable: false,
});
const DESTINATION_RULE_SPEC: Object = Object {
    fields: &[
        ("host", Text),
        ("trafficPolicy", object(&TRAFFIC_POLICY)),
        ("exportTo", TEXTS),
        ("subsets", Any),
        ("workloadSelector", Any),
    ],
    required: &["host"],
    nullable: false,
};
const TRAFFIC_POLICY: Object = Object::open(&[
    ("loadBalancer", LOAD_BALANCER),
    ("connectionPool", CONNECTION_POOL),
    ("outlierDetection", OUTLIER_DETECTION),
    ("tls", TLS),
    ("portLevelSettings", List(&object(&PORT_LEVEL))),
    ("tunnel", Any),
    ("proxyProtocol", Any),
    ("retryBudget", Any),
]);
const PORT_LEVEL: Object = Object {
    fields: &[
        ("port", object(&Object { fields: &[("number", Integer)], required: &["number"], nullable: false })),
        ("loadBalancer", LOAD_BALANCER),
        ("connectionPool", CONNECTION_POOL),
        ("outlierDetection", OUTLIER_DETECTION),
        ("tls", TLS),
    ],
    required: &["port"],
    nullable: false,
};
const LOAD_BALANCER: Shape = object(&Object::open(&[
    ("simple", Word(&["UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN"])),
    ("consistentHash", Any),
    ("localityLbSetting", Any),
    ("warmupDurationSecs", Any),
    ("warmup", Any),
]));
const CONNECTION_POOL: Shape = object(&Object::open(&[("tcp", TCP), ("http", HTTP)]));
const TCP: Shape = object(&Object::open(&[
    ("maxConnections", Integer),
    ("connectTimeout", Text),
    ("tcpKeepalive", object(&Object::open(&[("probes", Integer), ("time", Text), ("interval", Text)]))),
    ("maxConnectionDuration", Any),
    ("idleTimeout", Text),
]));
const HTTP: Shape = object(&Object::open(&[
    ("http1MaxPendingRequests", Integer),
    ("http2MaxRequests", Integer),
    ("maxRequestsPerConnection", Integer),
    ("maxRetries", Integer),
    ("idleTimeout", Text),
    ("h2UpgradePolicy", Word(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"])),
    ("useClientProtocol", Any),
    ("maxConcurrentStreams", Any),
]));
const OUTLIER_DETECTION: Shape = object(&Object::open(&[
    ("splitExternalLocalOriginErrors", Boolean),
    ("consecutiveLocalOriginFailures", Integer),
    ("consecutiveGatewayErrors", Integer),
    ("consecutive5xxErrors", Integer),
    ("consecutiveErrors", Any),
    ("interval", Text),
    ("baseEjectionTime", Text),
    ("maxEjectionPercent", Integer),
    ("minHealthPercent", Integer),
]));
const TLS: Shape = object(&Object::open(&[
    ("mode", Word(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"])),
    ("clientCertificate", Any),
    ("privateKey", Any),
    ("caCertificates", Any),
    ("caCrl", Any),
    ("credentialName", Any),
    ("subjectAltNames", Any),
    ("sni", Any),
    ("insecureSkipVerify", Any),
]));
