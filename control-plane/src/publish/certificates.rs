//! The service `Authority`: evidence in, certificate or JWT-SVID out. The identity comes from the evidence, never from the
//! request.

use super::{
    Counters, Publisher,
    listener::{Address, Caller},
};
use crate::{
    attest::{
        AttestError, Attested, Doors, Evidence, MAX_SERVICE_ACCOUNT_TOKEN, ReviewError, attest,
        of_certificate, still_good,
    },
    authority::{self, DEFAULT_JWT_LIFETIME, IssueError},
};
use postern_api::v1;
use postern_identity::TrustBundles;
use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tonic::{Request, Response, Status};

/// The largest CSR, in bytes. One with an RSA key of 8192 bits has about 2 KiB.
const MAX_CSR: usize = 16 * 1024;
/// The longest join token, in bytes.
const MAX_JOIN_TOKEN: usize = 1024;
/// Audiences of one JWT-SVID.
const MAX_AUDIENCES: usize = 16;
/// The longest audience, in bytes.
const MAX_AUDIENCE: usize = 256;

pub(crate) struct Certificates {
    publisher: Arc<Publisher>,
}

impl Certificates {
    pub(crate) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher }
    }

    /// Whether the caller is within its limit; asked before any work is done for it.
    #[allow(clippy::result_large_err)]
    fn admit(&self, caller: &Caller) -> Result<(), Status> {
        let (publisher, now) = (&self.publisher, Instant::now());
        let within = match (&caller.peer, &caller.address) {
            (Some(peer), _) => publisher.by_identity.admit(peer.id().to_string(), now),
            (None, Address::Process(peer)) => publisher.by_user.admit(peer.uid(), now),
            (None, Address::Network(address)) => publisher.by_address.admit(network(address.ip()), now),
        };
        if within {
            Ok(())
        } else {
            Err(Status::resource_exhausted("too many requests for certificates: try again later"))
        }
    }

    /// Which evidence counts: the current certificate while it is good, a token, who is at the end of the unix socket.
    #[allow(clippy::result_large_err)]
    fn evidence<'a>(
        &self,
        caller: &'a Caller,
        request: &'a v1::IssueCertificateRequest,
        trust: &TrustBundles,
        now: SystemTime,
    ) -> Result<Evidence<'a>, Status> {
        let (join, account) = (request.join_token.as_str(), request.service_account_token.as_str());
        for (what, length, most) in [
            ("join token", join.len(), MAX_JOIN_TOKEN),
            ("service account token", account.len(), MAX_SERVICE_ACCOUNT_TOKEN),
        ] {
            if length > most {
                return Err(Status::invalid_argument(format!("the {what} is longer than {most} bytes")));
            }
        }
        Ok(match (&caller.peer, &caller.address) {
            (Some(peer), _) if still_good(peer, trust, now).is_ok() => Evidence::Certificate(peer),
            _ if !join.is_empty() => Evidence::JoinToken(join),
            _ if !account.is_empty() => Evidence::ServiceAccountToken(account),
            // The network is not asked for a second proof, but the socket gives one.
            (_, Address::Process(process)) => Evidence::UnixPeer(process),
            // Refused with what is wrong with it.
            (Some(peer), _) => Evidence::Certificate(peer),
            (None, _) => {
                return Err(Status::unauthenticated(
                    "no evidence of who asks: send a join token or a service account token, connect with the current \
                     certificate, or use the control plane's unix socket",
                ));
            }
        })
    }

    async fn attest(
        &self,
        caller: &Caller,
        evidence: Evidence<'_>,
        trust: &TrustBundles,
        now: SystemTime,
    ) -> Result<Attested, Status> {
        let publisher = &self.publisher;
        let index = publisher.index.borrow().clone();
        let doors = Doors {
            trust_domain: &publisher.trust_domain,
            trust,
            tokens: &publisher.tokens,
            reviews: publisher.reviews.as_ref(),
            index: index.as_deref(),
        };
        let attested = attest(evidence, &doors, now).await.map_err(|refusal| refused(caller, &refusal))?;
        if matches!(evidence, Evidence::Certificate(_)) {
            self.still_runs(&attested)?;
        }
        self.not_ourselves(&attested)?;
        Ok(attested)
    }

    /// Whoever has our identity is the control plane for every sidecar.
    #[allow(clippy::result_large_err, clippy::unused_self)]
    fn not_ourselves(&self, attested: &Attested) -> Result<(), Status> {
        if attested.namespace == authority::NAMESPACE
            && attested.service_account == authority::SERVICE_ACCOUNT
        {
            return Err(Status::permission_denied("the control plane's own identity is not for workloads"));
        }
        Ok(())
    }

    /// A renewal needs somebody who runs under the identity: to remove the pod is to end its certificates.
    #[allow(clippy::result_large_err)]
    fn still_runs(&self, attested: &Attested) -> Result<(), Status> {
        let Some(index) = self.publisher.index.borrow().clone() else {
            return Err(Status::unavailable("the control plane has not read its documents yet: try again"));
        };
        let Attested { namespace, service_account, .. } = attested;
        if !index.runs(namespace, service_account) {
            return Err(Status::permission_denied(format!(
                "no pod of {namespace} runs as {service_account} any more"
            )));
        }
        Ok(())
    }

    fn lifetime(&self, wanted_seconds: u32) -> Duration {
        let most = self.publisher.certificate_lifetime;
        match wanted_seconds {
            0 => most,
            seconds => most.min(Duration::from_secs(u64::from(seconds))),
        }
    }
}

#[tonic::async_trait]
impl v1::authority_server::Authority for Certificates {
    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateResponse>, Status> {
        let outcome = self.certificate(request).await;
        let counters = &self.publisher.counters;
        Counters::count(&outcome, &counters.certificates_issued, &counters.certificates_refused);
        outcome
    }

    async fn issue_jwt_svid(
        &self,
        request: Request<v1::IssueJwtSvidRequest>,
    ) -> Result<Response<v1::IssueJwtSvidResponse>, Status> {
        let outcome = self.token(&request);
        let counters = &self.publisher.counters;
        Counters::count(&outcome, &counters.tokens_issued, &counters.tokens_refused);
        outcome
    }
}

impl Certificates {
    async fn certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateResponse>, Status> {
        let caller = super::discovery::caller(&request)?;
        let request = request.into_inner();
        // Before the token is used up.
        if request.csr.is_empty() || request.csr.len() > MAX_CSR {
            let size = request.csr.len();
            return Err(Status::invalid_argument(format!(
                "the CSR has {size} bytes instead of 1 to {MAX_CSR}"
            )));
        }
        self.admit(&caller)?;
        let now = SystemTime::now();
        let trust = self.publisher.trust();
        let evidence = self.evidence(&caller, &request, &trust.own, now)?;
        let attested = self.attest(&caller, evidence, &trust.own, now).await?;
        let lifetime = self.lifetime(request.lifetime_seconds);
        let issued =
            self.publisher.authority.issue(&request.csr, &attested, lifetime, now).map_err(|refusal| {
                tracing::warn!(address = %caller.address, %refusal, "a certificate was not issued");
                not_issued(&refusal)
            })?;
        // What was signed is for the process that asked, not for one that inherited its connection.
        if let Evidence::UnixPeer(process) = evidence {
            process.still_runs().map_err(|ended| refused(&caller, &ended.into()))?;
        }
        tracing::info!(
            identity = %issued.id, serial = %issued.serial, pod = attested.pod, address = %caller.address,
            lifetime_seconds = lifetime.as_secs(), "certificate issued"
        );
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Response::new(v1::IssueCertificateResponse {
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            trust: Some(trust.update.clone()),
            server_time_unix_millis: i64::try_from(millis).unwrap_or(i64::MAX),
        }))
    }

    /// A JWT-SVID for the identity of the connection: nothing that the request says can make it another one.
    #[allow(clippy::result_large_err)]
    fn token(
        &self,
        request: &Request<v1::IssueJwtSvidRequest>,
    ) -> Result<Response<v1::IssueJwtSvidResponse>, Status> {
        let caller = super::discovery::caller(request)?;
        let Some(peer) = &caller.peer else {
            return Err(Status::unauthenticated(
                "a JWT-SVID is only for workloads with a certificate: connect with the current one",
            ));
        };
        let id = peer.id();
        if !self.publisher.tokens_by_identity.admit(id.to_string(), Instant::now()) {
            return Err(Status::resource_exhausted(
                "too many requests for JWT-SVIDs: use one until it ends, or try again later",
            ));
        }
        let (audience, now) = (&request.get_ref().audience, SystemTime::now());
        check_audience(audience)?;
        // The connection may be older than the end of its certificate, or of the authority above it.
        let attested = of_certificate(peer, &self.publisher.trust_domain, &self.publisher.trust().own, now)
            .map_err(|refusal| refused(&caller, &refusal))?;
        self.still_runs(&attested)?;
        self.not_ourselves(&attested)?;
        let lifetime = match request.get_ref().lifetime_seconds {
            0 => DEFAULT_JWT_LIFETIME,
            seconds => Duration::from_secs(u64::from(seconds)),
        };
        let issued = self.publisher.authority.issue_jwt(id, audience, lifetime, now).map_err(|refusal| {
            tracing::warn!(address = %caller.address, identity = %id, %refusal, "a JWT-SVID was not issued");
            not_issued(&refusal)
        })?;
        tracing::info!(identity = %id, ?audience, address = %caller.address, "JWT-SVID issued");
        let expires = issued.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Response::new(v1::IssueJwtSvidResponse {
            token: issued.token,
            expires_unix_seconds: i64::try_from(expires).unwrap_or(i64::MAX),
        }))
    }
}

/// Names of validators (JWT-SVID 3.2), before anything is done with them.
#[allow(clippy::result_large_err)]
fn check_audience(audience: &[String]) -> Result<(), Status> {
    let sound = |name: &String| (1..=MAX_AUDIENCE).contains(&name.len());
    if (1..=MAX_AUDIENCES).contains(&audience.len()) && audience.iter().all(sound) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "a JWT-SVID has 1 to {MAX_AUDIENCES} audiences of 1 to {MAX_AUDIENCE} bytes each"
    )))
}

/// What the caller is told of a certificate or token that could not be made.
fn not_issued(refusal: &IssueError) -> Status {
    let told = refusal.to_string();
    match refusal {
        IssueError::Malformed(_)
        | IssueError::UnsupportedKey(_)
        | IssueError::UnsupportedSignature
        | IssueError::BadSignature
        | IssueError::Identity(_)
        | IssueError::Foreign(_)
        | IssueError::Audience(_)
        | IssueError::Lifetime => Status::invalid_argument(told),
        IssueError::AuthorityNotValid => Status::unavailable(told),
        IssueError::Make(_) => Status::internal(told),
    }
}

/// Logs a refusal, and makes of it what the caller is told.
fn refused(caller: &Caller, refusal: &AttestError) -> Status {
    tracing::warn!(address = %caller.address, %refusal, "a request for a certificate was refused");
    let told = refusal.to_string();
    match refusal {
        AttestError::Token(_)
        | AttestError::CertificateEnded(_)
        | AttestError::CertificateNotTrusted(..)
        | AttestError::UnixPeer(_)
        | AttestError::Review(ReviewError::Refused(_)) => Status::unauthenticated(told),
        AttestError::NotOurWorkload(..) | AttestError::UnknownUser(_) | AttestError::AmbiguousUser(_) => {
            Status::permission_denied(told)
        }
        AttestError::Review(ReviewError::NotConfigured) => Status::failed_precondition(told),
        AttestError::Review(ReviewError::Unavailable(_)) | AttestError::NotReady => Status::unavailable(told),
    }
}

/// What is limited as one: an IPv4 address, or an IPv6 network of 64 bits, which one host may have alone.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}
