//! Service account tokens against an API server over HTTP that answers what a test tells it to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const TOKEN: &str = "header.secret-claims.signature";
const AUDIENCE: &str = "postern";

/// What the API server says.
#[derive(Clone)]
struct Cluster {
    review: Answer<TokenReviewStatus>,
    pod: Answer<Pod>,
}

#[derive(Clone)]
enum Answer<T> {
    Says(T),
    Status(u16),
    Garbage,
    Hangs,
}

/// A cluster in which the token is good.
fn cluster() -> Cluster {
    let extra = [(POD_NAME, "cart-1"), (POD_UID, "uid-1")];
    let review = TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.into()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:shop:cart".into()),
            extra: Some(extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into()),
            ..UserInfo::default()
        }),
        error: None,
    };
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some("cart-1".into()),
            namespace: Some("shop".into()),
            uid: Some("uid-1".into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { service_account_name: Some("cart".into()), ..PodSpec::default() }),
        status: None,
    };
    Cluster { review: Answer::Says(review), pod: Answer::Says(pod) }
}

fn cart() -> Attested {
    Attested { namespace: "shop".into(), service_account: "cart".into(), pod: "cart-1".into() }
}

impl Cluster {
    fn reviewing(mut self, change: impl FnOnce(&mut TokenReviewStatus)) -> Self {
        if let Answer::Says(status) = &mut self.review {
            change(status);
        }
        self
    }

    fn user(self, change: impl FnOnce(&mut UserInfo)) -> Self {
        self.reviewing(|status| change(status.user.as_mut().unwrap()))
    }

    fn extra(self, key: &str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.user(|user| drop(user.extra.as_mut().unwrap().insert(key.to_owned(), values)))
    }

    fn pod(mut self, change: impl FnOnce(&mut Pod)) -> Self {
        if let Answer::Says(pod) = &mut self.pod {
            change(pod);
        }
        self
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        match (request.method().as_str(), path.as_str()) {
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews") => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let asked: TokenReview = serde_json::from_slice(&body).unwrap();
                assert_eq!(asked.spec.audiences.as_deref(), Some(&[AUDIENCE.to_owned()][..]), "our audience");
                // As a real one does, it sends the token back.
                let review = |status| TokenReview { status: Some(status), ..asked };
                self.review.clone().respond(review).await
            }
            ("GET", "/api/v1/namespaces/shop/pods/cart-1") => self.pod.clone().respond(|pod| pod).await,
            other => panic!("not asked for by TokenReview: {other:?}"),
        }
    }
}

impl<T> Answer<T> {
    async fn respond<B: serde::Serialize>(self, body: impl FnOnce(T) -> B) -> Response<Full<Bytes>> {
        let json = |code: u16, body: Vec<u8>| {
            let response = Response::builder().status(code).header("content-type", "application/json");
            response.body(Full::new(body.into())).unwrap()
        };
        match self {
            Self::Says(value) => json(200, serde_json::to_vec(&body(value)).unwrap()),
            Self::Status(code) => {
                let text = format!("what was sent: {TOKEN}");
                let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "message": text, "reason": text, "code": code});
                json(code, status.to_string().into_bytes())
            }
            Self::Garbage => json(200, format!("<html>{TOKEN}").into_bytes()),
            Self::Hangs => std::future::pending().await,
        }
    }
}

/// Serves `cluster` until the test ends; counts its requests.
async fn serve(cluster: Cluster) -> (TokenReviews, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (cluster, asked) = (Arc::new(cluster), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (cluster, counter) = (Arc::clone(&cluster), Arc::clone(&counter));
            let service = service_fn(move |request| {
                let cluster = Arc::clone(&cluster);
                counter.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Infallible>(cluster.answer(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (reviews(url), asked)
}

fn reviews(api_server: http::Uri) -> TokenReviews {
    let api_server = kube::Config::new(api_server);
    TokenReviews::new(KubernetesTokens { api_server, audience: AUDIENCE.into() }).unwrap()
}

/// Reviews the token in `cluster`: attested, or refused or unavailable with words that say why and hold no token.
async fn check(what: &str, cluster: Cluster, expected: Result<(), ReviewError>) {
    let (mut reviews, _) = serve(cluster).await;
    if matches!(expected, Err(ReviewError::Unavailable(_))) {
        reviews.deadline = Duration::from_millis(300);
    }
    let result = reviews.review(TOKEN, Instant::now()).await;
    match (result, expected) {
        (Ok(attested), Ok(())) => assert_eq!(attested, cart(), "{what}"),
        (Err(ReviewError::Refused(said)), Err(ReviewError::Refused(part)))
        | (Err(ReviewError::Unavailable(said)), Err(ReviewError::Unavailable(part))) => {
            assert!(said.contains(&part), "{what}: {said}");
            assert!(!said.contains("secret"), "{what}: the token is in {said}");
        }
        (result, expected) => panic!("{what}: {result:?} instead of {expected:?}"),
    }
    assert!(!format!("{reviews:?}").contains("secret"));
}

fn no(reason: &str) -> Result<(), ReviewError> {
    Err(ReviewError::Refused(reason.into()))
}

fn not_now(reason: &str) -> Result<(), ReviewError> {
    Err(ReviewError::Unavailable(reason.into()))
}

#[tokio::test]
async fn a_token_attests_the_pod_that_it_is_bound_to() {
    check("as made", cluster(), Ok(())).await;
    let both = cluster().reviewing(|status| status.audiences = Some(vec!["other".into(), AUDIENCE.into()]));
    check("for more than us", both, Ok(())).await;
}

#[tokio::test]
async fn a_token_that_is_not_authenticated_or_not_for_us_is_refused() {
    let unknown = "does not know it";
    check("no", cluster().reviewing(|status| status.authenticated = Some(false)), no(unknown)).await;
    check("unsaid", cluster().reviewing(|status| status.authenticated = None), no(unknown)).await;
    let quoting = |status: &mut TokenReviewStatus| {
        status.authenticated = Some(false);
        status.error = Some(format!("bad token {TOKEN}"));
    };
    check("an error that quotes", cluster().reviewing(quoting), no(unknown)).await;
    let audience = "not for the audience `postern`";
    for wrong in [None, Some(vec![]), Some(vec!["https://kubernetes.default.svc".to_owned()])] {
        let what = format!("{wrong:?}");
        check(&what, cluster().reviewing(|status| status.audiences = wrong), no(audience)).await;
    }
}

#[tokio::test]
async fn a_token_of_no_service_account_or_without_a_pod_is_refused() {
    let names = [
        "",
        "cart",
        "system:node:a",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:",
        "system:serviceaccount::cart",
        "system:serviceaccount:shop:cart:x",
        "system:serviceaccount:shop/../kube-system:cart",
    ];
    for name in names {
        let named = cluster().user(|user| user.username = Some(name.to_owned()));
        check(name, named, no("no service account")).await;
    }
    check("no user", cluster().reviewing(|status| status.user = None), no("no service account")).await;
    let unbound = "not bound to a pod";
    check("no extra", cluster().user(|user| user.extra = None), no(unbound)).await;
    for key in [POD_NAME, POD_UID] {
        for values in [&[][..], &[""], &["cart-1", "cart-2"]] {
            check(key, cluster().extra(key, values), no(unbound)).await;
        }
    }
    check("a path", cluster().extra(POD_NAME, &["../secrets/x"]), no(unbound)).await;
}

#[tokio::test]
async fn a_pod_that_is_gone_or_another_by_now_is_refused() {
    check("gone", Cluster { pod: Answer::Status(404), ..cluster() }, no("does not exist any more")).await;
    let again = |uid: Option<&str>| cluster().pod(|pod| pod.metadata.uid = uid.map(str::to_owned));
    check("made again", again(Some("uid-2")), no("was deleted, and another has its name")).await;
    check("no uid", again(None), no("was deleted, and another has its name")).await;
    let other = cluster().pod(|pod| pod.spec.as_mut().unwrap().service_account_name = Some("root".into()));
    check("other account", other, no("does not run as cart")).await;
    check("no spec", cluster().pod(|pod| pod.spec = None), no("does not run as cart")).await;
}

#[tokio::test]
async fn an_api_server_that_is_ill_is_no_reason_to_refuse() {
    for (code, part) in [(500, "answered 500"), (429, "answered 429"), (403, "right to create tokenreviews")]
    {
        check("review", Cluster { review: Answer::Status(code), ..cluster() }, not_now(part)).await;
    }
    check("pod", Cluster { pod: Answer::Status(500), ..cluster() }, not_now("answered 500")).await;
    check("pod", Cluster { pod: Answer::Status(403), ..cluster() }, not_now("right to get pods")).await;
    check("review", Cluster { review: Answer::Garbage, ..cluster() }, not_now("no answer")).await;
    check("pod", Cluster { pod: Answer::Garbage, ..cluster() }, not_now("no answer")).await;
    check("review", Cluster { review: Answer::Hangs, ..cluster() }, not_now("did not answer within")).await;
    check("pod", Cluster { pod: Answer::Hangs, ..cluster() }, not_now("did not answer within")).await;
    let nobody = reviews("http://127.0.0.1:1".parse().unwrap()).review(TOKEN, Instant::now()).await;
    assert_eq!(nobody, Err(ReviewError::Unavailable("the Kubernetes API server cannot be reached".into())));
}

#[tokio::test]
async fn a_good_answer_counts_for_a_minute_and_a_refusal_not_at_all() {
    let (reviews, asked) = serve(cluster()).await;
    let start = Instant::now();
    for after in [0, 1, 59] {
        assert_eq!(reviews.review(TOKEN, start + Duration::from_secs(after)).await, Ok(cart()));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "one review and one pod");
    reviews.review(TOKEN, start + REMEMBERED).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    reviews.review("another", start).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 6, "another token is another question");

    let (reviews, asked) = serve(cluster().reviewing(|status| status.authenticated = Some(false))).await;
    for count in 1..3 {
        reviews.review(TOKEN, start).await.unwrap_err();
        assert_eq!(asked.load(Ordering::Relaxed), count);
    }
    let long = "x".repeat(MAX_SERVICE_ACCOUNT_TOKEN + 1);
    assert!(matches!(reviews.review(&long, start).await, Err(ReviewError::Refused(_))));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "nobody is bothered with a token that cannot be one");
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let (reviews, _) = serve(cluster()).await;
    let start = Instant::now();
    for number in 0..=MAX_REMEMBERED {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        reviews.remember(key, &cart(), start);
    }
    assert_eq!(reviews.remembered.lock().len(), MAX_REMEMBERED);
    reviews.remember([255; 32], &cart(), start + REMEMBERED);
    assert_eq!(reviews.remembered.lock().len(), 1, "what has ended makes room");
}
