//! gRPC through both sidecars: HTTP/2 to the end, trailers, and denials as a gRPC status.
use super::*;

/// A gRPC-like app: answers with a message and trailers.
async fn grpc_app() -> App {
    use http_body_util::{BodyExt, Full};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = seen.clone();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let noted = noted.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let noted = noted.clone();
                async move {
                    noted.borrow_mut().push(format!("{} {:?}", request.uri(), request.headers()));
                    if request.uri().path() == "/v1/mute" {
                        return std::future::pending().await;
                    }
                    if request.uri().path() == "/v1/late" {
                        // Its own deadline is over, and it says what it was about.
                        tokio::time::sleep(Duration::from_millis(310)).await;
                        let data = Full::new(bytes::Bytes::new()).with_trailers(async { None });
                        let answer = http::Response::builder()
                            .header("grpc-status", "4")
                            .header("grpc-message", "charging");
                        return Ok(answer.body(data.boxed_unsync()).unwrap());
                    }
                    let data = request.into_body().collect().await.unwrap().to_bytes();
                    let trailers =
                        http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                    let data = Full::new(data).with_trailers(async move { Some(Ok(trailers)) });
                    Ok::<_, std::convert::Infallible>(http::Response::new(data.boxed_unsync()))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            spawn_local(
                hyper::server::conn::http2::Builder::new(crate::http::LocalExecutor)
                    .serve_connection(io, service),
            );
        }
    });
    App { address, seen }
}

#[tokio::test]
async fn grpc_travels_as_http2_with_its_trailers_and_a_denial_is_a_grpc_status() {
    use http_body_util::{BodyExt, Full};
    LocalSet::new()
        .run_until(async {
            let pair =
                pair_to(grpc_app().await, Protocol::Http2, MtlsMode::Strict, vec![allow(CLIENT)], PAYMENTS)
                    .await;
            let mut sender = http2_client(pair.outbound).await;
            for (path, status) in [("/v1/charges", "0"), ("/v1/refunds", "7")] {
                let request = http::Request::post(format!("http://payments-api{path}"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::new(bytes::Bytes::from_static(b"message")))
                    .unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let mut told = response.headers().clone();
                let body = response.into_body().collect().await.unwrap();
                told.extend(body.trailers().cloned().unwrap_or_default());
                assert_eq!(told["grpc-status"], status, "{path}: {told:?}");
            }
            assert_eq!(pair.app.seen.borrow().len(), 1, "the app received nothing of the denied call");
            let seen = pair.app.seen.borrow()[0].clone();
            assert!(seen.contains("http://payments-api/v1/charges") && seen.contains(CHECKOUT), "{seen}");
        })
        .await;
}

/// An app that begins its answer and never ends it.
async fn endless_app() -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(|_request: http::Request<hyper::body::Incoming>| async {
                    let (frames, body) = tokio::sync::mpsc::channel::<Result<_, std::convert::Infallible>>(1);
                    let data = hyper::body::Frame::data(bytes::Bytes::from_static(b"begun"));
                    frames.send(Ok(data)).await.unwrap();
                    // Kept open for ever.
                    spawn_local(async move { frames.closed().await });
                    let body = tokio_stream::wrappers::ReceiverStream::new(body);
                    Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::StreamBody::new(
                        body,
                    )))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            spawn_local(
                hyper::server::conn::http2::Builder::new(crate::http::LocalExecutor)
                    .serve_connection(io, service),
            );
        }
    });
    App { address, seen: Rc::default() }
}

/// S-H2-13: before the answer has begun, and in its middle; without a deadline the same call waits.
#[tokio::test]
async fn the_deadline_of_a_grpc_caller_is_kept() {
    use http_body_util::{BodyExt, Empty};
    LocalSet::new()
        .run_until(async {
            for app in [grpc_app().await, endless_app().await] {
                let pair = pair_to(app, Protocol::Http2, MtlsMode::Strict, vec![], PAYMENTS).await;
                {
                    let mut sender = http2_client(pair.outbound).await;
                    let mut call = |timeout: Option<&str>| {
                        let request = http::Request::post("http://payments-api/v1/mute")
                            .header("content-type", "application/grpc")
                            .header("te", "trailers");
                        let request = match timeout {
                            Some(timeout) => request.header("grpc-timeout", timeout),
                            None => request,
                        };
                        sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap())
                    };
                    let began = std::time::Instant::now();
                    let response = call(Some("300m")).await.unwrap();
                    let mut told = response.headers().clone();
                    let body = response.into_body().collect().await.unwrap();
                    told.extend(body.trailers().cloned().unwrap_or_default());
                    assert_eq!(told["grpc-status"], "4", "{told:?}");
                    let took = began.elapsed();
                    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(5), "{took:?}");
                    let patient = async { call(None).await.unwrap().into_body().collect().await };
                    let waited = tokio::time::timeout(Duration::from_millis(600), patient).await;
                    assert!(waited.is_err(), "without a deadline it waits");
                }
            }
        })
        .await;
}

/// Who is asked last knows best: what the app says about a deadline that is over is what the caller hears.
#[tokio::test]
async fn the_apps_own_word_about_a_deadline_comes_before_ours() {
    use http_body_util::Empty;
    LocalSet::new()
        .run_until(async {
            let pair = pair_to(grpc_app().await, Protocol::Http2, MtlsMode::Strict, vec![], PAYMENTS).await;
            let mut sender = http2_client(pair.outbound).await;
            for (path, message) in [("/v1/late", Some("charging")), ("/v1/mute", None)] {
                let request = http::Request::post(format!("http://payments-api{path}"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .header("grpc-timeout", "300m");
                let response =
                    sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
                assert_eq!(response.headers()["grpc-status"], "4", "{path}: {response:?}");
                let told = response.headers().get("grpc-message").map(|text| text.to_str().unwrap());
                assert_eq!(told == Some("charging"), message.is_some(), "{path}: {told:?}");
            }
        })
        .await;
}

/// An app that begins its answer, and breaks it off when it is told to: the stream with a code, or the connection.
async fn breaking_app(resets: bool) -> (App, Rc<tokio::sync::Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Rc::new(tokio::sync::Notify::new());
    let breaks = told.clone();
    spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
        answer.send_data(bytes::Bytes::from_static(b"begun"), false).unwrap();
        tokio::select! { _ = connection.accept() => {}, () = breaks.notified() => {} }
        if resets {
            answer.send_reset(h2::Reason::CANCEL);
            let _ = connection.accept().await;
        }
    });
    (App { address, seen: Rc::default() }, told)
}

/// A lost connection has no code that means anything to the caller; gRPC makes INTERNAL of what HTTP/2 says of it, and does not try
/// again. A reset of the app's own is passed on.
#[tokio::test]
async fn a_grpc_answer_that_loses_its_connection_is_unavailable_and_one_that_is_reset_keeps_its_code() {
    use http_body_util::{BodyExt, Empty};
    LocalSet::new()
        .run_until(async {
            for resets in [false, true] {
                let (app, breaks) = breaking_app(resets).await;
                let pair = pair_to(app, Protocol::Http2, MtlsMode::Strict, vec![], PAYMENTS).await;
                let mut sender = http2_client(pair.outbound).await;
                let request = http::Request::post("http://payments-api/v1/charges")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers");
                let answer =
                    sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
                let mut body = answer.into_body();
                assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");
                breaks.notify_one();
                let end = body.frame().await.unwrap();
                if resets {
                    let broken = end.unwrap_err();
                    let cause =
                        std::error::Error::source(&broken).unwrap().downcast_ref::<h2::Error>().unwrap();
                    assert_eq!(cause.reason(), Some(h2::Reason::CANCEL), "{broken:?}");
                } else {
                    let trailers = end.unwrap().into_trailers().unwrap();
                    assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
                    assert!(body.frame().await.is_none(), "nothing comes after the status");
                }
            }
        })
        .await;
}

/// The kernel takes the connection and nobody says a word, as when a sidecar is short of memory. One call makes the connection, the other
/// waits for it: its own handshake does not begin the time anew.
#[tokio::test]
async fn who_has_waited_for_a_handshake_that_fails_waits_no_second_time() {
    use http_body_util::Empty;
    LocalSet::new()
        .run_until(async {
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (dial, credentials) = (silent.local_addr().unwrap(), Authority::new().credentials(CHECKOUT));
            let (outbound, client, _trigger) = caller_of(dial, 80, Protocol::Http2, PAYMENTS, credentials);
            let patience = client.settings.limits.handshake;
            let began = tokio::time::Instant::now();
            let calls = [(), ()].map(|()| async move {
                let mut sender = http2_client(outbound).await;
                let request = http::Request::post("http://payments-api/v1/charges");
                let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
                (sender.send_request(request).await.unwrap().status(), began.elapsed())
            });
            for (status, took) in futures_util::future::join_all(calls).await {
                assert_eq!(status, 503);
                assert!(took >= patience && took < patience * 3 / 2, "{took:?}");
            }
        })
        .await;
}
