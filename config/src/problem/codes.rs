//! The one table of codes: what `postern check` can say, and the page that is printed from it.

/// How bad the findings of a code can be. Only warnings can be suppressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// Always an error.
    Error,
    /// Always a warning.
    Warning,
    /// An error in one place, a warning in another.
    Both,
}

/// One stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// E.g. `PST0102`; never reused for another meaning.
    pub code: &'static str,
    /// Error, warning, or both.
    pub levels: Levels,
    /// A few words.
    pub title: &'static str,
    /// What it means and why it matters, for the documentation.
    pub explanation: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// Documents that have this finding (a test reads each of them).
    pub example: &'static str,
}

/// The explanation of a code such as `PST0102`, in any case.
pub fn explain(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code.trim()))
}

/// Every code as a section of `docs/errors.md`, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# Findings of documents\n\n\
         What `postern check` says about a folder, and what the control plane says about one that it refuses. An error\n\
         refuses the folder; a warning can be suppressed on a document that means what it says, with the annotation\n\
         `postern.dev/suppress: \"PST0510, PST0512\"`. Each example below has the finding that it stands under.\n",
    );
    for code in CODES {
        let levels = match code.levels {
            Levels::Error => "error",
            Levels::Warning => "warning",
            Levels::Both => "error or warning",
        };
        page.push_str(&format!(
            "\n## {}\n\n**{}** ({levels}). {}\n\n{}\n\n```yaml\n{}\n```\n",
            code.code,
            code.title,
            code.explanation,
            code.remedy,
            code.example.trim_end()
        ));
    }
    page
}

macro_rules! codes {
    ($($name:ident $code:literal $levels:ident $title:literal $explanation:literal $remedy:literal;)*) => {
        $(#[doc = $title] pub const $name: &str = $code;)*
        /// Every code, in order; the documentation is printed from it.
        pub const CODES: &[Code] = &[$(Code {
            code: $code,
            levels: Levels::$levels,
            title: $title,
            explanation: $explanation,
            remedy: $remedy,
            example: include_str!(concat!("examples/", $code, ".yaml")),
        }),*];
    };
}

codes! {
    SYNTAX "PST0101" Error "not YAML"
        "The text is not YAML. Only the document (between two `---` lines) that holds the error is skipped; the others are still checked."
        "Look at the indentation, the quotes and the brackets of the line and of the one before; values that begin with `*`, `%`, `@` or a backtick need quotes.";
    UNKNOWN_FIELD "PST0102" Error "unknown field"
        "The object has no field of this name. Unknown fields are refused since a misspelt field of a policy would otherwise widen it in silence."
        "Correct the spelling (the finding names the nearest field), or move the field to the place that the finding names.";
    WRONG_TYPE "PST0103" Error "wrong type"
        "The field holds another kind of value than its schema says, for example a number where a string is wanted. Numbers, true, false, yes, no, on and off must be quoted to be strings."
        "Write the value as the finding shows it.";
    DUPLICATE_KEY "PST0104" Error "duplicate key"
        "One mapping has the same key twice; which one counts would depend on the reader."
        "Keep one of the two.";
    MISSING_FIELD "PST0105" Error "missing field"
        "A required field is absent or empty."
        "Add it.";
    TOO_LARGE "PST0106" Both "too large"
        "A file is above 4 MiB, a document has more values (after aliases are followed) or deeper nesting than any real one, or there are more findings, or more work for the lints between documents, than is worth doing."
        "Split the file, write aliases out, and repair the findings that are shown first.";
    UNKNOWN_KIND "PST0107" Error "unknown kind"
        "The API group is one whose kinds Postern knows, and it has no such kind."
        "Correct `kind:` or `apiVersion:`.";
    WRONG_API_VERSION "PST0108" Error "wrong apiVersion"
        "The kind exists, under another apiVersion."
        "Write the apiVersion that the finding names.";
    IGNORED_KIND "PST0109" Warning "kind ignored"
        "Postern has no use for objects of this kind; the document changes nothing."
        "Nothing needs to be done; suppress the warning, or keep such documents in another folder.";
    NOT_A_DOCUMENT "PST0110" Error "not a Kubernetes document"
        "A document must be a mapping with apiVersion, kind and metadata."
        "Begin it with `apiVersion:` and `kind:`.";
    UNSUPPORTED_YAML "PST0111" Error "YAML that Kubernetes cannot hold"
        "Custom tags, keys that are not scalars and the like have no JSON form."
        "Remove the tag, or put the key in quotes.";
    UNKNOWN_VALUE "PST0112" Both "unknown value"
        "The field takes one of a fixed set of words."
        "Write one of the values that the finding lists; case counts.";
    KIND_NOT_ENFORCED "PST0201" Error "kind not enforced yet"
        "Postern knows the kind and does not act on it yet. It is refused, never ignored, so that nobody relies on a protection that is not there."
        "Take it out of the folder until Postern enforces it.";
    FIELD_NOT_ENFORCED "PST0202" Error "not enforced yet"
        "The field, action or condition parses and is not evaluated yet; the policy is refused instead of being applied in part."
        "Take it out, or wait for the release that enforces it.";
    MESH_KEY_NOT_ENFORCED "PST0203" Error "mesh setting not enforced yet"
        "A real MeshConfig key that Postern does not act on yet."
        "Remove it.";
    NOT_HONOURED "PST0204" Warning "not honoured by postern up"
        "The field changes what a cluster would run, and `postern up`, which runs host processes, cannot do the same."
        "Nothing, if the cluster is what counts; suppress the warning there.";
    NOT_APPLICABLE "PST0205" Warning "not applicable to sidecars"
        "A policy with targetRef or targetRefs is for gateways and waypoints; on sidecars it enforces nothing, as in Istio."
        "Use `selector` to protect workloads.";
    NEEDS_TOKENS "PST0206" Warning "needs tokens, which no sidecar validates yet"
        "`requestPrincipals`, `notRequestPrincipals` and conditions on `request.auth.*` look at the claims of a validated token. The sidecar validates none yet, so that every request is one without a token: a positive match never matches, and a negative one always does. An ALLOW rule that demands a token therefore allows nobody, and a DENY rule on a missing token denies everybody: closed in both directions."
        "Use identities (`principals`, `serviceAccounts`) until tokens are validated; `postern test` and `postern why` evaluate claims already.";
    BAD_NAME "PST0301" Error "malformed name"
        "Names follow RFC 1123 (lower-case letters, digits, `-`, and `.` where a subdomain is allowed)."
        "Write the name that the finding suggests.";
    BAD_LABEL "PST0302" Error "malformed label"
        "Label keys are `[prefix/]name`, label values at most 63 characters of letters, digits, `-`, `_`, `.`, beginning and ending with a letter or digit."
        "Correct the key or the value.";
    BAD_PORT "PST0303" Error "bad port"
        "Ports are decimal numbers in their range; in policies they are strings."
        "Write the workload's port in quotes, for example `\"8080\"`.";
    BAD_ADDRESS "PST0304" Error "bad IP address or CIDR"
        "Addresses are IPv4, IPv6, or a CIDR range of one of them; names are not resolved."
        "Write for example `10.0.0.0/8`, `192.168.1.7` or `fd00::/8`.";
    BAD_SELECTOR "PST0305" Error "bad selector"
        "A selector is a map of labels without wildcards and with non-empty keys."
        "Write the labels as the pods have them.";
    EMPTY_RULE "PST0306" Error "empty part of a rule"
        "A rule, source or operation that says nothing; Istio refuses it, too. Often the fields below it are indented by too little."
        "Write at least one field, `{}` for a rule that matches everything, or leave the list out to match any.";
    BAD_CONDITION "PST0307" Error "bad condition"
        "A `when` entry needs a known key, and values or notValues of the form that the key takes."
        "Correct the key; the finding names the nearest one.";
    BAD_SERVICE_ACCOUNT "PST0308" Error "bad serviceAccounts"
        "At most 16 values `serviceAccount` or `namespace/serviceAccount`, without wildcards, not beside principals or namespaces."
        "Write `namespace/serviceAccount` values alone, or use `principals`.";
    BAD_TRUST_DOMAIN "PST0309" Error "bad trust domain"
        "A trust domain has no slash; a pattern has at most one wildcard, at its start or end."
        "Write for example `cluster.local`.";
    BAD_TEMPLATE "PST0310" Error "bad path template"
        "`{*}` is one whole segment; `{**}` is any number of them and stands only once, as the last operator; every other segment is a literal without braces. A template begins with `/`: Istio admits one that does not, and Envoy then refuses the whole listener."
        "Write for example `/users/{*}/orders/{**}`.";
    EMPTY_VALUE "PST0311" Error "empty value"
        "An empty string never matches; Istio refuses it, too."
        "Remove it; `\"*\"` matches any value that is present and not empty.";
    BAD_PORT_LEVEL "PST0312" Error "bad portLevelMtls"
        "Port level mutual TLS needs a selector, at least one entry, and ports of 1 to 65535."
        "Add `selector: {matchLabels: ...}`, or use `mtls:` for all ports.";
    BAD_ACTION "PST0313" Error "bad action"
        "The action does not fit the rest of the policy: DENY without rules, a provider without CUSTOM, dry run of something that cannot be tried."
        "The finding says which of the two to change.";
    OUT_OF_RANGE "PST0314" Error "out of range"
        "The number or list is outside its limits; a policy has at most 512 rules and a rule at most 512 sources, as in Istio."
        "Split the policy: several policies with one selector are pooled.";
    BAD_TARGET_REF "PST0315" Error "bad targetRefs"
        "At most one of selector, targetRef and targetRefs, and a reference that names a kind that policies attach to."
        "Keep `selector`; targetRefs are for gateways and waypoints.";
    BAD_ATTEST_UID "PST0316" Error "bad postern.dev/attest-uid"
        "The annotation names the user whose processes on the control plane's machine are this pod, when they ask for a certificate on its unix socket. It holds one decimal number as `id -u` prints it, and stands on a Pod: a template would make many pods one user's."
        "Write for example `postern.dev/attest-uid: \"1001\"` on the Pod.";
    BAD_FEDERATION "PST0317" Error "bad federation"
        "A ClusterFederatedTrustDomain names whose certificates are to be trusted and where the authorities of that domain are published. The endpoint is an https URL without user information; `https_spiffe` needs the SPIFFE ID of the endpoint and authorities to recognise it by (`trustDomainBundle`, or the federation with the endpoint's own trust domain). The mesh's own trust domain, its aliases and `cluster.local`, which stands for it in principals, cannot be foreign at the same time, and no trust domain is federated twice."
        "The finding says which of these is not so.";
    BAD_SERVICE_ENTRY "PST0318" Error "bad ServiceEntry"
        "A ServiceEntry says by which names (`hosts`), addresses and ports something outside the mesh is called, and how it is found (`resolution`). Names are DNS names, a wildcard is the whole first label (`*.example.com`), and what the resolution needs must be there: STATIC needs endpoints with IP addresses, DNS needs names that can be looked up, NONE has no endpoints."
        "The finding says which of these is not so.";
    BAD_TRAFFIC_POLICY "PST0319" Error "bad traffic policy"
        "A DestinationRule sets how callers treat a destination: numbers that are not negative, percentages of at most 100, durations such as `10s` or `250ms`, ports once each. The modes of `tls` that Postern speaks are DISABLE and ISTIO_MUTUAL; an application's own TLS passes through as it is."
        "The finding says which value to change.";
    BAD_LOG_FILTER "PST0320" Error "bad filter of the access log"
        "A filter is one expression that is true or false of each call, in a part of CEL: attributes of the call, == != < <= > >=, && || !, in, has(), startsWith(), endsWith(), contains(), duration(). Sums, choices, regular expressions and attributes that no sidecar knows are refused, since a line that is missing cannot be asked for later."
        "The finding names the place in the expression; docs/telemetry.md lists the attributes.";
    BAD_TRACE_TAG "PST0321" Error "bad attribute of spans"
        "An entry of `customTags` has a name and exactly one of `literal` and `header`. Names that begin with `postern.` are the sidecar's own; headers that may hold secrets stand in no span. `environment` would read the sidecar's own environment for everybody who may write a Telemetry in a namespace, and `formatter` is Envoy's own language: both are refused."
        "Write `literal: {value: ...}` or `header: {name: ...}`; what is fixed for a sidecar goes into its OTEL_RESOURCE_ATTRIBUTES.";
    TELEMETRY_PROVIDER "PST0322" Both "provider that Postern does not have"
        "Providers of Istio say where telemetry goes. In Postern the sidecar's own settings say that (`--access-log`, the OTEL_* variables, its port for Prometheus). A Telemetry may name `envoy` for the access log, `prometheus` for metrics, and what `extensionProviders` of the mesh configuration declares for the same signal; any other name is an error, since the entry would be for something else. A provider that names a collector is a warning, since nothing is sent there by it."
        "Declare the provider, write `envoy` for the access log and `prometheus` for metrics, or leave `providers` out; set OTEL_EXPORTER_OTLP_ENDPOINT of the sidecars and suppress the warning where that is done.";
    BAD_UPGRADES "PST0323" Error "bad postern.dev/upgrades"
        "The annotation names the protocols, beside `websocket`, for which callers may leave HTTP/1.1 on their way into this pod, and the pod on its way out: a list of at most 16 names as they stand in `Upgrade`. HTTP itself (`h2c`, `h2`, `HTTP/2.0`) is never one of them, since no policy would see the requests behind it, and there is no wildcard."
        "Write for example `postern.dev/upgrades: spdy/3.1, tcp`.";
    DUPLICATE_OBJECT "PST0401" Error "two objects with one name"
        "Two documents have the same kind, namespace and name."
        "Rename one of the two, or remove it.";
    SELECTOR_MISMATCH "PST0402" Error "selector does not match its template"
        "A Deployment must select the pods that it makes."
        "Give the template the labels of the selector.";
    DUPLICATE_PORT "PST0403" Error "one port twice"
        "Two entries claim the same port or port name."
        "Give each port its own number and name.";
    PORT_NOT_FOUND "PST0404" Warning "targetPort not found"
        "No selected pod has a container port of that name."
        "Name the port in the container's `ports:`, or write its number.";
    NO_SERVICE_ACCOUNT "PST0405" Warning "missing ServiceAccount"
        "The folder declares service accounts and not this one."
        "Add the ServiceAccount, or correct the name.";
    NO_COMMAND "PST0406" Error "container without command"
        "`postern up` runs container commands as host processes and pulls no images."
        "Add `command:` with a program of this machine.";
    SELECTS_NOTHING "PST0407" Warning "selector matches nothing"
        "No pod of the folder has these labels, so that the policy protects nothing, or the service leads nowhere."
        "Compare the selector and the namespace with the labels of the pods.";
    NO_EFFECT "PST0408" Warning "no effect"
        "The document is valid and changes nothing, for example a PeerAuthentication with a selector in the root namespace, or one that an older one shadows."
        "The finding says what takes its place.";
    NO_NAMESPACE "PST0409" Warning "namespace that does not exist"
        "The folder declares its namespaces, and the policy names another one: no caller is in it."
        "Correct the name, or add the Namespace.";
    NO_PRINCIPAL "PST0410" Warning "identity that nobody has"
        "The folder declares service accounts, and the policy names one that is not there: no caller can have this identity."
        "Correct the namespace or the name, or add the ServiceAccount.";
    FOREIGN_TRUST_DOMAIN "PST0411" Warning "principal of another trust domain"
        "The trust domain is neither the mesh's, nor one of its aliases, nor `cluster.local` (which stands for the mesh's, in five-part principals only), nor federated. The handshake refuses such callers, so that no policy ever sees them."
        "Write the mesh's trust domain, or add a ClusterFederatedTrustDomain for this one.";
    SERVICE_PORT "PST0412" Warning "Service port where the workload's is wanted"
        "Policies look at the port that the workload listens on (the Service's targetPort), never at the Service's own port. This number is a Service port whose target differs, so that it never matches."
        "Write the target's number, which the finding names.";
    ALLOW_HTTP_ON_TCP "PST0413" Warning "ALLOW by HTTP fields on a TCP port"
        "The Service declares the port to be TCP, where methods, paths, hosts, headers and tokens do not exist. An ALLOW rule with any of them is dropped there as a whole and allows nothing on this port."
        "Say in a rule of its own who may use the port (`from` and `ports` only), or declare the port as HTTP with its name or `appProtocol`.";
    DENY_HTTP_ON_TCP "PST0414" Warning "DENY by HTTP fields on a TCP port"
        "The Service declares the port to be TCP. A DENY (or AUDIT) rule loses its HTTP fields there and keeps the rest: it matches more than it says, often every connection."
        "Add `ports:` with the HTTP ports that are meant, or declare the port as HTTP.";
    SAME_POLICY "PST0415" Warning "two policies that say the same"
        "Two AuthorizationPolicies have the same scope, action and rules; one of them can go, and while both are there, changing one changes nothing."
        "Remove one of the two.";
    SHARED_ATTEST_UID "PST0416" Error "one user for two pods"
        "Two pods have the same `postern.dev/attest-uid`. A process of that user would be both, and gets no certificate."
        "Run each pod's sidecar as a user of its own, and write that user's number on its Pod.";
    ALLOWS_FOREIGN "PST0417" Warning "namespace that a federated domain has, too"
        "`namespaces` and `serviceAccounts` match in any trust domain, as in Istio. Once another trust domain is federated, its workloads are let in by such a source of an ALLOW rule when their namespace or account has the same name, and who gives out those names is somebody else."
        "Add `trustDomains: [...]` with the mesh's own beside it, or write `principals`; suppress the warning where both domains are meant.";
    PLAIN_TO_STRICT "PST0418" Warning "plaintext to a STRICT workload"
        "A DestinationRule with `tls: {mode: DISABLE}` makes sidecars call in plaintext, and a workload behind the host takes mutual TLS only: every call is refused."
        "Remove `tls` (sidecars use mutual TLS by themselves wherever the other end has it), or make the port PERMISSIVE.";
    SPIFFE_PREFIX "PST0501" Warning "spiffe:// in a principal"
        "Istio adds `spiffe://` itself, so that a value that has it never matches."
        "Write the principal without it: `cluster.local/ns/NAMESPACE/sa/ACCOUNT`.";
    METHOD_CASE "PST0502" Warning "lower-case method"
        "Methods are case-sensitive; HTTP's are upper-case."
        "Write it in upper case.";
    MIDDLE_WILDCARD "PST0503" Warning "wildcard in the middle"
        "`*` is a wildcard only as the first or the last character, and only one of the two; elsewhere it is a literal asterisk."
        "Use one prefix or suffix pattern, or a path template such as `/a/{*}/b`.";
    RELATIVE_PATH "PST0504" Both "path without leading slash"
        "Request paths begin with `/`, so that this value never matches."
        "Begin it with `/`, or with `*` to match a suffix.";
    DENIES_TCP "PST0505" Warning "DENY widens on TCP"
        "On TCP ports the HTTP attributes of a DENY rule are dropped and the rest of the rule stays: it denies more. This is Istio's own warning, made without looking at Services; PST0414 names the ports."
        "Add `ports:` to the operation.";
    EMPTY_LIST "PST0506" Warning "empty list"
        "An empty list is the same as an absent one: it matches anything. `from: []` is everybody, not nobody."
        "Name at least one value, or remove the field; a policy that allows nobody has no rules at all.";
    EMPTY_SELECTOR "PST0507" Warning "selector without labels"
        "An empty selector selects everything in its scope."
        "Remove the selector to say so, or add `matchLabels:`.";
    DUPLICATE_CONDITION "PST0508" Warning "condition key twice"
        "Two conditions with one key are ANDed: both must hold of the same value."
        "Put all values into one condition to match any of them.";
    HOST_PATTERN "PST0509" Warning "host pattern that never matches"
        "`*` is a wildcard only as the first or last character of a host, and one pattern has one wildcard; in `*.example.com:*` the second is a literal asterisk."
        "List the hosts, with and without the port.";
    SPLIT_RULE "PST0510" Warning "two alternatives where one was probably meant"
        "Each `-` begins an alternative: entries of `rules`, `from` and `to` are ORed, only fields below one `-` are ANDed. A hyphen too many makes `from this caller and to this path` mean `from this caller, or to this path`, which is much wider."
        "Remove the hyphen of the second entry and indent it like the first; suppress the warning where both alternatives are meant.";
    IDENTICAL_RULE "PST0511" Warning "rule written twice"
        "An earlier rule, source or operation of the same list is identical."
        "Remove one of the two; when they came from copying, the second was meant to differ.";
    UNREACHABLE_RULE "PST0512" Warning "rule that an earlier one covers"
        "Everything that the rule matches is already matched by an earlier rule of the same policy: it changes no decision."
        "Remove it, or narrow the earlier one.";
    HOST_PORT "PST0513" Warning "host with a port alone"
        "Hosts are compared with the whole `Host` header, port included. Clients leave the default port out, so that `example.com:80` does not match what they send."
        "List both `example.com` and `example.com:*`.";
    HOST_BYPASS "PST0514" Warning "host that a port walks around"
        "The port is part of the `Host` header: a caller that writes `example.com:80` is not matched by `example.com`, and so walks around a DENY by `hosts` or an ALLOW by `notHosts`."
        "List both `example.com` and `example.com:*`; better, protect the workload and not its names.";
    NOT_NORMAL "PST0515" Warning "path that no request has after normalization"
        "Rules see the path after normalization and without query or fragment (`pathNormalization`, BASE unless told otherwise). This value is not in that form, so that it never matches."
        "Write the path as the finding shows it; parameters of a query cannot be matched.";
    TEMPLATE_STYLE "PST0516" Warning "path template of another language"
        "Segments such as `:id`, `<id>` or `**` are literal text here."
        "Write `{*}` for one segment and `{**}` for the rest of the path.";
    PRINCIPAL_FORM "PST0517" Warning "principal that no certificate has"
        "Identities of the mesh have five parts, `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`. A value without wildcard that has another form never matches."
        "Write the five parts, or use `serviceAccounts: [NAMESPACE/ACCOUNT]` and `namespaces`.";
    CONTRADICTION "PST0518" Warning "fields that contradict each other"
        "Every value of a field is also excluded by its `not` form, so that the source, operation or condition never matches."
        "Remove the value from one of the two.";
    BAD_SUPPRESSION "PST0519" Warning "suppression without effect"
        "`postern.dev/suppress` holds codes of warnings, separated by commas. An unknown code is a typing error, and errors cannot be suppressed."
        "Correct or remove the code.";
    TCP_PORT_RULE "PST0520" Warning "condition that one port excludes"
        "A rule names ports in `to` and other ports in a `destination.port` condition: both must hold of the same port."
        "Say the port in one place.";
    TELEMETRY_CONFLICT "PST0521" Warning "two Telemetries of one scope"
        "Of several Telemetries that are for the same namespace, or that select the same pod, only the oldest counts (of those of the same age the first by name), as in Istio; they are not merged."
        "Put all of it into one document.";
    NOT_SELECTED "PST0601" Error "policy for another workload"
        "A workload was sent a policy whose namespace or selector does not concern it; the whole update is refused and the last good one stays."
        "This is a defect of the control plane: please report it with its log.";
}
