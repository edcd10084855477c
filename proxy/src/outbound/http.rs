//! Outbound HTTP: every request picks its endpoint, and goes only to the identity that is expected there.

use super::{
    note_endpoint,
    outside::{Names, note_service},
    reach::{self, Name, Route},
};
use crate::{
    error::ProxyError,
    http::{
        Body,
        body::{Exchange, Upload},
        canonical::{Size, Target, canonical},
        headers::{self, Wish},
        is_grpc,
        message::{Answering, Incoming},
        pool::{Failure, Key, Lease, Terms},
        protocol_name,
        serve::Close,
    },
    net::Prefixed,
    state::{Destination, Endpoint, Inbound},
    telemetry::{Record, Repeat},
    tls::{Carries, Stream},
    traffic::{
        Worker, balance,
        breaker::Share,
        forward::{self, Asked, Then},
        requests::{self, Answer, Carrying},
        upstream::{Outcome, Upstream},
    },
};
use ::http::{Request, Response, request::Parts};
use futures_util::FutureExt;
use postern_config::{
    documents::{Upgrades, destination_rule::Traffic},
    path::Normalization,
};
use std::{
    cell::{Cell, RefCell},
    future::ready,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// One connection and all its requests.
struct Connection {
    worker: Rc<Worker>,
    route: Route,
    // Where each request says by its Host whom it is for.
    names: Option<Names>,
    // What the last request found out, since most find the same.
    known: RefCell<Option<Known>>,
    http2: bool,
}

/// A destination and what was found out about it.
struct Known {
    destination: Arc<Destination>,
    upstream: Rc<Upstream>,
    /// The server name that the handshake says.
    sni: Rc<str>,
}

/// One request, on whichever endpoint it is tried.
struct Call<'c> {
    upstream: &'c Upstream,
    traffic: &'c Traffic,
    sni: Rc<str>,
    http2: bool,
    exchange: &'c Exchange,
}

/// A request in its one reading.
struct Heard {
    parts: Parts,
    target: Target,
    incoming: Incoming,
    wish: Wish,
    grpc: bool,
}

/// A request as it goes on.
struct Asking {
    destination: Arc<Destination>,
    request: Box<Request<Upload>>,
    exchange: Rc<Exchange>,
    http2: bool,
    wish: Wish,
    grpc: bool,
}

/// Serves one connection of the app; `by_name`: its requests say whom they are for, and the address does not.
pub fn serve(
    worker: Rc<Worker>,
    route: Route,
    by_name: bool,
    stream: Prefixed<Stream>,
    http2: bool,
    deadline: Instant,
    record: Record,
) -> Carrying {
    let names = by_name.then(Names::default);
    let connection =
        Rc::new(Connection { worker: worker.clone(), route, names, known: RefCell::default(), http2 });
    let respond = move |request, record| connection.clone().request(request, record);
    requests::serve(&worker, stream, http2, deadline, record, respond)
}

/// An answer, and what it holds.
struct Attempt {
    response: Response<Answering>,
    lease: Lease,
    turn: Option<OwnedSemaphorePermit>,
    sent: Instant,
}

impl Connection {
    /// All that needs nobody else is done at once; what waits is apart, and only as large as it is.
    fn request(self: Rc<Self>, request: Request<Incoming>, mut record: Record) -> Answer {
        let (mut parts, incoming) = request.into_parts();
        let grpc = is_grpc(&parts.headers);
        record.set_protocol(protocol_name(&parts, grpc));

        // The app cannot speak for us: its own client-cert header would be believed at the other end.
        let wish = headers::clean_request(&mut parts.headers);
        // The path travels as written; the other end, whose policy it is, normalizes it.
        let target = match canonical(&mut parts, Normalization::None, Size::WithOurs, self.route.original) {
            Ok(target) => target,
            Err(error) => {
                record.set_request(&parts.method, "", parts.uri.path(), &parts.headers);
                let unread = (parts, incoming);
                return forward::turn_away(error, unread, record, grpc, self.http2, Then::Closes);
            }
        };
        record.set_request(&parts.method, target.host(), target.path(), &parts.headers);
        let wish = self.allowed(wish);
        let heard = Heard { parts, target, incoming, wish, grpc };
        if self.names.is_none() {
            let destination = self.route.handle.current();
            return self.pass_on(destination, heard, record);
        }
        Box::pin(async move {
            let Some(names) = &self.names else { return Err(Close) };
            match names.destination(&self.worker, heard.target.host(), &self.route).await {
                Ok(destination) => {
                    note_service(&mut record, &destination);
                    self.clone().pass_on(destination, heard, record).await
                }
                Err(error) => {
                    let unread = (heard.parts, heard.incoming);
                    forward::turn_away(error, unread, record, grpc, self.http2, Then::GoesOn).await
                }
            }
        })
    }

    /// What our own pod may leave HTTP/1.1 for; before the first policy nothing but WebSockets.
    fn allowed(&self, wish: Wish) -> Wish {
        if !wish.is_upgrade() {
            return wish;
        }
        match self.worker.shared.store.inbound() {
            Some(own) => wish.within(own.snapshot.upgrades()),
            None => wish.within(&Upgrades::default()),
        }
    }

    /// The request as it goes on.
    fn pass_on(self: Rc<Self>, destination: Arc<Destination>, heard: Heard, mut record: Record) -> Answer {
        let Heard { mut parts, target, incoming, wish, grpc } = heard;
        if let Err(error) = Route::endpoints(&destination, self.route.original) {
            let unread = (parts, incoming);
            return forward::turn_away(error, unread, record, grpc, self.http2, Then::GoesOn);
        }
        record.set_request_id(headers::ensure_request_id(&mut parts.headers));
        record.pass_trace_on(&mut parts.headers);

        let (upload, exchange) = Upload::new(incoming, self.worker.headroom.clone());
        // An upgrade needs HTTP/1.1.
        let http2 = self.http2 || (destination.traffic().upgrades_to_http2 && wish == Wish::Answer);
        match forward::upstream_request(parts, target, upload, http2, &wish) {
            Ok(request) => {
                let patience = destination.traffic().request_timeout.filter(|_| wish == Wish::Answer);
                if let Some(patience) = patience {
                    record.set_deadline(patience);
                }
                let asking = Asking { destination, request, exchange, http2, wish, grpc };
                let answer = Box::pin(self.forward(asking, record));
                requests::in_time(answer, patience, Duration::ZERO, grpc)
            }
            Err(error) => Box::pin(ready(Ok(forward::refuse(&error, record, grpc)))),
        }
    }

    async fn forward(self: Rc<Self>, asking: Asking, mut record: Record) -> Result<Response<Body>, Close> {
        let Asking { destination, request, exchange, http2, wish, grpc } = asking;
        Ok(match self.send(&destination, request, http2, &exchange, &mut record).await {
            Ok((response, lease)) => {
                let is_tunnel = wish.is_upgrade();
                let half_closed = self.worker.shared.settings.limits.half_closed;
                let tunnels = self.worker.tunnels.clone();
                let place = is_tunnel.then(|| self.worker.shared.governor.enter());
                let headroom = self.worker.headroom.clone();
                let watch = lease.watch().clone();
                record.set_watch(watch.clone());
                let revoked = is_tunnel.then(|| {
                    let (worker, wish) = (self.worker.clone(), wish.clone());
                    let revoked = async move {
                        let judge = |own: &Inbound| wish.still_within(own.snapshot.upgrades()).err();
                        tokio::select! {
                            error = worker.revoked(judge) => error,
                            refusal = watch.ended() => ProxyError::UpstreamDistrusted(refusal),
                            () = worker.shared.drain.over() => ProxyError::Draining,
                        }
                    };
                    revoked.boxed_local()
                });
                let asked = Asked { wish, grpc, http2: self.http2, half_closed, tunnels, place, headroom };
                forward::deliver(response, lease, exchange, record, asked, revoked)
            }
            Err(error) => {
                record.upstream_answered(Instant::now().into_std());
                record.add_received(exchange.received());
                forward::refuse(&error, record, grpc)
            }
        })
    }

    /// What is known of the service, and the server name that the handshake says.
    fn upstream(&self, destination: &Arc<Destination>, name: Name<'_>) -> (Rc<Upstream>, Rc<str>) {
        let mut known = self.known.borrow_mut();
        let found = match known.take() {
            Some(found) if Arc::ptr_eq(&found.destination, destination) => found,
            _ => Known {
                destination: destination.clone(),
                upstream: self.worker.upstreams.of(destination),
                sni: name.sni(),
            },
        };
        let Known { upstream, sni, .. } = known.insert(found);
        (upstream.clone(), sni.clone())
    }

    /// Tries endpoints one after the other, as long as it is certain that trying once more does nothing twice.
    async fn send(
        &self,
        destination: &Arc<Destination>,
        mut request: Box<Request<Upload>>,
        http2: bool,
        exchange: &Exchange,
        record: &mut Record,
    ) -> Result<(Response<Answering>, Lease), ProxyError> {
        let worker = &self.worker;
        let (endpoints, name) = Route::endpoints(destination, self.route.original)?;
        let ((upstream, sni), traffic) = (self.upstream(destination, name), destination.traffic());
        let metrics = worker.shared.telemetry.metrics().upstreams();
        let share = Share(worker.shared.settings.workers);
        let under_way = upstream.breaker.request(traffic.max_requests, share).inspect_err(|_| {
            metrics.circuit_open(&upstream.name, "http2MaxRequests");
        })?;
        worker.pool.budget.deposit();
        let call = Call { upstream: &upstream, traffic, sni, http2, exchange };
        let began = Instant::now();
        let (mut tried, mut tries, mut again, mut now) = (Vec::new(), 0, None, began);
        record.upstream_started(began.into_std());
        loop {
            let Some((endpoint, state)) =
                balance::pick(&upstream, endpoints, &tried, traffic, now, balance::random)
            else {
                return Err(ProxyError::NoEndpoint(self.route.original.to_string()));
            };
            note_endpoint(record, endpoint);
            let load = state.enter();
            let attempt = self.attempt(&call, endpoint, request, now, record).await;
            drop(again.take());
            now = Instant::now();
            let failure = match attempt {
                Ok(Attempt { response, mut lease, turn, sent }) => {
                    let outcome = Outcome::Answered(response.status().as_u16(), now - sent);
                    upstream.learn(endpoint.dial, &state, outcome, endpoints.len(), traffic, now);
                    lease.count(([Some(under_way), Some(load)], turn));
                    record.upstream_answered(now.into_std());
                    return Ok((response, lease));
                }
                Err(failure) => failure,
            };
            match &failure.error {
                ProxyError::CircuitOpen(limit) => metrics.circuit_open(&upstream.name, limit),
                error => {
                    if let Some(outcome) = Outcome::of(error) {
                        upstream.learn(endpoint.dial, &state, outcome, endpoints.len(), traffic, now);
                    }
                }
            }
            let Some(unprocessed) = failure.again else { return Err(failure.error) };
            (tries, request) = (tries + 1, unprocessed);
            tried.push(endpoint.dial);
            if endpoints.iter().all(|endpoint| tried.contains(&endpoint.dial)) {
                // Who could not be reached a moment ago cannot be reached now; who lost a connection may take another.
                if failure.error.is_retryable() {
                    return Err(failure.error);
                }
                tried.clear();
            }
            again = match reach::another_try(worker, &upstream, traffic, tries, began) {
                Some(repeat) => Some(repeat),
                None => return Err(failure.error),
            };
        }
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        endpoint: &Endpoint,
        request: Box<Request<Upload>>,
        now: Instant,
        record: &mut Record,
    ) -> Result<Attempt, Failure> {
        let (worker, traffic) = (&self.worker, call.traffic);
        let refused = |error| Failure { error, again: None };
        let credentials = reach::credentials_for(worker, endpoint).map_err(refused)?;
        // HTTP/2 shares its connections: there the number of requests is the limit.
        let turn = if call.http2 {
            None
        } else {
            let patience = traffic.connect_timeout.unwrap_or(worker.shared.settings.limits.connect);
            let share = Share(worker.shared.settings.workers);
            let (most, pending) = (traffic.max_connections, traffic.max_pending);
            call.upstream.breaker.connection_in_turn(most, pending, share, patience).await.map_err(refused)?
        };
        let key = Key {
            address: endpoint.dial,
            source: None,
            identity: endpoint.identity.clone(),
            sni: endpoint.identity.is_some().then(|| call.sni.clone()),
            http2: call.http2,
        };
        let terms = Terms {
            idle: traffic.http_idle,
            requests: traffic.requests_per_connection,
            opening: traffic.connect_timeout,
        };
        let carries = if call.http2 { Carries::Http2 } else { Carries::Http1 };
        let (met, sent) = (RefCell::new(None), Cell::new(now));
        let dial = async |waited| {
            let credentials = credentials.as_deref();
            let opened =
                reach::open(worker, endpoint, credentials, &call.sni, carries, traffic, waited).await?;
            *met.borrow_mut() = opened.met;
            // The time that the handshake takes is no latency of the service.
            sent.set(Instant::now());
            Ok((opened.stream, opened.watch))
        };
        let before = call.exchange.repeats();
        let answer = worker.pool.send(&key, terms, credentials.as_ref(), request, call.exchange, dial).await;
        reach::note_peer(record, met.borrow().as_ref());
        let repeats = call.exchange.repeats() - before;
        if repeats > 0 {
            let metrics = worker.shared.telemetry.metrics().upstreams();
            metrics.repeated(&call.upstream.name, Repeat::Sent, repeats);
        }
        answer.map(|(response, lease)| Attempt { response, lease, turn, sent: sent.get() })
    }
}
