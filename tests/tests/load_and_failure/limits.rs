//! What a DestinationRule says of connections that nobody uses, and of repeats under way.

use crate::{call, metrics, start};
use postern_tests::{Mesh, faulty::Fault, mesh::within};
use std::time::{Duration, Instant};

/// Unused for so long as the rule says, and no longer; by default it is 4 s for an endpoint without a sidecar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_nobody_uses_is_closed_after_the_time_that_its_rule_says() {
    let idle = |time: &str| format!("connectionPool: {{http: {{idleTimeout: {time}}}}}");
    for http2 in [false, true] {
        let ask = async |mesh: &Mesh, id| {
            let request = call(mesh, "GET", id);
            let request = if http2 { request.http2() } else { request };
            assert_eq!(request.send().await.unwrap().status, 200);
        };
        let (short, briefly) = start(1, &idle("500ms")).await;
        let (long, lastingly) = start(1, &idle("1h")).await;
        for (mesh, app) in [(&short, &briefly[0]), (&long, &lastingly[0])] {
            ask(mesh, 0).await;
            ask(mesh, 1).await;
            assert_eq!((app.connections(), app.over()), (1, 0), "HTTP/2: {http2}");
        }
        let used = Instant::now();
        within("it is closed", async {
            while briefly[0].over() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let took = used.elapsed();
        // The pool is looked through once a second.
        assert!(took >= Duration::from_millis(450) && took < Duration::from_millis(3500), "{took:?}");
        ask(&short, 2).await;
        ask(&long, 2).await;
        assert_eq!((briefly[0].connections(), lastingly[0].connections()), (2, 1), "HTTP/2: {http2}");
        assert_eq!(lastingly[0].over(), 0);
    }
}

/// One repeat may be under way, and waits for an app that does not answer: who fails meanwhile is not sent again, and is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_under_way_are_limited_by_the_rule_and_counted() {
    let rule = |most: u32| {
        format!("loadBalancer: {{simple: ROUND_ROBIN}}, connectionPool: {{http: {{maxRetries: {most}}}}}")
    };
    for (rule, is_limited) in [(rule(1), true), (rule(100), false)] {
        let (mesh, apps) = start(2, &rule).await;
        apps[0].set(Fault::ResetAfterRequest);
        apps[1].set(Fault::Hold);
        let seen = || apps.iter().map(|app| app.ids().len()).sum::<usize>();
        let (mut waiting, mut id) = (Vec::new(), 0);
        let refused = async || {
            let page = metrics(&mesh).await;
            let counted = page.lines().filter(|line| line.contains("result=\"over_limit\""));
            counted.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>()
        };
        // They take turns.
        within("three have been reset", async {
            while apps[0].ids().len() < 3 {
                let before = seen();
                waiting.push(tokio::spawn(call(&mesh, "GET", id).send()));
                id += 1;
                while seen() == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
        .await;
        let resets = apps[0].ids().len();
        let limit = if is_limited { resets - 1 } else { 0 };
        within("they are told, or held", async {
            while refused().await < limit || apps[1].ids().len() + limit < id {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        apps[1].release();
        let mut statuses = Vec::new();
        for call in waiting {
            statuses.push(within("an answer", call).await.unwrap().unwrap().status);
        }
        assert_eq!(statuses.iter().filter(|status| **status == 503).count(), limit, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), id - limit, "{statuses:?}");
        assert_eq!(refused().await, limit);
    }
}
