//! JWT-SVIDs: asked for at the control plane with the current certificate, kept until half of their life is over.

use super::{view::Absent, workload::refused};
use crate::{
    control::{ControlPlane, channel::describe},
    state::{Credentials, Store},
};
use parking_lot::Mutex;
use postern_api::v1::{IssueJwtSvidRequest, authority_client::AuthorityClient};
use postern_identity::{SpiffeId, jwt};
use rustls_pki_types::UnixTime;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// Sets of audiences that are remembered.
const KEPT: usize = 256;
/// Questions to the control plane at once; more wait.
const ASKING: usize = 4;
/// From question to answer, waiting included.
const DEADLINE: Duration = Duration::from_secs(10);
/// Audiences of one token, and bytes of one audience.
const AUDIENCES: usize = 16;
const AUDIENCE_BYTES: usize = 1024;

/// The tokens of this workload.
pub(super) struct Tokens {
    store: Arc<Store>,
    control: Arc<ControlPlane>,
    kept: Mutex<HashMap<Vec<String>, Kept>>,
    turns: Semaphore,
}

#[derive(Clone)]
struct Kept {
    id: SpiffeId,
    token: String,
    /// Half of its life.
    fresh_until: SystemTime,
}

impl Tokens {
    pub(super) fn new(store: Arc<Store>, control: Arc<ControlPlane>) -> Self {
        Self { store, control, kept: Mutex::default(), turns: Semaphore::new(ASKING) }
    }

    /// A token of this workload for `audience`, with at least half of its life before it where the authority can be asked.
    ///
    /// # Errors
    /// What a caller of the Workload API shall read.
    pub(super) async fn token(&self, audience: Vec<String>) -> Result<(SpiffeId, String), Status> {
        let audience = checked(audience)?;
        let current = self.store.credentials().ok_or_else(|| refused(Absent::Withdrawn))?;
        let kept = self.kept(&audience, &current);
        if let Some(kept) = &kept
            && SystemTime::now() < kept.fresh_until
        {
            return Ok((kept.id.clone(), kept.token.clone()));
        }
        let asked = tokio::time::timeout(DEADLINE, self.ask(&audience, &current)).await;
        match asked.unwrap_or_else(|_| Err(Status::unavailable("the authority did not answer in time"))) {
            Ok(token) => Ok((current.id.clone(), token)),
            // An authority that is away takes no valid token away.
            Err(status) => kept.map(|kept| (kept.id, kept.token)).ok_or(status),
        }
    }

    /// One that is still good: of this identity, not over, and signed with a key that is still published.
    fn kept(&self, audience: &[String], current: &Credentials) -> Option<Kept> {
        let kept = self.kept.lock().get(audience).cloned()?;
        let validator = audience.first()?;
        let verified = jwt::verify(&kept.token, &current.trust, validator, UnixTime::now());
        verified.is_ok_and(|svid| svid.id == current.id).then_some(kept)
    }

    async fn ask(&self, audience: &[String], current: &Credentials) -> Result<String, Status> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let asked = SystemTime::now();
        let (channel, _) = self
            .control
            .connect(Some(current.key.clone()), current.trust.clone())
            .await
            .map_err(Status::unavailable)?;
        let request = IssueJwtSvidRequest { audience: audience.to_vec(), lifetime_seconds: 0 };
        let answer = AuthorityClient::new(channel)
            .issue_jwt_svid(request)
            .await
            .map_err(|status| declined(&status))?;
        let answer = answer.into_inner();
        let expires =
            UNIX_EPOCH + Duration::from_secs(u64::try_from(answer.expires_unix_seconds).unwrap_or_default());
        let life = expires.duration_since(asked).unwrap_or_default();
        let kept =
            Kept { id: current.id.clone(), token: answer.token.clone(), fresh_until: asked + life / 2 };
        let mut all = self.kept.lock();
        if all.len() >= KEPT && !all.contains_key(audience) {
            let now = SystemTime::now();
            all.retain(|_, kept| kept.fresh_until > now);
            if all.len() >= KEPT {
                all.clear();
            }
        }
        all.insert(audience.to_vec(), kept);
        Ok(answer.token)
    }
}

/// In one order, each once, so that equal sets share a token.
fn checked(mut audience: Vec<String>) -> Result<Vec<String>, Status> {
    audience.sort();
    audience.dedup();
    let is_sound = |one: &String| !one.is_empty() && one.len() <= AUDIENCE_BYTES;
    if audience.is_empty() || audience.len() > AUDIENCES || !audience.iter().all(is_sound) {
        return Err(Status::invalid_argument(format!(
            "an audience must be specified: 1 to {AUDIENCES} names of 1 to {AUDIENCE_BYTES} bytes"
        )));
    }
    Ok(audience)
}

/// The authority's answer, in the words of the Workload API; details are for the log.
fn declined(status: &Status) -> Status {
    tracing::warn!(reason = %describe(status), "the authority gave no JWT-SVID");
    match status.code() {
        Code::Unimplemented => Status::unimplemented("the authority of this mesh issues no JWT-SVIDs"),
        Code::InvalidArgument => Status::invalid_argument(status.message()),
        Code::PermissionDenied => Status::permission_denied(status.message()),
        _ => Status::unavailable("the authority cannot issue a JWT-SVID now"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn audiences_are_a_set_and_bounded() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(checked(list(&["b", "a", "b"])).unwrap(), ["a", "b"]);
        let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        for wrong in [list(&[]), list(&[""]), list(&["a", ""]), vec!["x".repeat(1025)], many] {
            assert_eq!(checked(wrong).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
