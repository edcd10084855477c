//! What each field of a line means: the tables of `docs/observability.md` are made of these.

/// What a named header is called in our own format, before its name (OpenTelemetry's attribute of the same name).
pub const HEADER_PREFIX: &str = "http.request.header.";

/// The fields of `json` in their order, with what they mean.
pub const JSON: &[(&str, &str)] = &[
    ("timestamp", "when it began, UTC, RFC 3339 with milliseconds"),
    ("direction", "`inbound` or `outbound`, as the workload of this sidecar sees it"),
    ("protocol", "`http/1.1`, `http/2`, `grpc` or `tcp`"),
    ("method", "of the request, at most 256 bytes"),
    ("authority", "host and port that the request named, at most 256 bytes"),
    ("path", "normalized, as policy saw it, without its query; at most 2048 bytes"),
    ("status", "HTTP status sent to the caller"),
    ("grpc_status", "gRPC status sent to the caller"),
    ("flags", "Envoy's response flag, `-` when all is well; [errors](errors.md) lists them"),
    ("reason", "how it ended, in words, when not well; at most 1024 bytes"),
    ("source_principal", "SPIFFE ID of the caller, when verified"),
    ("destination_principal", "SPIFFE ID of the called, when verified"),
    ("source_address", "other end of the connection"),
    ("destination_address", "where the caller connected to"),
    ("destination_service", "host of the service called"),
    ("upstream_address", "where this sidecar connected to"),
    ("decision", "`allow` or `deny`"),
    ("decision_id", "of a denial: key of `/decisions/ID` on the admin port"),
    ("policy", "`namespace/name` of the policy that decided"),
    ("rule", "index of its rule, from 0"),
    ("decision_reason", "why, in words"),
    ("would_decision", "the other verdict, were the dry-run policies enforced"),
    ("would_policy", "the dry-run policy that makes the difference"),
    ("would_rule", "index of its rule, from 0"),
    ("audit_policy", "`namespace/name` of the first AUDIT policy that matched"),
    ("policy_version", "version of the policy that decided"),
    ("bytes_received", "bytes of bodies from the caller"),
    ("bytes_sent", "bytes of bodies to the caller"),
    ("duration_us", "from beginning to end, microseconds"),
    ("proxy_us", "the part of it that was ours, microseconds"),
    ("trace_id", "of the trace, hexadecimal"),
    ("span_id", "of our span, hexadecimal"),
    ("tls_version", "of the connection between sidecars, `TLSv1.3`"),
    ("sni", "server name asked for in that handshake, at most 256 bytes"),
    ("request_id", "`x-request-id`: the client's, at most 256 bytes, or the one that the first sidecar made"),
];

/// The keys of `istio-json` in their order, and the operators of `istio-text`, with what they mean here.
pub const ISTIO: &[(&str, &str, &str)] = &[
    ("authority", "REQ(:AUTHORITY)", "host and port that the request named, at most 256 bytes"),
    ("bytes_received", "BYTES_RECEIVED", "bytes of bodies from the caller"),
    ("bytes_sent", "BYTES_SENT", "bytes of bodies to the caller"),
    (
        "connection_termination_details",
        "CONNECTION_TERMINATION_DETAILS",
        "of a TCP connection that policy denied: `rbac_access_denied_matched_policy[..]`",
    ),
    ("downstream_local_address", "DOWNSTREAM_LOCAL_ADDRESS", "where the caller connected to"),
    ("downstream_remote_address", "DOWNSTREAM_REMOTE_ADDRESS", "other end of the connection"),
    ("duration", "DURATION", "from beginning to end, milliseconds"),
    ("method", "REQ(:METHOD)", "of the request, at most 256 bytes"),
    (
        "path",
        "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
        "normalized, as policy saw it; other than in Istio without its query",
    ),
    ("protocol", "PROTOCOL", "`HTTP/1.1` or `HTTP/2`"),
    (
        "request_id",
        "REQ(X-REQUEST-ID)",
        "`x-request-id`: the client's, at most 256 bytes, or the one that the first sidecar made",
    ),
    ("requested_server_name", "REQUESTED_SERVER_NAME", "server name that the caller's handshake asked for"),
    ("response_code", "RESPONSE_CODE", "HTTP status sent to the caller, 0 when none was"),
    (
        "response_code_details",
        "RESPONSE_CODE_DETAILS",
        "Envoy's word for who made the answer, or why: `via_upstream`, `rbac_access_denied_matched_policy[..]`",
    ),
    ("response_flags", "RESPONSE_FLAGS", "Envoy's response flag, `-` when all is well"),
    ("route_name", "ROUTE_NAME", "`default`; `allow_any` or `block_all` for what is no service"),
    ("start_time", "START_TIME", "when it began, UTC, RFC 3339 with milliseconds"),
    (
        "upstream_cluster",
        "UPSTREAM_CLUSTER_RAW",
        "`inbound|PORT||`, `outbound|PORT||HOST`, `PassthroughCluster` or `BlackHoleCluster`",
    ),
    ("upstream_host", "UPSTREAM_HOST", "where this sidecar connected to"),
    ("upstream_local_address", "UPSTREAM_LOCAL_ADDRESS", "never known"),
    (
        "upstream_service_time",
        "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)",
        "until the other side's answer began, milliseconds",
    ),
    (
        "upstream_transport_failure_reason",
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
        "why no connection could be made (flag `UF`), in our words",
    ),
    ("user_agent", "REQ(USER-AGENT)", "only with `--access-log-header user-agent`"),
    ("x_forwarded_for", "REQ(X-FORWARDED-FOR)", "only with `--access-log-header x-forwarded-for`"),
];
