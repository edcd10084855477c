//! Inbound HTTP: every request is read in one way, judged on the policy of this moment, and only then reaches the app.

use super::{Caller, tcp::connect_app};
use crate::{
    error::ProxyError,
    http::{
        Body,
        body::{Exchange, Upload},
        canonical::{Size, Target, canonical},
        headers::{self, Wish},
        is_grpc,
        message::Incoming,
        pool::{Failure, Key, Terms},
        protocol_name,
        serve::Close,
    },
    net::Prefixed,
    state::{Credentials, Inbound},
    telemetry::Record,
    tls::{Stream, open::Watch},
    traffic::{
        Worker,
        forward::{self, Asked, Then},
        requests::{self, Answer, Carrying},
    },
};
use ::http::{HeaderValue, Request, Response, request::Parts};
use futures_util::FutureExt;
use postern_config::{
    HttpFacts, Verdict,
    authorize::judge,
    path::Normalization,
    snapshot::{Protocol, Snapshot},
};
use std::{cell::RefCell, future::ready, rc::Rc, sync::Arc};
use tokio::time::Instant;

/// One connection and all its requests.
struct Connection {
    worker: Rc<Worker>,
    caller: Caller,
    http2: bool,
    /// What the app is told of the caller, and the credentials of ours that it names.
    told: RefCell<Option<(Arc<Credentials>, HeaderValue)>>,
}

/// A request that was allowed.
struct Asking {
    request: Box<Request<Upload>>,
    exchange: Rc<Exchange>,
    key: Key,
    // What a tunnel is judged by again when policy changes.
    watched: Option<Box<(Parts, Target)>>,
    wish: Wish,
    grpc: bool,
}

/// Serves one connection.
pub fn serve(
    worker: Rc<Worker>,
    caller: Caller,
    stream: Prefixed<Stream>,
    http2: bool,
    deadline: Instant,
    record: Record,
) -> Carrying {
    let connection = Rc::new(Connection { worker: worker.clone(), caller, http2, told: RefCell::default() });
    let respond = move |request, record| connection.clone().request(request, record);
    requests::serve(&worker, stream, http2, deadline, record, respond)
}

impl Connection {
    /// All that needs nobody else is done at once; what waits is apart, and only as large as it is.
    fn request(self: Rc<Self>, request: Request<Incoming>, mut record: Record) -> Answer {
        let (mut parts, incoming) = request.into_parts();
        let grpc = is_grpc(&parts.headers);
        record.set_protocol(protocol_name(&parts, grpc));

        let wish = headers::clean_request(&mut parts.headers);
        let Some(policy) = self.worker.shared.store.inbound() else {
            let unread = (parts, incoming);
            return forward::turn_away(
                ProxyError::NoSnapshot,
                unread,
                record,
                grpc,
                self.http2,
                Then::GoesOn,
            );
        };
        if let Some(objection) = self.caller.objection(&policy.snapshot) {
            note_raw(&mut record, &parts);
            record.set_error(&objection);
            return Box::pin(ready(Err(Close)));
        }
        let mode = policy.snapshot.spec().mesh.path_normalization;
        let target = match self.target(&mut parts, mode) {
            Ok(target) => target,
            Err(error) => {
                note_raw(&mut record, &parts);
                let unread = (parts, incoming);
                return forward::turn_away(error, unread, record, grpc, self.http2, Then::Closes);
            }
        };
        record.set_request(&parts.method, target.host(), target.path(), &parts.headers);
        let wish = wish.within(policy.snapshot.upgrades());

        if self.judge(&policy, &parts, &target, Some(&mut record)) == Verdict::Deny {
            let unread = (parts, incoming);
            return forward::turn_away(ProxyError::Denied, unread, record, grpc, self.http2, Then::GoesOn);
        }
        self.tell_app(&mut parts, &mut record);
        match self.asking(&policy.snapshot, parts, target, incoming, wish, grpc) {
            Ok(asking) => Box::pin(self.forward(asking, record)),
            Err(error) => Box::pin(ready(Ok(forward::refuse(&error, record, grpc)))),
        }
    }

    fn target(&self, parts: &mut Parts, mode: Normalization) -> Result<Target, ProxyError> {
        let target = canonical(parts, mode, Size::Whole, self.caller.destination)?;
        match &self.caller.sni {
            Some(sni) if !target.is_within(sni) => {
                Err(ProxyError::Misdirected { sni: sni.clone(), host: target.host().to_owned() })
            }
            _ => Ok(target),
        }
    }

    /// One decision on one snapshot, about exactly what the app will get.
    fn judge(
        &self,
        policy: &Inbound,
        parts: &Parts,
        target: &Target,
        record: Option<&mut Record>,
    ) -> Verdict {
        let http = HttpFacts {
            method: parts.method.as_str(),
            path: target.path(),
            host: target.host(),
            headers: &parts.headers,
        };
        let remote_ip = headers::remote_ip(&parts.headers, self.caller.downstream.ip());
        let facts = self.caller.facts(remote_ip, Some(http));
        let judgement = judge(&policy.snapshot, &facts);
        if let Some(record) = record {
            let workload = &policy.snapshot.spec().workload;
            record.set_decision(&judgement, &facts, workload, &policy.version);
        }
        judgement.decision.verdict
    }

    /// What only we may say: who called, and where this belongs in the trace.
    fn tell_app(&self, parts: &mut Parts, record: &mut Record) {
        if let Some(peer) = &self.caller.peer
            && let Some(credentials) = self.worker.shared.store.credentials()
        {
            let mut told = self.told.borrow_mut();
            if !told.as_ref().is_some_and(|(made_with, _)| Arc::ptr_eq(made_with, &credentials)) {
                *told = headers::client_cert(&credentials.id, peer).map(|value| (credentials, value));
            }
            if let Some((_, value)) = &*told {
                parts.headers.insert(&headers::CLIENT_CERT, value.clone());
            }
        }
        record.set_request_id(headers::ensure_request_id(&mut parts.headers));
        record.pass_trace_on(&mut parts.headers);
    }

    /// What was allowed, as the app gets it.
    fn asking(
        &self,
        snapshot: &Snapshot,
        parts: Parts,
        target: Target,
        incoming: Incoming,
        wish: Wish,
        grpc: bool,
    ) -> Result<Asking, ProxyError> {
        let app = self.caller.destination;
        let declared_http2 = snapshot.protocol(app.port()) == Protocol::Http2;
        // gRPC needs HTTP/2 to the end; an upgrade needs HTTP/1.1.
        let http2 = wish == Wish::Answer && (declared_http2 || (self.http2 && grpc));
        // A connection that shows its caller's address carries nobody else's requests.
        let source = self.worker.shared.settings.app_source.on_behalf_of(self.caller.downstream.ip());
        let key = Key { address: app, source, identity: None, sni: None, http2 };
        let watched = wish.is_upgrade().then(|| Box::new((parts.clone(), target.clone())));
        let (upload, exchange) = Upload::new(incoming, self.worker.headroom.clone());
        let request = forward::upstream_request(parts, target, upload, http2, &wish)?;
        Ok(Asking { request, exchange, key, watched, wish, grpc })
    }

    async fn forward(self: Rc<Self>, asking: Asking, mut record: Record) -> Result<Response<Body>, Close> {
        let Asking { request, exchange, key, watched, wish, grpc } = asking;
        let (app, caller) = (self.caller.destination, self.caller.downstream.ip());
        let settings = &self.worker.shared.settings;
        record.set_upstream(app, None);
        record.upstream_started(Instant::now().into_std());
        let dial = async |_| {
            let stream = connect_app(app, caller, settings).await?;
            Ok((Stream::Plain(Prefixed::new(stream)), Watch::default()))
        };
        self.worker.pool.budget.deposit();
        let terms = Terms::default();
        let pool = &self.worker.pool;
        let sent = match pool.send(&key, terms, None, request, &exchange, &dial).await {
            // The caller's sidecar takes our answer for the app's and does not ask again; so what may be sent again is, once.
            Err(Failure { error: ProxyError::UpstreamReset(_), again: Some(again) })
                if pool.budget.withdraw() =>
            {
                exchange.repeated();
                pool.send(&key, terms, None, again, &exchange, &dial).await
            }
            sent => sent,
        };
        record.upstream_answered(Instant::now().into_std());
        Ok(match sent {
            Ok((response, lease)) => {
                let place = wish.is_upgrade().then(|| self.worker.shared.governor.enter());
                let watch = record.watch().clone();
                let revoked =
                    watched.map(|watched| self.clone().revoked(watched, wish.clone(), watch).boxed_local());
                let asked = Asked {
                    wish,
                    grpc,
                    http2: self.http2,
                    half_closed: settings.limits.half_closed,
                    tunnels: self.worker.tunnels.clone(),
                    place,
                    headroom: self.worker.headroom.clone(),
                };
                forward::deliver(response, lease, exchange, record, asked, revoked)
            }
            Err(failure) => {
                record.add_received(exchange.received());
                forward::refuse(&failure.error, record, grpc)
            }
        })
    }

    /// Resolves when policy would not allow this tunnel any more, its caller is not trusted any more, or the drain is over.
    async fn revoked(self: Rc<Self>, watched: Box<(Parts, Target)>, wish: Wish, watch: Watch) -> ProxyError {
        let (parts, target) = *watched;
        let judge = |policy: &Inbound| {
            self.caller
                .objection(&policy.snapshot)
                .or_else(|| wish.still_within(policy.snapshot.upgrades()).err())
                .or_else(|| {
                    (self.judge(policy, &parts, &target, None) == Verdict::Deny).then_some(ProxyError::Denied)
                })
        };
        tokio::select! {
            error = self.worker.revoked(judge) => error,
            refusal = watch.ended() => ProxyError::PeerDistrusted(refusal),
            () = self.worker.shared.drain.over() => ProxyError::Draining,
        }
    }
}

/// Notes a request that was not understood, as it came.
fn note_raw(record: &mut Record, parts: &Parts) {
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    record.set_request(&parts.method, authority, parts.uri.path(), &parts.headers);
}
