//! `Authority.IssueCertificate`: evidence in, certificate out. The identity comes from the evidence, never from the request.

use super::{Publisher, listener::Caller};
use crate::{
    attest::{AttestError, Attested, Evidence, attest},
    authority::{self, IssueError},
};
use postern_api::v1;
use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tonic::{Request, Response, Status};

/// The largest CSR, in bytes. One with an RSA key of 8192 bits has about 2 KiB.
const MAX_CSR: usize = 16 * 1024;
/// The longest join token, in bytes.
const MAX_TOKEN: usize = 1024;

pub(crate) struct Certificates {
    publisher: Arc<Publisher>,
}

impl Certificates {
    pub(crate) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher }
    }

    /// Who asks: by join token, or else by the certificate of the connection.
    async fn attest(&self, caller: &Caller, token: &str, now: SystemTime) -> Result<Attested, Status> {
        let publisher = &self.publisher;
        let within_limits = match &caller.peer {
            Some(peer) if token.is_empty() => {
                publisher.by_identity.admit(peer.id().to_string(), Instant::now())
            }
            _ => publisher.by_address.admit(network(caller.address.ip()), Instant::now()),
        };
        if !within_limits {
            return Err(Status::resource_exhausted("too many requests for certificates: try again later"));
        }
        let evidence = match &caller.peer {
            _ if token.len() > MAX_TOKEN => {
                return Err(Status::invalid_argument(format!(
                    "the join token is longer than {MAX_TOKEN} bytes"
                )));
            }
            _ if !token.is_empty() => Evidence::JoinToken(token),
            Some(peer) => Evidence::Certificate(peer),
            None => {
                return Err(Status::unauthenticated(
                    "no evidence of who asks: send a join token, or connect with the current certificate",
                ));
            }
        };
        let attested = attest(evidence, &publisher.tokens, &publisher.trust_domain, now).await.map_err(|refusal| {
            tracing::warn!(address = %caller.address, %refusal, "a request for a certificate was refused");
            match refusal {
                AttestError::Token(_) | AttestError::CertificateEnded(_) => {
                    Status::unauthenticated(refusal.to_string())
                }
                AttestError::NotOurWorkload(..) => Status::permission_denied(refusal.to_string()),
            }
        })?;
        if matches!(evidence, Evidence::Certificate(_)) {
            self.still_runs(&attested)?;
        }
        // Whoever has this identity is the control plane for every sidecar.
        if attested.namespace == authority::NAMESPACE
            && attested.service_account == authority::SERVICE_ACCOUNT
        {
            return Err(Status::permission_denied("the control plane's own identity is not for workloads"));
        }
        Ok(attested)
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
        let caller = super::discovery::caller(&request)?;
        let request = request.into_inner();
        // Before the token is used up.
        if request.csr.is_empty() || request.csr.len() > MAX_CSR {
            let size = request.csr.len();
            return Err(Status::invalid_argument(format!(
                "the CSR has {size} bytes instead of 1 to {MAX_CSR}"
            )));
        }
        let now = SystemTime::now();
        let attested = self.attest(&caller, &request.join_token, now).await?;
        let lifetime = self.lifetime(request.lifetime_seconds);
        let issued =
            self.publisher.authority.issue(&request.csr, &attested, lifetime, now).map_err(|refusal| {
                tracing::warn!(address = %caller.address, %refusal, "a certificate was not issued");
                match refusal {
                    IssueError::Malformed(_)
                    | IssueError::UnsupportedKey(_)
                    | IssueError::UnsupportedSignature
                    | IssueError::BadSignature
                    | IssueError::Identity(_)
                    | IssueError::Lifetime => Status::invalid_argument(refusal.to_string()),
                    IssueError::AuthorityNotValid => Status::unavailable(refusal.to_string()),
                    IssueError::Make(_) => Status::internal(refusal.to_string()),
                }
            })?;
        tracing::info!(
            identity = %issued.id, serial = %issued.serial, pod = attested.pod, address = %caller.address,
            lifetime_seconds = lifetime.as_secs(), "certificate issued"
        );
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Response::new(v1::IssueCertificateResponse {
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            trust: Some(self.publisher.trust()),
            server_time_unix_millis: i64::try_from(millis).unwrap_or(i64::MAX),
        }))
    }

    async fn issue_jwt_svid(
        &self,
        _request: Request<v1::IssueJwtSvidRequest>,
    ) -> Result<Response<v1::IssueJwtSvidResponse>, Status> {
        Err(Status::unimplemented("this authority has no key for JWT-SVIDs"))
    }
}

/// What is limited as one: an IPv4 address, or an IPv6 network of 64 bits, which one host may have alone.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}
