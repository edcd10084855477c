//! Outbound HTTP: every request picks its endpoint, and goes only to the identity that is expected there.

use super::{
    note_endpoint,
    reach::{self, MOST_TRIES, Route},
};
use crate::{
    error::ProxyError,
    http::{
        Body,
        body::{Exchange, Upload},
        canonical::canonical,
        headers::{self, Wish},
        is_grpc,
        pool::{Key, Lease},
        protocol_name,
        serve::Close,
    },
    net::Prefixed,
    state::{Destination, Endpoint},
    telemetry::Record,
    tls::{Carries, Stream},
    traffic::{
        Worker, balance,
        forward::{self, Asked},
        requests,
    },
};
use ::http::{Request, Response, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use postern_config::path::Normalization;
use std::{cell::RefCell, rc::Rc};
use tokio::time::Instant;

/// One connection and all its requests.
struct Connection {
    worker: Rc<Worker>,
    route: Route,
    http2: bool,
}

/// Serves one connection of the app.
pub async fn serve(
    worker: Rc<Worker>,
    route: Route,
    stream: Prefixed<Stream>,
    http2: bool,
    deadline: Instant,
    record: Record,
) {
    let connection = Rc::new(Connection { worker: worker.clone(), route, http2 });
    let respond = move |request, record| connection.clone().request(request, record);
    requests::serve(&worker, stream, http2, deadline, record, respond).await;
}

impl Connection {
    async fn request(
        self: Rc<Self>,
        request: Request<Incoming>,
        mut record: Record,
    ) -> Result<Response<Body>, Close> {
        let (mut parts, incoming) = request.into_parts();
        let grpc = is_grpc(&parts.headers);
        record.set_protocol(protocol_name(&parts, grpc));

        // The app cannot speak for us: its own client-cert header would be believed at the other end.
        let wish = headers::clean_request(&mut parts.headers);
        // The path travels as written; the other end, whose policy it is, normalizes it.
        let target = match canonical(&mut parts, Normalization::None, self.route.original) {
            Ok(target) => target,
            Err(error) => {
                record.set_request(&parts.method, "", parts.uri.path(), &parts.headers);
                let mut response = self.refuse(&error, &parts, incoming, record, grpc).await;
                forward::close_after(&mut response, self.http2);
                return Ok(response);
            }
        };
        record.set_request(&parts.method, target.host(), target.path(), &parts.headers);
        let destination = self.route.handle.current();
        if let Err(error) = Route::endpoints(&destination, self.route.original) {
            return Ok(self.refuse(&error, &parts, incoming, record, grpc).await);
        }
        headers::ensure_request_id(&mut parts.headers);
        if let Some(traceparent) = record.traceparent() {
            parts.headers.insert("traceparent", traceparent);
        }

        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let (upload, exchange) = Upload::new(incoming, self.http2);
        let request = match forward::upstream_request(parts, target, upload, self.http2, wish) {
            Ok(request) => request,
            Err(error) => return Ok(forward::refuse(&error, record, grpc)),
        };
        record.upstream_started();
        match self.send(&destination, request, &exchange, &mut record).await {
            Ok((response, lease)) => {
                let half_closed = self.worker.shared.settings.limits.half_closed;
                let tunnels = self.worker.tunnels.clone();
                let place = (wish == Wish::WebSocket).then(|| self.worker.shared.governor.enter());
                let asked = Asked { wish, upgrade, grpc, half_closed, tunnels, place };
                let drain = self.worker.shared.drain.clone();
                let watched = wish == Wish::WebSocket;
                let watch = lease.watch().clone();
                record.set_watch(watch.clone());
                let ended = async move {
                    if !watched {
                        return std::future::pending().await;
                    }
                    tokio::select! {
                        refusal = watch.ended() => ProxyError::UpstreamDistrusted(refusal),
                        () = drain.over() => ProxyError::Draining,
                    }
                };
                Ok(forward::deliver(response, lease, exchange, record, asked, ended))
            }
            Err(error) => {
                record.upstream_answered();
                record.add_received(exchange.received());
                Ok(forward::refuse(&error, record, grpc))
            }
        }
    }

    /// Tries endpoints one after the other, as long as it is certain that none has seen the request.
    async fn send(
        &self,
        destination: &Destination,
        mut request: Request<Upload>,
        exchange: &Exchange,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Lease), ProxyError> {
        let pool = &self.worker.pool;
        let (endpoints, name) = Route::endpoints(destination, self.route.original)?;
        let sni = name.sni();
        let mut tried = Vec::new();
        loop {
            let endpoint = balance::pick(endpoints, &tried, |address| pool.load(address), balance::random)
                .ok_or_else(|| ProxyError::NoEndpoint(self.route.original.to_string()))?;
            note_endpoint(record, endpoint);
            match self.send_to(endpoint, &sni, request, exchange, record).await {
                Ok(answer) => return Ok(answer),
                Err((error, unsent)) => {
                    tried.push(endpoint.dial);
                    let another = tried.len() < MOST_TRIES
                        && error.is_retryable()
                        && endpoints.iter().any(|endpoint| !tried.contains(&endpoint.dial));
                    request = match unsent {
                        Some(unsent) if another => *unsent,
                        _ => return Err(error),
                    };
                }
            }
        }
    }

    async fn send_to(
        &self,
        endpoint: &Endpoint,
        sni: &Rc<str>,
        request: Request<Upload>,
        exchange: &Exchange,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Lease), (ProxyError, Option<Box<Request<Upload>>>)> {
        let credentials = match reach::credentials_for(&self.worker, endpoint) {
            Ok(credentials) => credentials,
            Err(error) => return Err((error, None)),
        };
        let key = Key {
            address: endpoint.dial,
            identity: endpoint.identity.clone(),
            sni: endpoint.identity.is_some().then(|| sni.clone()),
            http2: self.http2,
        };
        let carries = if self.http2 { Carries::Http2 } else { Carries::Http1 };
        let met = RefCell::new(None);
        let dial = || async {
            let opened = reach::open(&self.worker, endpoint, credentials.as_deref(), sni, carries).await?;
            *met.borrow_mut() = opened.met;
            Ok((opened.stream, opened.watch))
        };
        let sent = self.worker.pool.send(&key, credentials.as_ref(), request, exchange, dial).await;
        reach::note_peer(record, met.borrow().as_ref());
        sent.map_err(|failure| (failure.error, failure.unsent))
    }

    async fn refuse(
        &self,
        error: &ProxyError,
        parts: &Parts,
        incoming: Incoming,
        record: Record,
        grpc: bool,
    ) -> Response<Body> {
        let is_drained = self.http2 || forward::drain(parts, incoming).await;
        let mut response = forward::refuse(error, record, grpc);
        if !is_drained {
            forward::close_after(&mut response, self.http2);
        }
        response
    }
}
