//! What each kind of evidence attests, and when it does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::authority::Authority;
use postern_config::documents::{self, SourceFile};
use postern_identity::{Accept, Bundle, verify::verify};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn cart() -> Attested {
    Attested { namespace: "shop".into(), service_account: "cart".into(), pod: String::new() }
}

/// The verified peer with a certificate of one hour for [`cart`] in a trust domain, and its bundle.
fn peer(trust_domain: &str) -> (Peer, Bundle) {
    let trust_domain: TrustDomain = trust_domain.parse().unwrap();
    let authority = Authority::in_memory(trust_domain.clone(), now()).unwrap();
    let csr =
        rcgen::CertificateParams::default().serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let issued = authority.issue(csr.der(), &cart(), HOUR, now()).unwrap();
    let clock = UnixTime::since_unix_epoch(now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let trust = TrustBundles::from_iter([authority.bundle()]);
    let peer = verify(&issued.chain, &trust, &Accept::trust_domain(trust_domain), false, clock).unwrap();
    (peer, authority.bundle())
}

/// What must be there for evidence that needs none of it.
struct Scene {
    trust_domain: TrustDomain,
    trust: TrustBundles,
    tokens: JoinTokens,
    index: Option<Index>,
}

impl Scene {
    fn new(trust: impl IntoIterator<Item = Bundle>) -> Self {
        Self {
            trust_domain: "cluster.local".parse().unwrap(),
            trust: trust.into_iter().collect(),
            tokens: JoinTokens::default(),
            index: None,
        }
    }

    fn with_pods(yaml: &str) -> Self {
        let file = SourceFile { name: "mesh.yaml".into(), text: yaml.into() };
        let scene = Self::new([]);
        let index = Index::build(documents::read(&[file]).0, &scene.trust_domain);
        Self { index: Some(index), ..scene }
    }

    /// Shows evidence: attested, or refused with these words.
    async fn check(&self, evidence: Evidence<'_>, at: SystemTime, expected: Result<Attested, &str>) {
        let doors = Doors {
            trust_domain: &self.trust_domain,
            trust: &self.trust,
            tokens: &self.tokens,
            reviews: None,
            index: self.index.as_ref(),
        };
        match (attest(evidence, &doors, at).await, expected) {
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, expected) => assert_eq!(result.ok(), expected.ok()),
        }
    }
}

#[tokio::test]
async fn a_certificate_renews_its_own_identity_until_it_ends() {
    let ((ours, bundle), (foreign, other)) = (peer("cluster.local"), peer("other.example"));
    let scene = Scene::new([bundle, other]);
    scene.check(Evidence::Certificate(&ours), now(), Ok(cart())).await;
    scene.check(Evidence::Certificate(&ours), now() + HOUR, Ok(cart())).await;
    let late = now() + HOUR + Duration::from_secs(1);
    scene.check(Evidence::Certificate(&ours), late, Err("has ended")).await;
    let not_ours = Err("is not a workload of trust domain `cluster.local`");
    scene.check(Evidence::Certificate(&foreign), now(), not_ours).await;
}

#[tokio::test]
async fn a_certificate_whose_authority_went_while_the_connection_stayed_renews_nothing() {
    let (ours, _) = peer("cluster.local");
    let (_, another_root) = peer("cluster.local");
    for trust in [Scene::new([another_root]), Scene::new([])] {
        trust.check(Evidence::Certificate(&ours), now(), Err("is not trusted any more")).await;
    }
}

#[tokio::test]
async fn a_join_token_attests_the_pod_that_it_was_made_for() {
    let scene = Scene::new([]);
    let pod = Attested { pod: "cart-1".into(), ..cart() };
    let token = scene.tokens.issue(pod.clone(), HOUR, now());
    scene.check(Evidence::JoinToken(&token), now(), Ok(pod)).await;
    scene.check(Evidence::JoinToken(&token), now(), Err("used")).await;
}

#[tokio::test]
async fn a_service_account_token_needs_somebody_who_reviews_it() {
    let words = Err("start the control plane with --kubernetes-token-audience");
    Scene::new([]).check(Evidence::ServiceAccountToken("x.y.z"), now(), words).await;
}

/// Pods with an annotation each, for the user who runs this test or another one.
fn pods(uids: &[(&str, u32)]) -> String {
    let pod = |(name, uid): &(&str, u32)| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  \
             annotations: {{postern.dev/attest-uid: \"{uid}\"}}\n\
             spec: {{serviceAccountName: {name}, containers: [{{name: c, command: [serve]}}]}}\n"
        )
    };
    uids.iter().map(pod).collect()
}

#[tokio::test]
async fn a_process_is_the_one_pod_whose_annotation_names_its_user() {
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let process = UnixPeer::of(&near).unwrap();
    let evidence = Evidence::UnixPeer(&process);
    let (me, other) = (process.uid(), process.uid() + 1);
    let mine = Attested { namespace: "shop".into(), service_account: "b".into(), pod: "b".into() };

    Scene::with_pods(&pods(&[("a", other), ("b", me)])).check(evidence, now(), Ok(mine)).await;
    let unknown = format!("write the annotation `postern.dev/attest-uid: \"{me}\"`");
    // Root is nobody special: an annotation for somebody else lets it in no more than any other user.
    Scene::with_pods(&pods(&[("a", other)])).check(evidence, now(), Err(&unknown)).await;
    Scene::with_pods(&pods(&[])).check(evidence, now(), Err(&unknown)).await;
    let ambiguous = format!("more than one pod has the annotation `postern.dev/attest-uid: \"{me}\"`");
    Scene::with_pods(&pods(&[("a", me), ("b", me)])).check(evidence, now(), Err(&ambiguous)).await;
    Scene::new([]).check(evidence, now(), Err("has not read its documents yet")).await;
}
