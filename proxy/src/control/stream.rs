//! The stream itself: hello, updates in, ack or nack out, wishes out; again and again, for ever.
//!
//! An outage changes nothing for running traffic but the freshness of what we know.

use super::{
    ControlPlane, Destinations, backoff::Backoff, channel::describe, destinations::Wish, reports, taps,
    translate,
};
use crate::{
    ready,
    state::{Credentials, Inbound, Store},
    telemetry::Telemetry,
};
use postern_api::v1::{self, control_message, discovery_client::DiscoveryClient, sidecar_message};
use rustls_pki_types::UnixTime;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The longest the control plane may take to accept the stream.
const OPENING: Duration = Duration::from_secs(10);
/// How often a standing stream confirms that what we know is fresh, and idle destinations are looked for.
const TICK: Duration = Duration::from_secs(5);
/// How often a tap says what it left out, and is looked at whether it is over.
const TAP_TURN: Duration = Duration::from_secs(1);
/// Policy of a large mesh is large; the control plane is trusted with this much.
const LARGEST_UPDATE: usize = 64 * 1024 * 1024;
/// Wishes are taken only while fewer messages than this wait to be sent.
const UNSENT: usize = 256;

/// Keeps policy, bundles and destinations fresh.
pub struct Subscriber {
    control: Arc<ControlPlane>,
    store: Arc<Store>,
    destinations: Destinations,
    telemetry: Telemetry,
    instance: String,
    /// From one report to the next.
    report_interval: Duration,
    /// Dropped with the first policy.
    first_policy: Option<ready::Guard>,
}

impl Subscriber {
    /// Nothing happens until [`Subscriber::run`].
    pub fn new(
        control: Arc<ControlPlane>,
        store: Arc<Store>,
        destinations: Destinations,
        telemetry: Telemetry,
        instance: String,
        report_interval: Duration,
        first_policy: Option<ready::Guard>,
    ) -> Self {
        Self { control, store, destinations, telemetry, instance, report_interval, first_policy }
    }

    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let why = tokio::select! {
                () = stop.cancelled() => return,
                why = self.session(&mut backoff) => why,
            };
            self.destinations.disconnected();
            // Whoever tapped cannot be told any more.
            self.telemetry.taps().set(Vec::new());
            self.telemetry.metrics().set_connected(false);
            let pause = backoff.next(rand::random());
            match why {
                Ended::Rotated => continue,
                Ended::Failed(why) => {
                    tracing::warn!(%why, pause_ms = pause.as_millis(), "stream to the control plane ended; what is in force stays");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> Ended {
        let credentials = self.credentials().await;
        match self.converse(&credentials, backoff).await {
            Ok(ended) => ended,
            Err(why) => Ended::Failed(why),
        }
    }

    /// The current credentials, or the first ones.
    async fn credentials(&self) -> Arc<Credentials> {
        let mut changed = self.store.credentials_generation();
        loop {
            if let Some(credentials) = self.store.credentials() {
                return credentials;
            }
            // The sender lives in the store, so this cannot fail while we wait.
            let _ = changed.changed().await;
        }
    }

    async fn converse(&mut self, credentials: &Credentials, backoff: &mut Backoff) -> Result<Ended, String> {
        let mut generation = self.store.credentials_generation();
        let (channel, server) =
            self.control.connect(Some(credentials.key.clone()), credentials.trust.clone()).await?;
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(LARGEST_UPDATE);
        let (sender, receiver) = mpsc::channel(64);
        let build = env!("CARGO_PKG_VERSION").into();
        let hello = v1::Hello { build, instance: self.instance.clone(), taps: true };
        let mut unsent = VecDeque::from([message(sidecar_message::Message::Hello(hello))]);
        // Hello has to be first on the wire, before the other side answers.
        if let Some(hello) = unsent.pop_front() {
            sender.send(hello).await.map_err(|_| "the stream was closed at once")?;
        }
        let opened = tokio::time::timeout(OPENING, client.connect(ReceiverStream::new(receiver))).await;
        let mut updates = opened
            .map_err(|_| format!("the control plane did not accept the stream within {OPENING:?}"))?
            .map_err(|status| describe(&status))?
            .into_inner();
        self.telemetry.metrics().set_connected(true);
        self.telemetry.metrics().control_plane_heard(SystemTime::now());
        tracing::info!(control_plane = %self.control.address, "stream to the control plane stands");
        unsent
            .extend(self.destinations.connected().into_iter().map(|address| said(Wish::Subscribe(address))));
        let mut reported = None;
        generation.mark_changed();
        let mut tick = tokio::time::interval(TICK);
        let mut tap_turn = tokio::time::interval(TAP_TURN);
        let mut report = tokio::time::interval(self.report_interval);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let life = credentials.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let expiry = tokio::time::sleep(life);
        tokio::pin!(expiry);
        // The control plane retires what we say that we hold no more, so a new certificate is told when the last one rests.
        let mut settles = None;
        loop {
            tokio::select! {
                update = updates.message() => match update {
                    Ok(Some(update)) => {
                        backoff.reset();
                        self.telemetry.metrics().control_plane_heard(SystemTime::now());
                        unsent.extend(self.take(update));
                    }
                    Ok(None) => return Err("the control plane closed the stream".into()),
                    Err(status) => return Err(describe(&status)),
                },
                permit = sender.reserve(), if !unsent.is_empty() => match (permit, unsent.pop_front()) {
                    (Ok(permit), Some(message)) => permit.send(message),
                    _ => return Err("the control plane stopped listening".into()),
                },
                wish = self.destinations.wish(), if unsent.len() < UNSENT => unsent.push_back(said(wish)),
                _ = tick.tick() => {
                    self.telemetry.metrics().control_plane_heard(SystemTime::now());
                    self.destinations.sweep(Instant::now());
                }
                // What cannot be sent now stays counted.
                _ = report.tick(), if unsent.len() < UNSENT => {
                    let told = reports::collect(&self.telemetry, &self.store);
                    unsent.extend(told.into_iter().map(|report| message(sidecar_message::Message::Report(report))));
                }
                calls = self.telemetry.taps().next(taps::CALLS), if unsent.len() < UNSENT => {
                    unsent.push_back(tapped(taps::told(calls, Vec::new())));
                }
                _ = tap_turn.tick(), if self.telemetry.taps().is_open() && unsent.len() < UNSENT => {
                    let left_out = self.telemetry.taps().turn(Instant::now());
                    if !left_out.is_empty() {
                        unsent.push_back(tapped(taps::told(Vec::new(), left_out)));
                    }
                }
                // The sender lives in our own store, so this never fails.
                _ = generation.changed() => {
                    let trust = self.store.trust().unwrap_or_default();
                    server.still_trusted(&trust, true, UnixTime::now()).map_err(|refusal| {
                        format!("the control plane is not trusted any more: {refusal}")
                    })?;
                    if self.store.credentials().is_some() {
                        settles = Some(self.store.settled().unwrap_or_else(tokio::time::Instant::now));
                        if credentials.revoked_by(&trust).is_some() {
                            backoff.reset();
                            return Ok(Ended::Rotated);
                        }
                    }
                }
                () = rest(settles), if settles.is_some() => {
                    settles = None;
                    let held = self.store.credentials().map(|current| certificate(&current));
                    if let Some(report) = held.filter(|report| reported.as_ref() != Some(report)) {
                        unsent.push_back(message(sidecar_message::Message::Certificate(report.clone())));
                        reported = Some(report);
                    }
                }
                // A stream must not outlive the proof it was opened with; the next one starts with the new certificate.
                () = &mut expiry => {
                    backoff.reset();
                    return match self.store.credentials() {
                        Some(newer) if newer.not_after > credentials.not_after => Ok(Ended::Rotated),
                        _ => Err("our certificate has ended".into()),
                    };
                }
            }
        }
    }

    /// Puts one update in force, whole, or refuses it whole. Taps are no update, and not answered.
    fn take(&mut self, update: v1::ControlMessage) -> Option<v1::SidecarMessage> {
        let v1::ControlMessage { version, nonce, message: content } = update;
        let taken = match content {
            Some(control_message::Message::Inbound(policy)) => self.take_policy(&version, &policy),
            Some(control_message::Message::Destination(wire)) => {
                translate::destination(wire).map(|(asked, what)| {
                    self.destinations.apply(&asked, what);
                })
            }
            Some(control_message::Message::Bundles(wire)) => {
                translate::trust(wire, &self.control.trust_domain)
                    .and_then(|(trust, tainted)| self.store.publish_trust(trust, tainted))
            }
            Some(control_message::Message::Taps(wire)) => {
                self.telemetry.taps().set(taps::open(wire, Instant::now()));
                return None;
            }
            None => {
                Err("an update of a kind that this sidecar does not know; it is older than the control plane"
                    .into())
            }
        };
        self.telemetry.metrics().update_answered(taken.is_ok());
        Some(match taken {
            Ok(()) => message(sidecar_message::Message::Ack(v1::Ack { nonce, version })),
            Err(reason) => {
                tracing::warn!(%version, %reason, "update refused; the last good one stays in force");
                message(sidecar_message::Message::Nack(v1::Nack { nonce, version, reason }))
            }
        })
    }

    fn take_policy(&mut self, version: &str, policy: &v1::InboundPolicy) -> Result<(), String> {
        let snapshot = translate::inbound(policy)?;
        let is_news = self
            .store
            .inbound()
            .is_none_or(|current| *current.version != *version || current.snapshot.spec() != snapshot.spec());
        // After a reconnect the same policy comes again: nobody needs to re-check anything.
        if is_news {
            self.telemetry.obey(&snapshot);
            let workload = &snapshot.spec().workload;
            self.telemetry.set_service(workload.canonical_service());
            self.telemetry.metrics().set_workload(workload);
            self.store.publish_inbound(Inbound { version: Arc::from(version), snapshot });
            self.telemetry.metrics().set_policy_version(version);
            tracing::info!(%version, "inbound policy in force");
        }
        self.first_policy = None;
        Ok(())
    }
}

async fn rest(until: Option<tokio::time::Instant>) {
    if let Some(moment) = until {
        tokio::time::sleep_until(moment).await;
    }
}

/// What the control plane hears of a certificate: evidence for the steps of a rotation.
fn certificate(current: &Credentials) -> v1::Certificate {
    let seconds = |at: SystemTime| {
        i64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
    };
    v1::Certificate {
        serial: current.serial.clone(),
        not_before_unix_seconds: seconds(current.not_before),
        not_after_unix_seconds: seconds(current.not_after),
        authorities: current.authorities.iter().map(|key| key.as_bytes().to_vec()).collect(),
    }
}

/// How a session ended.
enum Ended {
    /// Its certificate has ended, or is below a revoked authority, and a newer one is there.
    Rotated,
    Failed(String),
}

fn said(wish: Wish) -> v1::SidecarMessage {
    message(match wish {
        Wish::Subscribe(address) => {
            sidecar_message::Message::Subscribe(v1::Subscribe { address: address.to_string() })
        }
        Wish::Unsubscribe(address) => {
            sidecar_message::Message::Unsubscribe(v1::Unsubscribe { address: address.to_string() })
        }
    })
}

fn tapped(told: v1::Tapped) -> v1::SidecarMessage {
    message(sidecar_message::Message::Tapped(told))
}

fn message(message: sidecar_message::Message) -> v1::SidecarMessage {
    v1::SidecarMessage { message: Some(message) }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
