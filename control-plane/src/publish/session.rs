//! The story of one sidecar's stream: it says hello, gets bundles and policy, asks for destinations, takes or refuses.

use super::{
    Publisher,
    discovery::account,
    listener::Address,
    report::held,
    status::{Entry, SessionStatus},
    tapping,
    trust::Trust,
};
use crate::{
    attest::{AttestError, still_good},
    registry::{Index, destination},
    traffic::tap::{Asked, Open},
};
use postern_api::v1::{self, control_message, sidecar_message};
use postern_identity::Peer;
use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Status, Streaming};

/// A stream must say hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// A sidecar that reads nothing for so long has its stream ended.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// A sidecar changes to a stream with its new certificate when the old one ends; ours ends a moment later, so that it is
/// the sidecar's own orderly step and not a broken stream.
const ROTATION_GRACE: Duration = Duration::from_secs(2);
/// Destinations of one sidecar. It forgets idle ones, so that more means something scans addresses.
const MAX_SUBSCRIPTIONS: usize = 10_000;
/// The longest text that a sidecar may name itself or an address by, in bytes.
const MAX_NAME: usize = 512;

/// Boxed: a channel keeps room for 32 of them, for hours.
pub(super) type Answer = Result<Box<v1::ControlMessage>, Box<Status>>;
type Answers = mpsc::Sender<Answer>;

/// Runs a stream to its end and tells the sidecar why it ended.
pub(crate) async fn run(
    publisher: Arc<Publisher>,
    peer: Peer,
    address: Address,
    mut incoming: Streaming<v1::SidecarMessage>,
    answers: Answers,
) {
    let ended = match hello(&mut incoming).await {
        Ok(hello) => converse(&publisher, &peer, hello, &mut incoming, &answers).await,
        Err(status) => Err(status),
    };
    match ended {
        Ok(()) => tracing::info!(identity = %peer.id(), %address, "a sidecar's stream ended"),
        Err(status) => {
            tracing::info!(identity = %peer.id(), %address, code = ?status.code(), reason = status.message(), "a sidecar's stream was ended");
            let _ = timeout(WRITE_DEADLINE, answers.send(Err(Box::new(status)))).await;
        }
    }
}

async fn hello(incoming: &mut Streaming<v1::SidecarMessage>) -> Result<v1::Hello, Status> {
    let first = timeout(HELLO_DEADLINE, incoming.message()).await.map_err(|_| {
        Status::deadline_exceeded("no hello came: it must be the first message of a stream")
    })??;
    match first.and_then(|message| message.message) {
        Some(sidecar_message::Message::Hello(hello))
            if hello.instance.len() + hello.build.len() <= MAX_NAME =>
        {
            Ok(hello)
        }
        Some(sidecar_message::Message::Hello(_)) => {
            Err(Status::invalid_argument("the names in the hello are too long"))
        }
        _ => Err(Status::invalid_argument("the first message of a stream must be a hello")),
    }
}

async fn converse(
    publisher: &Publisher,
    peer: &Peer,
    hello: v1::Hello,
    incoming: &mut Streaming<v1::SidecarMessage>,
    answers: &Answers,
) -> Result<(), Status> {
    let mut generations = publisher.index.subscribe();
    let mut index = generations.borrow_and_update().clone().ok_or_else(|| {
        Status::unavailable("the control plane has not read its documents yet: connect again")
    })?;
    let mut taps = publisher.taps.subscribe();
    let mut trusted = publisher.trust.subscribe();
    let mut trust = trusted.borrow_and_update().clone();
    let distrusted = |refusal: AttestError| Status::unauthenticated(refusal.to_string());
    // The connection may be older than the trust in force.
    still_good(peer, &trust.own, SystemTime::now()).map_err(distrusted)?;
    let mut session = Session::open(publisher, peer, hello, &index, answers)?;
    session.publish(&index, &trust).await?;
    // Those that are open already, too.
    taps.mark_changed();

    // Nobody keeps a stream much longer than the certificate that opened it.
    let left = peer.not_after().duration_since(SystemTime::now()).unwrap_or_default();
    let certificate_ended = sleep(left + ROTATION_GRACE);
    tokio::pin!(certificate_ended);
    loop {
        tokio::select! {
            message = incoming.message() => match message? {
                Some(message) => session.receive(message, &index).await?,
                None => return Ok(()),
            },
            changed = generations.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("the control plane stops: connect again"));
                }
                if let Some(next) = generations.borrow_and_update().clone() {
                    index = next;
                }
                session.publish(&index, &trust).await?;
            }
            // The sender lives as long as the publisher does.
            Ok(()) = trusted.changed() => {
                let before = std::mem::replace(&mut trust, trusted.borrow_and_update().clone());
                // First the news, then the end: who is told why it is refused can do something about it.
                session.publish(&index, &trust).await?;
                if trust.takes_away_from(&before) {
                    still_good(peer, &trust.own, SystemTime::now()).map_err(distrusted)?;
                }
            }
            // The same holds for the taps.
            Ok(()) = taps.changed() => {
                let open = taps.borrow_and_update().clone();
                session.tap(&open, &index).await?;
            }
            () = &mut certificate_ended => {
                return Err(Status::unauthenticated("the certificate of this connection has ended: connect with the current one"));
            }
            () = publisher.stop.cancelled() => {
                return Err(Status::unavailable("the control plane stops: connect again"));
            }
            () = answers.closed() => return Ok(()),
        }
    }
}

/// What one sidecar was sent.
struct Session<'a> {
    publisher: &'a Publisher,
    answers: &'a Answers,
    identity: String,
    namespace: String,
    service_account: String,
    pod: String,
    bundles: Sent,
    trust: Option<Arc<Trust>>,
    inbound: Sent,
    destinations: HashMap<String, (destination::Asked, Sent)>,
    /// Updates without an answer, by nonce; at most one for each resource.
    unanswered: HashMap<String, Resource>,
    next_nonce: u64,
    knows_taps: bool,
    tapped: Asked,
    row: Entry,
}

/// The latest update of one resource.
#[derive(Default)]
struct Sent {
    version: String,
    nonce: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Resource {
    Bundles,
    Inbound,
    Destination(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundles => f.write_str("trust bundles"),
            Self::Inbound => f.write_str("inbound policy"),
            Self::Destination(address) => write!(f, "destination {address}"),
        }
    }
}

impl<'a> Session<'a> {
    /// The instance in the hello chooses among the pods of the caller's own identity, and nothing else.
    fn open(
        publisher: &'a Publisher,
        peer: &Peer,
        hello: v1::Hello,
        index: &Index,
        answers: &'a Answers,
    ) -> Result<Self, Status> {
        let (namespace, service_account) = account(peer)?;
        let knows_taps = hello.taps;
        let qualified = hello.instance.strip_prefix(&format!("{namespace}/")).map(str::to_owned);
        let pod = qualified.unwrap_or(hello.instance);
        let identity = peer.id().to_string();
        if index.policy(&namespace, &service_account, &pod).is_none() {
            return Err(no_such_pod(&pod, &identity));
        }
        let row = publisher.sessions.open(SessionStatus {
            instance: pod.clone(),
            namespace: namespace.clone(),
            identity: identity.clone(),
            build: hello.build,
            knows_taps,
            version_sent: String::new(),
            version_acked: String::new(),
            policy_since: None,
            trust_sent: String::new(),
            trust_acked: String::new(),
            trust_known: Arc::default(),
            certificate: None,
            nacks: 0,
            last_nacks: Vec::new(),
            subscriptions: 0,
            documents: 0,
            unanswered: 0,
            pushes: 0,
            connected_since: SystemTime::now(),
        });
        tracing::info!(%identity, pod, "a sidecar connected");
        Ok(Self {
            publisher,
            answers,
            identity,
            namespace,
            service_account,
            pod,
            bundles: Sent::default(),
            trust: None,
            inbound: Sent::default(),
            destinations: HashMap::new(),
            unanswered: HashMap::new(),
            next_nonce: 1,
            knows_taps,
            tapped: Asked::default(),
            row,
        })
    }

    /// Sends all that is not what was sent last. Bundles come first: a policy may speak of their trust domains.
    async fn publish(&mut self, index: &Index, trust: &Arc<Trust>) -> Result<(), Status> {
        if self.bundles.version != trust.version {
            self.row.update(|status| status.trust_sent.clone_from(&trust.version));
            self.trust = Some(Arc::clone(trust));
            let message = control_message::Message::Bundles(trust.update_for(self.row.connected()));
            self.bundles = self.send(Resource::Bundles, trust.version.clone(), message).await?;
        }
        let policy = index
            .policy(&self.namespace, &self.service_account, &self.pod)
            .ok_or_else(|| no_such_pod(&self.pod, &self.identity))?;
        if self.inbound.version != policy.version {
            self.row.update(|status| status.version_sent.clone_from(&policy.version));
            let message = control_message::Message::Inbound(v1::InboundPolicy { spec: policy.spec });
            self.inbound = self.send(Resource::Inbound, policy.version, message).await?;
        }
        let stale: Vec<_> = self
            .destinations
            .iter()
            .map(|(address, (asked, sent))| (index.destination(address, asked, &self.namespace), asked, sent))
            .filter(|(resolved, _, sent)| resolved.version != sent.version)
            .map(|(resolved, asked, _)| (resolved, asked.clone()))
            .collect();
        for (resolved, asked) in stale {
            self.send_destination(resolved, asked).await?;
        }
        self.row.update(|status| status.documents = index.number);
        Ok(())
    }

    async fn receive(&mut self, message: v1::SidecarMessage, index: &Index) -> Result<(), Status> {
        match message.message {
            Some(sidecar_message::Message::Subscribe(v1::Subscribe { address })) => {
                self.subscribe(address, index).await?;
            }
            Some(sidecar_message::Message::Unsubscribe(v1::Unsubscribe { address })) => {
                if let Some((_, sent)) = self.destinations.remove(&address) {
                    self.unanswered.remove(&sent.nonce);
                }
                self.row.update(|status| {
                    status.subscriptions = self.destinations.len();
                    status.unanswered = self.unanswered.len();
                });
            }
            Some(sidecar_message::Message::Ack(ack)) => {
                self.taken(&ack);
                self.row.update(|status| status.unanswered = self.unanswered.len());
            }
            Some(sidecar_message::Message::Nack(nack)) => {
                self.refused(&nack);
                self.row.update(|status| status.unanswered = self.unanswered.len());
            }
            Some(sidecar_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument("a stream says hello only once"));
            }
            Some(sidecar_message::Message::Certificate(report)) => {
                let held = held(&report).map_err(Status::invalid_argument)?;
                self.row.update(|status| status.certificate = Some(held));
            }
            Some(sidecar_message::Message::Report(report)) => {
                self.publisher.traffic.take(
                    &self.namespace,
                    &self.pod,
                    &self.identity,
                    report,
                    SystemTime::now(),
                );
            }
            Some(sidecar_message::Message::Tapped(told)) => {
                self.tapped.take(&self.namespace, &self.pod, &self.identity, told, SystemTime::now());
            }
            // A kind of message that a newer sidecar knows: not for us.
            None => {}
        }
        Ok(())
    }

    /// Asks the sidecar for the calls that people want to see now. Whoever never tapped is not told that nobody does.
    async fn tap(&mut self, open: &[Arc<Open>], index: &Index) -> Result<(), Status> {
        if !self.knows_taps || (open.is_empty() && self.tapped.is_empty()) {
            return Ok(());
        }
        self.tapped.set(open);
        self.write(tapping::wire(open, index, &self.namespace, &self.pod)).await
    }

    async fn subscribe(&mut self, address: String, index: &Index) -> Result<(), Status> {
        if self.destinations.contains_key(&address) {
            return Ok(());
        }
        let asked = match destination::Asked::parse(&address) {
            Some(asked) if address.len() <= MAX_NAME => asked,
            _ => {
                return Err(Status::invalid_argument(
                    "an address to subscribe to is `ip:port`, `[ip6]:port` or `//host:port`",
                ));
            }
        };
        if self.destinations.len() >= MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_SUBSCRIPTIONS} destinations: unsubscribe from those that are idle"
            )));
        }
        self.send_destination(index.destination(&address, &asked, &self.namespace), asked).await?;
        self.row.update(|status| status.subscriptions = self.destinations.len());
        Ok(())
    }

    fn taken(&mut self, ack: &v1::Ack) {
        // An answer to an update that a newer one replaced says nothing any more.
        match self.unanswered.remove(&ack.nonce) {
            Some(Resource::Inbound) => {
                self.row.update(|status| {
                    status.version_acked.clone_from(&self.inbound.version);
                    status.policy_since = Some(SystemTime::now());
                });
            }
            Some(Resource::Bundles) => {
                if let Some(trust) = &self.trust {
                    self.row.update(|status| {
                        status.trust_acked.clone_from(&trust.version);
                        status.trust_known = Arc::clone(&trust.keys);
                    });
                }
            }
            Some(Resource::Destination(_)) | None => {}
        }
    }

    /// The sidecar keeps its last good version, and the refused one is not sent again: only other content is.
    fn refused(&mut self, nack: &v1::Nack) {
        let Some(resource) = self.unanswered.remove(&nack.nonce) else { return };
        let version = match &resource {
            Resource::Bundles => self.bundles.version.clone(),
            Resource::Inbound => self.inbound.version.clone(),
            Resource::Destination(address) => {
                self.destinations.get(address).map(|(_, sent)| sent.version.clone()).unwrap_or_default()
            }
        };
        let resource = resource.to_string();
        let reason = self.row.refused(resource.clone(), version.clone(), &nack.reason, SystemTime::now());
        tracing::warn!(
            identity = self.identity,
            pod = self.pod,
            resource,
            version,
            reason,
            "a sidecar refused an update and keeps its last good one"
        );
    }

    async fn send_destination(
        &mut self,
        resolved: destination::Resolved,
        asked: destination::Asked,
    ) -> Result<(), Status> {
        let address = resolved.destination.address.clone();
        let message = control_message::Message::Destination(resolved.destination);
        let sent = self.send(Resource::Destination(address.clone()), resolved.version, message).await?;
        self.destinations.insert(address, (asked, sent));
        Ok(())
    }

    async fn send(
        &mut self,
        resource: Resource,
        version: String,
        message: control_message::Message,
    ) -> Result<Sent, Status> {
        let nonce = self.next_nonce.to_string();
        self.next_nonce += 1;
        let replaced = match &resource {
            Resource::Bundles => Some(&self.bundles.nonce),
            Resource::Inbound => Some(&self.inbound.nonce),
            Resource::Destination(address) => self.destinations.get(address).map(|(_, sent)| &sent.nonce),
        };
        if let Some(replaced) = replaced {
            self.unanswered.remove(replaced);
        }
        self.unanswered.insert(nonce.clone(), resource);
        let unanswered = self.unanswered.len();
        self.row.update(|status| {
            status.unanswered = unanswered;
            status.pushes += 1;
        });
        let update =
            v1::ControlMessage { version: version.clone(), nonce: nonce.clone(), message: Some(message) };
        self.write(update).await?;
        Ok(Sent { version, nonce })
    }

    async fn write(&self, update: v1::ControlMessage) -> Result<(), Status> {
        match timeout(WRITE_DEADLINE, self.answers.send(Ok(Box::new(update)))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the sidecar has gone")),
            Err(_) => Err(Status::deadline_exceeded("the sidecar does not read its updates")),
        }
    }
}

fn no_such_pod(pod: &str, identity: &str) -> Status {
    // The same words whether the pod does not exist or runs under another identity: that is not the caller's business.
    let pod: String = pod.chars().filter(|c| !c.is_control()).collect();
    Status::permission_denied(format!(
        "no pod `{pod}` runs as {identity}: a sidecar only gets the policy of a pod of its own identity"
    ))
}
