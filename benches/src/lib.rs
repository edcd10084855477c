//! What the benches share: policies of any size, for one workload.

use postern_config::{
    InboundSpec, Problem, Snapshot,
    documents::{
        AuthorizationPolicy,
        authorization_policy::{From, Operation, Rule, Source, To},
    },
    documents::{MeshConfig, Metadata},
    snapshot::{DeclaredPort, Protocol, Workload},
};

/// The policy of one workload: `rules` ALLOW rules, each for a caller and a path of its own, as generated policy has.
///
/// # Errors
/// What the compiler says; with these rules, nothing.
pub fn snapshot(rules: usize) -> Result<Snapshot, Vec<Problem>> {
    Snapshot::compile(InboundSpec {
        workload: Workload {
            namespace: "payments".into(),
            name: "payments-api".into(),
            service_account: "payments-api".into(),
            ..Workload::default()
        },
        mesh: MeshConfig::default(),
        ports: vec![DeclaredPort { port: 8080, protocol: Protocol::Http }],
        peer_authentications: vec![],
        authorization_policies: vec![AuthorizationPolicy {
            metadata: Metadata {
                name: "callers".into(),
                namespace: "payments".into(),
                ..Metadata::default()
            },
            rules: (0..rules).map(rule).collect(),
            ..AuthorizationPolicy::default()
        }],
    })
}

fn rule(n: usize) -> Rule {
    let source = Source { principals: vec![format!("cluster.local/ns/n{n}/sa/caller")], ..Source::default() };
    let operation = Operation {
        methods: vec!["POST".into()],
        paths: vec![format!("/v1/items/{n}")],
        ..Operation::default()
    };
    Rule { from: vec![From { source }], to: vec![To { operation }], when: vec![] }
}
