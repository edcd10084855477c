//! `POST /tap`: an answer that goes on, one line of JSON for each call, until its time is over or its reader goes.

use super::{
    answers::problem,
    pages::{TapBegin, TapLine, TapWanted},
    server::{Flow, whole},
};
use crate::{
    traffic::tap::{Reader, TAPS, Wanted},
    upkeep::Upkeep,
};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::{convert::Infallible, time::Duration};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// How often it is told what is not shown.
const MORE: Duration = Duration::from_secs(1);
/// Lines between us and the connection.
const AHEAD: usize = 16;

/// Opens a tap and answers with its lines.
pub(super) fn open(upkeep: &Upkeep, body: &[u8]) -> Flow {
    let publisher = upkeep.publisher();
    let wanted = serde_json::from_slice::<TapWanted>(if body.is_empty() { b"{}" } else { body })
        .map_err(|cause| cause.to_string())
        .and_then(Wanted::read);
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(why) => return whole(problem(StatusCode::BAD_REQUEST, "this cannot be tapped", &why)),
    };
    let sessions = publisher.sessions.all();
    let (able, old): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| session.knows_taps);
    let begin = TapBegin {
        seconds: wanted.lasts.as_secs(),
        rate: wanted.rate,
        sidecars: able.len(),
        too_old: old.iter().map(|one| format!("{}/{}", one.namespace, one.instance)).collect(),
    };
    let Some(reader) = publisher.taps.open(wanted) else {
        let why = format!("{TAPS} are open already: end one of them, or wait");
        return whole(problem(StatusCode::TOO_MANY_REQUESTS, "too many taps", &why));
    };
    let (lines, answer) = mpsc::channel(AHEAD);
    tokio::spawn(tell(reader, begin, lines, publisher.stop.clone()));
    let frames = ReceiverStream::new(answer).map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let mut flow = Response::new(StreamBody::new(frames).boxed_unsync());
    flow.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
    flow
}

/// Hands on what comes until there is nothing more to come, or nobody to take it. The tap ends with this.
async fn tell(mut reader: Reader, begin: TapBegin, lines: mpsc::Sender<Bytes>, stop: CancellationToken) {
    let until = reader.until();
    let mut more = tokio::time::interval(MORE);
    more.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Some(TapLine::Begin(begin));
    let work = async {
        loop {
            if let Some(line) = next.take()
                && lines.send(written(&line)).await.is_err()
            {
                return;
            }
            next = tokio::select! {
                line = reader.next() => line,
                _ = more.tick() => reader.more(),
            };
        }
    };
    let why = tokio::select! {
        () = work => return,
        () = lines.closed() => return,
        () = tokio::time::sleep_until(until) => "its time is over",
        () = stop.cancelled() => "the control plane stops",
    };
    let last = [reader.more(), Some(TapLine::End(why.to_owned()))];
    for line in last.into_iter().flatten() {
        // A reader that has stopped is not waited for.
        if !matches!(tokio::time::timeout(MORE, lines.send(written(&line))).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn written(line: &TapLine) -> Bytes {
    // Texts and numbers have no way to fail.
    let mut line = serde_json::to_vec(line).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
