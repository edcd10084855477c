//! What an expression can look at: Envoy's attributes, as far as a sidecar knows them when a call has ended.

/// The type of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number.
    Int,
    /// A text.
    Text,
    /// A length of time.
    Duration,
}

impl Kind {
    /// With its article, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a number",
            Self::Text => "a text",
            Self::Duration => "a duration",
        }
    }
}

macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident $kind:ident $text:literal;)*) => {
        /// One attribute, beside the headers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attribute { $($(#[$doc])* $name,)* }

        /// All of them by their names.
        pub const ATTRIBUTES: &[(&str, Kind, Attribute)] =
            &[$(($text, Kind::$kind, Attribute::$name),)*];
    };
}

attributes! {
    /// Normalized and without its query, which no log has.
    RequestPath Text "request.path";
    /// The same.
    RequestUrlPath Text "request.url_path";
    /// Host, with the port that the caller named.
    RequestHost Text "request.host";
    /// As sent.
    RequestMethod Text "request.method";
    /// `HTTP/1.1` or `HTTP/2`.
    RequestProtocol Text "request.protocol";
    /// `x-request-id`.
    RequestId Text "request.id";
    /// Bytes of the body.
    RequestSize Int "request.size";
    /// From the beginning to the end.
    RequestDuration Duration "request.duration";
    /// HTTP status.
    ResponseCode Int "response.code";
    /// Envoy's word for who made the answer, or why.
    ResponseCodeDetails Text "response.code_details";
    /// Envoy's response flags as bits; 0 when all is well.
    ResponseFlags Int "response.flags";
    /// gRPC status.
    ResponseGrpcStatus Int "response.grpc_status";
    /// Bytes of the body.
    ResponseSize Int "response.size";
    /// Until the other side's answer began.
    ResponseBackendLatency Duration "response.backend_latency";
    /// Whether the caller proved itself: on the way out the app, which never does.
    ConnectionMtls Bool "connection.mtls";
    /// Server name that the caller's handshake asked for.
    ConnectionRequestedServerName Text "connection.requested_server_name";
    /// `TLSv1.3`.
    ConnectionTlsVersion Text "connection.tls_version";
    /// SPIFFE ID of the caller, when verified.
    ConnectionUriSanPeerCertificate Text "connection.uri_san_peer_certificate";
    /// `ip:port` of the caller.
    SourceAddress Text "source.address";
    /// Its port.
    SourcePort Int "source.port";
    /// `ip:port` that the caller connected to.
    DestinationAddress Text "destination.address";
    /// Its port.
    DestinationPort Int "destination.port";
    /// `ip:port` that this sidecar connected to.
    UpstreamAddress Text "upstream.address";
    /// Its port.
    UpstreamPort Int "upstream.port";
    /// SPIFFE ID of the called, when verified.
    UpstreamUriSanPeerCertificate Text "upstream.uri_san_peer_certificate";
    /// Istio's name of where the call went.
    XdsClusterName Text "xds.cluster_name";
    /// Istio's name of the route.
    XdsRouteName Text "xds.route_name";
}

/// Names of Envoy's that are not here, each with what to do.
const OTHERS: &[(&str, &str)] = &[
    ("request.query", "queries are never kept: look at `request.path`, which is without its query"),
    ("request.total_size", "heads are not counted: use `request.size`"),
    ("response.total_size", "heads are not counted: use `response.size`"),
    ("response.headers", "headers of answers are not kept: use `response.code` or `response.flags`"),
    ("response.trailers", "trailers are not kept: use `response.grpc_status`"),
    ("request.time", "filter by time where the lines are read"),
    ("request.scheme", "it is always `http`: remove it"),
    ("source.principal", "in filters it is `connection.uri_san_peer_certificate`, with `spiffe://`"),
    ("destination.principal", "in filters it is `upstream.uri_san_peer_certificate`, with `spiffe://`"),
    ("source.ip", "use `source.address`, which is `ip:port`"),
    ("destination.ip", "use `destination.address`, which is `ip:port`"),
    ("response.duration", "use `request.duration`, or `response.backend_latency`"),
];

/// What to write in place of a name that is not known.
pub(super) fn hint(name: &str) -> String {
    if let Some((_, hint)) = OTHERS.iter().find(|(other, _)| *other == name) {
        return (*hint).to_owned();
    }
    let all = ATTRIBUTES.iter().map(|(known, ..)| *known);
    let known = all.chain(["request.headers", "request.useragent", "request.referer"]);
    let distance = |known: &str| strsim::damerau_levenshtein(name, known);
    match known.map(|known| (distance(known), known)).min().filter(|(far, _)| *far <= 4) {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => "docs/telemetry.md lists the attributes that a filter can look at".to_owned(),
    }
}
