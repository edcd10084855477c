//! Which calls a tap shows, and how many of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::telemetry::entry::Request;

const CALLER: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";

fn call(direction: Direction) -> Entry {
    let address = "10.0.0.1:8080".parse().unwrap();
    let mut entry = Entry::new(direction, SystemTime::UNIX_EPOCH, address, address);
    entry.source_principal = Some(Arc::from(CALLER));
    entry.destination_service = Some(Arc::from("payments-api.payments.svc.cluster.local"));
    entry.status = Some(403);
    entry.refusal = Some("plaintext-refused");
    entry.request = Some(Request {
        method: http::Method::POST,
        authority: "payments-api".into(),
        path: "/v1/charges".into(),
        id: None,
        headers: vec![],
        noted: None,
    });
    entry
}

fn check(direction: Direction, write: impl FnOnce(&mut Filter), expected: bool) {
    let mut filter = Filter::default();
    write(&mut filter);
    assert_eq!(filter.passes(&call(direction)), expected, "{filter:?}");
}

#[test]
fn each_part_of_a_filter_lets_pass_what_it_names_and_nothing_else() {
    use Direction::{Inbound, Outbound};
    check(Inbound, |_| {}, true);
    for (from, passes) in [
        (CALLER, true),
        ("ns/checkout/sa/checkout-api", true),
        ("ns/checkout/sa/checkout", false),
        ("checkout-api", false),
    ] {
        check(Inbound, |filter| filter.from = Some(from.into()), passes);
    }
    for (host, passes) in [
        ("payments-api", true),
        ("payments-api.payments", true),
        ("payments-api.payments.svc.cluster.local", true),
        ("payments", false),
        ("payments-api.pay", false),
    ] {
        let called = |own| Some(Called { own, hosts: vec![host.into()] });
        check(Outbound, |filter| filter.to = called(true), passes);
        check(Inbound, |filter| filter.to = called(false), false);
    }
    check(Inbound, |filter| filter.to = Some(Called { own: true, hosts: vec![] }), true);
    check(Inbound, |filter| filter.direction = Some(Outbound), false);
    check(Outbound, |filter| filter.direction = Some(Outbound), true);
    for (method, passes) in [("POST", true), ("GET", false)] {
        check(Inbound, |filter| filter.method = Some(method.into()), passes);
    }
    for (path, passes) in [("/v1/", true), ("/v2", false)] {
        check(Inbound, |filter| filter.path_prefix = path.into(), passes);
    }
    for (status, passes) in [((403, 403), true), ((400, 499), true), ((500, 599), false)] {
        check(Inbound, |filter| filter.status = Some(status), passes);
    }
    for (is_allowed, passes) in [(false, true), (true, false)] {
        check(Inbound, |filter| filter.is_allowed = Some(is_allowed), passes);
    }
}

#[tokio::test]
async fn only_so_many_are_shown_in_a_second_and_the_rest_is_counted() {
    let (taps, now) = (Taps::default(), Instant::now());
    let tap = |id, rate| Tap::new(id, rate, now + Duration::from_secs(60), Filter::default());
    assert!(!taps.is_open());
    taps.set(vec![tap(1, 3), tap(2, 5)]);
    assert!(taps.is_open());
    let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    for _ in 0..100 {
        taps.observe(&call(Direction::Inbound), at(7));
    }
    let shown = taps.next(64).await;
    assert_eq!(shown.iter().filter(|one| one.taps.contains(&1)).count(), 3);
    assert_eq!(shown.iter().filter(|one| one.taps.contains(&2)).count(), 5);
    assert_eq!(taps.turn(now), [(1, 97), (2, 95)]);
    assert_eq!(taps.turn(now), []);
    // Told again that it is open, a tap goes on; the next second has room again.
    taps.set(vec![tap(1, 3)]);
    taps.observe(&call(Direction::Inbound), at(7));
    assert_eq!(taps.turn(now), [(1, 1)]);
    taps.observe(&call(Direction::Inbound), at(8));
    assert_eq!(taps.next(64).await.len(), 1);
    // It ends by itself.
    taps.turn(now + Duration::from_secs(61));
    assert!(!taps.is_open());
}

#[test]
fn calls_that_nobody_takes_wait_up_to_a_bound() {
    let taps = Taps::default();
    let end = Instant::now() + Duration::from_secs(60);
    taps.set(vec![Tap::new(1, 1000, end, Filter::default())]);
    for second in 0..2 {
        for _ in 0..1000 {
            taps.observe(&call(Direction::Inbound), SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        }
    }
    assert_eq!(taps.waiting.lock().len(), WAITING);
    assert_eq!(taps.turn(Instant::now()), [(1, 2000 - WAITING as u64)]);
    taps.set(vec![]);
    assert!(taps.waiting.lock().is_empty(), "what nobody asks for any more is not kept");
}
