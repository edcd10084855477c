//! JWT-SVIDs: the key that signs them, and the tokens (SPIFFE JWT-SVID 2 and 3).

use super::{
    AuthorityError, IssueError, Slot, root, seconds,
    sign::{Key, whole_seconds},
    state::Entry,
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use postern_identity::SpiffeId;
use serde_json::json;
use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// How long a token lives when nothing is asked for: it cannot be revoked, so it lives for minutes.
pub const DEFAULT_JWT_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// The longest life of a token.
pub const MAX_JWT_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The most audiences of a token. One is best (JWT-SVID 3.2).
pub const MAX_AUDIENCES: usize = 16;
/// The longest audience, in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 1024;
/// A key for tokens lives 30 days.
const KEY_LIFETIME: i64 = 30 * 24 * 60 * 60;
/// A key starts an hour in the past, for clocks that are behind.
const KEY_BACKDATE: i64 = 60 * 60;

/// A JWT-SVID.
#[derive(Clone)]
pub struct JwtIssued {
    /// JWS compact form. Whoever holds it is its subject: no text for logs.
    pub token: String,
    /// End of validity (`exp`).
    pub expires: SystemTime,
}

/// Shows no token.
impl fmt::Debug for JwtIssued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtIssued").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// A new key for tokens.
pub(super) fn make_key(slot: Slot, now: SystemTime) -> Result<(Entry, Key), AuthorityError> {
    let key = root::make_key()?;
    let at = seconds(now);
    let point = key.pair().public_key_raw();
    let entry = Entry::jwt_key(point, at.saturating_sub(KEY_BACKDATE), at.saturating_add(KEY_LIFETIME), slot);
    Ok((Entry { since: at, ..entry }, key))
}

/// The active key, ready to sign.
pub(super) struct TokenSigner {
    key: EcdsaKeyPair,
    /// `{alg, kid, typ}`, encoded.
    header: String,
    not_before: i64,
    not_after: i64,
}

impl TokenSigner {
    pub(super) fn new(entry: &Entry, key: &Key) -> Result<Self, String> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.pair().serialized_der())
            .map_err(|cause| format!("the token key cannot be used: {cause}"))?;
        // Nothing else may stand in the header (JWT-SVID 2), and strict clients want all three.
        let header = json!({ "alg": "ES256", "kid": entry.id.to_string(), "typ": "JWT" });
        Ok(Self {
            key,
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
            not_before: entry.not_before,
            not_after: entry.not_after,
        })
    }

    /// A token for `id`, in JWS compact form.
    pub(super) fn sign(
        &self,
        id: &SpiffeId,
        audience: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<JwtIssued, IssueError> {
        if audience.is_empty() {
            return Err(IssueError::Audience("missing"));
        }
        if audience.len() > MAX_AUDIENCES {
            return Err(IssueError::Audience("too many names"));
        }
        if audience.iter().any(String::is_empty) {
            return Err(IssueError::Audience("an empty name"));
        }
        if audience.iter().any(|name| name.len() > MAX_AUDIENCE_BYTES) {
            return Err(IssueError::Audience("a name that is too long"));
        }
        let at = seconds(now);
        // A token of a key that has ended is refused everywhere (spire#2115).
        if !(self.not_before..self.not_after).contains(&at) {
            return Err(IssueError::AuthorityNotValid);
        }
        let lifetime = whole_seconds(lifetime.min(MAX_JWT_LIFETIME));
        if lifetime == 0 {
            return Err(IssueError::Lifetime);
        }
        let expires = at.saturating_add(lifetime).min(self.not_after);
        let claims = json!({
            "sub": id.as_str(),
            "aud": audience,
            "iat": at,
            "exp": expires,
            "jti": format!("{:032x}", rand::random::<u128>()),
        });
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| IssueError::Make("the machine has no randomness".into()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        let expires =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(expires).unwrap_or_default());
        Ok(JwtIssued { token, expires })
    }
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
