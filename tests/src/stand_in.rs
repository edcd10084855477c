//! A sidecar of the test's own: it has proved who it is and says on its stream what it likes.

use crate::mesh::within;
use hyper_util::rt::TokioIo;
use postern_api::v1::{
    self, authority_client::AuthorityClient, discovery_client::DiscoveryClient, sidecar_message,
};
use postern_control_plane::ControlPlane;
use postern_identity::{Accept, Bundle, SpiffeId, TrustBundles, tls};
use std::{collections::BTreeSet, sync::Arc};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// A connection to the control plane, with a certificate or without.
async fn channel(control: &ControlPlane, key: Option<Arc<rustls::sign::CertifiedKey>>) -> Channel {
    let own = "spiffe://cluster.local/ns/postern-system/sa/control-plane";
    let bundle =
        Bundle::from_pem("cluster.local".parse().unwrap(), control.trust_bundle_pem().as_bytes()).unwrap();
    let trust: TrustBundles = [bundle].into_iter().collect();
    let accept = Accept::Exactly(BTreeSet::from([own.parse::<SpiffeId>().unwrap()]));
    let config = Arc::new(tls::client_config(key, Arc::new(trust), accept, &[b"h2"]).unwrap());
    let address = control.address();
    let connect = tower::service_fn(move |_| {
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = rustls_pki_types::ServerName::try_from("control-plane.postern-system.svc").unwrap();
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    within("a connection", Endpoint::from_static("http://control-plane").connect_with_connector(connect))
        .await
        .unwrap()
}

/// Opens the stream of a pod with a certificate of its own, as a sidecar that does what it likes.
pub async fn join(
    control: &ControlPlane,
    namespace: &str,
    pod: &str,
    taps: bool,
) -> (mpsc::Sender<v1::SidecarMessage>, tonic::Streaming<v1::ControlMessage>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let join_token = control.join_token(namespace, pod, pod);
    let request = v1::IssueCertificateRequest { csr, join_token, ..Default::default() };
    let issued = AuthorityClient::new(channel(control, None).await).issue_certificate(request).await.unwrap();
    let chain = issued.into_inner().chain.into_iter().map(Into::into).collect();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let key = tls::certified_key(chain, der.into()).unwrap();
    let (say, said) = mpsc::channel(16);
    let hello = v1::Hello { build: "liar\u{1b}[2J".into(), instance: pod.into(), taps };
    say.send(message(sidecar_message::Message::Hello(hello))).await.unwrap();
    let mut client = DiscoveryClient::new(channel(control, Some(key)).await);
    let hear = within("a stream", client.connect(ReceiverStream::new(said))).await.unwrap().into_inner();
    (say, hear)
}

/// What is sent.
pub fn message(message: sidecar_message::Message) -> v1::SidecarMessage {
    v1::SidecarMessage { message: Some(message) }
}
