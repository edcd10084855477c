//! Our own answers: short, in the form that the caller can read, with a code to search for.

use super::Body;
use crate::error::{ProxyError, Row};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

/// The answer for `error`: problem+json (RFC 9457), or a trailers-only gRPC status. `decision` is the id of a remembered denial.
pub fn failure(error: &ProxyError, decision: Option<&str>, grpc: bool) -> Response<Body> {
    let row = error.row();
    let mut response = if grpc { grpc_failure(row, decision) } else { problem(row, decision) };
    if matches!(error, ProxyError::CircuitOpen(_)) {
        // As Envoy says it, so that callers tell "too much" from "broken".
        response.headers_mut().insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    response
}

fn problem(row: &Row, decision: Option<&str>) -> Response<Body> {
    let mut problem = serde_json::json!({
        "type": format!("https://postern.dev/errors#{}", row.code),
        "title": row.public_text,
        "status": row.http_status,
        "code": row.code,
    });
    if let (Some(fields), Some(decision)) = (problem.as_object_mut(), decision) {
        fields.insert("decision".into(), decision.into());
    }
    let mut response = Response::new(Body::Local(Some(Bytes::from(problem.to_string()))));
    *response.status_mut() =
        StatusCode::from_u16(row.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

fn grpc_failure(row: &Row, decision: Option<&str>) -> Response<Body> {
    let message = match decision {
        Some(decision) => format!("{} (decision {decision})", row.public_text),
        None => row.public_text.to_owned(),
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(row.grpc_status));
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", message);
    }
    response
}

/// The trailers that end a gRPC answer which has begun already.
pub fn grpc_trailers(error: &ProxyError) -> HeaderMap {
    let row = error.row();
    let message = HeaderValue::from_static(row.public_text);
    HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from(row.grpc_status)), (GRPC_MESSAGE, message)])
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// `grpc-status` of headers or trailers.
pub fn grpc_status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_denial_is_a_problem_that_a_person_can_search_for() {
        let response = failure(&ProxyError::Denied, Some("d-1"), false);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let Body::Local(Some(text)) = response.into_body() else { panic!() };
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["title"], "RBAC: access denied");
        assert_eq!(json["type"], "https://postern.dev/errors#policy-denied");
        assert_eq!((&json["code"], &json["decision"]), (&"policy-denied".into(), &"d-1".into()));
    }

    #[test]
    fn a_denial_of_grpc_is_a_grpc_status() {
        let response = failure(&ProxyError::Denied, Some("d-1"), true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "7");
        assert_eq!(response.headers()["grpc-message"], "RBAC: access denied (decision d-1)");
        assert_eq!(grpc_status_of(response.headers()), Some(7));
    }
}
