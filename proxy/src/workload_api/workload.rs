//! The SPIFFE Workload API: each message of a stream is the full state, the first comes at once (SPIFFE Workload API 5, 6).

use super::{
    tokens::Tokens,
    view::{View, Views},
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

    /// What `part` is now and whenever it becomes something else.
    fn follow<T>(&self, part: fn(&View) -> &T) -> Result<Response<Messages<T>>, Status>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        current(&self.views)?;
        let mut last = None;
        let messages = WatchStream::new(self.views.clone()).filter_map(move |view| {
            let part = part(view.as_deref()?);
            if last.as_ref() == Some(part) {
                return None;
            }
            last = Some(part.clone());
            Some(Ok(part.clone()))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// The view in force.
///
/// # Errors
/// Unavailable: a sidecar has an identity sooner or later, so that a caller shall come again. PermissionDenied would tell it
/// that there will be none.
pub(super) fn current(views: &Views) -> Result<Arc<View>, Status> {
    let view = views.borrow().clone();
    view.filter(|view| view.not_after > SystemTime::now()).ok_or_else(not_yet)
}

/// No identity to hand out.
pub(super) fn not_yet() -> Status {
    Status::unavailable("this workload has no valid certificate at the moment; try again")
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
        self.follow(|view| &view.svid)
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.follow(|view| &view.bundles)
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.follow(|view| &view.jwt_bundles)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let view = current(&self.views)?;
        let request = request.into_inner();
        if !request.spiffe_id.is_empty() {
            let wanted: SpiffeId = request
                .spiffe_id
                .parse()
                .map_err(|cause| Status::invalid_argument(format!("requested SPIFFE ID: {cause}")))?;
            if wanted != view.id {
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
        let view = current(&self.views)?;
        let token = jwt::verify(&svid, &view.trust, &audience, UnixTime::now())
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
