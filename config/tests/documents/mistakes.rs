//! Each mistake in a policy has its code, its place and its remedy.
use super::*;

/// A policy with one line of its spec given, to try spellings on.
#[test]
fn each_mistake_has_its_code_place_and_remedy() {
    let ns = |meta: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  {meta}\n");
    let peer = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec:\n  {spec}\n"
        )
    };
    let rule = |rule: &str| policy(&format!("rules: [{rule}]"));
    let source = |source: &str| rule(&format!("{{from: [{{source: {{{source}}}}}]}}"));
    let operation = |operation: &str| rule(&format!("{{to: [{{operation: {{{operation}}}}}]}}"));
    let when = |when: &str| rule(&format!("{{when: [{{{when}}}]}}"));
    let cases: Vec<(String, &str, usize, &str, &str)> = vec![
        (ns("name: UPPER"), "PST0301", 4, "RFC 1123", "`upper`"),
        (ns("nam: a"), "PST0102", 4, "unknown field `nam` in metadata", "did you mean `name`?"),
        (ns("labels: {}"), "PST0105", 4, "metadata has no `name`", "add `name:`"),
        (ns("name: a\n  labels: {\"a b\": c}"), "PST0302", 5, "label key `a b`", "prefix"),
        (ns("name: a\n  labels: {a: -c}"), "PST0302", 5, "label value `-c`", "63"),
        (ns("name: !custom a"), "PST0111", 4, "tag", "remove"),
        (ns("name: a\n  ? [x]\n  : y"), "PST0111", 5, "a key must be a scalar", "quotes"),
        (ns("name: *a"), "PST0101", 4, "not valid YAML", "quotes"),
        (ns("name: &a {x: *a}"), "PST0101", 4, "alias", "write the value out"),
        ("kind: Pod".into(), "PST0110", 1, "no `apiVersion`", "add `apiVersion:`"),
        ("apiVersion: v1\nkin: Pod".into(), "PST0110", 1, "no `kind`", "`kin` should be `kind`"),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService".into(),
            "PST0201",
            2,
            "not enforced yet",
            "take it out",
        ),
        (
            "apiVersion: postern.dev/v1\nkind: Thing".into(),
            "PST0107",
            2,
            "unknown kind",
            "kinds that Postern reads",
        ),
        (
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetri".into(),
            "PST0107",
            2,
            "unknown kind",
            "`Telemetry`",
        ),
        (
            "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {}"
                .into(),
            "PST0108",
            1,
            "is not in apiVersion",
            "apiVersion: security.istio.io/v1",
        ),
        (peer("mtls: {mode: BLAH}"), "PST0112", 5, "Unsupported value: \"BLAH\"", "STRICT"),
        (
            peer("portLevelMtls: {80: {mode: STRICT}}"),
            "PST0312",
            5,
            "mesh/namespace peer authentication cannot have port level mTLS",
            "selector",
        ),
        (
            peer("selector: {matchLabels: {a: b}}\n  portLevelMtls: {}"),
            "PST0312",
            6,
            "port level mTLS, if defined, must have at least one element",
            "remove",
        ),
        (
            peer("selector: {matchLabels: {a: b}}\n  portLevelMtls: {65536: {}}"),
            "PST0312",
            6,
            "port must be in range 1..65535",
            "number",
        ),
        (
            peer("selector: {matchLabels: {\"\": b}}"),
            "PST0305",
            5,
            "empty key is not supported in selector: \"=b\"",
            "name",
        ),
        (
            peer("selector: {matchLabels: {\"a*\": b}}"),
            "PST0305",
            5,
            "wildcard is not supported in selector: \"a*=b\"",
            "label",
        ),
        (peer("targetRefs: []"), "PST0102", 5, "unknown field `targetRefs`", "fields here"),
        (
            policy("action: DENY"),
            "PST0313",
            5,
            "DENY action without `rules` is meaningless as it will never be triggered, add an empty rule `{}`",
            "rules",
        ),
        (
            policy("provider: {name: a}"),
            "PST0313",
            5,
            "`provider` must not be with non CUSTOM action, found ALLOW",
            "remove",
        ),
        (
            policy("{action: CUSTOM, rules: [{}]}"),
            "PST0313",
            5,
            "`provider.name` must not be empty",
            "provider",
        ),
        (
            policy("{action: CUSTOM, provider: {name: a}, rules: [{}]}"),
            "PST0202",
            5,
            "action CUSTOM is not enforced yet",
            "refuses",
        ),
        (
            policy("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}"),
            "PST0315",
            5,
            "only one of targetRefs or workloadSelector can be set",
            "selector",
        ),
        (policy("{targetRefs: [{kind: Service}]}"), "PST0315", 5, "targetRef name must be set", "name"),
        (
            policy("{targetRefs: [{kind: Service, name: a, namespace: b}]}"),
            "PST0315",
            5,
            "targetRef namespace must not be set; cross namespace referencing is not supported",
            "remove",
        ),
        (
            policy("{targetRefs: [{kind: Pod, name: a}]}"),
            "PST0315",
            5,
            "targetRef must be to one of [",
            "selector",
        ),
        (rule("null"), "PST0306", 5, "`rule` must not be nil, found at rule 0", "{}"),
        (rule("{from: [null]}"), "PST0306", 5, "`from` must not be nil, found at rule 0", "source"),
        (rule("{from: [{}]}"), "PST0306", 5, "`from.source` must not be nil, found at rule 0", "source"),
        (
            rule("{to: [{operation: {}}]}"),
            "PST0306",
            5,
            "`to.operation` must not be empty, found at rule 0",
            "operation",
        ),
        (
            source("principals: [\"\"]"),
            "PST0311",
            5,
            "empty value not allowed, found in Principals",
            "remove",
        ),
        (
            source("notNamespaces: [\"\"]"),
            "PST0311",
            5,
            "empty value not allowed, found in NotNamespaces",
            "remove",
        ),
        (
            source("serviceAccounts: [a], principals: [b]"),
            "PST0308",
            5,
            "cannot set serviceAccounts with namespaces or principals, found at rule 0",
            "alone",
        ),
        (source("serviceAccounts: [/a]"), "PST0308", 5, "found empty namespace", "checkout"),
        (
            source("trustDomains: [a/b]"),
            "PST0309",
            5,
            "trust domain must not contain '/', found in TrustDomains",
            "cluster.local",
        ),
        (source("notRemoteIpBlocks: [1.2.3.4/x]"), "PST0304", 5, "bad CIDR range (1.2.3.4/x)", "10.0.0.0/8"),
        (
            source("methods: [GET]"),
            "PST0102",
            5,
            "unknown field `methods` in spec.rules[0].from[0].source",
            "`methods` belongs in spec.rules[].to[].operation",
        ),
        (operation("ports: [\"1e3\"]"), "PST0303", 5, "bad port (1e3)", "8080"),
        (operation("paths: [\"a/{*}\"]"), "PST0310", 5, "does not begin with `/`", "/a/{*}"),
        (operation("notPaths: [\"/{*}.txt\"]"), "PST0310", 5, "found in NotPaths", "segment"),
        (when("values: [a]"), "PST0307", 5, "`key` must not be empty", "source.ip"),
        (
            when("key: source.ip"),
            "PST0307",
            5,
            "at least one of `values` or `notValues` must be set for key source.ip",
            "values",
        ),
        (
            when("key: source.ip, notValues: [x]"),
            "PST0304",
            5,
            "invalid `notValue` for `key` source.ip: bad IP address (x)",
            "10.0.0.0/8",
        ),
        (
            when("key: \"destination.labels[app]\", values: [x]"),
            "PST0307",
            5,
            "attribute destination.labels[app] is replaced by the workload selector",
            "selector",
        ),
        (
            when("key: destination.user, values: [x]"),
            "PST0307",
            5,
            "deprecated attribute destination.user: only supported in v1alpha1",
            "selector",
        ),
        (
            when("key: experimental.envoy.filters.a.b.x, values: [x]"),
            "PST0307",
            5,
            "should have format a[b]",
            "[x]",
        ),
        (
            when("key: \"experimental.envoy.filters.a.b[c]\", values: [x]"),
            "PST0202",
            5,
            "not enforced yet",
            "refuses",
        ),
        (
            when("key: \"request.headers[:path]\", values: [/x]"),
            "PST0202",
            5,
            "pseudo header",
            "to.operation.paths",
        ),
        (
            policy("{action: AUDIT, rules: [{}]}")
                .replace("{name: p}", "{name: p, annotations: {istio.io/dry-run: \"true\"}}"),
            "PST0313",
            5,
            "does not go with action AUDIT",
            "only ALLOW and DENY",
        ),
        (
            peer("mtls: {mode: STRICT}")
                .replace("{name: p}", "{name: p, annotations: {istio.io/dry-run: \"true\"}}"),
            "PST0313",
            3,
            "on a PeerAuthentication",
            "remove the annotation",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    \
             metadata: {labels: {app: a}, annotations: {postern.dev/upgrades: 'tcp, *'}}\n    \
             spec: {containers: [{name: a, command: [serve]}]}\n"
                .into(),
            "PST0323",
            7,
            "`*` has a `*`",
            "`spdy/3.1, tcp`",
        ),
        (rule("{when: [null]}"), "PST0307", 5, "when field cannot be nil", "remove"),
    ];
    for (text, code, line, reason, hint) in cases {
        let (_, problems) = read(&text);
        let found = problems.iter().find(|p| p.code == code && p.reason.contains(reason));
        let Some(found) = found else { panic!("{code} {reason}\nin\n{text}\nfound\n{}", show(&problems)) };
        assert_eq!(found.severity, Severity::Error, "{found}");
        assert_eq!(found.line, line, "{found}");
        assert!(found.column > 0 && found.hint.contains(hint), "{hint}\n{found}");
        assert_eq!(found.source_line.as_deref(), text.lines().nth(line - 1), "{found}");
    }
}
