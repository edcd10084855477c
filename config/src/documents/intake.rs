//! Which kind a document is, and whether that kind is known, under which apiVersion, and enforced.
use super::{
    Documents, Located, MeshConfig, Origin, SourceFile, decode,
    parse::{self, Key, Node, Piece, Place, Scalar, Style, Value, shorten},
    places,
    report::Report,
    schema::{self, Shape, nearest},
};
use crate::{problem, validate};

/// One kind that Postern reads.
struct Kind {
    name: &'static str,
    api_versions: &'static [&'static str],
    schema: Shape,
}

const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const NETWORKING: &[&str] =
    &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const TELEMETRY: &[&str] = &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];
const KINDS: &[Kind] = &[
    Kind { name: "Namespace", api_versions: &["v1"], schema: schema::kubernetes::NAMESPACE },
    Kind { name: "ServiceAccount", api_versions: &["v1"], schema: schema::kubernetes::SERVICE_ACCOUNT },
    Kind { name: "Service", api_versions: &["v1"], schema: schema::kubernetes::SERVICE },
    Kind { name: "Deployment", api_versions: &["apps/v1"], schema: schema::kubernetes::DEPLOYMENT },
    Kind { name: "Pod", api_versions: &["v1"], schema: schema::kubernetes::POD },
    Kind { name: "ConfigMap", api_versions: &["v1"], schema: schema::kubernetes::CONFIG_MAP },
    Kind { name: "List", api_versions: &["v1"], schema: schema::kubernetes::LIST },
    Kind { name: "PeerAuthentication", api_versions: SECURITY, schema: schema::istio::PEER_AUTHENTICATION },
    Kind { name: "AuthorizationPolicy", api_versions: SECURITY, schema: schema::istio::AUTHORIZATION_POLICY },
    Kind { name: "ServiceEntry", api_versions: NETWORKING, schema: schema::networking::SERVICE_ENTRY },
    Kind { name: "DestinationRule", api_versions: NETWORKING, schema: schema::networking::DESTINATION_RULE },
    Kind { name: "Telemetry", api_versions: TELEMETRY, schema: schema::telemetry::TELEMETRY },
    Kind { name: "PolicyTest", api_versions: &["postern.dev/v1"], schema: schema::postern::POLICY_TEST },
    Kind {
        name: "ClusterFederatedTrustDomain",
        api_versions: &["spire.spiffe.io/v1alpha1"],
        schema: schema::spiffe::CLUSTER_FEDERATED_TRUST_DOMAIN,
    },
];

/// Istio's kinds that Postern does not act on yet.
const NOT_ENFORCED: &[&str] = &[
    "RequestAuthentication",
    "VirtualService",
    "Gateway",
    "Sidecar",
    "EnvoyFilter",
    "WorkloadEntry",
    "WorkloadGroup",
    "ProxyConfig",
    "WasmPlugin",
    "TrafficExtension",
    "IstioOperator",
];

/// Values of all documents of one file, aliases followed.
const MAX_VALUES: usize = 1_000_000;
/// Places of one file that are remembered for findings between documents; the others are those of their documents.
const MAX_NOTES: usize = 20_000;
/// A List inside a List inside ...
const MAX_LISTS: usize = 4;

/// Reads one file into `documents`; returns what is wrong with it.
pub fn read_file(file: &SourceFile, documents: &mut Documents) -> Vec<problem::Problem> {
    let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
    if text.len() > parse::MAX_FILE {
        let mut report = Report::new(&file.name, "");
        let size = format!("the file has {} bytes, the limit is {}", text.len(), parse::MAX_FILE);
        report.error(problem::TOO_LARGE, Place::default(), size, "split it into several files");
        return report.finish();
    }
    let mut intake = Intake { report: Report::new(&file.name, text), documents, values: 0, notes: 0 };
    for piece in parse::split(text) {
        if let Some(node) = intake.parse(piece) {
            intake.values = intake.values.saturating_add(node.nodes);
            if intake.values > MAX_VALUES {
                let reason =
                    format!("the file has more than {MAX_VALUES} values once its aliases are followed");
                intake.report.error(problem::TOO_LARGE, node.place, reason, "split it into several files");
                break;
            }
            intake.document(&node, 0);
        }
    }
    intake.report.finish()
}

struct Intake<'f, 'd> {
    report: Report<'f>,
    documents: &'d mut Documents,
    values: usize,
    /// Places remembered so far.
    notes: usize,
}

impl Intake<'_, '_> {
    fn parse(&mut self, piece: Piece<'_>) -> Option<std::rc::Rc<Node>> {
        let mut troubles = Vec::new();
        let node = parse::parse(piece, &mut troubles);
        for trouble in troubles {
            self.report.error(trouble.code, trouble.place, trouble.reason, trouble.hint);
        }
        node
    }

    fn document(&mut self, node: &Node, lists: usize) {
        if node.is_null() {
            return;
        }
        if !matches!(node.value, Value::Map(_)) {
            let reason = format!(
                "a document must be a mapping with apiVersion, kind and metadata, found {}",
                node.describe()
            );
            return self.report.error(
                problem::NOT_A_DOCUMENT,
                node.place,
                reason,
                "begin with `apiVersion:` and `kind:`",
            );
        }
        // Warnings that a document does not want; those that its List does not want, too.
        let mut unwanted = validate::suppressed(node);
        unwanted.extend(self.report.suppressed());
        let outer = self.report.suppress(unwanted);
        self.typed(node, lists);
        self.report.suppress(outer);
    }

    fn typed(&mut self, node: &Node, lists: usize) {
        let Some(kind) = self.kind(node) else { return };
        schema::check(&mut self.report, node, &kind.schema);
        if kind.name == "List" {
            for item in node.list("items") {
                if lists >= MAX_LISTS {
                    self.report.error(
                        problem::TOO_LARGE,
                        item.place,
                        "a List in a List in a List",
                        "write one List",
                    );
                } else if item.is_null() {
                    self.report.error(
                        problem::NOT_A_DOCUMENT,
                        item.place,
                        "an item of the List is null",
                        "remove it",
                    );
                } else {
                    self.document(item, lists + 1);
                }
            }
            return;
        }
        validate::document(&mut self.report, kind.name, node);
        let origin = Origin { file: self.report.file().to_owned(), line: first_line(node) };
        self.note(&origin, node);
        self.keep(kind.name, origin, node);
    }

    /// The known kind of a document; everything else is reported here.
    fn kind(&mut self, node: &Node) -> Option<&'static Kind> {
        let start = node.entries().first().map_or(node.place, |(key, _)| key.place);
        let mut missing = false;
        for key in ["apiVersion", "kind"] {
            if node.get(key).and_then(Node::text).is_none_or(str::is_empty) {
                missing = true;
                let at = node.get(key).map_or(start, |value| value.place);
                let misspelt = nearest(key, node.entries().iter().map(|(key, _)| key.text.as_str()));
                let hint = match (misspelt, key) {
                    (Some(written), _) => format!("`{}` should be `{key}`", shorten(written)),
                    (None, "kind") => format!("add `kind:`; kinds that Postern reads: {}", known_kinds()),
                    _ => "add `apiVersion:`, for example `apiVersion: v1`".to_owned(),
                };
                self.report.error(problem::NOT_A_DOCUMENT, at, format!("the document has no `{key}`"), hint);
            }
        }
        if missing {
            return None;
        }
        let (api_version, name) = (node.string("apiVersion"), node.string("kind"));
        let version_at = node.get("apiVersion").map_or(start, |value| value.place);
        let kind_at = node.get("kind").map_or(start, |value| value.place);
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        if let Some(kind) = KINDS.iter().find(|kind| kind.name == name) {
            if kind.api_versions.contains(&api_version.as_str()) {
                return Some(kind);
            }
            // Another group's kind of the same name, e.g. Knative's Service.
            if foreign(group) && nearest(&api_version, kind.api_versions.iter().copied()).is_none() {
                self.ignored(kind_at, &api_version, &name);
                return None;
            }
            let best = nearest(&api_version, kind.api_versions.iter().copied())
                .or(kind.api_versions.first().copied());
            let reason = format!("{name} is not in apiVersion `{}`", shorten(&api_version));
            let hint = format!("write `apiVersion: {}`", best.unwrap_or_default());
            self.report.error(problem::WRONG_API_VERSION, version_at, reason, hint);
            return Some(kind);
        }
        if istio(group) && NOT_ENFORCED.contains(&name.as_str()) {
            let reason = format!("{name} is not enforced yet, so that it is refused rather than ignored");
            let hint = "take it out of the folder until Postern enforces it";
            self.report.error(problem::KIND_NOT_ENFORCED, kind_at, reason, hint);
            return None;
        }
        let ours = istio(group) || group == "postern.dev" || group.ends_with(".postern.dev");
        let close = nearest(&name, KINDS.iter().map(|kind| kind.name).chain(NOT_ENFORCED.iter().copied()));
        let close = close.filter(|close| {
            ours || KINDS
                .iter()
                .any(|kind| kind.name == *close && kind.api_versions.contains(&api_version.as_str()))
        });
        if ours || close.is_some() {
            let reason = format!("unknown kind `{}` in `{}`", shorten(&name), shorten(&api_version));
            let hint = match close {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("kinds that Postern reads: {}", known_kinds()),
            };
            self.report.error(problem::UNKNOWN_KIND, kind_at, reason, hint);
        } else {
            self.ignored(kind_at, &api_version, &name);
        }
        None
    }

    fn ignored(&mut self, at: Place, api_version: &str, kind: &str) {
        let reason =
            format!("{} of `{}` is ignored: Postern has no use for it", shorten(kind), shorten(api_version));
        let hint = format!("nothing to do; kinds that Postern reads: {}", known_kinds());
        self.report.warning(problem::IGNORED_KIND, at, reason, hint);
    }

    /// Remembers the places that findings across documents point at.
    fn note(&mut self, origin: &Origin, node: &Node) {
        self.documents.places.suppress(origin, self.report.suppressed());
        for (path, place) in places::of_interest(node, MAX_NOTES.saturating_sub(self.notes)) {
            let line = self.report.shared_line(place.line);
            self.documents.places.note(origin, &path, place, line);
            self.notes += 1;
        }
    }

    fn keep(&mut self, kind: &str, origin: Origin, node: &Node) {
        fn push<T>(list: &mut Vec<Located<T>>, origin: Origin, value: T) {
            list.push(Located { origin, value });
        }
        match kind {
            "Namespace" => push(&mut self.documents.namespaces, origin, decode::kubernetes::namespace(node)),
            "ServiceAccount" => {
                push(&mut self.documents.service_accounts, origin, decode::kubernetes::service_account(node));
            }
            "Service" => push(&mut self.documents.services, origin, decode::kubernetes::service(node)),
            "Deployment" => {
                push(&mut self.documents.deployments, origin, decode::kubernetes::deployment(node))
            }
            "Pod" => push(&mut self.documents.pods, origin, decode::kubernetes::pod(node)),
            "PeerAuthentication" => {
                push(
                    &mut self.documents.peer_authentications,
                    origin,
                    decode::istio::peer_authentication(node),
                );
            }
            "AuthorizationPolicy" => {
                push(
                    &mut self.documents.authorization_policies,
                    origin,
                    decode::istio::authorization_policy(node),
                );
            }
            "ServiceEntry" => {
                push(&mut self.documents.service_entries, origin, decode::networking::service_entry(node));
            }
            "DestinationRule" => {
                let rule = decode::networking::destination_rule(node);
                push(&mut self.documents.destination_rules, origin, rule);
            }
            "Telemetry" => {
                for (provider, _) in decode::telemetry::named_providers(node) {
                    push(&mut self.documents.named_providers, origin.clone(), provider);
                }
                push(&mut self.documents.telemetries, origin, decode::telemetry::telemetry(node));
            }
            "PolicyTest" => {
                let test = decode::policy_test::policy_test(node, &origin.file);
                push(&mut self.documents.policy_tests, origin, test);
            }
            "ClusterFederatedTrustDomain" => {
                if let Some(federated) = decode::spiffe::federated_trust_domain(node) {
                    push(&mut self.documents.federated_trust_domains, origin, federated);
                }
            }
            "ConfigMap" => self.config_map(origin, node),
            _ => {}
        }
    }

    /// The ConfigMap `istio` of the root namespace holds MeshConfig; all others are the apps' own business.
    fn config_map(&mut self, origin: Origin, node: &Node) {
        let metadata = decode::kubernetes::metadata(node);
        let Some((key, mesh)) = node.get("data").and_then(|data| data.entry("mesh")) else { return };
        let Value::Scalar(scalar) = &mesh.value else { return };
        if metadata.name != "istio" {
            return;
        }
        let mut troubles = Vec::new();
        let tree = embedded(key, mesh, scalar, &mut troubles);
        let config = tree.as_deref().map(decode::mesh_config::mesh_config).unwrap_or_default();
        if metadata.namespace != config.root_namespace
            && metadata.namespace != MeshConfig::default().root_namespace
        {
            let reason = format!(
                "the ConfigMap `istio` of namespace `{}` is not the mesh configuration, since the root namespace is `{}`",
                metadata.namespace, config.root_namespace
            );
            let at = node.at("metadata.namespace").or(node.at("metadata.name")).unwrap_or(node).place;
            return self.report.warning(
                problem::NO_EFFECT,
                at,
                reason,
                format!("write `namespace: {}`", config.root_namespace),
            );
        }
        for trouble in troubles {
            self.report.error(trouble.code, trouble.place, trouble.reason, trouble.hint);
        }
        let providers = tree.as_deref().map(decode::mesh_config::extension_providers).unwrap_or_default();
        if let Some(tree) = tree {
            if matches!(tree.value, Value::Map(_)) || tree.is_null() {
                schema::check(&mut self.report, &tree, &schema::istio::MESH_CONFIG);
                validate::mesh_config(&mut self.report, &tree);
            } else {
                let reason = format!("the mesh configuration must be a mapping, found {}", tree.describe());
                self.report.error(problem::WRONG_TYPE, tree.place, reason, "write `key: value` lines");
            }
        }
        if let Some(first) = &self.documents.mesh_origin {
            let reason = format!("a mesh configuration is already in {}:{}", first.file, first.line);
            self.report.error(problem::DUPLICATE_OBJECT, mesh.place, reason, "keep one of the two");
            return;
        }
        self.documents.mesh = config;
        self.documents.extension_providers = providers;
        self.documents.mesh_origin = Some(origin);
    }
}

/// Parses YAML inside a scalar. Of a `|` scalar each place is the file's; of any other style only its start is known.
fn embedded(
    key: &Key,
    node: &Node,
    scalar: &Scalar,
    troubles: &mut Vec<parse::Trouble>,
) -> Option<std::rc::Rc<Node>> {
    let start = match scalar.style {
        // Blank lines before the content belong to it; the header stands beside the key.
        Style::Literal(start) => Place { line: key.place.line + 1, column: start.column },
        Style::Plain | Style::Quoted => node.place,
    };
    let piece = Piece {
        text: &scalar.text,
        line: start.line.saturating_sub(1),
        column: start.column.saturating_sub(1),
    };
    parse::parse(piece, troubles)
}

fn first_line(node: &Node) -> usize {
    node.entries().first().map_or(node.place.line, |(key, _)| key.place.line)
}

fn known_kinds() -> String {
    KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

fn istio(group: &str) -> bool {
    group == "istio.io" || group.ends_with(".istio.io")
}

/// A group that is neither Kubernetes' own, Istio's nor ours.
fn foreign(group: &str) -> bool {
    group.contains('.') && !istio(group) && !group.ends_with("postern.dev")
}
