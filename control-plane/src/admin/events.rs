//! `GET /events`: server-sent events, one `decided` for each report that a sidecar makes, and the time every five seconds. A reader that stops is
//! cut off; a browser comes again by itself.

use super::{
    answers::problem,
    server::{Flow, whole},
};
use crate::{
    rotation::written,
    traffic::events::{WATCHERS, Watcher},
    upkeep::Upkeep,
};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// How often the time is told, by which a reader knows that we are there.
const TICK: Duration = Duration::from_secs(5);
/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events between us and the connection.
const AHEAD: usize = 16;

/// Answers with what sidecars report from now on.
pub(super) fn follow(upkeep: &Upkeep) -> Flow {
    let publisher = upkeep.publisher();
    let Some(watcher) = publisher.traffic.events.watch() else {
        let why = format!("{WATCHERS} are shown already: close one of them, or wait");
        return whole(problem(StatusCode::TOO_MANY_REQUESTS, "too many watch", &why));
    };
    let (sender, answer) = mpsc::channel(AHEAD);
    tokio::spawn(tell(watcher, sender, publisher.stop.clone()));
    let frames = ReceiverStream::new(answer).map(|event| Ok::<_, Infallible>(Frame::data(event)));
    let mut flow = Response::new(StreamBody::new(frames).boxed_unsync());
    flow.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    flow
}

async fn tell(mut watcher: Watcher, sender: mpsc::Sender<Bytes>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            let event = tokio::select! {
                event = watcher.next() => match event {
                    Some(json) => named("decided", &json),
                    None => return,
                },
                _ = tick.tick() => named("now", format!("\"{}\"", written(SystemTime::now())).as_bytes()),
            };
            if !matches!(tokio::time::timeout(PATIENCE, sender.send(event)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = sender.closed() => {}
        () = stop.cancelled() => {}
    }
}

/// JSON has no line ends of its own.
fn named(name: &str, json: &[u8]) -> Bytes {
    [format!("event: {name}\ndata: ").as_bytes(), json, b"\n\n"].concat().into()
}
