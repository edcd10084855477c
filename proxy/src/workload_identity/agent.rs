//! Certificates from somebody else's SPIFFE Workload API: a SPIRE agent's, or another Postern's.
//!
//! Key, certificate and bundles come as a stream, the whole state with each message, and are proven like those of our own
//! authority before anything of them is used. When the source goes away or talks nonsense, what is in force stays in force.

use super::issue::Issued;
use crate::{
    control::channel::describe,
    state::{Credentials, PrivateKey, Store},
};
use hyper_util::rt::TokioIo;
use postern_api::open::{
    X509svid, X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_identity::{Bundle, SpiffeId, TrustBundles, TrustDomain, tls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::net::UnixStream;
use tonic::{Request, Streaming, metadata::MetadataValue, transport::Endpoint};
use x509_parser::prelude::{FromDer, X509Certificate};

/// From connecting to the first message.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts to open the stream again; jittered down to a half.
const RECONNECT: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// One message: keys, chains and bundles of this workload.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Certificates of one chain or one bundle.
const CERTIFICATES: usize = 64;

/// One socket, and the stream from it.
pub struct Agent {
    socket: PathBuf,
    trust_domain: TrustDomain,
    stream: Option<Streaming<X509svidResponse>>,
    /// Arrived and not yet looked at.
    next: Option<X509svidResponse>,
}

impl Agent {
    /// Nothing is opened until the first question. Identities of `trust_domain` are taken, no others.
    pub fn new(socket: PathBuf, trust_domain: TrustDomain) -> Self {
        Self { socket, trust_domain, stream: None, next: None }
    }

    /// What arrived last, or what the source says when it is asked now; proven.
    ///
    /// # Errors
    /// What went wrong, or that the source still gives what is in force.
    pub(super) async fn obtain(&mut self, store: &Store) -> Result<Issued, String> {
        let message = match self.next.take() {
            Some(message) => message,
            None => tokio::time::timeout(DEADLINE, self.ask())
                .await
                .map_err(|_| self.said(&format!("no answer within {DEADLINE:?}")))??,
        };
        let known = store.trust();
        let credentials = read(message, &self.trust_domain, known).map_err(|cause| self.said(&cause))?;
        if store.credentials().is_some_and(|current| current.key.cert == credentials.key.cert) {
            return Err(
                self.said(&format!("it still gives the certificate in force, {}", credentials.serial))
            );
        }
        Ok(Issued { credentials, clock_skew: None })
    }

    /// Resolves when the source has said something new. May be dropped and called again.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep(RECONNECT.mul_f64(1.0 - rand::random::<f64>() / 2.0)).await;
                match tokio::time::timeout(DEADLINE, self.open()).await {
                    Ok(Ok(stream)) => self.stream = Some(stream),
                    Ok(Err(reason)) => tracing::debug!(%reason, "identity source"),
                    Err(_) => {}
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(message)) => {
                    self.next = Some(message);
                    return;
                }
                ended => {
                    let reason = ended.err().map_or_else(|| "the stream ended".to_owned(), |s| describe(&s));
                    tracing::warn!(
                        reason = self.said(&reason),
                        "the identity source went away; the certificate in force stays until it ends"
                    );
                    self.stream = None;
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<X509svidResponse, String> {
        self.stream = None;
        let mut stream = self.open().await?;
        let message = stream.message().await.map_err(|status| self.said(&describe(&status)))?;
        let message = message.ok_or_else(|| self.said("the stream ended without a message"))?;
        self.stream = Some(stream);
        Ok(message)
    }

    async fn open(&self) -> Result<Streaming<X509svidResponse>, String> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|cause| self.said(&format!("cannot be connected to: {cause}")))?;
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let stream = client.fetch_x509svid(request).await.map_err(|s| self.said(&describe(&s)))?;
        Ok(stream.into_inner())
    }

    fn said(&self, what: &str) -> String {
        format!("Workload API at `{}`: {what}", self.socket.display())
    }
}

/// The default identity of a message, under the trust that is known already when it is valid there (the control plane knows
/// more than the source: what is revoked, and keys of tokens), else under the bundles that came with it.
fn read(
    message: X509svidResponse,
    ours: &TrustDomain,
    known: Option<Arc<TrustBundles>>,
) -> Result<Credentials, String> {
    let federated = message.federated_bundles;
    let svid = message.svids.into_iter().next().ok_or("it gives no identity at all")?;
    let id: SpiffeId = svid.spiffe_id.parse().map_err(|cause| format!("its SPIFFE ID: {cause}"))?;
    if id.trust_domain() != ours.as_str() || id.service_account().is_none() {
        return Err(format!(
            "it gives the identity {id}; this mesh takes spiffe://{ours}/ns/<namespace>/sa/<service account>. \
             Register the workload under that ID, or give `--trust-domain` as the source has it"
        ));
    }
    let mut bundles = vec![bundle(ours.clone(), &svid.bundle)?];
    for (domain, der) in &federated {
        let domain = domain.strip_prefix("spiffe://").unwrap_or(domain);
        let domain: TrustDomain = domain.parse().map_err(|cause| format!("a federated bundle: {cause}"))?;
        if domain != *ours {
            bundles.push(bundle(domain, der)?);
        }
    }
    let came = Arc::new(TrustBundles::distinct(bundles)?);
    let (key, private_key) = keys(&svid)?;
    let under = |trust| Credentials::prove(key.clone(), private_key.clone(), trust);
    let credentials = match known.map(under) {
        Some(Ok(credentials)) => credentials,
        _ => under(came)?,
    };
    if credentials.id != id {
        return Err(format!("it names {id} and gives the certificate of {}", credentials.id));
    }
    Ok(credentials)
}

fn keys(svid: &X509svid) -> Result<(Arc<rustls::sign::CertifiedKey>, PrivateKey), String> {
    let chain = certificates(&svid.x509_svid)?.into_iter().map(CertificateDer::from).collect();
    let private_key = PrivateKey::from(svid.x509_svid_key.to_vec());
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private_key.as_ref().to_vec()));
    Ok((tls::certified_key(chain, der)?, private_key))
}

fn bundle(domain: TrustDomain, der: &[u8]) -> Result<Bundle, String> {
    let all = certificates(der).map_err(|cause| format!("bundle of `{domain}`: {cause}"))?;
    Bundle::from_der(domain, all)
}

/// DER certificates that stand one after the other (SPIFFE Workload API 5.2).
fn certificates(mut der: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut all = Vec::new();
    while !der.is_empty() {
        if all.len() == CERTIFICATES {
            return Err(format!("more than {CERTIFICATES} certificates"));
        }
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|cause| format!("certificate {} cannot be read: {cause}", all.len() + 1))?;
        let (one, _) = der.split_at(der.len() - rest.len());
        all.push(one.to_vec());
        der = rest;
    }
    Ok(all)
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
