//! One look at a bundle endpoint: HTTP/1.1 over TLS, bounded in bytes, time and redirects.

use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_config::documents::federation::endpoint_url;
use postern_identity::tls;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// The largest document, in bytes.
const MAX_DOCUMENT: usize = 1024 * 1024;
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Redirects that are followed (SPIFFE Federation 5.1.3); none of them is remembered.
const MAX_REDIRECTS: usize = 3;

/// Recognises an endpoint by the name in its URL, as browsers do (SPIFFE Federation 5.2.1): by the authorities in `file`, or
/// those of the system.
///
/// # Errors
/// No authority can be read.
pub(super) fn web_client(file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut anchors = RootCertStore::empty();
    match file {
        Some(file) => {
            let unusable = |cause: String| format!("{}: {cause}", file.display());
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|cause| unusable(cause.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|cause| unusable(cause.to_string()))?;
                anchors.add(certificate).map_err(|cause| unusable(cause.to_string()))?;
            }
            if anchors.is_empty() {
                return Err(unusable("it holds no PEM certificate".into()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            anchors.add_parsable_certificates(found.certs);
            if anchors.is_empty() {
                return Err(
                    "this machine has no authorities for https_web: install its package of CA certificates, or name a file with --federation-ca"
                        .into(),
                );
            }
        }
    }
    // Verification of names and chains is rustls' own WebPKI verifier, with our provider.
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|cause| format!("TLS is not available: {cause}"))?
        .with_root_certificates(anchors)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Fetches the document at `url`. Wherever redirects lead, the other end must prove itself as the first one had to.
///
/// # Errors
/// What went wrong, and where.
pub(super) async fn fetch(url: &Uri, tls: Arc<ClientConfig>, deadline: Duration) -> Result<Vec<u8>, String> {
    let connector = TlsConnector::from(tls);
    tokio::time::timeout(deadline, follow(url, &connector))
        .await
        .unwrap_or_else(|_| Err(format!("{url} did not answer whole within {deadline:?}")))
}

async fn follow(url: &Uri, connector: &TlsConnector) -> Result<Vec<u8>, String> {
    let mut here = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        match ask(&here, connector).await? {
            Answer::Document(document) => return Ok(document),
            Answer::Elsewhere(location) => {
                here = redirected(&here, &location)
                    .map_err(|why| format!("{here} redirects to a place that cannot be used: {why}"))?;
            }
        }
    }
    Err(format!("{url} redirects more than {MAX_REDIRECTS} times"))
}

enum Answer {
    Document(Vec<u8>),
    Elsewhere(String),
}

async fn ask(url: &Uri, connector: &TlsConnector) -> Result<Answer, String> {
    let failed = |cause: hyper::Error| format!("{url}: {}", with_sources(&cause));
    let stream = connect(url, connector).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::builder()
        .method(Method::GET)
        .uri(url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "postern")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|cause| format!("{url}: {cause}"))?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {
            let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
            let body = body.map_err(|cause| {
                format!("{url}: the document was not read whole (the limit is {MAX_DOCUMENT} bytes): {cause}")
            })?;
            Ok(Answer::Document(body.to_bytes().to_vec()))
        }
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {
            let location = answer.headers().get(header::LOCATION).map(HeaderValue::to_str);
            match location {
                Some(Ok(location)) => Ok(Answer::Elsewhere(location.to_owned())),
                _ => Err(format!("{url} redirects and does not say where")),
            }
        }
        status => Err(format!("{url} answered {status} instead of a bundle")),
    }
}

async fn connect(url: &Uri, connector: &TlsConnector) -> Result<TlsStream<TcpStream>, String> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_u16().unwrap_or(443);
    let name =
        ServerName::try_from(host.clone()).map_err(|cause| format!("{url}: host `{host}`: {cause}"))?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|cause| format!("{url}: no connection to {host} port {port}: {cause}"))?;
    connector.connect(name, stream).await.map_err(|cause| {
        let why = match tls::refusal_in(&cause) {
            Some(refusal) => refusal.to_string(),
            None => cause.to_string(),
        };
        format!("{url}: the endpoint did not prove itself: {why}")
    })
}

/// Where a `Location` leads (RFC 9110 10.2.2, RFC 3986 5.2.2), under the rules of a configured URL.
fn redirected(from: &Uri, location: &str) -> Result<Uri, String> {
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let location = location.split('#').next().unwrap_or_default();
    let is_absolute = location.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    let text = if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("https:{location}")
    } else if location.starts_with('/') {
        format!("https://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("https://{authority}{folder}/{location}")
    };
    endpoint_url(&text)
}

/// hyper's errors say little without what lies under them.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        below = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn spiffe_federation_5_1_3_a_redirect_stays_within_the_rules_of_an_endpoint_url() {
        let check = |location: &str, expected: Result<&str, &str>| {
            let from: Uri = "https://a.example:8443/x/bundle?y".parse().unwrap();
            match (redirected(&from, location), expected) {
                (Ok(to), Ok(wanted)) => assert_eq!(to.to_string(), wanted, "{location}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{location}: {why}"),
                (result, _) => panic!("{location}: {result:?}, expected {expected:?}"),
            }
        };
        check("https://b.example/z", Ok("https://b.example/z"));
        check("https://b.example/z#part", Ok("https://b.example/z"));
        check("//b.example/z", Ok("https://b.example/z"));
        check("/z?q", Ok("https://a.example:8443/z?q"));
        check("z", Ok("https://a.example:8443/x/z"));
        check("http://a.example:8443/x/bundle", Err("https://"));
        check("HTTP://a.example/", Err("https://"));
        check("file:///etc/passwd", Err("no URL"));
        check("https://user@b.example/", Err("user information"));
        check("https://b.example:0/", Err("port"));
        check("https://", Err(""));
    }
}
