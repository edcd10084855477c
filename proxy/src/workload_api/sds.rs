//! Envoy's secret discovery, as SPIRE serves it: names are SPIFFE IDs, and `default`, `ROOTCA`, `ALL`.
//!
//! | name | what it is |
//! |---|---|
//! | `default`, the workload's SPIFFE ID | its certificate and key |
//! | `ROOTCA` | what peers of its own trust domain are verified with |
//! | `spiffe://<trust domain>` | the same of another trust domain |
//! | `ALL` | each trust domain's, never merged |
//! | none at all | the certificate, and each trust domain's, under their IDs |

use super::{
    view::{Identity, Views},
    workload::current,
};
use bytes::Bytes;
use postern_api::open::{
    envoy::{
        config::core::v3::{DataSource, Node, TypedExtensionConfig, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret::Type,
            spiffe_cert_validator_config::TrustDomain,
        },
        service::{
            discovery::v3::{DiscoveryRequest, DiscoveryResponse},
            secret::v3::secret_discovery_service_server::SecretDiscoveryService,
        },
    },
    google::protobuf::{Any, value::Kind},
};
use prost::Message;
use std::collections::BTreeSet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use zeroize::Zeroizing;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// In the node's metadata: an Envoy without the SPIFFE validator gets plain anchors.
const WITHOUT_VALIDATOR: &str = "disable_spiffe_cert_validation";

/// What the service answers from.
pub(super) struct Secrets {
    views: Views,
}

impl Secrets {
    pub(super) fn new(views: Views) -> Self {
        Self { views }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        // Envoy waits for ever for a secret on a stream that says nothing, so that having none ends it (spire#1230).
        current(&self.views)?;
        let (answers, messages) = mpsc::channel(1);
        let views = self.views.clone();
        tokio::spawn(async move {
            if let Err(status) = converse(request.into_inner(), views, &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let request = request.into_inner();
        check_type(&request)?;
        let wanted = Wanted { names: names(&request), plain: is_plain(request.node.as_ref()) };
        let identity = current(&self.views)?;
        Ok(Response::new(response(wanted.of(&identity)?, identity.serial.clone(), String::new())))
    }
}

/// What a stream asks for.
#[derive(Clone, PartialEq, Eq)]
struct Wanted {
    names: BTreeSet<String>,
    /// Anchors without the SPIFFE validator.
    plain: bool,
}

/// One stream, until the caller ends it.
async fn converse(
    mut requests: Streaming<DiscoveryRequest>,
    mut views: Views,
    answers: &mpsc::Sender<Result<DiscoveryResponse, Status>>,
) -> Result<(), Status> {
    let (mut wanted, mut plain) = (None::<Wanted>, None);
    let (mut nonce, mut version, mut last) = (String::new(), 0u64, Vec::new());
    loop {
        let asked = tokio::select! {
            () = answers.closed() => return Ok(()),
            changed = views.changed() => match changed {
                Ok(()) => false,
                Err(_) => return Err(Status::unavailable("the sidecar is shutting down")),
            },
            request = requests.message() => {
                let Some(request) = request? else { return Ok(()) };
                check_type(&request)?;
                // An answer to something that is not the last word any more.
                if !request.response_nonce.is_empty() && request.response_nonce != nonce {
                    continue;
                }
                if let Some(error) = &request.error_detail {
                    tracing::warn!(reason = %error.message, "an Envoy refuses the secrets of this workload");
                }
                // The node comes with the first request only.
                let plain = *plain.get_or_insert_with(|| is_plain(request.node.as_ref()));
                let now = Some(Wanted { names: names(&request), plain });
                if wanted == now {
                    continue;
                }
                wanted = now;
                true
            }
        };
        let Some(wanted) = &wanted else { continue };
        views.mark_unchanged();
        let resources = wanted.of(&*current(&views)?)?;
        if !asked && resources == last {
            continue;
        }
        version += 1;
        nonce = format!("{:016x}", rand::random::<u64>());
        last.clone_from(&resources);
        if answers.send(Ok(response(resources, version.to_string(), nonce.clone()))).await.is_err() {
            return Ok(());
        }
    }
}

fn response(resources: Vec<Any>, version_info: String, nonce: String) -> DiscoveryResponse {
    DiscoveryResponse { version_info, resources, type_url: SECRET.to_owned(), nonce }
}

fn check_type(request: &DiscoveryRequest) -> Result<(), Status> {
    match request.type_url.as_str() {
        "" | SECRET => Ok(()),
        _ => Err(Status::invalid_argument(format!("only {SECRET} is served here"))),
    }
}

fn names(request: &DiscoveryRequest) -> BTreeSet<String> {
    request.resource_names.iter().cloned().collect()
}

fn is_plain(node: Option<&Node>) -> bool {
    let value = node
        .and_then(|node| node.metadata.as_ref())
        .and_then(|metadata| metadata.fields.get(WITHOUT_VALIDATOR)?.kind.as_ref());
    match value {
        Some(Kind::BoolValue(flag)) => *flag,
        Some(Kind::StringValue(text)) => text == "true",
        _ => false,
    }
}

impl Wanted {
    fn of(&self, identity: &Identity) -> Result<Vec<Any>, Status> {
        if self.names.is_empty() {
            let domains = identity.trusted.anchors_pem.keys().map(|domain| format!("spiffe://{domain}"));
            let all = std::iter::once(identity.id.to_string()).chain(domains);
            return all.map(|name| self.secret(identity, &name)).collect();
        }
        self.names.iter().map(|name| self.secret(identity, name)).collect()
    }

    fn secret(&self, identity: &Identity, name: &str) -> Result<Any, Status> {
        let kind = if name == "default" || name == identity.id.as_str() {
            Type::TlsCertificate(TlsCertificate {
                certificate_chain: Some(inline(identity.chain_pem.clone())),
                private_key: Some(inline(identity.key_pem.clone())),
            })
        } else {
            Type::ValidationContext(self.validation(identity, name)?)
        };
        let secret = Secret { name: name.to_owned(), r#type: Some(kind) };
        // It may hold the key.
        let value = Bytes::from_owner(Zeroizing::new(secret.encode_to_vec()));
        Ok(Any { type_url: SECRET.to_owned(), value })
    }

    fn validation(&self, identity: &Identity, name: &str) -> Result<CertificateValidationContext, Status> {
        let one = |domain: &str| {
            identity.trusted.anchors_pem.get(domain).map(|pem| (domain.to_owned(), pem.clone()))
        };
        let domains: Vec<(String, Bytes)> = match name {
            "ROOTCA" => one(identity.id.trust_domain()).into_iter().collect(),
            "ALL" => identity
                .trusted
                .anchors_pem
                .iter()
                .map(|(domain, pem)| (domain.clone(), pem.clone()))
                .collect(),
            _ => name.strip_prefix("spiffe://").and_then(one).into_iter().collect(),
        };
        if self.plain {
            return match domains.as_slice() {
                [(_, pem)] => Ok(CertificateValidationContext {
                    trusted_ca: Some(inline(pem.clone())),
                    custom_validator_config: None,
                }),
                [] => Err(unknown(identity, name)),
                _ => Err(Status::invalid_argument(format!(
                    "`{name}` is several trust domains, which are never merged: ask for one, or remove {WITHOUT_VALIDATOR}"
                ))),
            };
        }
        if domains.is_empty() {
            return Err(unknown(identity, name));
        }
        let trust_domains = domains
            .into_iter()
            .map(|(name, pem)| TrustDomain { name, trust_bundle: Some(inline(pem)) })
            .collect();
        let validator = SpiffeCertValidatorConfig { trust_domains };
        let typed_config =
            Some(Any { type_url: VALIDATOR.to_owned(), value: validator.encode_to_vec().into() });
        Ok(CertificateValidationContext {
            trusted_ca: None,
            custom_validator_config: Some(TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".to_owned(),
                typed_config,
            }),
        })
    }
}

fn unknown(identity: &Identity, name: &str) -> Status {
    let name: String = name.chars().take(200).flat_map(char::escape_debug).collect();
    let domains: Vec<String> =
        identity.trusted.anchors_pem.keys().map(|domain| format!("spiffe://{domain}")).collect();
    Status::invalid_argument(format!(
        "there is no secret `{name}` here: ask for default, {}, ROOTCA, ALL or {}",
        identity.id,
        domains.join(", ")
    ))
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}
