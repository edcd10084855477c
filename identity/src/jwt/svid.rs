//! From a token to a verified [`JwtSvid`], or the rule that was broken (JWT-SVID sections 2 to 5).
//!
//! The order: form, header, who the token speaks of, a key of *that* trust domain, the signature; and only then what the
//! token says about audience and time, so that a stranger learns nothing by trying.

use super::{Algorithm, TokenRefusal};
use crate::{Bundle, JwtKey, SpiffeId, TrustBundles, json, refusal::seconds};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};
use std::time::Duration;

/// Longest token that is read, in bytes. Sound ones have less than one thousand.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far `nbf` and `iat` may lie in the future, in seconds: the clocks of issuer and verifier differ a little. `exp` has
/// no such grace (JWT-SVID 3.3 allows one, and demands none).
pub const START_LEEWAY_SECONDS: i64 = 60;

/// What a verified token says.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtSvid {
    /// Who: `sub`.
    pub id: SpiffeId,
    /// For whom: all values of `aud`, the verifier's own among them.
    pub audience: Vec<String>,
    /// End of validity, exclusive.
    pub expires: UnixTime,
    /// All claims as they stood in the token.
    pub claims: Map<String, Value>,
}

/// Verifies `token` for the verifier known as `audience`.
///
/// # Errors
/// The rule that was broken; nothing of a refused token may be used for anything but a log line.
pub fn verify(
    token: &str,
    trust: &TrustBundles,
    audience: &str,
    now: UnixTime,
) -> Result<JwtSvid, TokenRefusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenRefusal::TooLong { length: token.len(), limit: MAX_TOKEN_BYTES });
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenRefusal::NotCompact)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenRefusal::NotCompact)?;
    if claims.contains('.') || [header, claims, signature].contains(&"") {
        return Err(TokenRefusal::NotCompact);
    }
    let (algorithm, kid) = read_header(object("header", header)?)?;
    let claims = object("claims", claims)?;
    let signature = decoded("signature", signature)?;
    let id = subject(&claims)?;
    let Some(bundle) = trust.get(id.trust_domain()) else {
        return Err(TokenRefusal::UnknownTrustDomain { id, known: trust.to_string() });
    };
    let keys = candidates(bundle, algorithm, kid, &id)?;
    if !keys.iter().any(|key| algorithm.verifies(&key.key, signed.as_bytes(), &signature)) {
        return Err(TokenRefusal::BadSignature(id));
    }
    let audiences = audiences(&claims).ok_or_else(|| TokenRefusal::NoAudience(id.clone()))?;
    if audience.is_empty() || !audiences.iter().any(|one| one == audience) {
        return Err(TokenRefusal::OtherAudience { id, expected: audience.to_owned() });
    }
    let expires = check_times(&claims, &id, seconds(now))?;
    Ok(JwtSvid { id, audience: audiences, expires, claims })
}

fn decoded(part: &'static str, text: &str) -> Result<Vec<u8>, TokenRefusal> {
    // The cause would quote the text, and is not needed to repair it.
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenRefusal::NotBase64(part))
}

fn object(part: &'static str, text: &str) -> Result<Map<String, Value>, TokenRefusal> {
    match json::read(&decoded(part, text)?) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(TokenRefusal::NotJson { part, cause: "something else than an object".into() }),
        Err(cause) => Err(TokenRefusal::NotJson { part, cause }),
    }
}

/// `(alg, kid)`, when nothing else is there but `typ`.
fn read_header(mut header: Map<String, Value>) -> Result<(Algorithm, Option<String>), TokenRefusal> {
    let mut take = |name: &'static str| match header.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenRefusal::HeaderNotText(name)),
    };
    let (algorithm, kid, kind) = (take("alg")?, take("kid")?, take("typ")?);
    if let Some(name) = header.into_iter().next().map(|(name, _)| name) {
        return Err(TokenRefusal::HeaderNotAllowed(name));
    }
    let algorithm = algorithm.ok_or(TokenRefusal::NoAlgorithm)?;
    let algorithm = Algorithm::from_name(&algorithm).ok_or(TokenRefusal::AlgorithmNotAllowed(algorithm))?;
    match kind {
        Some(kind) if kind != "JWT" && kind != "JOSE" => Err(TokenRefusal::TypeNotAllowed(kind)),
        _ => Ok((algorithm, kid)),
    }
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, TokenRefusal> {
    let text = claims.get("sub").and_then(Value::as_str).ok_or(TokenRefusal::NoSubject)?;
    let id: SpiffeId = text.parse().map_err(|cause: crate::IdError| TokenRefusal::InvalidSubject(cause.0))?;
    if id.path().is_empty() { Err(TokenRefusal::SubjectWithoutPath(id)) } else { Ok(id) }
}

/// The keys that may have signed: the one that `kid` names, or all of the bundle when it names none; in any case only
/// such as the algorithm takes.
fn candidates<'a>(
    bundle: &'a Bundle,
    algorithm: Algorithm,
    kid: Option<String>,
    id: &SpiffeId,
) -> Result<Vec<&'a JwtKey>, TokenRefusal> {
    let mut keys: Vec<&JwtKey> = bundle.jwt_keys.iter().collect();
    if let Some(kid) = kid {
        keys.retain(|key| key.kid == kid);
        if keys.is_empty() {
            return Err(TokenRefusal::UnknownKey { id: id.clone(), kid });
        }
    }
    keys.retain(|key| algorithm.fits(&key.key));
    if keys.is_empty() {
        return Err(TokenRefusal::NoFittingKey { id: id.clone(), algorithm: algorithm.name() });
    }
    Ok(keys)
}

fn audiences(claims: &Map<String, Value>) -> Option<Vec<String>> {
    let all: Vec<String> = match claims.get("aud")? {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => {
            several.iter().map(|one| one.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    (!all.is_empty()).then_some(all)
}

/// The end of validity, when `now` lies before it and not before the start.
fn check_times(claims: &Map<String, Value>, id: &SpiffeId, now: i64) -> Result<UnixTime, TokenRefusal> {
    let exp = time(claims, "exp", id)?.ok_or_else(|| TokenRefusal::NoExpiry(id.clone()))?;
    if now >= exp {
        return Err(TokenRefusal::Expired { id: id.clone(), now, exp });
    }
    for claim in ["nbf", "iat"] {
        if let Some(from) = time(claims, claim, id)?
            && from > now.saturating_add(START_LEEWAY_SECONDS)
        {
            return Err(TokenRefusal::NotYetValid { id: id.clone(), claim, now, from });
        }
    }
    // Later than `now`, so never negative.
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(exp).unwrap_or(0))))
}

/// A time in whole seconds; fractions are allowed by RFC 7519 and cut off.
fn time(
    claims: &Map<String, Value>,
    claim: &'static str,
    id: &SpiffeId,
) -> Result<Option<i64>, TokenRefusal> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    // The cast of a fraction saturates.
    let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64));
    seconds.map(Some).ok_or_else(|| TokenRefusal::TimeNotNumber { id: id.clone(), claim })
}

#[cfg(test)]
#[path = "svid_tests.rs"]
mod tests;
