//! What the authority remembers: authorities in their slots, and which ones are tainted or revoked.
//!
//! Pure: each step takes a state and leaves the next one or an error and no change. `journal` keeps it.

use super::{AuthorityKind, Slot, StepError};
use postern_identity::{
    JwtKey, KeyId,
    jwt::{Curve, PublicKey},
    svid,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};
use x509_parser::parse_x509_certificate;

/// More authorities of a kind than anybody rotates through; a journal with more was not written by us.
const MAX_ENTRIES: usize = 256;
/// SubjectPublicKeyInfo of an uncompressed P-256 point, up to the point (RFC 5480 2).
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `04 || x || y`.
const P256_POINT_BYTES: usize = 65;

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub trust_domain: String,
    /// Grows with each change of what is published.
    pub sequence: u64,
    pub roots: Vec<Entry>,
    pub jwt_keys: Vec<Entry>,
    /// Made by the processes that share this state, until they end: so that each can be tainted or revoked.
    pub intermediates: Vec<Intermediate>,
    /// Signing certificates that are refused, until they would have ended.
    pub revoked: Vec<Revoked>,
}

/// A root or a key for tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(with = "text")]
    pub id: KeyId,
    pub slot: Slot,
    /// In this slot since then. Seconds since 1970, as all times here.
    pub since: i64,
    pub tainted: bool,
    pub not_before: i64,
    pub not_after: i64,
    /// Whether its private key is kept beside the journal.
    pub key: bool,
    /// Root: the certificate in DER. Token key: the uncompressed point.
    #[serde(with = "binary")]
    pub public: Vec<u8>,
}

/// A signing certificate between a root and the leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intermediate {
    #[serde(with = "text")]
    pub id: KeyId,
    #[serde(with = "text")]
    pub root: KeyId,
    pub since: i64,
    pub not_after: i64,
    pub tainted: bool,
}

/// What is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoked {
    #[serde(with = "text")]
    pub id: KeyId,
    pub root: bool,
    pub since: i64,
    pub not_before: i64,
    pub not_after: i64,
}

impl Entry {
    /// A root from its certificate.
    pub(super) fn root(certificate: &[u8], slot: Slot, key: bool, now: i64) -> Result<Self, String> {
        let (not_before, not_after) = validity(certificate)?;
        let id = KeyId::of_certificate(certificate).map_err(|refusal| refusal.to_string())?;
        let public = certificate.to_vec();
        Ok(Self { id, slot, since: now, tainted: false, not_before, not_after, key, public })
    }

    /// A key for tokens from its point on P-256.
    pub(super) fn jwt_key(point: &[u8], not_before: i64, not_after: i64, slot: Slot) -> Self {
        let id = point_id(point);
        let public = point.to_vec();
        Self { id, slot, since: not_before, tainted: false, not_before, not_after, key: true, public }
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.public.clone())
    }

    /// For bundles; the entry must be a token key.
    pub(super) fn public_jwt_key(&self) -> JwtKey {
        JwtKey {
            kid: self.id.to_string(),
            key: PublicKey::Ec { curve: Curve::P256, point: self.public.clone() },
        }
    }
}

/// Begin and end of a certificate.
pub(super) fn validity(certificate: &[u8]) -> Result<(i64, i64), String> {
    let (_, certificate) = parse_x509_certificate(certificate).map_err(|cause| cause.to_string())?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Milliseconds: a step takes longer than one, so that the next start is above all steps before it, however soon it comes.
fn first_sequence(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn point_id(point: &[u8]) -> KeyId {
    KeyId::of_spki(&[&P256_SPKI_PREFIX, point].concat())
}

impl State {
    /// The sequence begins with the time, so that it grows also after a lost disk.
    pub(super) fn new(trust_domain: &str, now: SystemTime) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            sequence: first_sequence(now),
            roots: Vec::new(),
            jwt_keys: Vec::new(),
            intermediates: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// The same after a start. It may be a backup, which the others have to follow all the same: nobody follows a sequence that
    /// goes back.
    pub(super) fn begun_again(mut self, now: SystemTime) -> Self {
        self.sequence = self.sequence.max(first_sequence(now));
        self
    }

    pub(super) fn slot(&self, kind: AuthorityKind, slot: Slot) -> Option<&Entry> {
        self.entries(kind).iter().find(|entry| entry.slot == slot)
    }

    pub(super) fn root(&self, id: KeyId) -> Option<&Entry> {
        self.roots.iter().find(|root| root.id == id)
    }

    pub(super) fn is_revoked(&self, id: KeyId) -> bool {
        self.revoked.iter().any(|revoked| revoked.id == id)
    }

    /// Whether certificates below this key are to be replaced.
    pub(super) fn is_tainted(&self, id: KeyId) -> bool {
        self.roots.iter().any(|root| root.id == id && root.tainted)
            || self.intermediates.iter().any(|one| one.id == id && one.tainted)
    }

    /// All of those.
    pub(super) fn tainted(&self) -> BTreeSet<KeyId> {
        let entries = self.roots.iter().chain(&self.jwt_keys);
        let intermediates = self.intermediates.iter().filter(|one| one.tainted).map(|one| one.id);
        entries.filter(|entry| entry.tainted).map(|entry| entry.id).chain(intermediates).collect()
    }

    fn entries(&self, kind: AuthorityKind) -> &[Entry] {
        match kind {
            AuthorityKind::Root => &self.roots,
            AuthorityKind::JwtKey => &self.jwt_keys,
            AuthorityKind::Intermediate => &[],
        }
    }

    fn entries_mut(&mut self, kind: AuthorityKind) -> Option<&mut Vec<Entry>> {
        match kind {
            AuthorityKind::Root => Some(&mut self.roots),
            AuthorityKind::JwtKey => Some(&mut self.jwt_keys),
            AuthorityKind::Intermediate => None,
        }
    }

    /// The kind and slot of a root or token key.
    fn place(&self, id: KeyId) -> Option<(AuthorityKind, Slot)> {
        let find =
            |kind| self.entries(kind).iter().find(|entry| entry.id == id).map(|entry| (kind, entry.slot));
        find(AuthorityKind::Root).or_else(|| find(AuthorityKind::JwtKey))
    }

    /// What sidecars are told changes.
    pub(super) fn published_anew(&mut self) {
        self.sequence = self.sequence.saturating_add(1);
    }

    /// Adds the next authority, which is published from now on.
    pub(super) fn prepare(&mut self, kind: AuthorityKind, next: Entry) -> Result<(), StepError> {
        if let Some(prepared) = self.slot(kind, Slot::Prepared) {
            return Err(StepError::AlreadyPrepared(prepared.id));
        }
        if let Some(entries) = self.entries_mut(kind) {
            entries.push(Entry { slot: Slot::Prepared, ..next });
            self.published_anew();
        }
        Ok(())
    }

    /// The prepared one signs, the one that signed becomes old. Gives the id of the new one.
    pub(super) fn activate(&mut self, kind: AuthorityKind, now: i64) -> Result<KeyId, StepError> {
        let next = self.slot(kind, Slot::Prepared).ok_or(StepError::NothingPrepared)?.id;
        for entry in self.entries_mut(kind).into_iter().flatten() {
            let slot = match entry.slot {
                Slot::Active => Slot::Old,
                Slot::Prepared => Slot::Active,
                Slot::Old => continue,
            };
            (entry.slot, entry.since) = (slot, now);
            // An old root still signs for our own server; an old token key never signs again.
            entry.key &= slot == Slot::Active || kind == AuthorityKind::Root;
        }
        self.published_anew();
        Ok(next)
    }

    /// A root or token key that does not sign is published no more.
    pub(super) fn retire(&mut self, id: KeyId) -> Result<AuthorityKind, StepError> {
        match self.place(id) {
            None => Err(StepError::Unknown(id)),
            Some((_, Slot::Active)) => Err(StepError::Active(id)),
            Some((kind, _)) => {
                self.remove(id);
                self.published_anew();
                Ok(kind)
            }
        }
    }

    /// Marks an old root or token key, or an intermediate.
    pub(super) fn taint(&mut self, id: KeyId) -> Result<(), StepError> {
        let mark = match self.place(id) {
            // Whoever renews would get a certificate below the same authority again.
            Some((_, Slot::Active)) => return Err(StepError::Active(id)),
            Some((kind, _)) => self
                .entries_mut(kind)
                .and_then(|entries| entries.iter_mut().find(|entry| entry.id == id))
                .map(|entry| &mut entry.tainted),
            None => self.intermediates.iter_mut().find(|one| one.id == id).map(|one| &mut one.tainted),
        };
        match mark {
            None => Err(StepError::Unknown(id)),
            Some(true) => Err(StepError::Already(id, "tainted")),
            Some(mark) => {
                *mark = true;
                self.published_anew();
                Ok(())
            }
        }
    }

    /// Notes an intermediate that signs. Each process makes its own, and one that starts again and again makes many: the oldest
    /// go, since a state that grows too large is refused at the next start.
    pub(super) fn note_intermediate(&mut self, made: Intermediate) {
        while self.intermediates.len() >= MAX_ENTRIES {
            self.intermediates.remove(0);
        }
        self.intermediates.push(made);
    }

    /// Takes an authority out at once. In the place of an active one steps the prepared one.
    pub(super) fn revoke(&mut self, id: KeyId, now: i64) -> Result<(), StepError> {
        if self.is_revoked(id) {
            return Err(StepError::Already(id, "revoked"));
        }
        if let Some(one) = self.intermediates.iter().find(|one| one.id == id) {
            let (not_before, not_after) = (one.since, one.not_after);
            self.revoked.push(Revoked { id, root: false, since: now, not_before, not_after });
            self.published_anew();
            return Ok(());
        }
        let (kind, slot) = self.place(id).ok_or(StepError::Unknown(id))?;
        if slot == Slot::Active {
            self.activate(kind, now).map_err(|_| StepError::Active(id))?;
        }
        // A token key that is published no more is as good as revoked; certificates are also refused by name.
        if let Some(root) = self.root(id) {
            let (not_before, not_after) = (root.not_before, root.not_after);
            self.revoked.push(Revoked { id, root: true, since: now, not_before, not_after });
        }
        self.remove(id);
        self.published_anew();
        Ok(())
    }

    fn remove(&mut self, id: KeyId) {
        self.roots.retain(|root| root.id != id);
        self.jwt_keys.retain(|key| key.id != id);
    }

    /// Forgets what has ended: intermediates, revocations, old roots, and old token keys since `jwt_kept`. Gives the roots
    /// and token keys that are gone.
    pub(super) fn forget(&mut self, now: i64, jwt_kept: i64) -> Vec<(AuthorityKind, KeyId)> {
        let (marks, revocations) = (self.tainted().len(), self.revoked.len());
        self.intermediates.retain(|one| now <= one.not_after);
        self.revoked.retain(|revoked| now <= revoked.not_after);
        let mut gone = Vec::new();
        self.roots.retain(|root| {
            let stays = root.slot != Slot::Old || now <= root.not_after;
            gone.extend((!stays).then_some((AuthorityKind::Root, root.id)));
            stays
        });
        self.jwt_keys.retain(|key| {
            let stays = key.slot != Slot::Old || now <= key.since.saturating_add(jwt_kept);
            gone.extend((!stays).then_some((AuthorityKind::JwtKey, key.id)));
            stays
        });
        if !gone.is_empty() || (self.tainted().len(), self.revoked.len()) != (marks, revocations) {
            self.published_anew();
        }
        gone
    }

    /// Takes the roots that an outside authority names. New ones are prepared; prepared ones that it names no more are gone, and
    /// what has signed stays until it is retired. Which of them signs is said by [`State::set_active`].
    pub(super) fn follow(&mut self, anchors: Vec<Entry>) {
        let before = self.roots.clone();
        let named = |id| anchors.iter().any(|anchor| anchor.id == id);
        self.roots.retain(|root| root.slot != Slot::Prepared || named(root.id));
        for anchor in anchors {
            let revoked = self.is_revoked(anchor.id);
            match self.roots.iter_mut().find(|root| root.id == anchor.id) {
                // The same key with a new certificate, as Istio renews its root.
                Some(root) if root.public != anchor.public => {
                    (root.public, root.not_before, root.not_after) =
                        (anchor.public, anchor.not_before, anchor.not_after);
                }
                Some(_) => {}
                None if revoked => {}
                None => self.roots.push(Entry { slot: Slot::Prepared, ..anchor }),
            }
        }
        if before != self.roots {
            self.published_anew();
        }
    }

    /// A root that signed before, and that has been published all the time, is to sign again.
    pub(super) fn prepare_again(&mut self, id: KeyId, now: i64) {
        let is_it = |root: &&mut Entry| root.id == id && root.slot == Slot::Old;
        if let Some(root) = self.roots.iter_mut().find(is_it) {
            (root.slot, root.since, root.tainted) = (Slot::Prepared, now, false);
            self.published_anew();
        }
    }

    /// The given root signs from now on. What signed before is old.
    pub(super) fn set_active(&mut self, id: KeyId, now: i64) {
        let mut changed = false;
        for root in &mut self.roots {
            let slot = match root.slot {
                _ if root.id == id => Slot::Active,
                Slot::Active => Slot::Old,
                other => other,
            };
            if slot != root.slot {
                (root.slot, root.since, changed) = (slot, now, true);
            }
        }
        if changed {
            self.published_anew();
        }
    }

    /// What no state of ours is like. `several_prepared`: an outside authority may name many roots at once.
    pub(super) fn check(&self, trust_domain: &str) -> Result<(), String> {
        if self.trust_domain != trust_domain {
            return Err(format!("it is of the trust domain `{}`, not `{trust_domain}`", self.trust_domain));
        }
        let sizes = [self.roots.len(), self.jwt_keys.len(), self.intermediates.len(), self.revoked.len()];
        if sizes.into_iter().any(|size| size > MAX_ENTRIES) {
            return Err(format!("it holds more than {MAX_ENTRIES} authorities of a kind"));
        }
        for (kind, entries) in [("root", &self.roots), ("token key", &self.jwt_keys)] {
            let active = entries.iter().filter(|entry| entry.slot == Slot::Active).count();
            if active != 1 {
                return Err(format!("it has {active} active {kind}s instead of one"));
            }
        }
        let mut ids: Vec<KeyId> = self.roots.iter().chain(&self.jwt_keys).map(|entry| entry.id).collect();
        ids.extend(self.revoked.iter().map(|revoked| revoked.id));
        let all = ids.len();
        ids.sort();
        ids.dedup();
        if ids.len() != all {
            return Err("it names a key twice".into());
        }
        for root in &self.roots {
            let wrong = |cause: String| format!("root {}: {cause}", root.id.short());
            svid::check_signing(&root.public, trust_domain).map_err(|refusal| wrong(refusal.to_string()))?;
            let like = Entry::root(&root.public, root.slot, root.key, root.since).map_err(wrong)?;
            if (like.id, like.not_before, like.not_after) != (root.id, root.not_before, root.not_after) {
                return Err(wrong("it says something else than its certificate".into()));
            }
        }
        for key in &self.jwt_keys {
            if key.public.len() != P256_POINT_BYTES || point_id(&key.public) != key.id {
                return Err(format!("token key {}: the point is not the one of this id", key.id.short()));
            }
        }
        Ok(())
    }
}

mod text {
    use postern_identity::KeyId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &KeyId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<KeyId, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod binary {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}
