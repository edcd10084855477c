//! One exchange with a control plane on its admin socket, and its answers handed on to a browser.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use postern_control_plane::admin::Flow;
use std::{
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::UnixStream, task::JoinHandle};

/// The longest that an answer may take: a step writes a journal to the disk.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Status and body of an answer, or why there is none.
pub(crate) async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(u16, Bytes), String> {
    match tokio::time::timeout(DEADLINE, converse(socket, method, path, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

async fn converse(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<(u16, Bytes), String> {
    let (answer, _ends) = begin(socket, method, path, body).await?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
    let body = body.map_err(|cause| cause.to_string())?.to_bytes();
    Ok((status, body))
}

/// The task of a connection, which ends with whoever holds this.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The head of an answer, and the task that carries its body.
pub(crate) async fn begin(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(Response<Incoming>, AbortOnDrop), String> {
    let stream = UnixStream::connect(socket).await.map_err(|cause| cause.to_string())?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|cause| cause.to_string())?;
    let connection = AbortOnDrop(tokio::spawn(connection));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "control-plane")
        .body(Full::new(body))
        .map_err(|cause| cause.to_string())?;
    let answer = sender.send_request(request).await.map_err(|cause| cause.to_string())?;
    Ok((answer, connection))
}

/// The answer of the control plane as it is, also one that goes on; none is a bad gateway, and the page says that there is no news.
pub(crate) async fn handed_on(socket: Arc<Path>, asked: String) -> Flow {
    if asked == "/events" {
        let begun = tokio::time::timeout(DEADLINE, begin(&socket, Method::GET, &asked, Bytes::new())).await;
        return match begun {
            Ok(Ok((answer, connection))) => going_on(answer, connection),
            Ok(Err(cause)) => whole(502, cause.into()),
            Err(_) => whole(502, "no answer in time".into()),
        };
    }
    let (status, body) = exchange(&socket, Method::GET, &asked, Bytes::new())
        .await
        .unwrap_or_else(|cause| (502, Bytes::from(cause)));
    whole(status, body)
}

/// What is left of an answer. That it breaks off is its end: a browser comes again.
struct Rest {
    body: Incoming,
    _connection: AbortOnDrop,
}

impl Body for Rest {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context).map(|frame| frame?.ok().map(Ok))
    }
}

fn going_on(answer: Response<Incoming>, connection: AbortOnDrop) -> Flow {
    let status = answer.status();
    let mut flow = Response::new(Rest { body: answer.into_body(), _connection: connection }.boxed_unsync());
    *flow.status_mut() = status;
    let kind = if status.is_success() { "text/event-stream" } else { "application/problem+json" };
    flow.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    flow
}

fn whole(status: u16, body: Bytes) -> Flow {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let kind = if status.is_success() { "application/json" } else { "text/plain; charset=utf-8" };
    let mut answer = Response::new(Full::new(body).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
