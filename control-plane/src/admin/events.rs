//! `GET /events`: server-sent events, one `decided` for each report that a sidecar makes, one `authority` for each thing that an
//! authority does or comes to by itself, and the time every five seconds. A reader that does not keep up is cut off, one that stops is
//! let go by its connection; a browser comes again by itself.

use super::{
    answers::{kind_name, problem},
    pages::AuthorityEvent,
    server::{Flow, whole},
};
use crate::{
    authority::{AuthorityKind, Event},
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
use tokio::{
    sync::{broadcast, mpsc},
    time::MissedTickBehavior,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// How often the time is told, by which a reader knows that we are there.
const TICK: Duration = Duration::from_secs(5);
/// Events between us and the connection.
const AHEAD: usize = 16;

/// Answers with what sidecars report, and what becomes of authorities, from now on.
pub(super) fn follow(upkeep: &Upkeep) -> Flow {
    let publisher = upkeep.publisher();
    answer(&publisher.traffic.events, publisher.authority.events(), publisher.stop.clone())
}

fn answer(events: &Events, authority: broadcast::Receiver<Event>, stop: CancellationToken) -> Flow {
    let Some(watcher) = events.watch() else {
        let why = format!("{WATCHERS} are shown already: close one of them, or wait");
        return whole(problem(StatusCode::TOO_MANY_REQUESTS, "too many watch", &why));
    };
    let (sender, told) = mpsc::channel(AHEAD);
    tokio::spawn(tell(watcher, authority, sender, stop));
    let frames = ReceiverStream::new(told).map(|event| Ok::<_, Infallible>(Frame::data(event)));
    let mut flow = Response::new(StreamBody::new(frames).boxed_unsync());
    flow.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    flow
}

async fn tell(
    mut watcher: Watcher,
    mut authority: broadcast::Receiver<Event>,
    sender: mpsc::Sender<Bytes>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            let event = tokio::select! {
                event = watcher.next() => match event {
                    Some(json) => named("decided", &json),
                    None => return,
                },
                event = authority.recv() => match event {
                    Ok(event) => named("authority", &page(&event, SystemTime::now())),
                    Err(_) => return,
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

fn page(event: &Event, now: SystemTime) -> Vec<u8> {
    let (name, subject) = match event {
        Event::Remaining { kind, id, .. } => ("remaining", Some((*kind, *id))),
        Event::Renewed { id, .. } => ("renewed", Some((AuthorityKind::Intermediate, *id))),
        Event::RenewalFailed { .. } => ("renewal-failed", None),
        Event::Prepared { kind, id } => ("prepared", Some((*kind, *id))),
        Event::Activated { kind, id } => ("activated", Some((*kind, *id))),
        Event::Replaced { id, .. } => ("replaced", Some((AuthorityKind::Root, *id))),
        Event::Forgotten { kind, id } => ("forgotten", Some((*kind, *id))),
        Event::StateFailed { .. } => ("state-failed", None),
    };
    let (percent, not_after) = match event {
        Event::Remaining { percent, not_after, .. } => (Some(*percent), Some(*not_after)),
        Event::Renewed { not_after, .. } => (None, Some(*not_after)),
        _ => (None, None),
    };
    let page = AuthorityEvent {
        now: written(now),
        event: name.to_owned(),
        kind: subject.map(|(kind, _)| kind_name(kind).to_owned()),
        id: subject.map(|(_, id)| id.to_string()),
        percent,
        not_after: not_after.map(written),
        warning: event.is_warning(),
        told: event.to_string(),
    };
    // Texts and numbers have no way to fail.
    serde_json::to_vec(&page).unwrap_or_default()
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
    use crate::{
        authority::{Authority, Slot},
        traffic::events::tests::tell_denials,
    };
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
        let authority = broadcast::Sender::new(1);
        let service =
            move |_| std::future::ready(answer(&events, authority.subscribe(), CancellationToken::new()));
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

    #[tokio::test]
    async fn what_becomes_of_authorities_is_told_to_those_who_watch() {
        let authority = Authority::in_memory("cluster.local".parse().unwrap(), SystemTime::now()).unwrap();
        let (watching, stop) = (Events::default(), CancellationToken::new());
        let mut flow = answer(&watching, authority.events(), stop.clone()).into_body();
        // Eight years on, a root of ten has a fifth of its life left.
        let late = SystemTime::now() + Duration::from_secs(8 * 365 * 24 * 3600 + 3600);
        authority.tick(late);
        let mut told = Vec::new();
        while let Some(frame) = timeout(PATIENCE, flow.frame()).await.expect("all are told") {
            let frame = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
            let Some(json) = frame.strip_prefix("event: authority\ndata: ") else { continue };
            let event: AuthorityEvent = serde_json::from_str(json).unwrap();
            if (event.event.as_str(), event.kind.as_deref()) == ("remaining", Some("root")) {
                assert_eq!((event.percent, event.warning), (Some(20), true), "{event:?}");
                let root = authority.status(late).into_iter().find(|one| one.slot == Slot::Active).unwrap();
                assert_eq!(
                    (event.id, event.not_after),
                    (Some(root.id.to_string()), Some(written(root.not_after)))
                );
                assert!(event.told.contains("20 % of the life of root"), "{}", event.told);
                return;
            }
            told.push(event);
        }
        panic!("nothing of the root: {told:?}");
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
