//! One record, one line, whichever way it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::{
    bootstrap::AccessLogSink,
    telemetry::{Options, Writers},
};
use http::{HeaderMap, Method};
use postern_config::{RuleRef, documents::authorization_policy::Action};
use postern_identity::{Refusal, SpiffeId, refusal::Validity};
use tokio::sync::mpsc;

fn address() -> SocketAddr {
    "10.0.0.1:4000".parse().unwrap()
}

fn telemetry() -> (Telemetry, Writers, mpsc::Receiver<String>) {
    let (sender, lines) = mpsc::channel(4096);
    let options = Options {
        access_log: AccessLogSink::Channel(sender),
        otel: Default::default(),
        access_log_lines: Default::default(),
        service: "shop".into(),
    };
    let (telemetry, writers) = Telemetry::start(options).unwrap();
    (telemetry, writers, lines)
}

async fn lines_of(act: impl FnOnce(&Telemetry)) -> Vec<serde_json::Value> {
    let (telemetry, writers, mut lines) = telemetry();
    act(&telemetry);
    writers.finish().await;
    let mut seen = Vec::new();
    while let Ok(line) = lines.try_recv() {
        seen.push(serde_json::from_str(&line).unwrap());
    }
    seen
}

/// Every way in which a connection with `requests` requests can end: (how many exits there were, lines written).
#[tokio::test]
async fn every_connection_and_request_writes_exactly_one_line_whichever_way_it_ends() {
    let endings: [fn(Record); 5] = [
        drop,
        |mut record| record.set_status(200),
        |mut record| record.set_error(&ProxyError::NoSnapshot),
        |mut record| {
            record.set_error(&ProxyError::DownstreamGone);
            record.set_error(&ProxyError::Draining);
        },
        |record| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _record = record;
                std::panic::resume_unwind(Box::new("a bug"));
            }));
            assert!(caught.is_err());
        },
    ];
    for requests in 0..4usize {
        for ending in endings {
            let lines = lines_of(|telemetry| {
                let mut connection = telemetry.connection(Direction::Inbound, address(), address());
                for _ in 0..requests {
                    let mut request = connection.request();
                    request.set_request(&Method::GET, "shop", "/", &HeaderMap::new());
                    ending(request);
                }
                ending(connection);
            })
            .await;
            assert_eq!(lines.len(), requests.max(1));
        }
    }
}

#[tokio::test]
async fn a_request_inherits_addresses_and_tls_but_neither_decision_nor_bytes() {
    let lines = lines_of(|telemetry| {
        let mut connection = telemetry.connection(Direction::Inbound, address(), address());
        connection.set_own_identity("spiffe://td/ns/shop/sa/web");
        connection.set_tls(&crate::tls::TlsFacts {
            version: Some("TLSv1.3"),
            sni: Some("shop".into()),
            alpn: None,
        });
        connection.add_received(77);
        let mut request = connection.request();
        request.set_protocol("http/1.1");
        let mut headers = HeaderMap::new();
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert("traceparent", parent.parse().unwrap());
        request.set_request(&Method::PUT, "shop", "/a", &headers);
        request.set_status(204);
        request.add_sent(5);
    })
    .await;
    let line = &lines[0];
    assert_eq!(line["tls.protocol.version"], "1.3");
    assert_eq!(line["tls.client.server_name"], "shop");
    assert_eq!(line["postern.destination.id"], "spiffe://td/ns/shop/sa/web");
    assert_eq!(
        (line["network.peer.address"].as_str(), &line["network.peer.port"]),
        (Some("10.0.0.1"), &4000.into())
    );
    assert_eq!(
        (line["postern.bytes_received"].as_u64(), line["postern.bytes_sent"].as_u64()),
        (Some(0), Some(5))
    );
    assert_eq!(
        (line["http.response.status_code"].as_u64(), line["postern.flags"].as_str()),
        (Some(204), Some("-"))
    );
    // The caller's own, since no spans are sent.
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["span_id"], "00f067aa0ba902b7");
    assert!(line.get("postern.decision").is_none());
}

#[tokio::test]
async fn a_refusal_whose_reason_is_time_tells_how_the_clocks_stood_and_another_does_not() {
    let expired = |what: &str| Refusal::Expired {
        what: what.into(),
        validity: Validity { now: 9, not_before: 1, not_after: 5 },
    };
    let id: SpiffeId = "spiffe://td/ns/shop/sa/web".parse().unwrap();
    let above = Refusal::Of { id: id.clone(), rule: Box::new(expired("its authority")) };
    let rows = [(expired("it"), true), (above, true), (Refusal::NoUriSan, false)];
    for measured in [None, Some(7.0)] {
        let lines = lines_of(|telemetry| {
            if let Some(skew) = measured {
                telemetry.metrics().set_clock_skew(skew);
            }
            for (refusal, _) in rows.clone() {
                let mut record = telemetry.connection(Direction::Inbound, address(), address());
                record.set_error(&ProxyError::PeerRefused { own: id.clone(), refusal: Box::new(refusal) });
            }
        })
        .await;
        assert_eq!(lines.len(), rows.len());
        for (line, (_, is_about_time)) in lines.iter().zip(&rows) {
            let tells = line["postern.reason"].as_str().unwrap().contains("clock is +7.0 s from ours");
            assert_eq!(tells, *is_about_time && measured.is_some(), "{line}");
        }
    }
}

#[tokio::test]
async fn a_request_that_got_no_answer_says_that_downstream_went_away() {
    let lines = lines_of(|telemetry| {
        let mut connection = telemetry.connection(Direction::Inbound, address(), address());
        drop(connection.request());
    })
    .await;
    assert_eq!(lines[0]["postern.flags"], "DC");
}

#[tokio::test]
async fn a_denial_gets_an_id_and_is_remembered_and_an_allowed_twin_gets_none() {
    for verdict in [Verdict::Deny, Verdict::Allow] {
        let mut remembered = 0;
        let lines = lines_of(|telemetry| {
            let mut record = telemetry.connection(Direction::Inbound, address(), address());
            let ip = address().ip();
            let facts = Facts {
                claims: None,
                peer: None,
                source_ip: ip,
                remote_ip: ip,
                destination_ip: ip,
                destination_port: 80,
                sni: None,
                http: None,
            };
            let reason = if verdict == Verdict::Deny { Reason::DefaultDeny } else { Reason::NoPolicy };
            let decision = Decision { verdict, reason };
            let judgement = Judgement { decision, dry_run: None, dry_run_policy: None, audit: None };
            record.set_decision(&judgement, &facts, &Workload::default(), &"v7".into());
            let id = record.decision_id().map(str::to_owned);
            assert_eq!(id.is_some(), verdict == Verdict::Deny);
            if let Some(id) = id {
                assert_eq!(id.len(), 16);
                assert_eq!(&*telemetry.denials().find(&id).unwrap().policy_version, "v7");
            }
            remembered = telemetry.denials().newest(9).len();
        })
        .await;
        let is_denied = verdict == Verdict::Deny;
        assert_eq!(remembered, usize::from(is_denied));
        assert_eq!(lines[0]["postern.decision"], if is_denied { "deny" } else { "allow" });
        assert_eq!(lines[0]["postern.policy.version"], "v7");
        assert_eq!(lines[0].get("postern.decision.id").is_some(), is_denied);
    }
}

#[tokio::test]
async fn a_dry_run_difference_is_named_and_counted_and_its_absence_leaves_no_trace() {
    let rule = |policy: &str, action| {
        Arc::new(RuleRef { namespace: "shop".into(), policy: policy.into(), rule: 1, action })
    };
    let (dry, audit) = (rule("tried", Action::Deny), rule("watched", Action::Audit));
    let workload = Workload { namespace: "shop".into(), name: "cart-0".into(), ..Workload::default() };
    for differs in [true, false] {
        let mut metrics = String::new();
        let lines = lines_of(|telemetry| {
            let mut record = telemetry.connection(Direction::Inbound, address(), address());
            let ip = address().ip();
            let facts = Facts {
                claims: None,
                peer: None,
                source_ip: ip,
                remote_ip: ip,
                destination_ip: ip,
                destination_port: 80,
                sni: None,
                http: None,
            };
            let decision = Decision { verdict: Verdict::Allow, reason: Reason::NoPolicy };
            let tried = Decision { verdict: Verdict::Deny, reason: Reason::Rule(&dry) };
            let judgement = Judgement {
                decision,
                dry_run: differs.then_some(tried),
                dry_run_policy: None,
                audit: differs.then_some(&audit),
            };
            record.set_decision(&judgement, &facts, &workload, &"v7".into());
            drop(record);
            metrics = telemetry.metrics().encode(SystemTime::now());
        })
        .await;
        let counted = "postern_dry_run_differences_total{source_principal=\"unknown\",destination_workload=\"shop/cart-0\",verdict=\"would_deny\",policy=\"shop/tried\",rule=\"1\"} 1";
        assert_eq!(metrics.contains(counted), differs, "{metrics}");
        assert_eq!(lines[0]["postern.decision"], "allow");
        if differs {
            assert_eq!(lines[0]["postern.would.decision"], "deny");
            assert_eq!(lines[0]["postern.would.policy"], "shop/tried");
            assert_eq!(lines[0]["postern.would.rule"], 1);
            assert_eq!(lines[0]["postern.audit.policy"], "shop/watched");
        } else {
            assert!(
                lines[0]
                    .as_object()
                    .unwrap()
                    .keys()
                    .all(|key| !key.starts_with("postern.would") && key != "postern.audit.policy")
            );
        }
    }
}

#[test]
fn our_share_of_the_time_leaves_out_the_waiting_and_the_streaming() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let check = |act: &dyn Fn(&mut Stopwatch), total, ours| {
        let mut clock = Stopwatch::started(start);
        act(&mut clock);
        let (saw_total, saw_ours) = clock.read(at(total));
        assert_eq!((saw_total, saw_ours), (Duration::from_millis(total), Duration::from_millis(ours)));
    };
    check(&|_| {}, 10, 10);
    check(&|clock| clock.wait(at(2)), 10, 2);
    let answered = |clock: &mut Stopwatch| {
        clock.wait(at(2));
        clock.resume(at(7));
    };
    check(&answered, 10, 5);
    check(
        &|clock| {
            answered(clock);
            clock.stop(at(8));
        },
        1000,
        3,
    );
    // A retry waits twice.
    check(
        &|clock| {
            answered(clock);
            clock.wait(at(8));
            clock.resume(at(9));
        },
        10,
        4,
    );
}
