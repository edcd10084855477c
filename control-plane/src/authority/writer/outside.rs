//! Following an outside authority: what it gives is tried, its next root published, and signing by the evidence, or before it is
//! too late.

use super::{
    super::{
        AuthorityError, AuthorityKind, Event, Slot, StepError, Upstream, seconds, state::Entry,
        upstream::Supplied,
    },
    ACTIVATE_PERCENT, Writer, percent_left,
};
use postern_identity::KeyId;
use std::time::SystemTime;

/// An outside authority is asked again so soon, in seconds.
const ASK_AGAIN: i64 = 5;

impl Writer {
    /// Whether something else can sign when this intermediate no longer may.
    pub(in crate::authority) fn replaceable(&self, id: KeyId) -> Result<(), StepError> {
        match &self.supplied {
            Some(supplied) if supplied.signer.id == id && !self.vault => Err(StepError::NotHere(
                "this is the outside authority's own certificate: give another one there first",
            )),
            _ => Ok(()),
        }
    }

    /// Whether whoever renews what this intermediate signed would get a certificate below another one.
    pub(in crate::authority) fn taintable(&self, id: KeyId) -> Result<(), StepError> {
        self.replaceable(id)?;
        let supplied = self.supplied.as_ref().map(|supplied| supplied.signer.root);
        let mut signers = self.signers.values();
        match signers.find(|signer| signer.id == id) {
            Some(signer)
                if supplied.is_some_and(|root| root != signer.root)
                    && !self.keys.contains_key(&signer.root) =>
            {
                Err(StepError::NotHere(
                    "the outside authority signs below another root by now: activate that one first",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Takes what the outside authority gives. Another root than the active one is published first, and signs when it is
    /// activated: by the evidence, as roots of our own, or without when what signs below the active one comes to its end. When
    /// nothing here can sign below the active one any more, as after a restart, there is nothing to wait for.
    pub(in crate::authority) fn follow(
        &mut self,
        supplied: Supplied,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        let at = seconds(now);
        let root = supplied.signer.root;
        let refused = |cause: String| AuthorityError::Upstream {
            place: "what the outside authority gave".into(),
            trust_domain: self.trust_domain.clone(),
            cause,
        };
        if self.state.is_revoked(root) || self.state.is_revoked(supplied.signer.id) {
            return Err(refused("it was revoked: give another one".into()));
        }
        supplied.signer.prove(&self.trust_domain, &supplied.anchors, now).map_err(refused)?;
        let anchors: Result<Vec<Entry>, String> =
            supplied.anchors.iter().map(|anchor| Entry::root(anchor, Slot::Prepared, false, at)).collect();
        let anchors = anchors.map_err(refused)?;
        let published = self.state.root(root).is_some();
        self.state.follow(anchors);
        self.state.prepare_again(root, at);
        let before = self.state.slot(AuthorityKind::Root, Slot::Active).filter(|active| active.id != root);
        let (before, waits) = (before.map(|one| one.id), before.is_some_and(|one| self.can_sign(one, at)));
        // Made again below what is new.
        self.signers.remove(&root);
        self.supplied = Some(supplied);
        match before {
            Some(_) if waits && published => {}
            Some(_) if waits => self.news.push(Event::Prepared { kind: AuthorityKind::Root, id: root }),
            Some(before) => {
                self.state.set_active(root, at);
                self.news.push(Event::Replaced { id: root, before, published });
            }
            None => self.state.set_active(root, at),
        }
        Ok(())
    }

    /// Whether it is time to look at the outside authority.
    pub(in crate::authority) fn asks_upstream(&mut self, upstream: &Upstream, now: SystemTime) -> bool {
        let at = seconds(now);
        let Some(supplied) = &self.supplied else { return false };
        let waited = at < self.asked || at >= self.asked.saturating_add(ASK_AGAIN);
        let due = upstream.is_watched()
            || self.state.is_revoked(supplied.signer.id)
            || self.is_due(&supplied.signer, at);
        if due && waited {
            self.asked = at;
        }
        due && waited
    }

    /// Whether the outside authority gave the same before.
    pub(in crate::authority) fn has(&self, supplied: &Supplied) -> bool {
        self.supplied.as_ref().is_some_and(|last| {
            last.anchors == supplied.anchors
                && last.signer.id == supplied.signer.id
                && last.signer.chain == supplied.signer.chain
        })
    }

    /// An outside authority's next root signs without being asked when what signs below the active one cannot be renewed and
    /// comes to its end: at the same share of its life as the next root of our own.
    pub(super) fn take_over_when_needed(&mut self, now: i64) -> Option<Event> {
        let id = self.supplied.as_ref()?.signer.root;
        self.state.root(id).filter(|next| next.slot == Slot::Prepared)?;
        let active = self.state.slot(AuthorityKind::Root, Slot::Active)?;
        let has_time = |begin, end| percent_left(begin, end, now) > ACTIVATE_PERCENT;
        let held = self.keys.contains_key(&active.id) && has_time(active.not_before, active.not_after);
        let lasts = self.signers.get(&active.id).is_some_and(|signer| {
            !self.state.is_revoked(signer.id) && has_time(signer.made, signer.not_after)
        });
        if held || lasts {
            return None;
        }
        self.state.set_active(id, now);
        Some(Event::Activated { kind: AuthorityKind::Root, id })
    }
}
