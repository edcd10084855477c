//! What people and other parts may know of the authorities: kinds, slots, a line each, and events.

use super::{instant, journal::Keys, seconds, state::State, upstream::Supplied};
use postern_identity::{Bundle, KeyId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::parse_x509_certificate;

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorityKind {
    /// An anchor of the bundle.
    Root,
    /// Between a root and the leaves; made by itself, its key never leaves the process.
    Intermediate,
    /// Signs JWT-SVIDs.
    JwtKey,
}

/// For sentences: `root`, `intermediate`, `token key`.
impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::JwtKey => "token key",
        })
    }
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Published, so that everybody knows it before it signs.
    Prepared,
    /// Signs.
    Active,
    /// Published until nobody holds anything that it signed.
    Old,
}

/// What an outside authority says of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It is to be trusted.
    Names,
    /// And what it gives is signed below this one.
    Signs,
}

/// One authority, for `postern ca status`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorityStatus {
    /// What it signs.
    pub kind: AuthorityKind,
    /// SHA-256 of its public key. The `kid` of a token key is the text of this.
    pub id: KeyId,
    /// The subject of its certificate; empty when there is none at hand.
    pub subject: String,
    /// Where in its life. An intermediate of this process is active, those of others and of former processes are old.
    pub slot: Slot,
    /// The root above an intermediate.
    pub root: Option<KeyId>,
    /// Certificates below it are being replaced.
    pub tainted: bool,
    /// Certificates below it are refused; then the slot is `Old` and it is published no more.
    pub revoked: bool,
    /// Whether this process could sign with it.
    pub has_key: bool,
    /// What an outside authority says of it; `None` also of a root that it names no more.
    pub outside: Option<Outside>,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// When it came into its slot.
    pub since: SystemTime,
    /// What is left of its life, 0 to 1.
    pub remaining: f64,
}

/// What everybody in the mesh is told about authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Anchors and token keys, prepared, active and old ones, and what is revoked.
    pub bundle: Bundle,
    /// Roots, intermediates and token keys below which everything is to be replaced now.
    pub tainted: BTreeSet<KeyId>,
}

/// Something that happened by itself and that an operator may want to know. `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// So much of an authority's life is left: told once at 50, 20 and 5 percent by each process, so again after a restart.
    Remaining {
        /// What it signs.
        kind: AuthorityKind,
        /// Which.
        id: KeyId,
        /// 50, 20 or 5.
        percent: u8,
        /// When it ends.
        not_after: SystemTime,
    },
    /// A new intermediate signs.
    Renewed {
        /// The new one.
        id: KeyId,
        /// When it ends.
        not_after: SystemTime,
    },
    /// No new intermediate could be made; the last good one stays until its end.
    RenewalFailed {
        /// Why, in a sentence.
        reason: String,
    },
    /// The next authority is published.
    Prepared {
        /// What it signs.
        kind: AuthorityKind,
        /// Which.
        id: KeyId,
    },
    /// The next authority signs, because the last one comes to its end.
    Activated {
        /// What it signs.
        kind: AuthorityKind,
        /// Which.
        id: KeyId,
    },
    /// Another root signs from the start, whoever has acknowledged it, since nothing here can sign below the one before.
    Replaced {
        /// The root that signs.
        id: KeyId,
        /// The one that cannot any more.
        before: KeyId,
        /// Whether sidecars were told of it earlier.
        published: bool,
    },
    /// Nothing that it signed can be valid any more: it is published no more.
    Forgotten {
        /// What it signed.
        kind: AuthorityKind,
        /// Which.
        id: KeyId,
    },
    /// The state folder cannot be used; what is in memory stays in force.
    StateFailed {
        /// Why, in a sentence.
        reason: String,
    },
}

impl Event {
    /// Whether somebody has to do something.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::RenewalFailed { .. } | Self::StateFailed { .. } | Self::Replaced { .. } => true,
            Self::Remaining { percent, .. } => *percent < 50,
            _ => false,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remaining { kind, id, percent, not_after } => write!(
                f,
                "{percent} % of the life of {kind} {} are left: it ends at {}",
                id.short(),
                written(*not_after)
            ),
            Self::Renewed { id, not_after } => {
                write!(f, "intermediate {} signs until {}", id.short(), written(*not_after))
            }
            Self::RenewalFailed { reason } => {
                write!(f, "no new intermediate, the last good one stays until its end: {reason}")
            }
            Self::Prepared { kind, id } => write!(f, "{kind} {} is prepared and published", id.short()),
            Self::Activated { kind, id } => {
                write!(f, "{kind} {} signs now, since the one before it comes to its end", id.short())
            }
            Self::Replaced { id, before, published } => {
                let known = match published {
                    true => "sidecars that were connected since it was published know it",
                    false => "no sidecar was told of it before: each begins again, by the new root.pem",
                };
                write!(
                    f,
                    "root {} signs at once, since nothing here can sign below {} any more; {known}",
                    id.short(),
                    before.short()
                )
            }
            Self::Forgotten { kind, id } => write!(f, "{kind} {} has ended and is forgotten", id.short()),
            Self::StateFailed { reason } => write!(f, "what is in memory stays in force: {reason}"),
        }
    }
}

fn written(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_else(|_| format!("{} s since 1970", seconds(time)))
}

/// All authorities of `state`. `supplied` is what the outside authority gave; `signs` says whether an intermediate is used by this
/// process.
pub(super) fn of(
    state: &State,
    keys: &Keys,
    supplied: Option<&Supplied>,
    now: SystemTime,
    signs: impl Fn(KeyId) -> bool,
) -> Vec<AuthorityStatus> {
    let at = seconds(now);
    let line = |kind, id, slot, (not_before, not_after): (i64, i64), since| AuthorityStatus {
        kind,
        id,
        subject: String::new(),
        slot,
        root: None,
        tainted: state.is_tainted(id),
        revoked: state.is_revoked(id),
        has_key: keys.contains_key(&id),
        outside: None,
        not_before: instant(not_before),
        not_after: instant(not_after),
        since: instant(since),
        remaining: share_left(not_before, not_after, at),
    };
    let roots = state.roots.iter().map(|root| AuthorityStatus {
        subject: parse_x509_certificate(&root.public)
            .map_or_else(|_| String::new(), |(_, certificate)| certificate.subject().to_string()),
        outside: supplied.and_then(|supplied| supplied.says_of(root.id)),
        ..line(AuthorityKind::Root, root.id, root.slot, (root.not_before, root.not_after), root.since)
    });
    let intermediates = state.intermediates.iter().filter(|one| !state.is_revoked(one.id)).map(|one| {
        let slot = if signs(one.id) { Slot::Active } else { Slot::Old };
        AuthorityStatus {
            root: Some(one.root),
            has_key: signs(one.id),
            ..line(AuthorityKind::Intermediate, one.id, slot, (one.since, one.not_after), one.since)
        }
    });
    let keys = state.jwt_keys.iter().map(|key| AuthorityStatus {
        tainted: key.tainted,
        ..line(AuthorityKind::JwtKey, key.id, key.slot, (key.not_before, key.not_after), key.since)
    });
    let revoked = state.revoked.iter().map(|one| {
        let kind = if one.root { AuthorityKind::Root } else { AuthorityKind::Intermediate };
        line(kind, one.id, Slot::Old, (one.not_before, one.not_after), one.since)
    });
    let mut all: Vec<AuthorityStatus> = roots.chain(intermediates).chain(keys).chain(revoked).collect();
    all.sort_by_key(|line| (line.revoked, line.kind, line.slot));
    all
}

fn share_left(begin: i64, end: i64, now: i64) -> f64 {
    let life = end.saturating_sub(begin).max(1);
    let left = end.saturating_sub(now).clamp(0, life);
    // Seconds of lives of years: exact in a double.
    #[allow(clippy::cast_precision_loss)]
    let share = left as f64 / life as f64;
    share
}
