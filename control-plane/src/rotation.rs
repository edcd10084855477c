//! When may an authority sign, and when may it go? The evidence is what the sidecars have acknowledged and what they hold.
//!
//! Pure: a look at sessions, pods and authorities gives those who lag, each with the reason. Nobody lags: the step is safe.

use crate::{
    attest::Attested,
    authority::{AuthorityKind, AuthorityStatus, MAX_JWT_LIFETIME, Outside, Slot},
    publish::status::{Departed, Held, SessionStatus},
};
use postern_identity::KeyId;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Below this share of its life the authority prepares the next one by itself, and nobody needs to be asked.
const SHARE_OF_LAST_ROTATION: f64 = 0.2;
/// A token key that was not asked for is published so long before it signs: foreign trust domains look every five minutes
/// (SPIFFE Federation 5.2.3: three to five times the refresh hint).
const TOKEN_KEY_NOTICE: Duration = Duration::from_secs(15 * 60);

/// Something that could cut somebody off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The prepared authority of this kind signs.
    Activate(AuthorityKind),
    /// An authority is published no more.
    Retire(KeyId),
    /// Nothing below an authority is trusted any more.
    Revoke(KeyId),
}

/// Somebody whom a step would cut off.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lagging {
    /// `namespace/pod`, or what else is in the way.
    pub who: String,
    /// Why, to be read after `who`.
    pub reason: String,
}

/// A step that may be done by itself now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The prepared authority of this kind signs.
    Activate(AuthorityKind),
    /// Who holds something of it renews now.
    Taint(KeyId),
    /// An old root is published no more.
    Retire(KeyId),
}

/// All that is known at one instant.
#[derive(Clone, Debug)]
pub struct View {
    /// Who is connected, oldest session first.
    pub sessions: Vec<SessionStatus>,
    /// Who was.
    pub departed: Vec<Departed>,
    /// The pods that have a sidecar, by the documents.
    pub expected: Vec<Attested>,
    /// The authorities.
    pub authorities: Vec<AuthorityStatus>,
    /// Version of the trust that everybody has been sent.
    pub trust_version: String,
    /// Since when this process can have seen anybody.
    pub started: SystemTime,
    /// The longest that a certificate of a workload lives.
    pub certificate_lifetime: Duration,
    /// The instant.
    pub now: SystemTime,
}

/// What is known of one pod.
struct Sidecar<'a> {
    who: String,
    /// Newest last.
    sessions: Vec<&'a SessionStatus>,
    departed: Option<&'a Departed>,
}

/// Whether any rotation is on its way: only then [`View::next`] can name a step, and it is worth looking at every sidecar.
pub fn is_on_its_way(authorities: &[AuthorityStatus]) -> bool {
    authorities.iter().any(waits)
}

/// Whether a step is left for it. What an outside authority names stays published as long as it is named there.
fn waits(one: &AuthorityStatus) -> bool {
    let named = one.outside == Some(Outside::Names);
    !one.revoked
        && match (one.kind, one.slot) {
            (AuthorityKind::Intermediate, _) | (_, Slot::Active) => false,
            (AuthorityKind::JwtKey, slot) => slot == Slot::Prepared,
            (AuthorityKind::Root, Slot::Prepared) => !named,
            (AuthorityKind::Root, Slot::Old) => !named || !one.tainted,
        }
}

impl View {
    /// Whom `step` would cut off.
    pub fn lagging(&self, step: Step) -> Vec<Lagging> {
        match step {
            Step::Activate(kind) => self.ignorant_of_next(kind),
            Step::Retire(id) => {
                let named = self.authority(id).is_some_and(|one| one.outside.is_some());
                let outside = named.then(|| Lagging {
                    who: "the outside authority".into(),
                    reason: "still names this root: take it out there".into(),
                });
                self.holding(id).into_iter().chain(outside).collect()
            }
            Step::Revoke(id) => {
                let active = self.authority(id).filter(|found| found.slot == Slot::Active && !found.revoked);
                let mut all = self.holding(id);
                // In the place of an active one steps the next one.
                if let Some(active) = active.filter(|active| active.kind != AuthorityKind::Intermediate) {
                    all.extend(self.ignorant_of_next(active.kind));
                }
                all.sort();
                all
            }
        }
    }

    /// What may be done now without being asked again. `asked` are the kinds for which somebody asked for a whole rotation.
    pub fn next(&self, asked: &BTreeSet<AuthorityKind>) -> Vec<Action> {
        let mut actions = Vec::new();
        for kind in [AuthorityKind::JwtKey, AuthorityKind::Root] {
            let wanted = self.is_wanted(kind, asked);
            if let Some(next) = self.next_of(kind) {
                let due = match kind {
                    AuthorityKind::JwtKey => next.since + TOKEN_KEY_NOTICE <= self.now,
                    _ => self.ends_soon(self.slot(kind, Slot::Active)),
                };
                if (wanted || due) && self.lagging(Step::Activate(kind)).is_empty() {
                    actions.push(Action::Activate(kind));
                }
            }
        }
        let wanted = self.is_wanted(AuthorityKind::Root, asked);
        for old in self.old_roots().filter(|old| wanted || self.ends_soon(Some(old))) {
            if wanted && !old.tainted {
                actions.push(Action::Taint(old.id));
            }
            if self.lagging(Step::Retire(old.id)).is_empty() {
                actions.push(Action::Retire(old.id));
            }
        }
        actions
    }

    /// Whether a whole rotation of `kind` that was asked for is over.
    pub fn is_over(&self, kind: AuthorityKind) -> bool {
        !self.authorities.iter().any(|one| one.kind == kind && waits(one))
    }

    /// Whether a rotation of `kind` goes on as soon as the evidence is there: somebody asked for it, or an outside authority did by
    /// what it gives.
    pub fn is_wanted(&self, kind: AuthorityKind, asked: &BTreeSet<AuthorityKind>) -> bool {
        asked.contains(&kind) || kind == AuthorityKind::Root && self.given().is_some()
    }

    /// The authority of `kind` that is to sign next. Of the roots that an outside authority names it is the one that it signs below.
    pub fn next_of(&self, kind: AuthorityKind) -> Option<&AuthorityStatus> {
        match self.given() {
            Some(given) if kind == AuthorityKind::Root => {
                Some(given).filter(|next| next.slot == Slot::Prepared)
            }
            _ => self.slot(kind, Slot::Prepared),
        }
    }

    fn given(&self) -> Option<&AuthorityStatus> {
        self.authorities.iter().find(|one| one.outside == Some(Outside::Signs) && !one.revoked)
    }

    /// How many connected sidecars say that they hold a certificate below `id`.
    pub fn holders(&self, id: KeyId) -> usize {
        let below = self.keys_below(id);
        self.sidecars()
            .iter()
            .filter(|sidecar| held(sidecar).is_some_and(|held| is_below(held, &below)))
            .count()
    }

    /// The sidecars that should be there and are not, each with the reason.
    pub fn missing(&self) -> Vec<Lagging> {
        let absent =
            |sidecar: &Sidecar<'_>| Lagging { who: sidecar.who.clone(), reason: self.absence(sidecar) };
        self.sidecars().iter().filter(|sidecar| sidecar.sessions.is_empty()).map(absent).collect()
    }

    /// The connected sidecars that have not acknowledged the trust that everybody has been sent.
    pub fn behind(&self) -> usize {
        let current = |session: &&SessionStatus| session.trust_acked == self.trust_version;
        let behind =
            |sidecar: &&Sidecar<'_>| !sidecar.sessions.is_empty() && !sidecar.sessions.iter().any(current);
        self.sidecars().iter().filter(behind).count()
    }

    /// The roots that signed before the active one.
    pub fn old_roots(&self) -> impl Iterator<Item = &AuthorityStatus> {
        let old =
            |one: &&AuthorityStatus| one.kind == AuthorityKind::Root && one.slot == Slot::Old && !one.revoked;
        self.authorities.iter().filter(old)
    }

    /// The authority of `kind` in `slot`.
    pub fn slot(&self, kind: AuthorityKind, slot: Slot) -> Option<&AuthorityStatus> {
        self.authorities.iter().find(|one| one.kind == kind && one.slot == slot && !one.revoked)
    }

    fn authority(&self, id: KeyId) -> Option<&AuthorityStatus> {
        self.authorities.iter().find(|one| one.id == id)
    }

    fn ends_soon(&self, authority: Option<&AuthorityStatus>) -> bool {
        authority.is_some_and(|authority| authority.remaining <= SHARE_OF_LAST_ROTATION)
    }

    fn sidecars(&self) -> Vec<Sidecar<'_>> {
        let mut all: BTreeMap<(&str, &str), Vec<&SessionStatus>> = BTreeMap::new();
        for pod in &self.expected {
            all.entry((&pod.namespace, &pod.pod)).or_default();
        }
        for session in &self.sessions {
            all.entry((&session.namespace, &session.instance)).or_default().push(session);
        }
        let departed: BTreeMap<(&str, &str), &Departed> =
            self.departed.iter().map(|one| ((one.namespace.as_str(), one.instance.as_str()), one)).collect();
        all.into_iter()
            .map(|(pod, sessions)| Sidecar {
                who: format!("{}/{}", pod.0, pod.1),
                sessions,
                departed: departed.get(&pod).copied(),
            })
            .collect()
    }

    /// Who could not verify what the next authority of `kind` signs.
    fn ignorant_of_next(&self, kind: AuthorityKind) -> Vec<Lagging> {
        let Some(next) = self.next_of(kind) else { return Vec::new() };
        let mut all = Vec::new();
        for sidecar in self.sidecars() {
            let reason = match sidecar.sessions.last() {
                _ if sidecar.sessions.iter().any(|session| session.trust_known.contains(&next.id)) => {
                    continue;
                }
                Some(session) => not_acknowledged(session, &self.trust_version),
                // It learns of it before it talks to anybody: nothing that it holds can be valid any more.
                None if self.was_away_for_a_lifetime(&sidecar) => continue,
                None if sidecar.departed.is_some_and(|gone| gone.trust_known.contains(&next.id)) => continue,
                None => self.absence(&sidecar),
            };
            all.push(Lagging { who: sidecar.who, reason });
        }
        all
    }

    /// Who holds something that `id` signed.
    fn holding(&self, id: KeyId) -> Vec<Lagging> {
        let Some(authority) = self.authority(id) else { return Vec::new() };
        if authority.slot == Slot::Prepared {
            return Vec::new();
        }
        if authority.kind == AuthorityKind::JwtKey {
            return self.tokens(authority);
        }
        let below = self.keys_below(id);
        let mut all = Vec::new();
        for sidecar in self.sidecars() {
            let reason = match (held(&sidecar), sidecar.sessions.is_empty()) {
                (Some(held), _) if held.not_after <= self.now || !is_below(held, &below) => continue,
                (Some(held), false) => {
                    format!("holds a certificate below {} until {}", id.short(), written(held.not_after))
                }
                (None, false) => "has not said which certificate it holds".to_owned(),
                (None, true) if self.was_away_for_a_lifetime(&sidecar) => continue,
                (held, true) => {
                    let until = held.map_or_else(
                        || self.last_seen(&sidecar) + self.certificate_lifetime,
                        |h| h.not_after,
                    );
                    let absence = self.absence(&sidecar);
                    format!(
                        "{absence} and may hold a certificate below {} until {}",
                        id.short(),
                        written(until)
                    )
                }
            };
            all.push(Lagging { who: sidecar.who, reason });
        }
        all
    }

    /// Nobody counts tokens; but they end soon.
    fn tokens(&self, key: &AuthorityStatus) -> Vec<Lagging> {
        let until = match key.slot {
            Slot::Active => self.now + MAX_JWT_LIFETIME,
            Slot::Old | Slot::Prepared => key.since + MAX_JWT_LIFETIME,
        };
        if until <= self.now {
            return Vec::new();
        }
        let reason = format!("may be in use until {}", written(until));
        vec![Lagging { who: format!("tokens signed by {}", key.id.short()), reason }]
    }

    /// `id` and, for a root, the intermediates below it.
    fn keys_below(&self, id: KeyId) -> BTreeSet<KeyId> {
        let below = self.authorities.iter().filter(|one| one.root == Some(id)).map(|one| one.id);
        below.chain([id]).collect()
    }

    fn last_seen(&self, sidecar: &Sidecar<'_>) -> SystemTime {
        sidecar.departed.map_or(self.started, |departed| departed.at)
    }

    fn was_away_for_a_lifetime(&self, sidecar: &Sidecar<'_>) -> bool {
        self.last_seen(sidecar) + self.certificate_lifetime <= self.now
    }

    fn absence(&self, sidecar: &Sidecar<'_>) -> String {
        match sidecar.departed {
            Some(departed) => format!("has not been connected since {}", written(departed.at)),
            None => format!("has not connected since the control plane started at {}", written(self.started)),
        }
    }
}

/// What the sidecar said last, now or before it went.
fn held<'a>(sidecar: &Sidecar<'a>) -> Option<&'a Held> {
    let newest = sidecar.sessions.iter().rev().find_map(|session| session.certificate.as_ref());
    match sidecar.sessions.is_empty() {
        true => sidecar.departed.and_then(|departed| departed.certificate.as_ref()),
        false => newest,
    }
}

fn is_below(held: &Held, keys: &BTreeSet<KeyId>) -> bool {
    held.authorities.iter().any(|key| keys.contains(key))
}

fn not_acknowledged(session: &SessionStatus, current: &str) -> String {
    let short = |version: &str| version.chars().take(8).collect::<String>();
    let acked = match session.trust_acked.as_str() {
        "" => format!("has acknowledged no trust yet, not {}", short(current)),
        acked => format!("has acknowledged trust {}, not {}", short(acked), short(current)),
    };
    let refusal = session.last_nacks.iter().rev().find(|nack| nack.version == session.trust_sent);
    match refusal {
        Some(nack) => format!("{acked}: it refused that ({})", nack.reason),
        None => acked,
    }
}

/// As people and programs both read it.
pub(crate) fn written(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.unix_timestamp().to_string())
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
