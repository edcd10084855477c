//! Open mutual-TLS connections and their standing: a peer that was verified once is judged again when trust changes and time passes.
//!
//! Revocation ends a connection at once. Time gives notice first: no new requests, and the end within a minute. An authority that is
//! published no more without being revoked gives seconds: it went since nobody needs it, and what is under way may finish.

use crate::news::News;
use postern_identity::{Bundle, KeyId, Peer, Refusal, TrustBundles};
use rustls_pki_types::UnixTime;
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// How often connections are looked at while nothing changes.
pub const LOOK: Duration = Duration::from_secs(5);
/// From the end of a peer's certificate to the end of its connection; with [`LOOK`] less than a minute.
const NOTICE: Duration = Duration::from_secs(50);
/// The same where its authority is published no more. Looks come faster then, so that all is over within five seconds.
const NOTICE_OF_ISSUER: Duration = Duration::from_secs(3);
/// How often connections are looked at after a change of trust, and how many times.
pub const BRISK: (Duration, u32) = (Duration::from_secs(1), 4);
/// Verifications in a row before others get their turn: about a millisecond.
const AT_ONCE: usize = 16;

/// What a connection may still do.
#[derive(Clone, Debug)]
enum Standing {
    Trusted,
    /// Nothing new, since our own certificate goes; what is under way takes the time it needs.
    Left,
    /// Nothing new, since this moment; the end comes soon.
    Ending(Instant),
    Ended(Refusal),
}

#[derive(Debug)]
struct Seat {
    peer: Peer,
    peer_is_server: bool,
    /// The keys above the certificate that we showed.
    own: Arc<[KeyId]>,
    standing: RefCell<Standing>,
    news: Rc<News>,
}

/// One connection, as those see it who carry something over it. Plain connections have one that never changes.
#[derive(Clone, Debug, Default)]
pub struct Watch(Option<Rc<Seat>>);

impl Watch {
    /// Why the peer is not trusted any more, once the connection has to end.
    pub fn refusal(&self) -> Option<Refusal> {
        match &*self.0.as_ref()?.standing.borrow() {
            Standing::Ended(refusal) => Some(refusal.clone()),
            _ => None,
        }
    }

    /// Whether somebody has proven who he is, so that this can change.
    pub fn is_of_a_peer(&self) -> bool {
        self.0.is_some()
    }

    /// Whether another request may go over it: trusted, and the peer's certificate has not ended. Where nobody has proven anything the
    /// clock is not looked at.
    pub fn takes_more(&self, now: impl FnOnce() -> SystemTime) -> bool {
        self.0.as_ref().is_none_or(|seat| {
            matches!(*seat.standing.borrow(), Standing::Trusted) && now() <= seat.peer.not_after()
        })
    }

    /// Whether nothing new may begin.
    pub fn is_ending(&self) -> bool {
        self.is(|standing| matches!(standing, Standing::Ending(_) | Standing::Ended(_)))
    }

    /// Whether our peer shall come again, even if nothing presses.
    pub fn is_left(&self) -> bool {
        self.is(|standing| !matches!(standing, Standing::Trusted))
    }

    /// Resolves when the connection has to be closed, with the rule that its peer breaks.
    pub async fn ended(&self) -> Refusal {
        let Some(seat) = &self.0 else { return std::future::pending().await };
        loop {
            seat.news.until(|| matches!(*seat.standing.borrow(), Standing::Ended(_))).await;
            if let Some(refusal) = self.refusal() {
                return refusal;
            }
        }
    }

    fn is(&self, so: impl Fn(&Standing) -> bool) -> bool {
        self.0.as_ref().is_some_and(|seat| so(&seat.standing.borrow()))
    }
}

/// All open mutual-TLS connections of one worker.
#[derive(Debug, Default)]
pub struct Open {
    seats: RefCell<Vec<Weak<Seat>>>,
    news: Rc<News>,
}

impl Open {
    /// Of a worker whose connections hear of their standing by `news`.
    pub fn new(news: Rc<News>) -> Self {
        Self { seats: RefCell::default(), news }
    }

    /// A finished handshake. The entry goes with the last clone of the watch.
    pub fn enter(&self, peer: Peer, peer_is_server: bool, own: &Arc<[KeyId]>) -> Watch {
        let (own, news) = (own.clone(), self.news.clone());
        let standing = RefCell::new(Standing::Trusted);
        let seat = Rc::new(Seat { peer, peer_is_server, own, standing, news });
        let mut seats = self.seats.borrow_mut();
        if seats.len() == seats.capacity() {
            // Before it grows, what has gone makes room: amortized, one look per entry.
            seats.retain(|seat| seat.strong_count() > 0);
        }
        seats.push(Rc::downgrade(&seat));
        Watch(Some(seat))
    }

    /// Judges connections under `trust` at `now`. Equal certificates are verified once. The codes of the connections that end by
    /// this.
    pub async fn judge(&self, trust: &TrustBundles, now: SystemTime, occasion: Occasion) -> Vec<Code> {
        let mut verdicts: HashMap<([u8; 32], bool), Option<Refusal>> = HashMap::new();
        let (mut ended, mut is_news) = (Vec::new(), false);
        for seat in self.present() {
            let is_quiet =
                !matches!(*seat.standing.borrow(), Standing::Ending(_)) && now <= seat.peer.not_after();
            if occasion == Occasion::Clock && is_quiet {
                continue;
            }
            let key = (*seat.peer.sha256(), seat.peer_is_server);
            if !verdicts.contains_key(&key) {
                if verdicts.len() % AT_ONCE == AT_ONCE - 1 {
                    tokio::task::yield_now().await;
                }
                verdicts.insert(key, verdict(&seat.peer, trust, seat.peer_is_server, now));
            }
            if let Some(Some(refusal)) = verdicts.get(&key)
                && let Some(next) = seat.objection(refusal, occasion)
            {
                if matches!(next, Standing::Ended(_)) {
                    ended.push(Code { peer_is_server: seat.peer_is_server, code: refusal.code() });
                }
                *seat.standing.borrow_mut() = next;
                is_news = true;
            }
        }
        if is_news {
            self.news.tell();
        }
        ended
    }

    /// Nothing new may begin where we showed a certificate below one of `going`: our peers shall be on the next one before those
    /// are trusted no more.
    pub fn leave(&self, going: &BTreeSet<KeyId>) {
        let mut is_news = false;
        for seat in self.present().iter().filter(|seat| seat.own.iter().any(|key| going.contains(key))) {
            let standing = &mut *seat.standing.borrow_mut();
            if matches!(standing, Standing::Trusted) {
                (*standing, is_news) = (Standing::Left, true);
            }
        }
        if is_news {
            self.news.tell();
        }
    }

    fn present(&self) -> Vec<Rc<Seat>> {
        let mut seats = self.seats.borrow_mut();
        seats.retain(|seat| seat.strong_count() > 0);
        seats.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Why connections are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Time has passed: only those whose certificate has ended, or which were given notice. It costs a comparison each.
    Clock,
    /// Authorities may have gone, none by force.
    Round,
    /// An authority was revoked.
    Revocation,
}

impl Occasion {
    /// What a change of trust is, after `before`.
    pub fn of_change(before: Option<&TrustBundles>, now: &TrustBundles) -> Self {
        let known = |bundle: &Bundle| before.and_then(|before| before.get(bundle.trust_domain.as_str()));
        let adds =
            |bundle: &Bundle| !known(bundle).is_some_and(|known| bundle.revoked.is_subset(&known.revoked));
        let revokes = now.iter().any(|bundle| !bundle.revoked.is_empty() && adds(bundle));
        if revokes { Self::Revocation } else { Self::Round }
    }
}

/// The rule by which a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Which side the peer was on.
    pub peer_is_server: bool,
    /// [`Refusal::code`].
    pub code: &'static str,
}

impl Seat {
    /// How it stands from now on, where that is news.
    fn objection(&self, refusal: &Refusal, occasion: Occasion) -> Option<Standing> {
        let notice = if is_about_time(refusal) {
            NOTICE
        } else if occasion != Occasion::Revocation && is_about_issuer(refusal) {
            NOTICE_OF_ISSUER
        } else {
            Duration::ZERO
        };
        match &*self.standing.borrow() {
            Standing::Ended(_) => None,
            Standing::Trusted | Standing::Left if !notice.is_zero() => Some(Standing::Ending(Instant::now())),
            Standing::Ending(since) if since.elapsed() < notice => None,
            _ => Some(Standing::Ended(refusal.clone())),
        }
    }
}

/// Whether the authority of a chain that was good once is not published any more.
fn is_about_issuer(refusal: &Refusal) -> bool {
    matches!(refusal.rule(), Refusal::UnknownIssuer(_) | Refusal::BadSignature(_))
}

/// Whether a refusal comes from the clock alone.
pub fn is_about_time(refusal: &Refusal) -> bool {
    matches!(refusal.rule(), Refusal::Expired { .. } | Refusal::NotYetValid { .. })
}

/// What the verifier says now. An ended certificate hides whether its authority is trusted, so that is asked for its last moment.
fn verdict(peer: &Peer, trust: &TrustBundles, peer_is_server: bool, now: SystemTime) -> Option<Refusal> {
    let refusal = peer.still_trusted(trust, peer_is_server, unix(now)).err()?;
    if is_about_time(&refusal)
        && let Err(other) = peer.still_trusted(trust, peer_is_server, unix(peer.not_after()))
        && !is_about_time(&other)
    {
        return Some(other);
    }
    Some(refusal)
}

fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
