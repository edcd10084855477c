//! Beside Envoy: the same policies and the same requests to our evaluator and to the RBAC filters that Istio would make of
//! the policies, in a real Envoy. They have to agree; where they do not, [`DIFFERENCES`] says why.
//!
//! Without Envoy (see `scripts/envoy.sh`) these tests say so and compare nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use http::{HeaderName, HeaderValue};
use postern_config::{
    Facts, HttpFacts, InboundSpec, Snapshot, Verdict,
    authorize::authorize,
    documents::{AuthorizationPolicy, MeshConfig, authorization_policy::Action},
    path::{Normalization, normalize},
    snapshot::Workload,
};
use postern_identity::SpiffeId;
use postern_proxy::http::{
    canonical::{Size, canonical},
    headers::remote_ip,
};
use postern_tests::{
    envoy::{self, CASE, Envoy, Wire, at},
    envoy_callers::{Authority, Caller},
    envoy_grid::{Ask, Case, cases, policy},
    envoy_rbac,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// At least so many pairs of policy and request have to be decided, and decided alike.
const PAIRS: usize = 5_000;

/// One kind of difference: what it is and why it is wanted, and how it is told.
struct Difference {
    reason: &'static str,
    applies: fn(&Case, &Ask) -> bool,
}

/// Every way in which our decision may differ from Envoy's. Each has to occur, so the list can only get shorter.
const DIFFERENCES: &[Difference] = &[
    Difference {
        reason: "a trailing dot of the host is removed before policy, and the app gets the host without it",
        applies: |_, ask| ask.host().ends_with('.'),
    },
    Difference {
        reason: "the host is put into lower case before policy, which `request.headers[:authority]` then sees, as the app does",
        applies: |case, ask| {
            let described = case.describe();
            ask.host().contains(|c: char| c.is_ascii_uppercase())
                && (described.contains("request.headers[:authority]")
                    || described.contains("request.headers[host]"))
        },
    },
    Difference {
        reason: "a header that is sent twice is allowed only when it is by each value and by all of them joined",
        applies: |_, ask| ask.tags().len() > 1,
    },
    Difference {
        reason: "`..;` is no dot segment in Istio's table of paths, and it is one in this Envoy",
        applies: |_, ask| is_dot_segment_with_parameters(ask.path()),
    },
];

/// How Istio sets the connection manager for each of its modes.
fn normalization(mode: Normalization) -> Value {
    match mode {
        Normalization::None => json!({"normalize_path": false}),
        Normalization::Base => json!({"normalize_path": true}),
        Normalization::MergeSlashes => json!({"normalize_path": true, "merge_slashes": true}),
        Normalization::DecodeAndMergeSlashes => json!({
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        }),
    }
}

fn mesh_config() -> MeshConfig {
    MeshConfig { trust_domain_aliases: vec!["old.example".into()], ..MeshConfig::default() }
}

fn compile(policies: &[AuthorizationPolicy], mesh: MeshConfig) -> Snapshot {
    let workload =
        Workload { namespace: "payments".into(), name: "payments-api".into(), ..Workload::default() };
    let (ports, peer_authentications, telemetries) = (vec![], vec![], vec![]);
    let authorization_policies = policies.to_vec();
    Snapshot::compile(InboundSpec {
        workload,
        mesh,
        ports,
        peer_authentications,
        authorization_policies,
        telemetries,
        upgrades: Default::default(),
    })
    .unwrap_or_else(|problems| panic!("{problems:#?}\n{policies:#?}"))
}

/// Listeners on free ports; a port that somebody takes in between costs another attempt.
fn start(
    program: &Path,
    number: usize,
    config: impl Fn(&[u16]) -> (Value, Vec<SocketAddr>),
) -> (Envoy, Vec<u16>) {
    let mut last = String::new();
    for _ in 0..5 {
        let ports = envoy::free_ports(number);
        let (config, listeners) = config(&ports);
        match Envoy::start(program, &config, &listeners) {
            Ok(envoy) => return (envoy, ports),
            Err(log) => last = log,
        }
    }
    panic!("Envoy did not start: {last}");
}

#[test]
fn the_evaluator_and_envoys_rbac_filter_decide_alike() {
    let Some(program) = envoy::program() else { return };
    let authority = Authority::generate();
    let (_envoy, ports) = start(&program, 2, |ports| {
        let filters = envoy_rbac::filters(&[], &mesh_config());
        let routes: Vec<Value> = cases(ports)
            .iter()
            .enumerate()
            .map(|(n, case)| {
                envoy::route(&n.to_string(), &envoy_rbac::per_route(&case.policies, &mesh_config()))
            })
            .collect();
        let manager = envoy::connection_manager(&filters, &routes, &normalization(Normalization::Base));
        // As in PERMISSIVE mode: mutual TLS and plaintext on one port.
        let chains = [
            json!({
                "filter_chain_match": {"transport_protocol": "tls"},
                "filters": [manager],
                "transport_socket": authority.transport_socket(),
            }),
            json!({"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [manager]}),
        ];
        let addresses = [at("127.0.0.1", ports[0]), at("127.0.0.1", ports[1]), at("127.0.0.2", ports[0])];
        (envoy::bootstrap(&[envoy::listener("inbound", &addresses, &chains)]), addresses.to_vec())
    });
    let mut caller = Caller::new(&authority, &ports);
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let mut explained = vec![0; DIFFERENCES.len()];
    let mut unexplained = Vec::new();
    for (n, case) in cases(&ports).iter().enumerate() {
        let snapshot = compile(&case.policies, mesh_config());
        for ask in &case.asks {
            let ours = decide(&snapshot, ask, &ports);
            let theirs = match caller.ask(n, ask).status {
                200 => Verdict::Allow,
                403 => Verdict::Deny,
                other => panic!("{other} is no decision: {ask:?}"),
            };
            let what = match (ours, theirs) {
                (Verdict::Allow, Verdict::Allow) => "both allow",
                (Verdict::Deny, Verdict::Deny) => "both deny",
                _ => match DIFFERENCES.iter().position(|d| (d.applies)(case, ask)) {
                    Some(known) => {
                        explained[known] += 1;
                        "they differ for a reason"
                    }
                    None => {
                        unexplained.push(format!(
                            "ours {ours:?}, Envoy's {theirs:?}: {} on {}",
                            case.describe(),
                            tell(ask)
                        ));
                        "they differ"
                    }
                },
            };
            *count.entry(what).or_default() += 1;
        }
    }
    println!("beside Envoy, pairs of policy and request: {count:?}");
    unexplained.truncate(40);
    assert!(unexplained.is_empty(), "{count:?}\n{}", unexplained.join("\n"));
    for (difference, times) in DIFFERENCES.iter().zip(explained) {
        assert!(times > 0, "nothing differs any more because {}", difference.reason);
    }
    let (allowed, denied) = (count["both allow"], count["both deny"]);
    assert!(allowed + denied >= PAIRS && allowed.min(denied) >= PAIRS / 5, "{count:?}");
}

fn tell(ask: &Ask) -> String {
    format!(
        "{:?} {} {} host {} xff {:?} tags {:?} from {} to {:?} sni {:?}",
        ask.peer(),
        ask.method(),
        ask.path(),
        ask.host(),
        ask.forwarded_for(),
        ask.tags(),
        ask.source(),
        ask.destination(),
        ask.sni()
    )
}

/// In paths, each of Istio's four modes: what the app would see, and what policy says about it.
#[test]
fn paths_are_normalized_and_judged_as_envoy_does_in_all_four_modes() {
    use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
    let Some(program) = envoy::program() else { return };
    let policies: Vec<Vec<AuthorizationPolicy>> = [
        json!([]),
        json!([{"to": [{"operation": {"paths": ["/admin"]}}]}]),
        json!([{"to": [{"operation": {"paths": ["/admin*"]}}]}]),
        json!([{"to": [{"operation": {"paths": ["/{*}/admin", "/admin/{**}"]}}]}]),
        json!([{"to": [{"operation": {"notPaths": ["*admin", "/app/*"]}}]}]),
    ]
    .into_iter()
    .map(|rules| match rules.as_array().unwrap().as_slice() {
        [] => vec![],
        rules => vec![policy("paths", Action::Deny, rules)],
    })
    .collect();
    let modes = [None, Base, MergeSlashes, DecodeAndMergeSlashes];
    let (_envoy, ports) = start(&program, modes.len(), |ports| {
        let addresses: Vec<SocketAddr> = ports.iter().map(|port| at("127.0.0.1", *port)).collect();
        let listeners = modes.iter().zip(&addresses).map(|(mode, address)| {
            let routes: Vec<Value> = policies
                .iter()
                .enumerate()
                .map(|(n, set)| envoy::route(&n.to_string(), &envoy_rbac::per_route(set, &mesh_config())))
                .collect();
            let filters = envoy_rbac::filters(&[], &mesh_config());
            let manager = envoy::connection_manager(&filters, &routes, &normalization(*mode));
            envoy::listener(&format!("{mode:?}"), &[*address], &[json!({"filters": [manager]})])
        });
        (envoy::bootstrap(&listeners.collect::<Vec<_>>()), addresses)
    });
    let snapshots: Vec<Snapshot> = policies.iter().map(|set| compile(set, mesh_config())).collect();
    let (mut compared, mut explained, mut wrong) = (0, 0, Vec::new());
    for (mode, port) in modes.into_iter().zip(ports) {
        let connect = || Wire::new(envoy::connect([127, 0, 0, 1].into(), at("127.0.0.1", port)).unwrap());
        let mut wire = connect();
        for path in paths() {
            let ours = normalize(&path, mode);
            for (n, snapshot) in snapshots.iter().enumerate() {
                let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{CASE}: {n}\r\n\r\n");
                let theirs = wire.exchange(head.as_bytes()).unwrap();
                if theirs.closed {
                    wire = connect();
                }
                let (status, seen) = match &ours {
                    Err(_) => (400, Option::None),
                    Ok(path) => match judge(snapshot, path.split('?').next().unwrap()) {
                        Verdict::Allow => (200, Some(path.as_ref())),
                        Verdict::Deny => (403, Option::None),
                    },
                };
                compared += 1;
                if (status, seen) == (theirs.status, theirs.seen_path.as_deref()) {
                    continue;
                }
                if mode != None && is_dot_segment_with_parameters(&path) {
                    explained += 1;
                } else {
                    wrong.push(format!(
                        "{mode:?} {path}, policy {n}: ours {status} {seen:?}, Envoy's {} {:?}",
                        theirs.status, theirs.seen_path
                    ));
                }
            }
        }
    }
    println!(
        "beside Envoy, pairs of path and policy in four modes: {compared}, {explained} differ for a reason"
    );
    assert!(explained > 0, "Envoy reads dot segments with parameters as we do");
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Appendix A of the reference, all of `%XX`, every printable character, and some that other servers were fooled by.
fn paths() -> Vec<String> {
    let table = r"/ /app/ /app/../admin /app /app// /app/%2f /app%2f/ /xyz%30..//abc /app/%2E./admin /app\admin /app/\/\/\admin
        /%2Fapp%5cadmin%5Cabc /%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\abc /app//../admin /app//../../admin /%c0%2e%c0%2e/admin
        /%c0%2fadmin /0x2e0x2e/admin /0x2e0x2e0x2fadmin /0x2e0x2e0x5cadmin /0x2f0x2fadmin /0x5c0x5cadmin
        /%25c0%25ae%25c1%259cadmin /%25c0%25ae%25c0%25ae/admin /%25c0%25afadmin /%25c1%259cadmin /%252e%252e/admin
        /%252e%252e%252fadmin /%c1%9cadmin /%c0%ae%c0%ae/admin /%c0%afadmin /.../admin /..../admin /..;/admin /;/admin
        /admin;a=b /admin;a=b/xyz /admin,a=b/xyz /Admin /ADMIN
        /admin /admin/ /./admin /admin/. /admin/.. /x/.. /x/../ /../../admin /admin?x=/../y /x?/admin /x/..;/admin /x/.;/admin
        /x;/../admin /admin%2F..%2Fx /x/%2e%2e/admin /x%2f..%2fadmin /x%5c..%5cadmin /admin%3Fx /admin%23x /a%%34%31 /a%%2e /%zz
        /admin% /admin%2 //admin ///x//..//admin /x//admin /admin%09 /a%0d%0ab
        /x/..;a=b/admin /x/%2e%2e;/admin /x/..%3b/admin /x/...;/admin /x/y;/../admin";
    let mut paths: Vec<String> = table.split_whitespace().map(ToString::to_string).collect();
    paths.extend((0..=255).map(|byte| format!("/admin%{byte:02x}")));
    paths.extend((0..=255).step_by(7).map(|byte| format!("/%{byte:02X}/admin")));
    paths.extend((b'!'..=b'~').filter(|c| !b"#".contains(c)).map(|c| format!("/admin{}", char::from(c))));
    paths
}

/// Paths that are read differently on purpose.
///
/// Istio's own table (`/..;/admin` unchanged) holds for us; newer releases of Envoy, this one among them, take a dot segment
/// with parameters for a dot segment.
fn is_dot_segment_with_parameters(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    path.split(['?', '#'])
        .next()
        .unwrap()
        .split(['/', '\\'])
        .any(|s| s.starts_with(".;") || s.starts_with("..;"))
}

fn judge(snapshot: &Snapshot, path: &str) -> Verdict {
    let (headers, local) = (http::HeaderMap::new(), IpAddr::from([127, 0, 0, 1]));
    let facts = Facts {
        peer: None,
        source_ip: local,
        remote_ip: local,
        destination_ip: local,
        destination_port: 80,
        sni: None,
        claims: None,
        http: Some(HttpFacts { method: "GET", path, host: "a", headers: &headers }),
    };
    authorize(snapshot, &facts).verdict
}

/// What our sidecar decides: the head goes through the same rooms, then to the one evaluator.
fn decide(snapshot: &Snapshot, ask: &Ask, ports: &[u16]) -> Verdict {
    let peer: Option<SpiffeId> = ask.peer().map(|peer| peer.parse().unwrap());
    let mut request = http::Request::new(());
    *request.method_mut() = ask.method().parse().unwrap();
    *request.uri_mut() = ask.path().parse().unwrap();
    let host = [("host", &[ask.host()][..])];
    for (name, values) in
        [("x-forwarded-for", ask.forwarded_for()), ("x-tag", ask.tags())].into_iter().chain(host)
    {
        for value in values {
            let value = HeaderValue::from_str(value.trim()).unwrap();
            request.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    let (mut parts, ()) = request.into_parts();
    let (destination, port) = ask.destination();
    let destination = at(destination, ports[port]);
    let target = canonical(&mut parts, Normalization::Base, Size::Whole, destination).unwrap();
    let source_ip: IpAddr = ask.source().parse().unwrap();
    let facts = Facts {
        peer: peer.as_ref(),
        source_ip,
        remote_ip: remote_ip(&parts.headers, source_ip),
        destination_ip: destination.ip(),
        destination_port: destination.port(),
        sni: ask.sni(),
        claims: None,
        http: Some(HttpFacts {
            method: parts.method.as_str(),
            path: target.path(),
            host: target.host(),
            headers: &parts.headers,
        }),
    };
    authorize(snapshot, &facts).verdict
}
