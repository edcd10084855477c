//! `GET /events`: server-sent events, one `decided` for each report that a sidecar makes, and the time every five seconds. A reader
//! that does not keep up is cut off, one that stops is let go by its connection; a browser comes again by itself.

use super::{
    answers::problem,
    server::{Flow, whole},
};
use crate::{
    rotation::written,
    traffic::events::{Events, WATCHERS, Watcher},
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
/// Events between us and the connection.
const AHEAD: usize = 16;

/// Answers with what sidecars report from now on.
pub(super) fn follow(upkeep: &Upkeep) -> Flow {
    let publisher = upkeep.publisher();
    answer(&publisher.traffic.events, publisher.stop.clone())
}

fn answer(events: &Events, stop: CancellationToken) -> Flow {
    let Some(watcher) = events.watch() else {
        let why = format!("{WATCHERS} are shown already: close one of them, or wait");
        return whole(problem(StatusCode::TOO_MANY_REQUESTS, "too many watch", &why));
    };
    let (sender, told) = mpsc::channel(AHEAD);
    tokio::spawn(tell(watcher, sender, stop));
    let frames = ReceiverStream::new(told).map(|event| Ok::<_, Infallible>(Frame::data(event)));
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
            if sender.send(event).await.is_err() {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::{
        super::{
            patient::PATIENCE,
            server::{Long, converse},
        },
        *,
    };
    use crate::traffic::events::tests::tell_denials;
    use std::sync::{Arc, OnceLock};
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex},
        sync::Semaphore,
        task::JoinHandle,
        time::{advance, timeout},
    };

    /// A connection that has asked for events; the kernel would keep more for it than this.
    async fn follow(events: &Arc<Events>) -> (BufReader<DuplexStream>, JoinHandle<()>) {
        let (mut reader, far) = duplex(1024);
        reader.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (events, long) = (Arc::clone(events), Arc::new(OnceLock::from(Long::Events)));
        let service = move |_| std::future::ready(answer(&events, CancellationToken::new()));
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let served = tokio::spawn(converse(far, service, long, CancellationToken::new(), place));
        let mut reader = BufReader::new(reader);
        line(&mut reader, "event: now").await;
        (reader, served)
    }

    /// Reads up to a line that begins like this. Fails when the stream ends before.
    async fn line(reader: &mut BufReader<DuplexStream>, start: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(reader.read_line(&mut line).await.unwrap(), 0, "the stream ended");
            if line.starts_with(start) {
                return line;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_is_let_go_after_its_patience_and_others_are_told_all_the_time() {
        let events = Arc::new(Events::default());
        let (mut stopped, stopped_served) = follow(&events).await;
        let (mut reading, reading_served) = follow(&events).await;
        let mut hear = async |path: String| {
            tell_denials(&events, &path);
            let data = line(&mut reading, "data: {").await;
            assert!(data.contains(&format!("\"{path}/0\"")), "{path}: {data}");
        };
        for n in 0..100 {
            hear(format!("/before/{n}")).await;
        }
        // 5 KiB each: up to 16 events ahead, one in hand, and what the connection takes at once.
        let held = 100 - events.waiting();
        assert!((AHEAD..AHEAD + 8).contains(&held), "{held} events are held for a reader that has stopped");
        advance(PATIENCE - Duration::from_millis(1)).await;
        hear("/patient".into()).await;
        assert!(!stopped_served.is_finished());
        advance(Duration::from_millis(1)).await;
        timeout(Duration::from_millis(1), stopped_served).await.expect("its connection ends").unwrap();
        hear("/after".into()).await;
        assert!(!reading_served.is_finished());
        timeout(Duration::from_millis(1), async {
            while events.waiting() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("nothing waits for it any more");
        let mut rest = Vec::new();
        stopped.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 8 * 1024, "{} bytes", rest.len());

        // The twin: who reads again in time stays.
        let (mut pausing, pausing_served) = follow(&events).await;
        for n in 0..100 {
            hear(format!("/again/{n}")).await;
        }
        advance(PATIENCE - Duration::from_millis(1)).await;
        for n in 0..100 {
            let data = line(&mut pausing, "data: {").await;
            assert!(data.contains(&format!("\"/again/{n}/0\"")), "{n}: {data}");
        }
        advance(PATIENCE).await;
        assert!(!pausing_served.is_finished());
        tell_denials(&events, "/still");
        line(&mut pausing, "data: {").await;
    }
}
