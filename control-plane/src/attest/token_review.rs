//! Projected service account tokens: the API server says whose a token is (TokenReview), and the pod that it is bound to
//! must still be the same one. Nothing is read out of the token here; it is never kept, logged or shown.

use super::Attested;
use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// The longest token, in bytes. Real ones have one to two KiB.
pub const MAX_SERVICE_ACCOUNT_TOKEN: usize = 16 * 1024;
/// Both questions to the API server, and the wait for a turn, take no longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Reviews in progress at one time; the API server is everybody's.
const AT_ONCE: usize = 32;
/// How long an answer counts: sidecars ask again at once when their connection breaks, and a pod is deleted at any time.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Answers that are remembered.
const MAX_REMEMBERED: usize = 10_000;
/// `UserInfo.extra` of a token that is bound to a pod (Kubernetes: "Bound service account tokens").
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Where tokens are reviewed, and for which audience.
#[derive(Clone)]
pub struct KubernetesTokens {
    /// The API server and our own credentials there: `create` on `tokenreviews`, `get` on `pods`.
    pub api_server: kube::Config,
    /// Our name in the `audience` of the projected volume. A token for anybody else is refused.
    pub audience: String,
}

/// Shows the audience only.
impl fmt::Debug for KubernetesTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KubernetesTokens({})", self.audience)
    }
}

/// Asks an API server about tokens, and remembers its good answers for a minute by the hash of the token.
pub struct TokenReviews {
    client: Client,
    audience: String,
    turns: Semaphore,
    deadline: Duration,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
}

struct Remembered {
    attested: Attested,
    until: Instant,
}

/// Why a service account token does not attest. `Display` may be told to the caller, and holds nothing of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// Nobody configured an API server.
    #[error(
        "service account tokens are not reviewed here: start the control plane with --kubernetes-token-audience"
    )]
    NotConfigured,
    /// The token is not good.
    #[error("the service account token was refused: {0}")]
    Refused(String),
    /// Whether it is good cannot be told now.
    #[error("the service account token cannot be reviewed now: {0}; try again")]
    Unavailable(String),
}

fn refused(reason: impl Into<String>) -> ReviewError {
    ReviewError::Refused(reason.into())
}

impl TokenReviews {
    /// Makes the client; asks nothing yet.
    ///
    /// # Errors
    /// The configuration of the API server cannot be used: its authority, our credentials.
    pub fn new(tokens: KubernetesTokens) -> Result<Self, String> {
        let KubernetesTokens { mut api_server, audience } = tokens;
        // One deadline holds for all; whoever asks comes again by itself.
        api_server.default_retry = false;
        // kube makes aws-lc-rs the process-wide provider here when there is none; our own code names its provider.
        let client = Client::try_from(api_server).map_err(|error| {
            format!("the configuration of the Kubernetes API server cannot be used: {error}")
        })?;
        let remembered = Mutex::default();
        Ok(Self { client, audience, turns: Semaphore::new(AT_ONCE), deadline: DEADLINE, remembered })
    }

    /// For whom `token` stands.
    ///
    /// # Errors
    /// See [`ReviewError`]; only what is certain is `Refused`.
    pub async fn review(&self, token: &str, now: Instant) -> Result<Attested, ReviewError> {
        if token.len() > MAX_SERVICE_ACCOUNT_TOKEN {
            return Err(refused(format!("it is longer than {MAX_SERVICE_ACCOUNT_TOKEN} bytes")));
        }
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.remembered.lock().get(&key).filter(|known| known.until > now) {
            return Ok(known.attested.clone());
        }
        let answer = tokio::time::timeout(self.deadline, self.ask(token)).await.map_err(|_| {
            let seconds = self.deadline.as_secs_f32();
            ReviewError::Unavailable(format!("the Kubernetes API server did not answer within {seconds} s"))
        });
        let attested = answer??;
        self.remember(key, &attested, now);
        Ok(attested)
    }

    fn remember(&self, key: [u8; 32], attested: &Attested, now: Instant) {
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, known| known.until > now);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(key, Remembered { attested: attested.clone(), until: now + REMEMBERED });
        }
    }

    async fn ask(&self, token: &str) -> Result<Attested, ReviewError> {
        let _turn =
            self.turns.acquire().await.map_err(|error| ReviewError::Unavailable(error.to_string()))?;
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![self.audience.clone()]) },
            ..TokenReview::default()
        };
        let reviewed =
            Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = reviewed.map_err(|error| unavailable("create tokenreviews", &error))?.status;
        let bound = bound_pod(status.unwrap_or_default(), &self.audience)?;
        let pods = Api::<Pod>::namespaced(self.client.clone(), &bound.namespace);
        let pod = match pods.get(&bound.pod).await {
            Ok(pod) => Some(pod),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => return Err(unavailable("get pods", &error)),
        };
        same_pod(&bound, pod)?;
        let Bound { namespace, service_account, pod, .. } = bound;
        Ok(Attested { namespace, service_account, pod })
    }
}

/// Shows how much is remembered, and nothing of it.
impl fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenReviews({}, {} remembered)", self.audience, self.remembered.lock().len())
    }
}

/// What a good token says of its bearer.
struct Bound {
    namespace: String,
    service_account: String,
    pod: String,
    pod_uid: String,
}

/// From the API server's answer to the pod that the token is bound to.
fn bound_pod(status: TokenReviewStatus, audience: &str) -> Result<Bound, ReviewError> {
    // Its `error` text comes from authenticators of all kinds, which may quote what they read; it stays out of our log.
    if status.authenticated != Some(true) {
        return Err(refused("the Kubernetes API server does not know it, or it has expired"));
    }
    // An API server that knows no audiences answers without any, and says yes to tokens that were made for others.
    if !status.audiences.unwrap_or_default().iter().any(|known| known == audience) {
        return Err(refused(format!(
            "it is not for the audience `{audience}`: set that in the projected volume of the pod"
        )));
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let (namespace, service_account) = username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|account| account.split_once(':'))
        .filter(|(namespace, account)| is_name(namespace) && is_name(account))
        .ok_or_else(|| refused("its user is no service account"))?;
    let extra = extra.unwrap_or_default();
    let said = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let (Some(pod), Some(pod_uid)) = (said(POD_NAME).filter(|name| is_name(name)), said(POD_UID)) else {
        return Err(refused("it is not bound to a pod: use a projected volume, not a token of a Secret"));
    };
    Ok(Bound { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod, pod_uid })
}

/// A pod that was deleted and made again has its old name and another UID.
fn same_pod(bound: &Bound, pod: Option<Pod>) -> Result<(), ReviewError> {
    let Bound { namespace, service_account, pod: name, pod_uid } = bound;
    let Some(pod) = pod else {
        return Err(refused(format!("its pod {namespace}/{name} does not exist any more")));
    };
    if pod.metadata.uid.as_ref() != Some(pod_uid) {
        return Err(refused(format!("its pod {namespace}/{name} was deleted, and another has its name")));
    }
    let runs_as = pod.spec.and_then(|spec| spec.service_account_name).unwrap_or_default();
    if runs_as != *service_account {
        return Err(refused(format!("its pod {namespace}/{name} does not run as {service_account}")));
    }
    Ok(())
}

/// A DNS subdomain (RFC 1123), as all of these names are: it becomes a part of a path and of a SPIFFE ID.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}

/// Only the code and the kind of an error are told: its message may hold what was sent.
fn unavailable(right: &str, error: &kube::Error) -> ReviewError {
    ReviewError::Unavailable(match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => format!(
            "the Kubernetes API server answered {}: give the control plane's own account the right to {right}",
            status.code
        ),
        kube::Error::Api(status) => format!("the Kubernetes API server answered {}", status.code),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            "the Kubernetes API server answered what is no answer".to_owned()
        }
        kube::Error::Auth(_) => "our own credentials for the Kubernetes API server cannot be used".to_owned(),
        _ => "the Kubernetes API server cannot be reached".to_owned(),
    })
}

#[cfg(test)]
#[path = "token_review_tests.rs"]
mod tests;
