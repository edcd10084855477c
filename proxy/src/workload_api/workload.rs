//! The SPIFFE Workload API: each message of a stream is the full state, the first comes at once (SPIFFE Workload API 5, 6).

use super::{
    tokens::Tokens,
    view::{Absent, Identity, Trusted, View, Views},
};
use postern_api::open::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
    google::protobuf::{ListValue, Struct, Value, value::Kind},
    spiffe_workload_api_server::SpiffeWorkloadApi,
};
use postern_identity::{SpiffeId, jwt};
use rustls_pki_types::UnixTime;
use std::{pin::Pin, sync::Arc, time::SystemTime};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

/// What the service answers from.
pub(super) struct Workload {
    views: Views,
    tokens: Tokens,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Workload {
    pub(super) fn new(views: Views, tokens: Tokens) -> Self {
        Self { views, tokens }
    }

    /// What `part` is now and whenever it becomes something else; an error ends the stream.
    fn follow<T>(&self, part: fn(&View) -> Result<&T, Status>) -> Result<Response<Messages<T>>, Status>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let now = self.views.borrow().clone().ok_or_else(not_yet)?;
        part(&now)?;
        let mut last = None;
        let messages = WatchStream::new(self.views.clone()).filter_map(move |view| {
            let view = view?;
            let part = match part(&view) {
                Ok(part) => part,
                Err(status) => return Some(Err(status)),
            };
            if last.as_ref() == Some(part) {
                return None;
            }
            last = Some(part.clone());
            Some(Ok(part.clone()))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// The identity in force.
///
/// # Errors
/// See [`refused`].
pub(super) fn current(views: &Views) -> Result<Arc<Identity>, Status> {
    let identity = views.borrow().clone().ok_or_else(not_yet)?.identity.map_err(refused)?;
    if identity.not_after > SystemTime::now() { Ok(identity) } else { Err(refused(Absent::Ended)) }
}

/// What is trusted now, with or without an identity.
fn trusted(views: &Views) -> Result<Arc<Trusted>, Status> {
    views.borrow().as_ref().map(|view| view.trusted.clone()).ok_or_else(not_yet)
}

/// No identity to hand out: a sidecar gets one sooner or later, so that a caller shall come again.
pub(super) fn not_yet() -> Status {
    Status::unavailable("this workload has no valid certificate at the moment; try again")
}

/// PermissionDenied tells a client to use no more what it was given (SPIFFE Workload API 5.2.1), which it must hear when the
/// authority above it is revoked; with Unavailable it would go on. Of a certificate that has ended it knows.
pub(super) fn refused(absent: Absent) -> Status {
    match absent {
        Absent::Ended => not_yet(),
        Absent::Withdrawn => Status::permission_denied(
            "no identity issued: the authority of this workload's certificate is revoked; another certificate is asked for",
        ),
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Workload {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.follow(|view| match &view.identity {
            Ok(identity) => Ok(&identity.svid),
            Err(absent) => Err(refused(*absent)),
        })
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.follow(|view| Ok(&view.trusted.x509))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.follow(|view| Ok(&view.trusted.jwt))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let identity = current(&self.views)?;
        let request = request.into_inner();
        if !request.spiffe_id.is_empty() {
            let wanted: SpiffeId = request
                .spiffe_id
                .parse()
                .map_err(|cause| Status::invalid_argument(format!("requested SPIFFE ID: {cause}")))?;
            if wanted != identity.id {
                return Err(Status::permission_denied(
                    "the requested SPIFFE ID is not that of this workload",
                ));
            }
        }
        let (id, svid) = self.tokens.token(request.audience).await?;
        let svid = Jwtsvid { spiffe_id: id.to_string(), svid, hint: String::new() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid must be specified"));
        }
        let trusted = trusted(&self.views)?;
        let token = jwt::verify(&svid, &trusted.bundles, &audience, UnixTime::now())
            .map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: token.id.to_string(),
            claims: Some(structure(token.claims)),
        }))
    }
}

fn structure(members: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: members.into_iter().map(|(name, member)| (name, value(member))).collect() }
}

/// The depth is that of parsed JSON, which is bounded.
fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(value).collect() }),
        Json::Object(members) => Kind::StructValue(structure(members)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
