//! Taps: calls of the whole mesh, shown live to whoever asks. A few at once, each for some minutes at most; what a sidecar tells is read
//! with suspicion, and a reader that stops costs nobody anything but its own view.

use super::{
    intake::{self, harmless, moment},
    pages::{TapCall, TapLine, TapMore, TapWanted},
};
use postern_api::v1;
use postern_identity::SpiffeId;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// Taps at once.
pub(crate) const TAPS: usize = 4;
/// The longest that one lasts.
pub(crate) const LONGEST: Duration = Duration::from_secs(600);
const MOST_RATE: u32 = 1000;
const USUAL_RATE: u32 = 10;
/// Calls that wait for one reader.
const WAITING: usize = 256;
/// Calls in one message, as the wire says.
const CALLS: usize = 16;
const MOST_LEFT_OUT: u64 = 100_000_000;
const DAY: u64 = 24 * 3600 * 1_000_000;
const TEXT: usize = 256;

/// What one reader wants, in order.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub rate: u32,
    pub lasts: Duration,
    /// The name of who is called.
    pub to: Option<String>,
    /// The rest, as sidecars are told.
    filter: v1::Tap,
}

impl Wanted {
    /// Reads what was asked.
    ///
    /// # Errors
    /// A sentence: what cannot be asked.
    pub(crate) fn read(page: TapWanted) -> Result<Self, String> {
        let rate = page.rate.unwrap_or(USUAL_RATE);
        let lasts = Duration::from_secs(page.seconds.unwrap_or(LONGEST.as_secs()));
        if !(1..=MOST_RATE).contains(&rate) {
            return Err(format!("a rate is 1 to {MOST_RATE} calls a second"));
        }
        if lasts.is_zero() || lasts > LONGEST {
            return Err(format!("a tap lasts 1 to {} seconds", LONGEST.as_secs()));
        }
        let texts = [&page.from, &page.to, &page.method, &page.path];
        if texts.iter().any(|text| text.as_ref().is_some_and(|text| text.is_empty() || text.len() > TEXT)) {
            return Err(format!("a text to look for has 1 to {TEXT} bytes"));
        }
        let (status_from, status_to) = page.status.as_deref().map_or(Ok((0, 0)), statuses)?;
        let filter = v1::Tap {
            rate,
            direction: match page.seen_by.as_deref() {
                None => v1::Direction::Unknown,
                Some("server") => v1::Direction::Inbound,
                Some("client") => v1::Direction::Outbound,
                Some(_) => return Err("a call is seen by `server` or `client`".to_owned()),
            }
            .into(),
            verdict: match page.decision.as_deref() {
                None => v1::Verdict::None,
                Some("allow") => v1::Verdict::Allow,
                Some("deny") => v1::Verdict::Deny,
                Some(_) => return Err("a decision is `allow` or `deny`".to_owned()),
            }
            .into(),
            from: page.from.as_deref().map_or(Ok(String::new()), caller)?,
            method: page.method.unwrap_or_default(),
            path_prefix: page.path.unwrap_or_default(),
            status_from,
            status_to,
            ..v1::Tap::default()
        };
        Ok(Self { rate, lasts, to: page.to, filter })
    }
}

/// `403`, or `4xx`.
fn statuses(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("a status is like 403 or 4xx, not {}", harmless(text, TEXT));
    let (from, to) = match text.to_ascii_lowercase().strip_suffix("xx") {
        Some(class) => {
            let class: u32 = class.parse().map_err(|_| wrong())?;
            (class.saturating_mul(100), class.saturating_mul(100).saturating_add(99))
        }
        None => text.parse().map(|status| (status, status)).map_err(|_| wrong())?,
    };
    if (100..=599).contains(&from) { Ok((from, to)) } else { Err(wrong()) }
}

/// `NAMESPACE/ACCOUNT` or a SPIFFE ID.
fn caller(text: &str) -> Result<String, String> {
    if let Ok(id) = text.parse::<SpiffeId>() {
        return Ok(id.to_string());
    }
    match text.split_once('/') {
        Some((namespace, account))
            if !text.contains(':') && !account.is_empty() && !account.contains('/') =>
        {
            Ok(format!("ns/{namespace}/sa/{account}"))
        }
        _ => Err("a caller is NAMESPACE/SERVICEACCOUNT or spiffe://…".to_owned()),
    }
}

/// One open tap, as sessions see it.
#[derive(Debug)]
pub(crate) struct Open {
    pub id: u64,
    pub wanted: Wanted,
    pub until: Instant,
    lines: mpsc::Sender<TapCall>,
    left_out: AtomicU64,
    refused: AtomicU64,
}

impl Open {
    /// What a sidecar is told, but for who is called.
    pub(crate) fn wire(&self) -> v1::Tap {
        let left = self.until.saturating_duration_since(Instant::now()).as_secs() + 1;
        let seconds = u32::try_from(left).unwrap_or(u32::MAX);
        v1::Tap { id: self.id, seconds, ..self.wanted.filter.clone() }
    }

    fn show(&self, call: TapCall) {
        // A reader that does not keep up sees less.
        if self.lines.try_send(call).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn refuse(&self, count: usize) {
        self.refused.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// All open taps.
#[derive(Debug)]
pub(crate) struct Taps {
    open: watch::Sender<Arc<Vec<Arc<Open>>>>,
    next: AtomicU64,
}

impl Default for Taps {
    fn default() -> Self {
        Self { open: watch::Sender::new(Arc::default()), next: AtomicU64::new(1) }
    }
}

/// The end of a tap that a reader holds; the tap ends when this is dropped.
pub(crate) struct Reader {
    taps: watch::Sender<Arc<Vec<Arc<Open>>>>,
    open: Arc<Open>,
    lines: mpsc::Receiver<TapCall>,
}

impl Taps {
    /// Opens one; `None` when there are too many.
    pub(crate) fn open(&self, wanted: Wanted) -> Option<Reader> {
        let (sender, lines) = mpsc::channel(WAITING);
        let until = Instant::now() + wanted.lasts;
        let open = Arc::new(Open {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            wanted,
            until,
            lines: sender,
            left_out: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let is_new = self.open.send_if_modified(|all| {
            let has_room = all.len() < TAPS;
            if has_room {
                *all = Arc::new(all.iter().chain([&open]).cloned().collect());
            }
            has_room
        });
        is_new.then(|| Reader { taps: self.open.clone(), open, lines })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Vec<Arc<Open>>>> {
        self.open.subscribe()
    }
}

impl Reader {
    /// When it ends by itself.
    pub(crate) fn until(&self) -> Instant {
        self.open.until
    }

    /// The next call. Cancel safe. Pending for ever is not possible: the sender lives in the tap that we hold, and the caller has a deadline.
    pub(crate) async fn next(&mut self) -> Option<TapLine> {
        self.lines.recv().await.map(|call| TapLine::Call(Box::new(call)))
    }

    /// What was not shown since the last time, when there is something.
    pub(crate) fn more(&self) -> Option<TapLine> {
        let matched = self.open.left_out.swap(0, Ordering::Relaxed);
        let refused = self.open.refused.swap(0, Ordering::Relaxed);
        (matched + refused > 0).then_some(TapLine::More(TapMore { matched, refused }))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.taps.send_modify(|all| {
            *all = Arc::new(all.iter().filter(|one| one.id != self.open.id).cloned().collect());
        });
    }
}

/// What one sidecar was asked to show, and how much of it has come.
#[derive(Default)]
pub(crate) struct Asked(Vec<(Arc<Open>, u64, u32)>);

impl Asked {
    /// Nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From now on these are asked for.
    pub(crate) fn set(&mut self, open: &[Arc<Open>]) {
        let before = std::mem::take(&mut self.0);
        let counted = |tap: &Arc<Open>| match before.iter().find(|(known, ..)| known.id == tap.id) {
            Some(known) => known.clone(),
            None => (Arc::clone(tap), 0, 0),
        };
        self.0 = open.iter().map(counted).collect();
    }

    /// Takes what the sidecar of a workload tells. What was not asked for is nothing; what is too much or makes no sense is counted.
    pub(crate) fn take(
        &mut self,
        namespace: &str,
        pod: &str,
        identity: &str,
        told: v1::Tapped,
        now: SystemTime,
    ) {
        let too_many = told.calls.len().saturating_sub(CALLS);
        if too_many > 0 {
            self.0.iter().for_each(|(tap, ..)| tap.refuse(too_many));
        }
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for wire in told.calls.into_iter().take(CALLS) {
            let call = call(namespace, pod, identity, &wire, now);
            for (tap, window, count) in self.0.iter_mut().filter(|(tap, ..)| wire.taps.contains(&tap.id)) {
                if *window != second {
                    (*window, *count) = (second, 0);
                }
                *count = count.saturating_add(1);
                // Two of the sidecar's seconds may meet in one of ours.
                match &call {
                    Some(call) if *count <= tap.wanted.rate * 2 => tap.show(call.clone()),
                    _ => tap.refuse(1),
                }
            }
        }
        for more in told.left_out.iter().take(TAPS) {
            if let Some((tap, ..)) = self.0.iter().find(|(tap, ..)| tap.id == more.tap) {
                tap.left_out.fetch_add(more.count.min(MOST_LEFT_OUT), Ordering::Relaxed);
            }
        }
    }
}

fn call(
    namespace: &str,
    pod: &str,
    identity: &str,
    wire: &v1::TappedCall,
    now: SystemTime,
) -> Option<TapCall> {
    let edge = intake::between(wire.direction, &wire.peer, &wire.service)?;
    let given = |text: &str| (!text.is_empty()).then(|| harmless(text, TEXT));
    let is_id =
        |id: &&String| !id.is_empty() && id.len() <= 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    Some(TapCall {
        at: OffsetDateTime::from(moment(wire.unix_millis, now)).format(&Rfc3339).unwrap_or_default(),
        workload: format!("{namespace}/{pod}"),
        identity: identity.to_owned(),
        direction: if edge.is_inbound { "inbound" } else { "outbound" }.to_owned(),
        peer: edge.peer,
        service: edge.service,
        method: given(&wire.method),
        path: given(&wire.path),
        port: u16::try_from(wire.port).ok()?,
        status: u16::try_from(wire.status).ok().filter(|status| (100..=599).contains(status)),
        protocol: given(&wire.protocol),
        decision: match wire.verdict() {
            v1::Verdict::None => None,
            v1::Verdict::Allow => Some("allow".to_owned()),
            v1::Verdict::Deny => Some("deny".to_owned()),
        },
        reason: given(&wire.reason),
        policy: given(&wire.policy),
        rule: wire.rule,
        decision_id: Some(&wire.decision).filter(is_id).cloned(),
        flag: given(&wire.flag),
        source_ip: wire.source_ip.parse::<IpAddr>().ok()?.to_string(),
        micros: wire.total_micros.min(DAY),
        proxy_micros: wire.proxy_micros.min(DAY),
        bytes_received: wire.bytes_received.min(1 << 44),
        bytes_sent: wire.bytes_sent.min(1 << 44),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(write: impl FnOnce(&mut TapWanted), expected: Result<(&str, u32, u32), &str>) {
        let mut page = TapWanted::default();
        write(&mut page);
        match (Wanted::read(page), expected) {
            (Ok(wanted), Ok(told)) => {
                let filter = &wanted.filter;
                assert_eq!((filter.from.as_str(), filter.status_from, filter.status_to), told);
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (read, expected) => panic!("{read:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_question_is_taken_or_refused_with_a_sentence() {
        check(|_| {}, Ok(("", 0, 0)));
        check(|page| page.from = Some("a/b".into()), Ok(("ns/a/sa/b", 0, 0)));
        check(|page| page.from = Some("spiffe://t/x".into()), Ok(("spiffe://t/x", 0, 0)));
        check(|page| page.from = Some("spiffe://".into()), Err("a caller is"));
        check(|page| page.from = Some("b".into()), Err("a caller is"));
        check(|page| page.status = Some("403".into()), Ok(("", 403, 403)));
        check(|page| page.status = Some("4XX".into()), Ok(("", 400, 499)));
        for wrong in ["4x", "xx", "99", "600", "9xx", "-1", "4294967295xx"] {
            check(|page| page.status = Some(wrong.into()), Err("a status is"));
        }
        check(|page| page.rate = Some(0), Err("a rate"));
        check(|page| page.rate = Some(1001), Err("a rate"));
        check(|page| page.seconds = Some(601), Err("a tap lasts"));
        check(|page| page.decision = Some("maybe".into()), Err("a decision"));
        check(|page| page.seen_by = Some("me".into()), Err("seen by"));
        check(|page| page.path = Some("x".repeat(257)), Err("256 bytes"));
    }

    #[tokio::test]
    async fn what_a_sidecar_tells_is_cut_to_what_was_asked_for() {
        let taps = Taps::default();
        let page = TapWanted { rate: Some(2), ..TapWanted::default() };
        let mut reader = taps.open(Wanted::read(page).unwrap()).unwrap();
        let (mut asked, id) = (Asked::default(), reader.open.id);
        asked.set(&taps.subscribe().borrow());
        let one = |tap: u64| v1::TappedCall {
            taps: vec![tap],
            direction: v1::Direction::Inbound.into(),
            method: "GET".into(),
            path: format!("/\u{1b}[2J{}", "x".repeat(2000)),
            source_ip: "10.0.0.1".into(),
            ..Default::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut tell = |calls: Vec<v1::TappedCall>| {
            asked.take("a", "b", "spiffe://t/x", v1::Tapped { calls, left_out: vec![] }, now);
        };
        // Not asked for, of no direction, from nowhere, too many in a second, too many in a message.
        tell(vec![one(id + 1); 3]);
        tell(vec![
            v1::TappedCall { direction: 9, ..one(id) },
            v1::TappedCall { source_ip: "?".into(), ..one(id) },
        ]);
        tell(vec![one(id); 18]);
        let mut shown = 0;
        while let Ok(call) = reader.lines.try_recv() {
            shown += 1;
            let path = call.path.unwrap();
            assert!(path.starts_with(r"/\u{1b}[2Jxxx") && path.len() < 300, "{path}");
        }
        assert_eq!(shown, 2, "twice the rate, of which two made no sense");
        let Some(TapLine::More(more)) = reader.more() else { panic!("nothing was refused") };
        assert_eq!((more.matched, more.refused), (0, 2 + 2 + 14));
    }

    #[tokio::test]
    async fn a_reader_that_stops_sees_less_and_when_it_goes_another_has_its_place() {
        let taps = Taps::default();
        let wanted = || Wanted::read(TapWanted { rate: Some(1000), ..TapWanted::default() }).unwrap();
        let mut readers: Vec<_> = (0..TAPS).map(|_| taps.open(wanted()).unwrap()).collect();
        assert!(taps.open(wanted()).is_none());
        let (mut asked, id) = (Asked::default(), readers[0].open.id);
        asked.set(&taps.subscribe().borrow());
        let call = v1::TappedCall {
            taps: vec![id],
            direction: v1::Direction::Inbound.into(),
            source_ip: "10.0.0.1".into(),
            ..Default::default()
        };
        for _ in 0..20 {
            let told = v1::Tapped {
                calls: vec![call.clone(); 16],
                left_out: vec![v1::LeftOut { tap: id, count: 1 }],
            };
            asked.take("a", "b", "spiffe://t/x", told, SystemTime::now());
        }
        let Some(TapLine::More(more)) = readers[0].more() else { panic!("nothing was left out") };
        assert_eq!(more.matched, 320 - WAITING as u64 + 20);
        drop(readers.remove(0));
        assert_eq!(taps.subscribe().borrow().len(), TAPS - 1);
        assert!(taps.open(wanted()).is_some());
    }
}
