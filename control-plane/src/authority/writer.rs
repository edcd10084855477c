//! The one who changes an authority: state, keys and signers together, under one lock.
//!
//! A change works on a copy. Only when it is whole, and on the disk, it takes the place of what was before; so whoever signs
//! meanwhile sees one or the other. `outside` follows an authority that somebody else gives.

mod outside;

use super::{
    AuthorityError, AuthorityKind, Event, IssueError, Settings, Slot, StepError, Upstream,
    journal::{Found, Keys, Store},
    jwt, root, seconds,
    sign::{Key, Signer, has_room, whole_seconds},
    state::{Entry, Intermediate, State},
    upstream::Supplied,
};
use postern_identity::{KeyId, TrustDomain, svid};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A failure that lasts is told so often, in seconds.
const TELL_AGAIN: i64 = 60;
/// Percents of a life at which it is told, and from which the next authority is prepared, and activated without being asked.
const MARKS: [u8; 3] = [50, 20, 5];
const PREPARE_PERCENT: u8 = 20;
const ACTIVATE_PERCENT: u8 = 5;

/// Everything that changes.
#[derive(Clone)]
pub(super) struct Writer {
    pub state: State,
    pub keys: Keys,
    /// What signs leaves, by root: below the active one, and below the oldest one for our own server.
    pub signers: BTreeMap<KeyId, Arc<Signer>>,
    /// What the outside authority gave last.
    pub supplied: Option<Supplied>,
    /// What happened outside [`Writer::refresh`], which tells it.
    pub news: Vec<Event>,
    own: bool,
    /// Whether the outside authority makes another intermediate when it is asked.
    vault: bool,
    trust_domain: TrustDomain,
    intermediate_lifetime: Duration,
    /// The lowest mark that was told, by authority.
    told: BTreeMap<KeyId, u8>,
    /// When the outside authority was asked last.
    asked: i64,
    /// When a failure was told last.
    complained: i64,
}

impl Writer {
    /// From what was found, or new.
    pub(super) fn open(
        settings: &Settings,
        store: Option<&Store>,
        supplied: Option<Supplied>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let at = seconds(now);
        let found = store.map_or(Ok(Found::Nothing), |store| store.find(&settings.trust_domain))?;
        let fresh = State::new(settings.trust_domain.as_str(), now);
        let (state, keys) = match found {
            Found::State(state, keys) => (state.begun_again(now), keys),
            Found::Nothing => (fresh, Keys::new()),
            Found::Key(key) => {
                let mut keys = Keys::new();
                let state = with_own_root(fresh, &mut keys, key, &settings.trust_domain, now)?;
                (state, keys)
            }
            Found::Root(bundle, key) => taken_over(fresh, &bundle, key, settings, store, now)?,
        };
        let mut writer = Self {
            state,
            keys,
            signers: BTreeMap::new(),
            supplied: None,
            news: Vec::new(),
            own: matches!(settings.upstream, Upstream::Own),
            vault: matches!(settings.upstream, Upstream::Vault(_)),
            trust_domain: settings.trust_domain.clone(),
            intermediate_lifetime: settings.intermediate_lifetime,
            told: BTreeMap::new(),
            asked: at,
            complained: i64::MIN,
        };
        match supplied {
            Some(supplied) => writer.follow(supplied, now)?,
            None => {
                let before = writer.state.slot(AuthorityKind::Root, Slot::Active);
                let (before, signs) = (before.map(|root| root.id), before.map(|root| root.key));
                // The first without an outside authority: one of ours from before is known already.
                let ours = writer.state.roots.iter().filter(|root| {
                    root.key
                        && !root.tainted
                        && super::check_anchor(&root.public, &settings.trust_domain, now).is_ok()
                });
                let known = ours.max_by_key(|root| root.since).map(|root| root.id);
                match known {
                    _ if signs == Some(true) => {}
                    Some(known) => writer.state.set_active(known, at),
                    None => {
                        let key = root::make_key()?;
                        let state = writer.state.clone();
                        writer.state =
                            with_own_root(state, &mut writer.keys, key, &writer.trust_domain, now)?;
                    }
                }
                // What an outside authority gave before cannot sign here any more.
                let active = writer.state.slot(AuthorityKind::Root, Slot::Active).map(|root| root.id);
                if let (Some(before), Some(id)) = (before.filter(|before| active != Some(*before)), active) {
                    writer.news.push(Event::Replaced { id, before, published: known.is_some() });
                }
            }
        }
        if writer.state.slot(AuthorityKind::JwtKey, Slot::Active).is_none() {
            let (entry, key) = jwt::make_key(Slot::Active, now)?;
            writer.keys.insert(entry.id, key);
            writer.state.jwt_keys.push(entry);
        }
        Ok(writer)
    }

    /// Whether the active root may be started with.
    pub(super) fn check_use(
        &self,
        settings: &Settings,
        store: Option<&Store>,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        let at = seconds(now);
        let Some(active) = self.state.slot(AuthorityKind::Root, Slot::Active) else { return Ok(()) };
        super::check_anchor(&active.public, &self.trust_domain, now).map_err(|cause| {
            AuthorityError::Root {
                path: store.map(|store| store.root_paths().0).unwrap_or_default(),
                trust_domain: self.trust_domain.clone(),
                cause,
            }
        })?;
        let signer = self.supplied.as_ref().map(|supplied| supplied.signer.not_after);
        let ends = signer.map_or(active.not_after, |end| end.min(active.not_after));
        let (left, wanted) =
            (ends.saturating_sub(at), whole_seconds(settings.leaf_lifetime).saturating_mul(2));
        if left < wanted && !settings.allow_ending {
            return Err(AuthorityError::Ending {
                id: active.id.short(),
                left_seconds: left,
                wanted_seconds: wanted,
            });
        }
        Ok(())
    }

    /// Forgets the private keys that the state names no more.
    pub(super) fn keep_only_named_keys(&mut self) {
        let named = self.state.roots.iter().chain(&self.state.jwt_keys);
        let named: BTreeSet<KeyId> = named.filter(|entry| entry.key).map(|entry| entry.id).collect();
        self.keys.retain(|id, _| named.contains(id));
    }

    /// The next root or token key, made here.
    pub(super) fn make_next(
        &mut self,
        kind: AuthorityKind,
        now: SystemTime,
    ) -> Result<Entry, AuthorityError> {
        let (entry, key) = match kind {
            AuthorityKind::JwtKey => jwt::make_key(Slot::Prepared, now)?,
            AuthorityKind::Root | AuthorityKind::Intermediate => {
                own_root(Slot::Prepared, root::make_key()?, &self.trust_domain, now)?
            }
        };
        self.keys.insert(entry.id, key);
        Ok(entry)
    }

    /// Lets the next one sign. Of the roots that an outside authority names it is the one that it signs below.
    pub(super) fn activate(&mut self, kind: AuthorityKind, now: i64) -> Result<KeyId, StepError> {
        let given = self.supplied.as_ref().map(|supplied| supplied.signer.root);
        let Some(root) = given.filter(|_| kind == AuthorityKind::Root) else {
            return self.state.activate(kind, now);
        };
        if self.state.root(root).is_none_or(|root| root.slot != Slot::Prepared) {
            return Err(StepError::NothingPrepared);
        }
        self.state.set_active(root, now);
        Ok(root)
    }

    /// Takes an authority out at once; in the place of an active one steps the next one.
    pub(super) fn revoke(&mut self, id: KeyId, now: SystemTime) -> Result<(), StepError> {
        self.replaceable(id)?;
        let is_active = |kind| self.state.slot(kind, Slot::Active).is_some_and(|active| active.id == id);
        let kind = AuthorityKind::JwtKey;
        if is_active(kind) && self.state.slot(kind, Slot::Prepared).is_none() {
            let next = self.make_next(kind, now)?;
            self.state.prepare(kind, next)?;
        } else if is_active(AuthorityKind::Root) && self.supplied.is_some() {
            self.activate(AuthorityKind::Root, seconds(now)).map_err(|_| StepError::Active(id))?;
        }
        self.state.revoke(id, seconds(now))
    }

    /// Whether something could be signed below this root.
    pub(super) fn can_sign(&self, root: &Entry, now: i64) -> bool {
        let supplied = self
            .supplied
            .as_ref()
            .is_some_and(|supplied| supplied.signer.root == root.id && supplied.signer.is_valid(now));
        let held = self.keys.contains_key(&root.id) && (root.not_before..root.not_after).contains(&now);
        supplied || held || self.signers.get(&root.id).is_some_and(|signer| signer.is_valid(now))
    }

    /// The root for our own server: the oldest one that is published, so that a sidecar that was away still knows it.
    pub(super) fn server_root(&self, now: i64) -> Option<KeyId> {
        let mut roots: Vec<&Entry> = self
            .state
            .roots
            .iter()
            .filter(|root| root.slot != Slot::Prepared && !root.tainted && self.can_sign(root, now))
            .collect();
        // Old before active, and among the old ones the first that became so.
        roots.sort_by_key(|root| (root.slot != Slot::Old, root.since));
        roots.first().map(|root| root.id)
    }

    /// Makes what signs leaves, where there is none or where it is time. What cannot be made anew stays until its end.
    pub(super) fn refresh(&mut self, now: SystemTime) -> Vec<Event> {
        let at = seconds(now);
        let mut events = std::mem::take(&mut self.news);
        events.extend(self.take_over_when_needed(at));
        let active = self.state.slot(AuthorityKind::Root, Slot::Active).map(|root| root.id);
        let needed: BTreeSet<KeyId> = active.into_iter().chain(self.server_root(at)).collect();
        self.signers.retain(|root, _| needed.contains(root));
        for id in needed {
            let current = self.signers.get(&id);
            // Never used again, also when nothing takes its place.
            let refused = current.is_some_and(|signer| self.state.is_revoked(signer.id));
            if current.is_some_and(|signer| !refused && !self.is_due(signer, at)) {
                continue;
            }
            // What signs by itself is replaced by what the outside authority gives, and by nothing else.
            let given = |id| self.supplied.as_ref().is_some_and(|one| one.direct && one.signer.id == id);
            if current.is_some_and(|signer| !refused && given(signer.id)) {
                continue;
            }
            if refused {
                self.signers.remove(&id);
            }
            match self.make_signer(id, now) {
                Ok(signer) => {
                    if !self.state.intermediates.iter().any(|one| one.id == signer.id) && signer.id != id {
                        self.state.note_intermediate(Intermediate {
                            id: signer.id,
                            root: id,
                            since: at,
                            not_after: signer.not_after,
                            tainted: false,
                        });
                        let not_after = super::instant(signer.not_after);
                        events.push(Event::Renewed { id: signer.id, not_after });
                    }
                    self.signers.insert(id, signer);
                }
                Err(reason) => events.extend(self.complain(at, reason)),
            }
        }
        events
    }

    fn is_due(&self, signer: &Signer, now: i64) -> bool {
        // Made while our clock was ahead: it could not sign for as long as that was.
        if self.state.is_tainted(signer.id) || now < signer.not_before {
            return true;
        }
        // One that ends with the root is as long as it can be.
        let end = now.saturating_add(whole_seconds(self.intermediate_lifetime));
        let longest = self.state.root(signer.root).map_or(end, |root| root.not_after.min(end));
        now >= half_life(signer.made, signer.not_after) && longest > signer.not_after
    }

    fn make_signer(&self, id: KeyId, now: SystemTime) -> Result<Arc<Signer>, String> {
        let root = self.state.root(id).ok_or("its root is not published")?;
        let supplied = self.supplied.as_ref().filter(|supplied| supplied.signer.root == id);
        let signer = match supplied {
            Some(Supplied { signer, direct: true, .. }) => {
                if self.state.is_revoked(signer.id) || self.state.is_tainted(signer.id) {
                    return Err("the outside authority has given no other one yet".into());
                }
                Arc::clone(signer)
            }
            Some(Supplied { signer, .. }) => self.below(signer, now)?.into(),
            None => {
                let key = self.keys.get(&id).ok_or("the key of its root is not here")?;
                let parent = root::signer(&root.certificate(), key.clone())?;
                // A root that was taken over may have no room for an intermediate.
                if has_room([&root.certificate()], 1) {
                    self.below(&parent, now)?.into()
                } else {
                    parent.into()
                }
            }
        };
        signer.prove(&self.trust_domain, &[root.certificate()], now)?;
        Ok(signer)
    }

    fn below(&self, parent: &Signer, now: SystemTime) -> Result<Signer, String> {
        parent
            .intermediate(&self.trust_domain, self.intermediate_lifetime, now)
            .map_err(|cause: IssueError| cause.to_string())
    }

    /// A failure as an event, unless it was told a moment ago.
    pub(super) fn complain(&mut self, now: i64, reason: String) -> Option<Event> {
        let quiet = now >= self.complained && now < self.complained.saturating_add(TELL_AGAIN);
        if quiet {
            return None;
        }
        self.complained = now;
        Some(Event::RenewalFailed { reason })
    }

    /// What happens by itself with time: the next authority is prepared, the last one takes over before it is too late, and what
    /// has ended is forgotten.
    pub(super) fn advance(&mut self, now: SystemTime) -> Result<Vec<Event>, AuthorityError> {
        let at = seconds(now);
        let kept = whole_seconds(jwt::MAX_JWT_LIFETIME).saturating_add(TELL_AGAIN);
        let gone = self.state.forget(at, kept);
        let mut events: Vec<Event> =
            gone.into_iter().map(|(kind, id)| Event::Forgotten { kind, id }).collect();
        for kind in [AuthorityKind::Root, AuthorityKind::JwtKey] {
            if kind == AuthorityKind::Root && !self.own {
                continue;
            }
            let Some(active) = self.state.slot(kind, Slot::Active) else { continue };
            let left = percent_left(active.not_before, active.not_after, at);
            if left <= PREPARE_PERCENT && self.state.slot(kind, Slot::Prepared).is_none() {
                let next = self.make_next(kind, now)?;
                let id = next.id;
                // Nothing is prepared: seen a line above.
                if self.state.prepare(kind, next).is_ok() {
                    events.push(Event::Prepared { kind, id });
                }
            }
            // Published for three quarters of the time that was left.
            if left <= ACTIVATE_PERCENT
                && let Ok(id) = self.state.activate(kind, at)
            {
                events.push(Event::Activated { kind, id });
            }
        }
        self.keep_only_named_keys();
        Ok(events)
    }

    /// Each mark of a life once.
    pub(super) fn remaining(&mut self, now: SystemTime) -> Vec<Event> {
        let at = seconds(now);
        let named = |kind| move |entry: &Entry| (kind, entry.id, entry.not_before, entry.not_after);
        let mut lives: Vec<(AuthorityKind, KeyId, i64, i64)> =
            self.state.roots.iter().map(named(AuthorityKind::Root)).collect();
        lives.extend(self.state.jwt_keys.iter().map(named(AuthorityKind::JwtKey)));
        let intermediates = self.signers.values().filter(|signer| signer.id != signer.root);
        lives.extend(intermediates.map(|one| (AuthorityKind::Intermediate, one.id, one.made, one.not_after)));
        self.told.retain(|id, _| lives.iter().any(|(_, known, ..)| known == id));
        let mut events = Vec::new();
        for (kind, id, begin, end) in lives {
            let left = percent_left(begin, end, at);
            // After a long sleep only the lowest mark is told.
            let Some(percent) = MARKS.into_iter().filter(|mark| left <= *mark).min() else { continue };
            if self.told.get(&id).is_none_or(|told| percent < *told) {
                self.told.insert(id, percent);
                events.push(Event::Remaining { kind, id, percent, not_after: super::instant(end) });
            }
        }
        events
    }
}

fn half_life(begin: i64, end: i64) -> i64 {
    begin.saturating_add(end.saturating_sub(begin) / 2)
}

/// 0 to 100, rounded up.
fn percent_left(begin: i64, end: i64, now: i64) -> u8 {
    let life = end.saturating_sub(begin).max(1);
    let left = end.saturating_sub(now).clamp(0, life);
    u8::try_from((i128::from(left) * 100 + i128::from(life) - 1) / i128::from(life)).unwrap_or(100)
}

fn own_root(
    slot: Slot,
    key: Key,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(Entry, Key), AuthorityError> {
    let certificate = root::make_certificate(trust_domain, &key, now)?;
    let entry = Entry::root(&certificate, slot, true, seconds(now)).map_err(AuthorityError::Make)?;
    Ok((entry, key))
}

fn with_own_root(
    mut state: State,
    keys: &mut Keys,
    key: Key,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<State, AuthorityError> {
    let (entry, key) = own_root(Slot::Prepared, key, trust_domain, now)?;
    let id = entry.id;
    keys.insert(id, key);
    state.roots.push(entry);
    state.set_active(id, seconds(now));
    Ok(state)
}

/// A folder as it was kept before there was a journal: the root that fits the key signs, the others are old.
fn taken_over(
    mut state: State,
    bundle: &postern_identity::Bundle,
    key: Key,
    settings: &Settings,
    store: Option<&Store>,
    now: SystemTime,
) -> Result<(State, Keys), AuthorityError> {
    let (path, key_path) = store.map(Store::root_paths).unwrap_or_default();
    let unusable = |cause: String| AuthorityError::Root {
        path: path.clone(),
        trust_domain: settings.trust_domain.clone(),
        cause,
    };
    let Some(active) = bundle.anchors.iter().find(|certificate| root::fits(certificate, &key)) else {
        return Err(AuthorityError::KeyMismatch { certificate: path, key: key_path });
    };
    super::check_anchor(active, &settings.trust_domain, now).map_err(unusable)?;
    for anchor in &bundle.anchors {
        svid::check_signing(anchor, settings.trust_domain.as_str())
            .map_err(|refusal| unusable(refusal.to_string()))?;
        let ours = anchor == active;
        let entry = Entry::root(anchor, Slot::Old, false, seconds(now)).map_err(unusable)?;
        // The active root under an earlier certificate, or one that stands there twice.
        if !ours && (root::fits(anchor, &key) || state.root(entry.id).is_some()) {
            continue;
        }
        let slot = if ours { Slot::Active } else { Slot::Old };
        state.roots.push(Entry { slot, key: ours, ..entry });
    }
    let keys = state.slot(AuthorityKind::Root, Slot::Active).map(|root| (root.id, key)).into_iter().collect();
    Ok((state, keys))
}
