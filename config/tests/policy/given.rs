//! The mesh, the workload and the call that the tables start from; each test changes one fact.

use http::{HeaderMap, HeaderName, HeaderValue};
use postern_config::documents::authorization_policy::{Action, Rule};
use postern_config::documents::{
    AuthorizationPolicy, Documents, Located, MeshConfig, Metadata, PeerAuthentication,
    peer_authentication::MtlsMode,
};
use postern_config::{Claims, Facts, HttpFacts, InboundSpec, Snapshot, snapshot::Workload};
use postern_identity::SpiffeId;
use std::{collections::BTreeMap, net::IpAddr};

pub const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub fn metadata(namespace: &str, name: &str) -> Metadata {
    Metadata { name: name.into(), namespace: namespace.into(), ..Metadata::default() }
}

pub fn workload() -> Workload {
    Workload {
        namespace: "payments".into(),
        name: "payments-api-0".into(),
        service_account: "payments-api".into(),
        labels: labels(&[("app", "payments-api")]),
        addresses: vec!["10.0.0.2".parse().unwrap()],
    }
}

/// `rules` in YAML.
pub fn policy(namespace: &str, name: &str, action: Action, rules: &str) -> AuthorizationPolicy {
    let rules: Vec<Rule> = serde_yaml::from_str(rules).expect("the rules of a test are YAML");
    AuthorizationPolicy { metadata: metadata(namespace, name), action, rules, ..Default::default() }
}

pub fn allow(rules: &str) -> AuthorizationPolicy {
    policy("payments", "allow", Action::Allow, rules)
}

pub fn deny(rules: &str) -> AuthorizationPolicy {
    policy("payments", "deny", Action::Deny, rules)
}

pub fn peer_authentication(
    namespace: &str,
    name: &str,
    selector: &[(&str, &str)],
    mode: MtlsMode,
) -> PeerAuthentication {
    PeerAuthentication {
        metadata: metadata(namespace, name),
        selector: labels(selector),
        mode,
        port_level: BTreeMap::new(),
    }
}

pub fn located<T>(values: Vec<T>) -> Vec<Located<T>> {
    values.into_iter().map(|value| Located { origin: Default::default(), value }).collect()
}

pub fn documents(peer: Vec<PeerAuthentication>, policies: Vec<AuthorizationPolicy>) -> Documents {
    Documents {
        peer_authentications: located(peer),
        authorization_policies: located(policies),
        mesh: MeshConfig::default(),
        ..Documents::default()
    }
}

pub fn spec(policies: Vec<AuthorizationPolicy>) -> InboundSpec {
    InboundSpec {
        workload: workload(),
        mesh: MeshConfig::default(),
        ports: Vec::new(),
        peer_authentications: Vec::new(),
        authorization_policies: policies,
        telemetries: Vec::new(),
        upgrades: Default::default(),
    }
}

pub fn snapshot(policies: Vec<AuthorizationPolicy>) -> Snapshot {
    Snapshot::compile(spec(policies)).expect("the policies of this test can be enforced")
}

/// A call, owned, so that a test can change one fact of it.
#[derive(Clone, Debug)]
pub struct Call {
    pub peer: Option<SpiffeId>,
    pub source_ip: IpAddr,
    pub remote_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub port: u16,
    pub sni: Option<String>,
    pub http: bool,
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: HeaderMap,
    pub claims: Option<Claims>,
}

/// `checkout-api` POSTs to `/v1/charges` of `payments-api`.
pub fn call() -> Call {
    Call {
        peer: Some(CHECKOUT.parse().unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        remote_ip: "203.0.113.7".parse().unwrap(),
        destination_ip: "10.0.0.2".parse().unwrap(),
        port: 8080,
        sni: Some("outbound_.80_._.payments-api.payments.svc.cluster.local".into()),
        http: true,
        method: "POST".into(),
        path: "/v1/charges".into(),
        host: "payments-api.payments:80".into(),
        headers: HeaderMap::new(),
        claims: None,
    }
}

impl Call {
    pub fn from(mut self, peer: &str) -> Self {
        self.peer = Some(peer.parse().expect("a SPIFFE ID"));
        self
    }

    pub fn plaintext(mut self) -> Self {
        self.peer = None;
        self.sni = None;
        self
    }

    pub fn tcp(mut self) -> Self {
        self.http = false;
        self.remote_ip = self.source_ip;
        self
    }

    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    /// Of a verified token.
    pub fn claims(mut self, payload: serde_json::Value) -> Self {
        self.claims = Some(Claims::new(payload.as_object().expect("claims are an object").clone()));
        self
    }

    pub fn addresses(mut self, source: &str, remote: &str, destination: &str) -> Self {
        self.source_ip = source.parse().unwrap();
        self.remote_ip = remote.parse().unwrap();
        self.destination_ip = destination.parse().unwrap();
        self
    }

    pub fn facts(&self) -> Facts<'_> {
        let http =
            HttpFacts { method: &self.method, path: &self.path, host: &self.host, headers: &self.headers };
        Facts {
            claims: self.claims.as_ref(),
            peer: self.peer.as_ref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.port,
            sni: self.sni.as_deref(),
            http: self.http.then_some(http),
        }
    }
}
