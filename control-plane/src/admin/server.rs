//! HTTP/1.1 on a unix socket of its owner's, and `/metrics` on a port: bounded in connections, bytes and time.

use super::{answers, events, live, metrics, patient::Patient, policies, tap};
use crate::traffic::tap::LONGEST;
use crate::upkeep::Upkeep;
use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Connections at once on one door; more wait in the kernel.
const CONNECTIONS: usize = 32;
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// One connection, everything included.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 16 * 1024;
const BODY_BYTES: usize = 4 * 1024;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// An answer, whole.
pub type Answer = Response<Full<Bytes>>;

/// An answer that may go on, like a tap.
pub type Flow = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// An answer that goes on lasts longer than one that is whole; a connection that has been asked for one is known by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Long {
    /// What sidecars tell, as it comes.
    Events,
    /// Calls, as they pass.
    Tap,
}

/// A whole answer where one that goes on could be.
pub(super) fn whole(answer: Answer) -> Flow {
    answer.map(http_body_util::BodyExt::boxed_unsync)
}

/// The socket of operators; its file goes with it.
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds `path`, in place of a socket that nobody serves any more. Only its owner may connect.
    pub(crate) fn bind(path: PathBuf) -> anyhow::Result<Self> {
        let cannot = |why: String| {
            anyhow::anyhow!(
                "the admin socket {} cannot be made: {why}; choose another place with --admin-socket",
                path.display()
            )
        };
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(cannot("something that is no socket has this name".into()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(&path).is_ok() => {
                return Err(cannot("another program serves it".into()));
            }
            Ok(_) => fs::remove_file(&path).map_err(|error| cannot(error.to_string()))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(|error| cannot(error.to_string()))?;
        // Whoever slips in before this is still asked who he is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|error| cannot(error.to_string()))?;
        Ok(Self { path, listener })
    }

    /// Serves it until `stop`.
    pub(crate) async fn serve(self, upkeep: Arc<Upkeep>, stop: CancellationToken) {
        let next = || async { self.listener.accept().await.map(|(stream, _)| stream) };
        accept(&stop, next, |stream, place| {
            if !is_owner(&stream) {
                return tracing::warn!("somebody else's user knocked at the admin socket and was sent away");
            }
            let (upkeep, long) = (Arc::clone(&upkeep), Arc::new(OnceLock::new()));
            let told = Arc::clone(&long);
            let service = move |request: Request<Incoming>| {
                let (upkeep, long) = (Arc::clone(&upkeep), Arc::clone(&told));
                async move {
                    match (request.method(), request.uri().path()) {
                        (&Method::POST, "/tap") => tapped(upkeep, request, &long).await,
                        (&Method::GET, "/events") => {
                            long.get_or_init(|| Long::Events);
                            events::follow(&upkeep)
                        }
                        _ => whole(answer(upkeep, request).await),
                    }
                }
            };
            tokio::spawn(converse(stream, service, long, stop.clone(), place));
        })
        .await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The same user, or root. The file's mode has let nobody else in; this is the second lock.
fn is_owner(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// A port that tells numbers and nothing else.
pub(crate) struct MetricsPort {
    listener: TcpListener,
}

impl MetricsPort {
    pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics cannot be served on {address}: choose another --metrics"))?;
        Ok(Self { listener })
    }

    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        self.listener.local_addr().context("the address of the metrics is not known")
    }

    /// Serves it until `stop`.
    pub(crate) async fn serve(self, upkeep: Arc<Upkeep>, stop: CancellationToken) {
        let next = || async { self.listener.accept().await.map(|(stream, _)| stream) };
        accept(&stop, next, |stream, place| {
            let upkeep = Arc::clone(&upkeep);
            let service = move |request: Request<Incoming>| {
                let upkeep = Arc::clone(&upkeep);
                async move {
                    whole(match (request.method(), request.uri().path()) {
                        (&Method::GET | &Method::HEAD, "/metrics") => numbers(&upkeep),
                        _ => text(StatusCode::NOT_FOUND, "GET /metrics is all there is here\n"),
                    })
                }
            };
            tokio::spawn(converse(stream, service, Arc::default(), stop.clone(), place));
        })
        .await;
    }
}

/// Hands each connection on with its place, until `stop`. `next` gives the next one of a door; nobody is taken for whom there is no place.
pub(super) async fn accept<S, F: Future<Output = io::Result<S>>>(
    stop: &CancellationToken,
    next: impl Fn() -> F,
    mut hand_on: impl FnMut(S, OwnedSemaphorePermit),
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let taking = async {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match next().await {
                Ok(stream) => hand_on(stream, place),
                // Out of descriptors, most likely: going on at once would only burn a core.
                Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = taking => {}
    }
}

/// One connection, which ends in time. An answer that goes on may last longer than a question: whoever makes one says so in `long`.
pub(super) async fn converse<S, F, R>(
    stream: S,
    service: F,
    long: Arc<OnceLock<Long>>,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Flow>,
{
    let service = service_fn(|request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream, Arc::clone(&long))), service);
    let deadline = async {
        tokio::time::sleep(CONNECTION_DEADLINE).await;
        if long.get().is_some() {
            tokio::time::sleep(LONGEST).await;
        }
    };
    // What goes wrong here is the asker's business.
    tokio::select! {
        _ = served => {}
        () = deadline => {}
        // Whoever reads a tap is told why it ends.
        () = async { stop.cancelled().await; tokio::time::sleep(PAUSE_AFTER_ERROR).await } => {}
    }
}

async fn tapped(upkeep: Arc<Upkeep>, request: Request<Incoming>, long: &OnceLock<Long>) -> Flow {
    match tokio::time::timeout(HEAD_DEADLINE, Limited::new(request.into_body(), BODY_BYTES).collect()).await {
        Ok(Ok(body)) => {
            long.get_or_init(|| Long::Tap);
            tap::open(&upkeep, &body.to_bytes())
        }
        _ => whole(unreadable()),
    }
}

fn unreadable() -> Answer {
    answers::problem(
        StatusCode::BAD_REQUEST,
        "the body cannot be read",
        "it is longer than 4 KiB, too slow, or broken off",
    )
}

async fn answer(upkeep: Arc<Upkeep>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let is_get = matches!(head.method, Method::GET | Method::HEAD);
    if is_get {
        return match path.as_str() {
            "/" => text(StatusCode::OK, answers::FRONT),
            "/metrics" => numbers(&upkeep),
            "/authorities" => answers::authorities(&upkeep, SystemTime::now()),
            "/certificates" => answers::certificates(&upkeep, SystemTime::now()),
            "/config" => policies::wanted(&upkeep),
            "/status" | "/flows" | "/denials" | "/policies" | "/topology" => {
                live::shown(&upkeep, &path, head.uri.query(), SystemTime::now())
            }
            path => match path.strip_prefix("/decisions/") {
                Some(id) => live::decision(&upkeep, id, SystemTime::now()),
                None => answers::no_such_page(),
            },
        };
    }
    if head.method != Method::POST {
        return answers::no_such_page();
    }
    let read = tokio::time::timeout(HEAD_DEADLINE, Limited::new(body, BODY_BYTES).collect()).await;
    let Ok(Ok(body)) = read else { return unreadable() };
    let body = body.to_bytes();
    // The authority writes its journal.
    let done = tokio::task::spawn_blocking(move || answers::change(&upkeep, &path, &body, SystemTime::now()));
    done.await.unwrap_or_else(|_| {
        answers::problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the step broke off",
            "look at the log of the control plane, and at GET /authorities",
        )
    })
}

fn numbers(upkeep: &Upkeep) -> Answer {
    let body = metrics::written(upkeep, SystemTime::now());
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

pub(super) fn text(status: StatusCode, body: &'static str) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

pub(super) fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_door_goes_on_after_an_error_takes_nobody_without_a_place_and_closes() {
        let (stop, asked) = (CancellationToken::new(), AtomicUsize::new(0));
        let next = || {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            std::future::ready(if number == 0 { Err(io::Error::other("no descriptors")) } else { Ok(number) })
        };
        let (sender, mut taken) = mpsc::unbounded_channel();
        let door = accept(&stop, next, |number, place| sender.send((number, place)).unwrap());
        let guests = async {
            let mut inside = Vec::new();
            for number in 1..=CONNECTIONS {
                let (came, place) = taken.recv().await.unwrap();
                assert_eq!(came, number, "the error took the place of nobody");
                inside.push(place);
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(asked.load(Ordering::Relaxed), CONNECTIONS + 1, "the next one is not even taken");
            inside.pop();
            assert_eq!(taken.recv().await.unwrap().0, CONNECTIONS + 1);
            stop.cancel();
        };
        tokio::time::timeout(HEAD_DEADLINE, async { tokio::join!(door, guests) }).await.unwrap();
    }
}
