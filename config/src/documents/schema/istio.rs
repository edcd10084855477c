//! Tables of the fields of Istio's objects: PeerAuthentication, AuthorizationPolicy, MeshConfig.
use super::{Object, Shape, kubernetes::OBJECT_META};
use Shape::{Any, Boolean, IntOrText, Integer, List, MapOf, Number, Text, Word};

const TEXTS: Shape = List(&Text);
const fn object(object: &'static Object) -> Shape {
    Shape::Object(object)
}

/// `PeerAuthentication` (reference 1.1).
pub const PEER_AUTHENTICATION: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&PEER_AUTHENTICATION_SPEC)),
        ("status", Any),
    ],
    required: &["metadata"],
    nullable: false,
});
const PEER_AUTHENTICATION_SPEC: Object =
    Object::open(&[("selector", SELECTOR), ("mtls", MTLS), ("portLevelMtls", MapOf(&MTLS))]);
const SELECTOR: Shape = object(&Object::open(&[("matchLabels", MapOf(&Text))]));
const MTLS: Shape = object(&Object::open(&[("mode", Word(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]))]));

/// `AuthorizationPolicy` (reference 2.1).
pub const AUTHORIZATION_POLICY: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&AUTHORIZATION_POLICY_SPEC)),
        ("status", Any),
    ],
    required: &["metadata"],
    nullable: false,
});
const AUTHORIZATION_POLICY_SPEC: Object = Object::open(&[
    ("selector", SELECTOR),
    ("targetRef", TARGET_REF),
    ("targetRefs", List(&TARGET_REF)),
    ("rules", List(&RULE)),
    ("action", Word(&["ALLOW", "DENY", "AUDIT", "CUSTOM"])),
    ("provider", object(&Object::open(&[("name", Text)]))),
]);
const TARGET_REF: Shape =
    object(&Object::open(&[("group", Text), ("kind", Text), ("name", Text), ("namespace", Text)]));
const RULE: Shape = object(&Object {
    fields: &[("from", List(&FROM)), ("to", List(&TO)), ("when", List(&CONDITION))],
    required: &[],
    nullable: true,
});
const FROM: Shape = object(&Object { fields: &[("source", object(&SOURCE))], required: &[], nullable: true });
const TO: Shape =
    object(&Object { fields: &[("operation", object(&OPERATION))], required: &[], nullable: true });
const CONDITION: Shape = object(&Object {
    fields: &[("key", Text), ("values", TEXTS), ("notValues", TEXTS)],
    required: &[],
    nullable: true,
});
const SOURCE: Object = Object::open(&[
    ("principals", TEXTS),
    ("notPrincipals", TEXTS),
    ("requestPrincipals", TEXTS),
    ("notRequestPrincipals", TEXTS),
    ("namespaces", TEXTS),
    ("notNamespaces", TEXTS),
    ("serviceAccounts", TEXTS),
    ("notServiceAccounts", TEXTS),
    ("trustDomains", TEXTS),
    ("notTrustDomains", TEXTS),
    ("ipBlocks", TEXTS),
    ("notIpBlocks", TEXTS),
    ("remoteIpBlocks", TEXTS),
    ("notRemoteIpBlocks", TEXTS),
]);
const OPERATION: Object = Object::open(&[
    ("hosts", TEXTS),
    ("notHosts", TEXTS),
    ("ports", TEXTS),
    ("notPorts", TEXTS),
    ("methods", TEXTS),
    ("notMethods", TEXTS),
    ("paths", TEXTS),
    ("notPaths", TEXTS),
]);

/// MeshConfig: every key of Istio's. Those that Postern enforces have a shape; the others are refused by
/// `decode::mesh_config` with their own message.
pub const MESH_CONFIG: Shape = object(&Object::open(&[
    ("trustDomain", Text),
    ("trustDomainAliases", TEXTS),
    ("rootNamespace", Text),
    ("pathNormalization", object(&Object::open(&[("normalization", Word(NORMALIZATIONS))]))),
    ("accessLogFile", Text),
    ("accessLogEncoding", Word(&["JSON", "TEXT"])),
    ("enableTracing", Boolean),
    ("defaultConfig", object(&PROXY_CONFIG)),
    ("outboundTrafficPolicy", object(&Object::open(&[("mode", Word(&["ALLOW_ANY", "REGISTRY_ONLY"]))]))),
    ("meshMTLS", object(&MESH_MTLS)),
    ("extensionProviders", List(&object(&EXTENSION_PROVIDER))),
    ("accessLogFormat", Any),
    ("caCertificates", Any),
    ("certificates", Any),
    ("configSources", Any),
    ("connectTimeout", Any),
    ("defaultDestinationRuleExportTo", Any),
    ("defaultHttpRetryPolicy", Any),
    ("defaultProviders", Any),
    ("defaultServiceExportTo", Any),
    ("defaultVirtualServiceExportTo", Any),
    ("disableEnvoyListenerLog", Any),
    ("discoverySelectors", Any),
    ("dnsRefreshRate", Any),
    ("enableAutoMtls", Any),
    ("enableEnvoyAccessLogService", Any),
    ("enablePrometheusMerge", Any),
    ("h2UpgradePolicy", Any),
    ("hboneIdleTimeout", Any),
    ("inboundClusterStatName", Any),
    ("inboundTrafficPolicy", Any),
    ("ingressClass", Any),
    ("ingressControllerMode", Any),
    ("ingressSelector", Any),
    ("ingressService", Any),
    ("localityLbSetting", Any),
    ("outboundClusterStatName", Any),
    ("protocolDetectionTimeout", Any),
    ("proxyHttpPort", Any),
    ("proxyInboundListenPort", Any),
    ("proxyListenPort", Any),
    ("serviceScopeConfigs", Any),
    ("serviceSettings", Any),
    ("tcpKeepalive", Any),
    ("tlsDefaults", Any),
    ("verifyCertificateAtClient", Any),
]));
/// `pathNormalization.normalization`; `DEFAULT` is `BASE`.
const NORMALIZATIONS: &[&str] = &["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"];
/// Keys of [`MESH_CONFIG`] that Postern acts on.
pub const ENFORCED_MESH_KEYS: &[&str] = &[
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "pathNormalization",
    "accessLogFile",
    "accessLogEncoding",
    "enableTracing",
    "defaultConfig",
    "outboundTrafficPolicy",
    "meshMTLS",
    "extensionProviders",
];
/// Of the kinds of providers those of telemetry are known; see `validate::providers`.
pub const EXTENSION_PROVIDER: Object = Object {
    fields: &[
        ("name", Text),
        ("envoyFileAccessLog", object(&FILE_ACCESS_LOG)),
        ("envoyOtelAls", object(&OTEL_ALS)),
        ("opentelemetry", object(&OPENTELEMETRY)),
        ("prometheus", object(&Object::open(&[]))),
        ("datadog", Any),
        ("envoyExtAuthzGrpc", Any),
        ("envoyExtAuthzHttp", Any),
        ("envoyHttpAls", Any),
        ("envoyTcpAls", Any),
        ("lightstep", Any),
        ("opencensus", Any),
        ("sds", Any),
        ("skywalking", Any),
        ("stackdriver", Any),
        ("zipkin", Any),
    ],
    required: &["name"],
    nullable: false,
};
const FILE_ACCESS_LOG: Object = Object::open(&[
    ("path", Text),
    ("filterStateObjectsToLog", Any),
    ("logFormat", Any),
    ("omitEmptyValues", Any),
]);
const OTEL_ALS: Object = Object {
    fields: &[
        ("service", Text),
        ("port", Integer),
        ("filterStateObjectsToLog", Any),
        ("logFormat", Any),
        ("logName", Any),
    ],
    required: &["service", "port"],
    nullable: false,
};
const OPENTELEMETRY: Object = Object {
    fields: &[
        ("service", Text),
        ("port", Integer),
        ("http", object(&Object::open(&[("path", Text), ("timeout", Text), ("headers", Any)]))),
        ("dynatraceSampler", Any),
        ("grpc", Any),
        ("maxTagLength", Any),
        ("resourceDetectors", Any),
    ],
    required: &["service", "port"],
    nullable: false,
};
/// Only `minProtocolVersion` is acted on.
const MESH_MTLS: Object = Object::open(&[
    ("minProtocolVersion", Word(&["TLS_AUTO", "TLSV1_2", "TLSV1_3"])),
    ("ecdhCurves", Any),
    ("cipherSuites", Any),
]);
/// Only `tracing` is acted on.
const PROXY_CONFIG: Object = Object::open(&[
    ("tracing", object(&TRACING)),
    ("availabilityZone", Any),
    ("binaryPath", Any),
    ("caCertificatesPem", Any),
    ("concurrency", Any),
    ("configPath", Any),
    ("controlPlaneAuthPolicy", Any),
    ("customConfigFile", Any),
    ("discoveryAddress", Any),
    ("discoveryRefreshDelay", Any),
    ("drainDuration", Any),
    ("envoyAccessLogService", Any),
    ("envoyMetricsService", Any),
    ("envoyMetricsServiceAddress", Any),
    ("extraStatTags", Any),
    ("fileFlushInterval", Any),
    ("fileFlushMinSizeKb", Any),
    ("gatewayTopology", Any),
    ("holdApplicationUntilProxyStarts", Any),
    ("image", Any),
    ("interceptionMode", Any),
    ("meshId", Any),
    ("parentShutdownDuration", Any),
    ("privateKeyProvider", Any),
    ("proxyAdminPort", Any),
    ("proxyBootstrapTemplatePath", Any),
    ("proxyHeaders", Any),
    ("proxyMetadata", Any),
    ("proxyStatsMatcher", Any),
    ("readinessProbe", Any),
    ("runtimeValues", Any),
    ("sds", Any),
    ("serviceCluster", Any),
    ("statNameLength", IntOrText),
    ("statsdUdpAddress", Any),
    ("statusPort", Any),
    ("terminationDrainDuration", Any),
    ("tracingServiceName", Any),
    ("zipkinAddress", Any),
]);
/// Only `sampling` is acted on.
const TRACING: Object = Object::open(&[
    ("sampling", Number),
    ("customTags", Any),
    ("datadog", Any),
    ("enableIstioTags", Any),
    ("lightstep", Any),
    ("maxPathTagLength", Any),
    ("openCensusAgent", Any),
    ("stackdriver", Any),
    ("tlsSettings", Any),
    ("zipkin", Any),
]);
