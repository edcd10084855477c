//! Which destinations are asked for, kept and forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::state::{Endpoint, Lookup, ServiceTarget};

fn address(number: u16) -> SocketAddr {
    SocketAddr::new([10, 0, 0, 1].into(), number)
}

fn asked(number: u16) -> Asked {
    Asked::Address(address(number))
}

fn cache(most: usize) -> Destinations {
    let bounds = Bounds { resolve: Duration::from_secs(5), idle: Duration::from_secs(600), most };
    Destinations::new(bounds, Telemetry::silent())
}

const OUTSIDE: Destination = Destination::Outside { blocked: false, by_name: true, in_mesh: false };

#[tokio::test]
async fn concurrent_askers_share_one_subscription() {
    let cache = cache(10);
    assert!(cache.connected().is_empty());
    let askers: Vec<_> = (0..20)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.resolve(address(80)).await.map(|handle| handle.current()) })
        })
        .collect();
    assert_eq!(cache.wish().await, Wish::Subscribe(asked(80)));
    assert!(cache.apply(&asked(80), OUTSIDE));
    for asker in askers {
        assert_eq!(*asker.await.unwrap().unwrap(), OUTSIDE);
    }
    assert!(cache.0.wishes.lock().queue.is_empty());
    // From now on nobody waits.
    cache.resolve(address(80)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_deadline_ends_the_wait_and_a_late_answer_serves_the_next() {
    let cache = cache(10);
    let error = cache.resolve(address(80)).await.unwrap_err();
    assert!(matches!(error, ProxyError::ResolveTimeout(at) if at == address(80)));
    assert!(cache.apply(&asked(80), OUTSIDE));
    assert!(cache.resolve(address(80)).await.is_ok());
}

#[tokio::test]
async fn a_held_handle_stays_fresh_through_updates() {
    let cache = cache(10);
    let _ = cache.ask(asked(80), Instant::now());
    cache.apply(&asked(80), OUTSIDE);
    let handle = cache.resolve(address(80)).await.unwrap();
    cache.apply(&asked(80), Destination::Outside { blocked: true, by_name: false, in_mesh: false });
    assert_eq!(*handle.current(), Destination::Outside { blocked: true, by_name: false, in_mesh: false });
}

#[tokio::test]
async fn after_a_reconnect_everything_wanted_is_asked_for_again() {
    let cache = cache(10);
    cache.connected();
    let _ = cache.ask(asked(1), Instant::now());
    cache.disconnected();
    let _ = cache.ask(asked(2), Instant::now());
    let mut wanted = cache.connected();
    wanted.sort();
    assert_eq!(wanted, [asked(1), asked(2)]);
    assert!(cache.0.wishes.lock().queue.is_empty());
}

#[tokio::test]
async fn idle_destinations_are_forgotten_and_held_ones_are_not() {
    let cache = cache(10);
    cache.connected();
    for port in [1, 2] {
        let _ = cache.ask(asked(port), Instant::now());
        cache.apply(&asked(port), OUTSIDE);
        assert_eq!(cache.wish().await, Wish::Subscribe(asked(port)));
    }
    let held = cache.resolve(address(1)).await.unwrap();
    cache.sweep(Instant::now() + Duration::from_secs(599));
    assert_eq!(cache.list().len(), 2);
    cache.sweep(Instant::now() + Duration::from_secs(601));
    assert_eq!(cache.wish().await, Wish::Unsubscribe(asked(2)));
    assert!(!cache.apply(&asked(2), OUTSIDE));
    drop(held);
    cache.sweep(Instant::now() + Duration::from_secs(601));
    assert!(cache.list().is_empty());
}

#[tokio::test]
async fn a_full_cache_forgets_the_oldest_and_refuses_when_all_are_in_use() {
    let cache = cache(2);
    cache.connected();
    let mut held = Vec::new();
    for (port, after) in [(1, 1), (2, 2), (3, 3)] {
        let _ = cache.ask(asked(port), Instant::now() + Duration::from_secs(after));
        cache.apply(&asked(port), OUTSIDE);
    }
    let kept: Vec<_> = cache.list().into_iter().map(|(asked, _)| asked).collect();
    assert_eq!(kept, [asked(2), asked(3)]);
    for port in [2, 3] {
        held.push(cache.resolve(address(port)).await.unwrap());
    }
    assert!(matches!(cache.resolve(address(4)).await, Err(ProxyError::Overloaded(_))));
    held.pop();
    assert!(cache.ask(asked(4), Instant::now()).is_ok());
}

#[tokio::test]
async fn one_address_has_one_slot_in_every_spelling() {
    let cache = cache(10);
    let _ = cache.ask(asked(80), Instant::now());
    cache.apply(&asked(80), OUTSIDE);
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
    assert!(cache.resolve(mapped).await.is_ok());
    assert_eq!(cache.list().len(), 1);
}

/// A name that somebody points to a workload of the mesh must not make us speak plaintext to it.
#[tokio::test]
async fn an_address_that_a_name_resolves_to_is_called_as_what_it_is_in_the_mesh() {
    let cache = cache(10);
    cache.connected();
    let (name, pod) = (Asked::Name("a.example".into(), 80), SocketAddr::from(([127, 0, 0, 1], 9)));
    let entry = ServiceTarget {
        lookups: vec![Lookup { name: "127.0.0.1".into(), port: 9 }],
        ..ServiceTarget::default()
    };
    let asking = tokio::spawn({
        let cache = cache.clone();
        async move { cache.resolve_name("a.example", address(80)).await.unwrap() }
    });
    assert_eq!(cache.wish().await, Wish::Subscribe(name.clone()));
    cache.apply(&name, Destination::Service(entry));
    assert_eq!(cache.wish().await, Wish::Subscribe(Asked::Address(pod)));
    let workload = Endpoint {
        identity: Some("spiffe://td/ns/a/sa/a".parse().unwrap()),
        dial: SocketAddr::from(([127, 0, 0, 1], 15006)),
        ..Endpoint::outside(pod)
    };
    cache.apply(&Asked::Address(pod), Destination::Workload(workload.clone()));
    let handle = asking.await.unwrap();
    let endpoints = || match &*handle.current() {
        Destination::Service(service) => service.endpoints.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(endpoints(), [workload]);
    let turns_into = async |destination: Destination, expected: &[Endpoint]| {
        cache.apply(&Asked::Address(pod), destination);
        let changed = async {
            while endpoints() != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), changed).await.expect("it follows");
    };
    let outside = |in_mesh| Destination::Outside { blocked: true, by_name: false, in_mesh };
    turns_into(outside(true), &[]).await;
    turns_into(outside(false), &[Endpoint::outside(pod)]).await;
}
