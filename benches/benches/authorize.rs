//! One decision, by the number of rules: the last rule matches, no rule matches.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use postern_benches::snapshot;
use postern_config::{Facts, HttpFacts, Verdict, authorize::authorize};
use postern_identity::SpiffeId;
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
};

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authorize");
    for rules in [10, 1_000, 10_000] {
        let snapshot = snapshot(rules).expect("a valid policy");
        let headers = HeaderMap::new();
        for (what, number, wanted) in [("allow", rules - 1, Verdict::Allow), ("deny", rules, Verdict::Deny)] {
            let peer: SpiffeId = format!("spiffe://cluster.local/ns/n{number}/sa/caller").parse().unwrap();
            let path = format!("/v1/items/{number}");
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
            let facts = Facts {
                peer: Some(&peer),
                source_ip: ip,
                remote_ip: ip,
                destination_ip: ip,
                destination_port: 8080,
                sni: None,
                http: Some(HttpFacts {
                    method: "POST",
                    path: &path,
                    host: "payments-api",
                    headers: &headers,
                }),
            };
            assert_eq!(authorize(&snapshot, &facts).verdict, wanted);
            group.bench_function(BenchmarkId::new(what, rules), |b| {
                b.iter(|| authorize(black_box(&snapshot), black_box(&facts)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
