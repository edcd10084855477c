//! What takes long: streams that no limit ends, answers that one does, and connections that come all at once.
use super::{
    limits::{GET, LONG, SHORT, answer, gate, open, rest},
    *,
};
use crate::traffic::Limits;
use std::cell::Cell;

/// An app that answers one request with these pieces, each after a while.
async fn slow_app(pieces: &'static [(Duration, &'static [u8])]) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0);
        }
        for (pause, piece) in pieces {
            tokio::time::sleep(*pause).await;
            stream.write_all(piece).await.unwrap();
        }
    });
    App { address, seen: Rc::default() }
}

#[tokio::test]
async fn no_limit_ends_a_stream_of_events_that_goes_on_or_pauses() {
    const PAUSE: Duration = SHORT.saturating_mul(3);
    const EVENTS: &[(Duration, &[u8])] = &[
        (
            Duration::ZERO,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (PAUSE, b"9\r\ndata: 1\n\n\r\n"),
        (PAUSE, b"9\r\ndata: 2\n\n\r\n"),
        (PAUSE, b"9\r\ndata: 3\n\n\r\n0\r\n\r\n"),
    ];
    let run = async {
        let limits = Limits {
            first_request: SHORT,
            next_request: SHORT,
            head: SHORT,
            body: SHORT,
            stalled: SHORT,
            ..Limits::default()
        };
        for (version, ends_with) in
            [("1.1", "data: 3\n\n\r\n0\r\n\r\n"), ("1.0", "data: 1\n\ndata: 2\n\ndata: 3\n\n")]
        {
            let gate =
                gate(slow_app(EVENTS).await, MtlsMode::Disable, limits.clone(), Resources::default()).await;
            let request = format!("GET /events HTTP/{version}\r\nHost: a\r\n\r\n");
            let mut stream = open(gate.address, request.as_bytes()).await;
            // Who speaks 1.1 is closed once nothing was asked for a while; who speaks 1.0 knows the end by the close.
            let told = rest(&mut stream).await;
            assert!(
                told.starts_with(&format!("HTTP/{version} 200 ")) && told.ends_with(ends_with),
                "{version}: {told}"
            );
        }
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn an_answer_of_http_1_0_that_its_server_ends_by_closing_is_whole_and_says_so() {
    const OLD: &[(Duration, &[u8])] =
        &[(Duration::ZERO, b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nold")];
    let run = async {
        let gate =
            gate(slow_app(OLD).await, MtlsMode::Disable, Limits::default(), Resources::default()).await;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let told = rest(&mut open(gate.address, request).await).await;
        assert!(
            told.starts_with("HTTP/1.1 200 ") && told.ends_with("\r\n\r\n3\r\nold\r\n0\r\n\r\n"),
            "{told}"
        );
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn an_answer_that_has_begun_breaks_off_at_the_request_timeout() {
    const PIECES: &[(Duration, &[u8])] = &[
        (Duration::ZERO, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegun"),
        (Duration::from_secs(2), b" and "),
    ];
    let run = async {
        for (timeout, whole) in [(SHORT, false), (LONG, true)] {
            let app = slow_app(PIECES).await;
            let endpoint = Endpoint {
                workload: "payments/payments-api-0".into(),
                dial: app.address,
                port: app.address.port(),
                identity: None,
                protocol: Protocol::Http,
            };
            let traffic = Traffic { request_timeout: Some(timeout), ..Traffic::default() };
            let own = Authority::new().credentials(CHECKOUT);
            let (outbound, _client, _trigger) = caller_to(endpoint, traffic, own);
            let mut stream = open(outbound, GET).await;
            let began = std::time::Instant::now();
            let mut read = vec![0; 512];
            let mut told = String::new();
            while !told.contains("begun") || whole && !told.ends_with("begun and ") {
                let count = stream.read(&mut read).await.unwrap();
                assert!(count > 0, "{told}");
                told += std::str::from_utf8(&read[..count]).unwrap();
            }
            assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
            if !whole {
                assert_eq!(rest(&mut stream).await, "");
                assert!(
                    began.elapsed() >= timeout && began.elapsed() < Duration::from_secs(2),
                    "{:?}",
                    began.elapsed()
                );
            }
        }
    };
    LocalSet::new().run_until(run).await;
}

/// Stands between two sidecars and lets no hello of a handshake through before so many are under way, or `last` have come in all, and then
/// waits a while for more. The most that were under way at the same time.
async fn gather_handshakes(
    listener: TcpListener,
    to: SocketAddr,
    most: usize,
    last: usize,
) -> Rc<Cell<usize>> {
    let (came, under_way, peak) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (news, enough) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (told, go) = (peak.clone(), news.clone());
    let full = enough.clone();
    spawn_local(async move {
        loop {
            full.notified().await;
            // Whoever is held back comes in no time when nothing holds it back.
            tokio::time::sleep(SHORT).await;
            go.notify_waiters();
        }
    });
    spawn_local(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            came.set(came.get() + 1);
            under_way.set(under_way.get() + 1);
            peak.set(peak.get().max(under_way.get()));
            let (under_way, go) = (under_way.clone(), news.clone().notified_owned());
            if under_way.get() >= most || came.get() == last {
                enough.notify_one();
            }
            spawn_local(async move {
                go.await;
                let mut far = TcpStream::connect(to).await.unwrap();
                under_way.set(under_way.get() - 1);
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    told
}

#[tokio::test]
async fn of_a_burst_of_tcp_connections_sixty_four_are_made_at_a_time_and_all_are_served() {
    const BURST: usize = 150;
    let run = async {
        let authority = Authority::new();
        let [caller, called] = [CHECKOUT, PAYMENTS].map(|id| authority.credentials(id));
        let app = app().await;
        let port = app.address.port();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arrival::Fixed(app.address)).unwrap();
        let inbound = listener.local_addr().unwrap();
        let (server, _first) = shared(called, spec(port, MtlsMode::Strict, Protocol::Tcp, vec![]), None);
        spawn_local(inbound::serve(listener, server));
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = between.local_addr().unwrap();
        let peak = gather_handshakes(between, inbound, crate::net::dials::MOST, BURST).await;
        let (outbound, _client, _second) = caller_of(dial, port, Protocol::Tcp, PAYMENTS, caller);
        let mut clients = Vec::new();
        for _ in 0..BURST {
            clients.push(open(outbound, GET).await);
        }
        for client in &mut clients {
            assert!(answer(client).await.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(peak.get(), crate::net::dials::MOST);
        assert_eq!(app.seen.borrow().len(), BURST);
    };
    LocalSet::new().run_until(run).await;
}

/// With a policy that allows one path to everybody and denies it at once, and another that allows a path to all.
fn allowed_and_denied(path: &str) -> Vec<AuthorizationPolicy> {
    let policy = |name: &str, action, path: &str| {
        let operation = Operation { paths: vec![path.into()], ..Operation::default() };
        AuthorizationPolicy {
            metadata: Metadata { name: name.into(), namespace: "payments".into(), ..Metadata::default() },
            action,
            rules: vec![Rule { from: vec![], to: vec![To { operation }], when: vec![] }],
            ..AuthorizationPolicy::default()
        }
    };
    vec![
        policy("allow", Action::Allow, path),
        policy("deny", Action::Deny, path),
        policy("always", Action::Allow, "/always"),
    ]
}

/// Neither version lets anybody have `/one` or `/other`; half of one and half of the other would.
#[tokio::test]
async fn of_policies_that_change_a_hundred_times_a_second_no_call_is_judged_by_halves_of_two() {
    const CHANGES: usize = 300;
    let run = async {
        let pair = pair(Protocol::Http, MtlsMode::Strict, allowed_and_denied("/one"), PAYMENTS).await;
        let (server, port) = (pair.server.clone(), pair.app.address.port());
        let changing = spawn_local(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            for change in 0..CHANGES {
                ticks.tick().await;
                let path = ["/one", "/other"][change % 2];
                let changed = spec(port, MtlsMode::Strict, Protocol::Http, allowed_and_denied(path));
                let snapshot = Snapshot::compile(changed).unwrap();
                server.store.publish_inbound(Inbound { version: change.to_string().into(), snapshot });
            }
        });
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        let mut asked = 0;
        while !changing.is_finished() {
            for (path, status) in [("/one", "403"), ("/other", "403"), ("/always", "200")] {
                let request = format!("GET {path} HTTP/1.1\r\nHost: payments-api\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let told = answer(&mut stream).await;
                assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {told}");
                asked += 1;
            }
        }
        assert!(asked > CHANGES, "{asked}");
        let seen = pair.app.seen.borrow();
        assert!(
            seen.len() == asked / 3 && seen.iter().all(|head| head.starts_with("GET /always ")),
            "{seen:?}"
        );
    };
    LocalSet::new().run_until(run).await;
}
