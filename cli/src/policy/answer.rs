//! One question, answered: the verdict of the evaluator that the sidecar has, with what stands before it (mutual TLS, a
//! path without a safe reading, no sidecar at all) and beside it (dry run, audit).
use super::{
    mesh::{Mesh, Workload},
    question::{self, Call, Question, Resolved},
};
use crate::failure::Failure;
use postern_config::{
    RuleRef, Snapshot, Verdict,
    authorize::{Judgement, judge},
    documents::peer_authentication::MtlsMode,
    explain::{Explanation, PolicyTrace, explain, tree},
};
use serde::Serialize;

/// Who had the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nobody: the workload has no sidecar.
    NoSidecar,
    /// The handshake: the port takes mutual TLS only, or the caller's trust domain is not known.
    MutualTls,
    /// The request has no safe reading.
    Request,
    /// Policy.
    Policy,
}

/// What dry-run policies would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Would {
    /// The other verdict.
    pub allowed: bool,
    /// `namespace/name`.
    pub policy: String,
    /// The rule, when one matched; else the presence of the policy denies by default.
    pub rule: Option<usize>,
}

impl Would {
    /// From a judgement whose dry run has another verdict.
    pub fn of(judgement: &Judgement<'_>) -> Option<Self> {
        let allowed = judgement.dry_run?.verdict == Verdict::Allow;
        let (namespace, policy, rule) = judgement.would_blame()?;
        Some(Self { allowed, policy: format!("{namespace}/{policy}"), rule })
    }

    /// `denied by shop/strict rule 0`, `denied by default, since shop/strict is there`.
    pub fn in_words(&self) -> String {
        let verdict = if self.allowed { "allowed" } else { "denied" };
        match self.rule {
            Some(rule) => format!("{verdict} by {} rule {rule}", self.policy),
            None => format!("{verdict} by default, since no rule of {} matches", self.policy),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The verdict.
    pub allowed: bool,
    /// Who had the last word.
    pub stage: Stage,
    /// One sentence: why.
    pub reason: String,
    /// `POST /v1/charges`, or `a TCP connection`.
    pub request: String,
    /// Who calls.
    pub from: String,
    /// The identity that policy sees; `None` = plaintext.
    pub from_identity: Option<String>,
    /// Address of the caller.
    pub from_address: String,
    /// Which workload answers.
    pub to: String,
    /// Its identity.
    pub to_identity: Option<String>,
    /// Port of the service, when one was asked about.
    pub service_port: Option<u16>,
    /// Port of the workload, which policy sees.
    pub port: u16,
    /// Effective mode of the port.
    pub mtls: &'static str,
    /// Host that policy sees.
    pub host: Option<String>,
    /// What the evaluator says, with the closest rule of a default deny; absent when policy was not reached.
    pub explanation: Option<Explanation>,
    /// What dry-run policies would change.
    pub would: Option<Would>,
    /// The first AUDIT rule that matched.
    pub audit: Option<RuleRef>,
    /// What was assumed or translated.
    pub notes: Vec<String>,
    /// Every policy that applies, each rule, each condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<Vec<PolicyTrace>>,
}

impl Answer {
    /// `POST /v1/charges from a to b`.
    pub fn question(&self) -> String {
        format!("{} from {} to {}", self.request, self.from, self.to)
    }
}

/// Answers a question. When several workloads stand behind a service, all are asked, and a denial of one is the answer.
///
/// # Errors
/// Names that mean nobody or several, a port that cannot be told, policies that cannot be compiled.
pub fn ask(mesh: &Mesh, question: &Question, with_tree: bool) -> Result<Answer, Failure> {
    let resolved = question::resolve(mesh, question)?;
    let mut answers = Vec::new();
    for workload in &resolved.workloads {
        answers.push(one(mesh, question, &resolved, workload, with_tree)?);
    }
    let denied = answers.iter().position(|answer| !answer.allowed);
    let split = denied.is_some() && answers.iter().any(|answer| answer.allowed);
    let mut chosen = answers.swap_remove(denied.unwrap_or(0));
    if split {
        chosen.notes.push("other workloads behind this name allow it".into());
    }
    Ok(chosen)
}

fn one(
    mesh: &Mesh,
    question: &Question,
    resolved: &Resolved<'_>,
    workload: &Workload,
    with_tree: bool,
) -> Result<Answer, Failure> {
    let snapshot = mesh.snapshot(workload)?;
    let mut notes = resolved.notes.clone();
    let call = question::call(question, resolved, workload, &snapshot, &mut notes)?;
    let request = question.request.as_ref().map_or_else(
        || "a TCP connection".to_owned(),
        |(method, target)| format!("{method} {}", target.split('?').next().unwrap_or_default()),
    );
    let mut answer = Answer {
        allowed: false,
        stage: Stage::Policy,
        reason: String::new(),
        request,
        from: resolved.caller.name.clone(),
        from_identity: None,
        from_address: resolved.caller.address.to_string(),
        to: workload.name(),
        to_identity: workload.identity.as_ref().map(ToString::to_string),
        service_port: resolved.service_port,
        port: resolved.port,
        mtls: mode_name(snapshot.mtls_mode(resolved.port)),
        host: None,
        explanation: None,
        would: None,
        audit: None,
        notes,
        policies: None,
    };
    let call = match call {
        Ok(call) => call,
        Err(reason) => {
            (answer.stage, answer.reason) = (Stage::Request, format!("denied: {reason}"));
            return Ok(answer);
        }
    };
    answer.from_identity = call.peer.as_ref().map(ToString::to_string);
    answer.host = call.http.as_ref().map(|http| http.host.clone());
    match call.peer.as_ref().filter(|peer| !mesh.trusts(peer.trust_domain())) {
        Some(peer) if workload.identity.is_some() => {
            answer.stage = Stage::MutualTls;
            answer.reason = format!(
                "denied: trust domain `{}` is neither the mesh's nor federated (ClusterFederatedTrustDomain), so that the \
                 handshake fails; policy is not reached",
                peer.trust_domain()
            );
        }
        _ => settle(&mut answer, workload, &snapshot, &call, with_tree),
    }
    Ok(answer)
}

fn settle(answer: &mut Answer, workload: &Workload, snapshot: &Snapshot, call: &Call, with_tree: bool) {
    if workload.identity.is_none() {
        answer.allowed = true;
        answer.stage = Stage::NoSidecar;
        answer.mtls = "none";
        answer.reason =
            format!("allowed: {} has no sidecar, so that nothing is enforced there", workload.name());
        return;
    }
    let facts = call.facts();
    if with_tree {
        answer.policies = Some(tree(snapshot, &facts));
    }
    if refuses_plaintext(snapshot, call) {
        answer.stage = Stage::MutualTls;
        answer.reason = format!(
            "denied: port {} takes mutual TLS only (PeerAuthentication STRICT), and the caller shows no certificate; \
             policy is not reached",
            call.port
        );
        return;
    }
    let judgement = judge(snapshot, &facts);
    let explanation = explain(snapshot, &facts);
    answer.allowed = judgement.decision.verdict == Verdict::Allow;
    answer.reason = explanation.to_string();
    answer.explanation = Some(explanation);
    answer.would = Would::of(&judgement);
    answer.audit = judgement.audit.map(|rule| RuleRef::clone(rule));
}

/// A plaintext call to a port that takes mutual TLS only; any mode but PERMISSIVE and DISABLE counts as STRICT.
pub fn refuses_plaintext(snapshot: &Snapshot, call: &Call) -> bool {
    call.peer.is_none() && !matches!(snapshot.mtls_mode(call.port), MtlsMode::Permissive | MtlsMode::Disable)
}

fn mode_name(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Unset => "UNSET",
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    }
}
