//! What each fuzz target demands of any input. Also compiled into `config/tests/corpora.rs`, which runs the corpora.
use postern_config::{
    Facts, HttpFacts, InboundSpec, Snapshot,
    authorize::judge,
    cel::{Filter, Value},
    documents::{SourceFile, read},
    matchers::template::PathTemplate,
    path::{Normalization, normalize},
    select::inbound_spec,
    snapshot::{Workload, linear},
};
use std::{collections::BTreeMap, net::IpAddr};

/// Whatever people write: reading never panics, and every problem has a place in the file and says what to do.
pub fn documents(text: &str) {
    let (_, problems) = read(&[SourceFile { name: "fuzz.yaml".into(), text: text.to_owned() }]);
    for problem in problems {
        assert!(!problem.reason.is_empty() && !problem.hint.is_empty(), "{problem:?}");
        assert!(problem.line <= text.lines().count() + 1, "{problem:?}");
        assert!(postern_config::problem::explain(problem.code).is_some(), "{problem:?}");
        assert!(!problem.to_string().is_empty());
    }
}

/// Whatever is asked for: a normalized path is normal, so that policy and app cannot read it in two ways.
pub fn path(path: &str) {
    for mode in [Normalization::Base, Normalization::MergeSlashes, Normalization::DecodeAndMergeSlashes] {
        let Ok(once) = normalize(path, mode) else { continue };
        let pure = once.split('?').next().unwrap_or_default();
        assert!(!pure.split('/').any(|part| part == ".."), "{path:?} -> {once:?}");
        if mode != Normalization::DecodeAndMergeSlashes {
            let twice = normalize(&once, mode);
            assert_eq!(twice.as_deref(), Ok(&*once), "{path:?} in {mode:?}");
        }
    }
}

/// First line a template, the others paths: parsing and matching never panic, a template without operators matches
/// itself and nothing else.
pub fn template(text: &str) {
    let mut lines = text.lines();
    let template = lines.next().unwrap_or_default();
    let Ok(parsed) = PathTemplate::parse(template) else { return };
    for path in lines.chain([template]) {
        let matched = parsed.matches(path);
        if !template.contains('{') {
            assert_eq!(matched, path == template, "{template:?} {path:?}");
        }
        assert!(!matched || path.starts_with('/'), "{template:?} {path:?}");
    }
}

/// Whatever stands in a filter of the access log: reading and asking never panic, a mistake has its place and its
/// remedy.
pub fn filter(text: &str) {
    let filter = match Filter::parse(text) {
        Ok(filter) => filter,
        Err(mistake) => {
            assert!(mistake.at <= text.chars().count(), "{mistake:?}");
            assert!(!mistake.reason.is_empty() && !mistake.hint.is_empty(), "{mistake:?}");
            return;
        }
    };
    let _ = filter.matches(|_| None, |_| None);
    // A number where a text is wanted, which reading rules out, is as good as nothing.
    let _ = filter.matches(|_| Some(Value::Int(1)), |_| Some("a"));
}

/// Documents, then after a line `===` calls of the form `METHOD PATH HOST PORT`: whatever validates compiles, and
/// the index and the plain scan agree.
pub fn authorize(text: &str) {
    let (files, calls) = text.split_once("\n===\n").unwrap_or((text, "GET / a 80"));
    let (documents, problems) = read(&[SourceFile { name: "fuzz.yaml".into(), text: files.to_owned() }]);
    if problems.iter().any(|problem| problem.severity == postern_config::Severity::Error) {
        return;
    }
    let mut labels: Vec<BTreeMap<String, String>> =
        documents.authorization_policies.iter().map(|p| p.value.selector.clone()).take(4).collect();
    labels.push(BTreeMap::new());
    let namespaces = documents.authorization_policies.iter().map(|p| p.value.metadata.namespace.clone());
    let namespaces: Vec<String> = namespaces.take(4).chain(["default".to_owned()]).collect();
    for (namespace, labels) in namespaces.iter().flat_map(|ns| labels.iter().map(move |labels| (ns, labels)))
    {
        let workload = Workload {
            namespace: namespace.clone(),
            name: "fuzz".into(),
            service_account: "fuzz".into(),
            labels: labels.clone(),
            addresses: Vec::new(),
        };
        let spec: InboundSpec = inbound_spec(&documents, workload, Vec::new());
        match Snapshot::compile(spec) {
            Ok(snapshot) => calls.lines().take(50).for_each(|call| agree(&snapshot, call)),
            Err(problems) => panic!("admitted, and refused by the compiler: {problems:?}"),
        }
    }
}

fn agree(snapshot: &Snapshot, call: &str) {
    let mut words = call.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, path, host, port) = (word(), word(), word(), word().parse().unwrap_or(80));
    let Ok(path) = normalize(path, Normalization::Base) else { return };
    let peer = "spiffe://cluster.local/ns/checkout/sa/checkout-api".parse().ok();
    let local = IpAddr::from([10, 0, 0, 1]);
    let mut headers = http::HeaderMap::new();
    for header in words.take(20) {
        let (name, value) = header.split_once('=').unwrap_or((header, ""));
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value))
        {
            headers.append(name, value);
        }
    }
    for (peer, is_http) in [(peer.as_ref(), true), (None, true), (peer.as_ref(), false), (None, false)] {
        let facts = Facts {
            peer,
            source_ip: local,
            remote_ip: local,
            destination_ip: local,
            destination_port: port,
            sni: None,
            http: is_http.then_some(HttpFacts { method, path: &path, host, headers: &headers }),
            claims: None,
        };
        assert_eq!(judge(snapshot, &facts), linear::judge(snapshot, &facts), "{call}");
        let _ = postern_config::explain::explain(snapshot, &facts);
    }
}
