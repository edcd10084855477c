//! The story itself: what crosses the wire, who may call, who may not and why, a rotation, the log line, the trace.

use super::{
    capture::{self, Capture},
    collector::{Collector, Span},
    narrator::{Narrator, Shown, say},
};
use crate::up::Mesh;
use serde_json::Value;
use std::{
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

/// The pods of manifests/examples/payments that the story is about.
const CHECKOUT: &str = "checkout-api-0";
const REPORTS: &str = "reports-0";
const LEGACY: &str = "legacy-0";
const PAYMENTS: &str = "payments-api-0";
/// Where payments-api listens inside its pod.
const PAYMENTS_PORT: u16 = 8080;
const CHARGES: &str = "http://payments-api.payments/v1/charges";
/// A text that must never be seen on the wire.
const SECRET: &str = "card=4242-4242-4242-4242";
/// The longest wait for something that has already happened to be reported.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// Tells the story on a mesh that is ready. Exit code 0 when every step held, else 1.
pub async fn tell(mesh: &Mesh, collector: &Collector) -> ExitCode {
    let began = Instant::now();
    let mut narrator = Narrator::default();
    let story = Story { mesh, collector };

    let (wire, trace) = story.on_the_wire().await;
    narrator.tell("On the wire between checkout-api and payments-api", wire);
    narrator.tell("checkout-api may POST /v1/charges", story.allowed().await);
    narrator.tell("The same call by reports is refused, and the mesh says why", story.other_identity().await);
    narrator.tell("checkout-api may not GET /v1/charges", story.other_method().await);
    narrator.tell("Plaintext from outside the mesh is reset", story.plaintext().await);
    narrator.tell("A certificate is rotated under load", story.rotation().await);
    narrator.tell("The access log names who, what and why", story.log_line().await);
    narrator.tell("One trace through both sidecars", story.trace(trace.as_deref()).await);

    let took = began.elapsed().as_secs_f32();
    let steps = narrator.steps();
    match narrator.failed() {
        0 => {
            say(format_args!("\n{steps} of {steps} steps held, in {took:.1} s"));
            ExitCode::SUCCESS
        }
        failed => {
            say(format_args!("\n{failed} of {steps} steps FAILED, in {took:.1} s"));
            ExitCode::FAILURE
        }
    }
}

/// What a person may try after the story: the allowed call, the refused one, and who is asked for the reason.
pub fn suggestions() -> Vec<(&'static str, &'static str)> {
    const CALL: &str = "postern app call -X POST http://payments-api.payments/v1/charges";
    vec![(CHECKOUT, CALL), (REPORTS, CALL), (PAYMENTS, "curl -s http://127.0.0.1:15000/decisions")]
}

/// How a call by `postern app call --json` ended.
#[derive(Debug)]
struct Answer {
    status: Option<u64>,
    content_type: String,
    body: String,
    error: Option<String>,
}

struct Story<'a> {
    mesh: &'a Mesh,
    collector: &'a Collector,
}

impl Story<'_> {
    async fn on_the_wire(&self) -> (Result<Shown, String>, Option<String>) {
        match self.capture_a_call().await {
            Ok((shown, trace)) => (Ok(shown), Some(trace)),
            Err(why) => (Err(why), None),
        }
    }

    async fn capture_a_call(&self) -> Result<(Shown, String), String> {
        let capture = self
            .mesh
            .captures()
            .then(Capture::start)
            .transpose()
            .map_err(|cause| format!("cannot capture packets: {cause}"))?;
        let before = self.received().await;
        let answer = self.post(CHECKOUT).await?;
        self.received_at_least(before + 1).await;
        let line = self
            .inbound_line(|l| is(l, "http.response.status_code", 200) && is(l, "url.path", "/v1/charges"))
            .await?;
        let trace = text(&line, "trace_id")?;
        let tls = format!("TLS {}", text(&line, "tls.protocol.version")?);
        expect(answer.status == Some(200), || format!("the call was not answered 200: {answer:?}"))?;
        let Some(capture) = capture else {
            let line =
                format!("{tls} says the log; not captured, since this machine gave us no network namespace");
            return Ok((Shown::new(line, []), trace));
        };
        let segments = capture
            .finish(&self.addresses(PAYMENTS)?, PAYMENTS_PORT)
            .map_err(|cause| format!("the capture broke: {cause}"))?;
        let shape = capture::shape(&segments);
        expect(shape.handshakes > 0 && shape.encrypted_records > 0, || {
            format!("no TLS was seen between the pods, only {} bytes", shape.bytes)
        })?;
        for plain in [SECRET, "/v1/charges", "POST ", "HTTP/1.1", "checkout/sa"] {
            expect(!capture::readable(&segments, plain.as_bytes()), || {
                format!("`{plain}` can be read on the wire")
            })?;
        }
        let headline = format!(
            "{} bytes captured: {tls}, {} encrypted records, no plaintext in them",
            shape.bytes, shape.encrypted_records
        );
        let first = segments.first().map(|s| hex_line(&s.payload)).unwrap_or_default();
        Ok((Shown::new(headline, [format!("first bytes: {first}")]), trace))
    }

    async fn allowed(&self) -> Result<Shown, String> {
        let before = self.received().await;
        let answer = self.post(CHECKOUT).await?;
        expect(answer.status == Some(200), || format!("expected 200, was {answer:?}"))?;
        let echoed: Value = serde_json::from_str(&answer.body).map_err(|e| format!("odd body: {e}"))?;
        let caller = first(&echoed, "/headers/x-forwarded-client-cert").to_owned();
        let identity = "URI=spiffe://cluster.local/ns/checkout/sa/checkout-api";
        expect(caller.contains(identity), || format!("the app was not told who called, but `{caller}`"))?;
        let after = self.received_at_least(before + 1).await;
        expect(after == before + 1, || format!("the app received {} calls instead of one", after - before))?;
        Ok(Shown::new(
            "200, and the app was told who called:",
            [format!("x-forwarded-client-cert: {caller}")],
        ))
    }

    async fn other_identity(&self) -> Result<Shown, String> {
        let before = self.received().await;
        let answer = self.post(REPORTS).await?;
        let decision = denied(&answer)?;
        self.nothing_received_since(before).await?;
        let line = self.inbound_line(|l| is(l, "postern.decision.id", decision.as_str())).await?;
        let reason = text(&line, "postern.decision.reason")?;
        let told = self.explain(&decision).await?;
        expect(told.contains("checkout-api"), || format!("the closest rule is not named: {told}"))?;
        Ok(Shown::new(
            format!("403 RBAC: access denied ({reason}); the app received nothing"),
            told_lines(&decision, &told),
        ))
    }

    async fn other_method(&self) -> Result<Shown, String> {
        let before = self.received().await;
        let answer = self.call(CHECKOUT, &["-X", "GET", CHARGES]).await?;
        let decision = denied(&answer)?;
        self.nothing_received_since(before).await?;
        let told = self.explain(&decision).await?;
        expect(told.contains("methods"), || format!("the method is not named as the reason: {told}"))?;
        Ok(Shown::new("403; the app received nothing", told_lines(&decision, &told)))
    }

    async fn plaintext(&self) -> Result<Shown, String> {
        let before = self.received().await;
        let answer = self.post(LEGACY).await?;
        let error = answer.error.clone().unwrap_or_default();
        expect(answer.status.is_none() && error.contains("reset"), || {
            format!("expected a reset connection, was {answer:?}")
        })?;
        self.nothing_received_since(before).await?;
        let line = self
            .inbound_line(|l| text(l, "postern.source.id").is_err() && text(l, "postern.reason").is_ok())
            .await?;
        let reason = text(&line, "postern.reason")?;
        Ok(Shown::new(format!("{error}; the app received nothing"), [format!("the log says: {reason}")]))
    }

    async fn rotation(&self) -> Result<Shown, String> {
        let before = self.serial(PAYMENTS).await?;
        let load = ["--for", "2s", "--rate", "200", "--connections", "4", "-X", "POST", "-d", "{}", CHARGES];
        let mut command = vec!["postern", "app", "call", "--json"];
        command.extend(load);
        let load = self.mesh.exec(CHECKOUT, &command);
        let rotate = async {
            let mut serials = vec![before.clone()];
            // Three rotations spread over the load, on both ends of the call.
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(400)).await;
                for pod in [PAYMENTS, CHECKOUT] {
                    self.mesh.admin(pod, "POST", "/certificates/renew").await.map_err(|e| e.to_string())?;
                }
                serials.push(self.serial(PAYMENTS).await?);
            }
            Ok::<_, String>(serials)
        };
        let (output, serials) = tokio::join!(load, rotate);
        let serials = serials?;
        let output = output.map_err(|e| format!("the load could not run: {e}"))?;
        let summary: Value =
            serde_json::from_slice(&output.stdout).map_err(|e| format!("the load told nothing: {e}"))?;
        let count = |key: &str| number(&summary, key).unwrap_or_default();
        expect(count("failed") == 0 && count("ok") > 100, || format!("requests failed: {summary}"))?;
        let mut distinct = serials.clone();
        distinct.sort();
        distinct.dedup();
        expect(distinct.len() == serials.len(), || format!("the certificate did not change: {serials:?}"))?;
        let evidence = serials
            .iter()
            .zip(serials.iter().skip(1))
            .map(|(old, new)| format!("serial {} -> {}", short(old), short(new)));
        Ok(Shown::new(
            format!("{} requests at {} a second, 3 rotations, 0 failed", count("requests"), 200),
            evidence.collect::<Vec<_>>(),
        ))
    }

    async fn log_line(&self) -> Result<Shown, String> {
        let line = self
            .inbound_line(|l| is(l, "postern.decision", "deny") && is(l, "http.request.method", "POST"))
            .await?;
        let mut evidence = Vec::new();
        for field in [
            "postern.source.id",
            "postern.destination.id",
            "http.request.method",
            "url.path",
            "postern.decision",
            "postern.decision.reason",
            "postern.decision.id",
            "tls.protocol.version",
            "trace_id",
        ] {
            evidence.push(format!("{field:<26} {}", text(&line, field)?));
        }
        for field in
            ["http.response.status_code", "postern.bytes_sent", "postern.duration_us", "postern.proxy_us"]
        {
            evidence.push(format!("{field:<26} {}", number(&line, field)?));
        }
        Ok(Shown::new("the refused call in payments-api's JSON log (some of its fields):", evidence))
    }

    async fn trace(&self, trace_id: Option<&str>) -> Result<Shown, String> {
        let trace_id = trace_id.ok_or("the first call left no trace id")?;
        let both = |spans: &[Span]| spans.iter().any(|s| s.kind == 2) && spans.iter().any(|s| s.kind == 3);
        let spans = self.collector.trace(trace_id, both, REPORT_DEADLINE).await;
        let client = spans.iter().find(|s| s.kind == 3);
        let server = spans.iter().find(|s| s.kind == 2);
        let (Some(client), Some(server)) = (client, server) else {
            return Err(format!("trace {trace_id} has {} spans, not one of each sidecar", spans.len()));
        };
        expect(server.parent_id == client.span_id, || {
            format!("the server span's parent is `{}`, not the client span", server.parent_id)
        })?;
        let draw = |indent: &str, span: &Span| {
            let kind = if span.kind == 2 { "server" } else { "client" };
            format!("{indent}{kind} span of {}: {} {:.2} ms", span.service, span.name, millis(span.duration))
        };
        Ok(Shown::new(format!("trace {trace_id}"), [draw("", client), draw("└─ ", server)]))
    }

    async fn post(&self, from: &str) -> Result<Answer, String> {
        self.call(from, &["-X", "POST", "-d", SECRET, CHARGES]).await
    }

    async fn call(&self, from: &str, arguments: &[&str]) -> Result<Answer, String> {
        let mut command = vec!["postern", "app", "call", "--json"];
        command.extend(arguments);
        let output =
            self.mesh.exec(from, &command).await.map_err(|e| format!("cannot call from {from}: {e}"))?;
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|_| {
            format!("the caller in {from} said no JSON: {}", String::from_utf8_lossy(&output.stderr).trim())
        })?;
        Ok(Answer {
            status: number(&answer, "status").ok(),
            content_type: first(&answer, "/headers/content-type").to_owned(),
            body: text(&answer, "body").unwrap_or_default(),
            error: text(&answer, "error").ok(),
        })
    }

    /// Requests that the payments app has printed so far.
    async fn received(&self) -> usize {
        self.mesh.app_log(PAYMENTS).await.lines().filter(|line| line.contains(" received ")).count()
    }

    /// The same, once there are `wanted` or the deadline has passed: what the app prints takes a moment to arrive.
    async fn received_at_least(&self, wanted: usize) -> usize {
        let waiting = async {
            while self.received().await < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(REPORT_DEADLINE, waiting).await;
        self.received().await
    }

    /// The app handles and prints calls in order, so once it has printed an allowed call that was made after the
    /// forbidden one, a forbidden one would have been printed too.
    async fn nothing_received_since(&self, before: usize) -> Result<(), String> {
        let fence = self.post(CHECKOUT).await?;
        expect(fence.status == Some(200), || format!("the allowed call that follows failed: {fence:?}"))?;
        let after = self.received_at_least(before + 1).await;
        expect(after == before + 1, || {
            format!(
                "the app should have received the one allowed call that followed, but received {}",
                after - before
            )
        })
    }

    async fn inbound_line(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value, String> {
        self.mesh
            .access_line(PAYMENTS, |l| is(l, "postern.direction", "inbound") && wanted(l), REPORT_DEADLINE)
            .await
            .ok_or_else(|| "no such line came in payments-api's access log".to_owned())
    }

    async fn explain(&self, decision: &str) -> Result<String, String> {
        let answer = self
            .mesh
            .admin(PAYMENTS, "GET", &format!("/decisions/{decision}"))
            .await
            .map_err(|e| format!("the sidecar cannot explain: {e}"))?;
        let explained: Value =
            serde_json::from_str(&answer.body).map_err(|e| format!("odd explanation: {e}"))?;
        text(&explained, "told")
    }

    async fn serial(&self, pod: &str) -> Result<String, String> {
        let answer = self.mesh.admin(pod, "GET", "/certificates").await.map_err(|e| e.to_string())?;
        let certificates: Value =
            serde_json::from_str(&answer.body).map_err(|e| format!("odd answer: {e}"))?;
        text(certificates.get("current").unwrap_or(&Value::Null), "serial")
    }

    fn addresses(&self, pod: &str) -> Result<Vec<IpAddr>, String> {
        let pods = self.mesh.pods();
        let found = pods.into_iter().find(|view| view.key.name == pod);
        found.map(|view| view.addresses).ok_or_else(|| format!("there is no pod {pod} in this mesh"))
    }
}

/// A 403 with a decision id and Istio's words.
fn denied(answer: &Answer) -> Result<String, String> {
    expect(answer.status == Some(403), || format!("expected 403, was {answer:?}"))?;
    expect(answer.body.contains("RBAC: access denied"), || format!("odd body: {}", answer.body))?;
    expect(answer.content_type.starts_with("application/problem+json"), || {
        format!("odd content type {}", answer.content_type)
    })?;
    let problem: Value = serde_json::from_str(&answer.body).map_err(|e| format!("odd problem: {e}"))?;
    text(&problem, "decision")
}

/// The explanation, with its second sentence (the closest rule) on a line of its own.
fn told_lines(decision: &str, told: &str) -> Vec<String> {
    let told = format!("decision {decision}: {told}");
    told.split_inclusive(". ").map(|sentence| sentence.trim_end().to_owned()).collect()
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn text(value: &Value, field: &str) -> Result<String, String> {
    let found = value.get(field).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| format!("`{field}` is missing in {value}"))
}

fn number(value: &Value, field: &str) -> Result<u64, String> {
    value.get(field).and_then(Value::as_u64).ok_or_else(|| format!("`{field}` is missing in {value}"))
}

/// The first of the texts at a JSON pointer, empty when there is none.
fn first<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(|all| all.get(0)).and_then(Value::as_str).unwrap_or_default()
}

fn is(line: &Value, field: &str, wanted: impl Into<Value>) -> bool {
    line.get(field).is_some_and(|value| *value == wanted.into())
}

fn short(serial: &str) -> &str {
    serial.get(..12).unwrap_or(serial)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The first bytes as a hex dump line.
fn hex_line(bytes: &[u8]) -> String {
    bytes.iter().take(16).map(|b| format!("{b:02x} ")).collect::<String>() + "…"
}
