//! HashiCorp Vault's PKI: the root stays there, and the intermediate of this process is signed there.
//!
//! `POST /v1/MOUNT/root/sign-intermediate`, and `GET /v1/MOUNT/ca_chain` and `/ca/pem` for the root (Vault API, PKI secrets
//! engine). The token is read from its file for each request, so that an agent may renew it.

use super::{
    super::{
        journal,
        root::{fits, make_key},
        seconds,
        sign::{Key, Signer, has_room, intermediate_params, whole_seconds},
        state,
    },
    Supplied,
};
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use postern_identity::{Bundle, KeyId, TrustDomain, svid, tls::provider};
use rcgen::{IsCa, Issuer, PublicKeyData};
use rustls::{
    ClientConfig, RootCertStore,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

/// The largest answer, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// For one request, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is told of an answer that is an error, in characters.
const MAX_REASON: usize = 300;

/// Where Vault keeps the root.
#[derive(Clone, Debug)]
pub struct VaultPki {
    /// `https://HOST:PORT`. Plain `http` only to a loopback address: the token goes over it.
    pub address: String,
    /// Where the PKI secrets engine is mounted, e.g. `pki`.
    pub mount: String,
    /// The file of a token that may sign intermediates. Read for each request.
    pub token_file: PathBuf,
    /// PEM certificates that vouch for Vault's server; `None` = those of the system.
    pub server_roots: Option<PathBuf>,
}

impl VaultPki {
    /// A new intermediate, signed by Vault and tried on the verifier.
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub(super) async fn sign(
        &self,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Supplied, String> {
        let key = make_key().map_err(|cause| cause.to_string())?;
        let request = request_pem(trust_domain, &key).map_err(|cause| cause.to_string())?;
        let asked = json!({
            "csr": request,
            "format": "pem",
            "use_csr_values": true,
            "common_name": trust_domain.as_str(),
            "uri_sans": format!("spiffe://{trust_domain}"),
            "max_path_length": 0,
            "ttl": format!("{}s", whole_seconds(lifetime)),
        });
        let answer = self.call(Method::POST, "root/sign-intermediate", asked.to_string()).await?;
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|cause| format!("Vault's answer is not JSON: {cause}"))?;
        let text = answer.pointer("/data/certificate").and_then(Value::as_str);
        let text = text.ok_or("Vault's answer has no `data.certificate`")?;
        let signed = self.certificates(text.as_bytes(), trust_domain)?;
        let certificate = signed.first().ok_or("Vault's answer holds no certificate")?;
        if !fits(certificate, &key) {
            return Err("Vault signed another key than the one it was asked to sign".into());
        }
        let mut above = self.get("ca_chain", trust_domain).await?;
        if above.is_empty() {
            // A mount that holds the root itself has no chain.
            above = self.get("ca/pem", trust_domain).await?;
        }
        let issuer =
            above.first().cloned().ok_or("Vault has no authority in this mount: set one up there")?;
        let (mut roots, between): (Vec<_>, Vec<_>) = above.into_iter().partition(|one| is_self_issued(one));
        if roots.is_empty() {
            // Vault was not given the root above its own: then its own is what everybody trusts.
            roots.push(issuer);
        }
        let between = between.into_iter().filter(|one| !roots.contains(one));
        let chain: Vec<_> = std::iter::once(certificate.clone()).chain(between).collect();
        let mut reasons = Vec::new();
        for root in &roots {
            if !has_room(chain.iter().chain([root]), 0) {
                reasons.push("pathLen of Vault's authority leaves no room for an intermediate".to_owned());
                continue;
            }
            let signer = signer(certificate, key.clone(), &chain, root, now)?;
            match signer.prove(trust_domain, std::slice::from_ref(root), now) {
                Ok(()) => return Ok(Supplied { signer: Arc::new(signer), direct: true, anchors: roots }),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(format!("what Vault signed cannot be used: {}", reasons.join("; ")))
    }

    async fn get(
        &self,
        path: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = self.call(Method::GET, path, String::new()).await?;
        if pem.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        self.certificates(&pem, trust_domain)
    }

    fn certificates(
        &self,
        pem: &[u8],
        trust_domain: &TrustDomain,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let bundle = Bundle::from_pem(trust_domain.clone(), pem)?;
        for certificate in &bundle.anchors {
            svid::check_signing(certificate, trust_domain.as_str()).map_err(|refusal| refusal.to_string())?;
        }
        Ok(bundle.anchors)
    }

    /// The body of a good answer.
    async fn call(&self, method: Method, path: &str, body: String) -> Result<Bytes, String> {
        let url = format!("{}/v1/{}/{path}", self.address.trim_end_matches('/'), self.mount);
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(method, &url, body)).await;
        answer
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            .map_err(|cause| format!("{url}: {cause}"))
    }

    async fn exchange(&self, method: Method, url: &str, body: String) -> Result<Bytes, String> {
        let url: Uri = url.parse().map_err(|cause| format!("this is no URL: {cause}"))?;
        let host = url.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
        let secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            Some("http") => return Err("the token would travel readable: use https".into()),
            _ => return Err("the URL begins with neither https nor http".into()),
        };
        let token = self.token()?;
        let mut token = header::HeaderValue::from_str(&token)
            .map_err(|_| "the token holds characters that no token has")?;
        token.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(url.path())
            .header(header::HOST, url.authority().map(ToString::to_string).unwrap_or_default())
            .header("x-vault-token", token)
            .header("x-vault-request", "true")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|cause| cause.to_string())?;
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|cause| format!("cannot connect: {cause}"))?;
        if secure {
            let name = ServerName::try_from(host).map_err(|cause| cause.to_string())?;
            let stream = TlsConnector::from(Arc::new(self.tls()?))
                .connect(name, stream)
                .await
                .map_err(|cause| format!("the TLS handshake failed: {cause}"))?;
            answered(stream, request).await
        } else {
            answered(stream, request).await
        }
    }

    fn token(&self) -> Result<Zeroizing<String>, String> {
        let bytes = Zeroizing::new(journal::read(&self.token_file).map_err(|cause| cause.to_string())?);
        let text = std::str::from_utf8(&bytes).map_err(|_| "the token file is not text".to_owned())?;
        Ok(Zeroizing::new(text.trim().to_owned()))
    }

    /// Vault is no workload of the mesh: its server is judged by its name, as on the web.
    fn tls(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        match &self.server_roots {
            Some(path) => {
                let pem = journal::read(path).map_err(|cause| cause.to_string())?;
                let wrong = |cause: String| format!("{}: {cause}", path.display());
                let certificates: Result<Vec<CertificateDer<'static>>, _> =
                    rustls_pki_types::pem::PemObject::pem_slice_iter(&pem).collect();
                for certificate in certificates.map_err(|cause| wrong(cause.to_string()))? {
                    roots.add(certificate).map_err(|cause| wrong(cause.to_string()))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(
                "no certificate is known that could vouch for Vault: name some with --vault-ca".into()
            );
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|cause| cause.to_string())?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

async fn answered(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Bytes, String> {
    let broken = |cause: hyper::Error| format!("the connection broke: {cause}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    connection.abort();
    let body = body.map_err(|cause| format!("the answer cannot be read: {cause}"))?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let advice = match status.as_u16() {
        403 => "the token may not do this: give one whose policy allows it, and that has not ended",
        404 => "there is no PKI secrets engine at this path: check the path of the mount",
        503 => "Vault is sealed or being started: unseal it",
        _ => "see Vault's log",
    };
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = said.get("errors").map(ToString::to_string).unwrap_or_default();
    let said: String = said.chars().filter(|letter| !letter.is_control()).take(MAX_REASON).collect();
    Err(format!("HTTP {}: {said} ({advice})", status.as_u16()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// What Vault decides itself (serial, dates, what it may sign) is not in a request.
fn request_pem(trust_domain: &TrustDomain, key: &Key) -> Result<String, rcgen::Error> {
    let mut params = intermediate_params(trust_domain, key)?;
    params.serial_number = None;
    params.is_ca = IsCa::NoCa;
    params.serialize_request(key)?.pem()
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}

fn signer(
    certificate: &CertificateDer<'static>,
    key: Key,
    chain: &[CertificateDer<'static>],
    root: &CertificateDer<'static>,
    now: SystemTime,
) -> Result<Signer, String> {
    let id = KeyId::of_spki(&key.subject_public_key_info());
    let (mut not_before, mut not_after) = state::validity(root)?;
    for one in chain {
        let (from, to) = state::validity(one)?;
        (not_before, not_after) = (not_before.max(from), not_after.min(to));
    }
    let root = KeyId::of_certificate(root).map_err(|refusal| refusal.to_string())?;
    let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|cause| cause.to_string())?;
    Ok(Signer { issuer, chain: chain.to_vec(), id, root, made: seconds(now), not_before, not_after })
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
