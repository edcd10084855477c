//! Whom sidecars are told to trust: our own bundle and those of foreign trust domains, encoded once for all sessions.

use crate::{authority::Published, registry::index::version};
use postern_api::v1;
use postern_identity::{Bundle, KeyId, TrustBundles};
use prost::Message as _;
use std::{collections::BTreeSet, sync::Arc};

/// How many sidecars renew in a second when all of them have to. Each is a handshake and a stream of its own, about a
/// millisecond of a core, so that the control plane has room for everything else meanwhile.
const RENEWALS_PER_SECOND: usize = 250;

/// One generation of trust.
#[derive(Debug)]
pub(crate) struct Trust {
    /// As the wire carries it.
    pub update: v1::BundleUpdate,
    /// Of the update: equal content has an equal version.
    pub version: String,
    /// Our own roots and token keys in it: who has acknowledged this trust knows them.
    pub keys: Arc<BTreeSet<KeyId>>,
    /// Our own bundle alone: who may connect to the control plane.
    pub own: TrustBundles,
}

impl Trust {
    /// `foreign` bundles stand beside ours and are never merged with it (SPIFFE Federation 4.2).
    pub(crate) fn new(published: &Published, foreign: &[Bundle]) -> Self {
        let ours = &published.bundle;
        let bundles = std::iter::once(ours).chain(foreign).map(on_the_wire).collect();
        let tainted = published.tainted.iter().map(|key| key.as_bytes().to_vec()).collect();
        let update = v1::BundleUpdate { bundles, tainted, renewal_spread_seconds: 0 };
        let roots = ours.anchors.iter().filter_map(|anchor| KeyId::of_certificate(anchor).ok());
        // The name of a token key of ours is the text of its id.
        let tokens = ours.jwt_keys.iter().filter_map(|key| key.kid.parse().ok());
        Self {
            version: version(&update.encode_to_vec()),
            keys: Arc::new(roots.chain(tokens).collect()),
            own: TrustBundles::from_iter([ours.clone()]),
            update,
        }
    }

    /// What a sidecar is sent, one of so many that are connected. How many they are is no part of the version.
    pub(crate) fn update_for(&self, connected: usize) -> v1::BundleUpdate {
        let mut update = self.update.clone();
        if !update.tainted.is_empty() {
            update.renewal_spread_seconds =
                u32::try_from(connected.div_ceil(RENEWALS_PER_SECOND)).unwrap_or(u32::MAX);
        }
        update
    }

    /// Whether somebody who was trusted `before` may be trusted no more. Most changes only add.
    pub(crate) fn takes_away_from(&self, before: &Self) -> bool {
        let own = |trust: &Self| trust.own.iter().next().cloned();
        match (own(self), own(before)) {
            (Some(now), Some(before)) => {
                !before.anchors.iter().all(|anchor| now.anchors.contains(anchor))
                    || !now.revoked.is_subset(&before.revoked)
            }
            (_, None) => false,
            (None, Some(_)) => true,
        }
    }
}

fn on_the_wire(bundle: &Bundle) -> v1::Bundle {
    v1::Bundle {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        document: bundle.to_document().into_bytes(),
        revoked: bundle.revoked.iter().map(|key| key.as_bytes().to_vec()).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::authority::{Authority, AuthorityKind};
    use std::time::{Duration, SystemTime};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn what_is_published_next_is_in_the_version_and_only_a_loss_takes_away() {
        let authority = Authority::in_memory("cluster.local".parse().unwrap(), now()).unwrap();
        let first = Trust::new(&authority.published(), &[]);
        let again = Trust::new(&authority.published(), &[]);
        assert_eq!(first.version, again.version);
        assert!(!again.takes_away_from(&first));

        let next = authority.prepare(AuthorityKind::Root, now()).unwrap();
        let both = Trust::new(&authority.published(), &[]);
        assert_ne!(both.version, first.version);
        assert!(both.keys.contains(&next) && !first.keys.contains(&next));
        assert!(!both.takes_away_from(&first), "a further root takes nothing away");
        assert!(first.takes_away_from(&both), "its loss does");

        authority.revoke(next, now()).unwrap();
        let revoked = Trust::new(&authority.published(), &[]);
        assert!(revoked.takes_away_from(&both));
    }

    #[test]
    fn the_more_are_connected_the_longer_a_forced_renewal_spreads() {
        let authority = Authority::in_memory("cluster.local".parse().unwrap(), now()).unwrap();
        let quiet = Trust::new(&authority.published(), &[]);
        assert_eq!(quiet.update_for(10_000).renewal_spread_seconds, 0, "nothing is tainted");

        let active = authority.status(now()).into_iter().find(|one| one.kind == AuthorityKind::Intermediate);
        authority.taint(active.unwrap().id, now()).unwrap();
        let tainted = Trust::new(&authority.published(), &[]);
        for (connected, seconds) in [(0, 0), (1, 1), (250, 1), (251, 2), (10_000, 40)] {
            assert_eq!(tainted.update_for(connected).renewal_spread_seconds, seconds);
        }
        assert_eq!(tainted.update.renewal_spread_seconds, 0, "the version is that of the content");
    }

    #[test]
    fn foreign_bundles_stand_beside_ours_and_give_nobody_the_right_to_connect() {
        let authority = Authority::in_memory("cluster.local".parse().unwrap(), now()).unwrap();
        let other = Authority::in_memory("partner.example".parse().unwrap(), now()).unwrap();
        let alone = Trust::new(&authority.published(), &[]);
        let both = Trust::new(&authority.published(), &[other.bundle()]);
        let names: Vec<_> = both.update.bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect();
        assert_eq!(names, ["cluster.local", "partner.example"]);
        assert_eq!(both.own, alone.own);
        assert_eq!(both.keys, alone.keys, "what partners know proves nothing about our rotation");
        assert_ne!(both.version, alone.version);
    }
}
