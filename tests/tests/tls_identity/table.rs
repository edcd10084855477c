//! Certificates that break one rule each, all else good: reliability 2.6, lines 03 to 08.

use postern_tests::certificates::{Leaf, Signer, raw_names, self_issued};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose as Purpose, IsCa,
    KeyUsagePurpose as Usage, SanType,
};
use rustls::sign::CertifiedKey;
use std::{path::Path, sync::Arc};

pub const CART: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
pub const API: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";

/// A certificate that breaks a rule.
pub struct Row {
    /// What is wrong.
    pub what: &'static str,
    /// What is shown; `None`: nothing.
    pub key: Option<Arc<CertifiedKey>>,
    /// What the log says of the rule.
    pub rule: &'static str,
    /// What the log says of who it was: everything that can be read of the names, as far as a log line shows it.
    pub presented: Vec<String>,
}

type Rule = (&'static str, Option<Arc<CertifiedKey>>, &'static str);

/// How much of a name that cannot be read is shown for certain.
const SHOWN: usize = 100;

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// One row for each rule, for certificates that name `id`.
pub fn table(ours: &Signer, folder: &Path, id: &'static str) -> Vec<Row> {
    let mut rows: Vec<Rule> = Vec::new();
    let changed = |change: &dyn Fn(&mut CertificateParams)| Some(ours.issue(&Leaf::good(id), change));
    // 04 and 08: who signed, when, and for what.
    rows.extend([
        (
            "another authority of the same trust domain",
            Some(Signer::stranger("cluster.local", folder).issue(&Leaf::good(id), |_| {})),
            "not issued by an authority of its own trust domain",
        ),
        ("signed by itself", Some(self_issued(&Leaf::good(id))), "not issued by an authority"),
        ("expired", Some(ours.issue(&Leaf::good(id).expired(), |_| {})), "is expired: now "),
        ("not yet valid", Some(ours.issue(&Leaf::good(id).not_yet_valid(), |_| {})), "compare the clocks"),
        ("server only", changed(&|p| p.extended_key_usages = vec![Purpose::ServerAuth]), "lacks clientAuth"),
        ("client only", changed(&|p| p.extended_key_usages = vec![Purpose::ClientAuth]), "lacks serverAuth"),
        ("no keyUsage", changed(&|p| p.key_usages.clear()), "no keyUsage extension"),
        ("no signatures", changed(&|p| p.key_usages = vec![Usage::KeyAgreement]), "lacks digitalSignature"),
        ("may sign certificates", changed(&|p| p.key_usages.push(Usage::KeyCertSign)), "has keyCertSign"),
        ("may sign lists", changed(&|p| p.key_usages.push(Usage::CrlSign)), "has cRLSign"),
        (
            "an authority",
            changed(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "certificate authority (cA is true)",
        ),
    ]);
    let no_authority = ours.intermediate("none", |p| p.is_ca = IsCa::ExplicitNoCa);
    let no_signing = ours.intermediate("mute", |p| p.key_usages = vec![Usage::DigitalSignature]);
    let closed = ours.intermediate("closed", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = closed.intermediate("below", |_| {});
    let ended = ours.intermediate("ended", |p| {
        p.not_after = time::OffsetDateTime::now_utc() - time::Duration::seconds(5)
    });
    let foreign = ours.intermediate("foreign", |p| p.subject_alt_names = vec![uri("spiffe://other.example")]);
    // permittedSubtrees { URI cluster.local }
    let constrained = ours.intermediate("constrained", |p| {
        let name = b"\x86\x0dcluster.local";
        let tree = [&[0x30, 0x13, 0xa0, 0x11, 0x30, 0x0f], name.as_slice()].concat();
        let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], tree);
        constraint.set_criticality(true);
        p.custom_extensions.push(constraint);
    });
    let itself = ours.intermediate("itself", |p| p.subject_alt_names = vec![uri("spiffe://cluster.local")]);
    let leaf = |signer: &Signer| Some(signer.issue(&Leaf::good(id), |_| {}));
    rows.extend([
        ("an intermediate that is none", leaf(&no_authority), "is not a certificate authority"),
        ("an intermediate that may not sign", leaf(&no_signing), "no critical keyUsage with keyCertSign"),
        ("a path too long", leaf(&below), "longer than the path length constraint"),
        ("an expired intermediate", leaf(&ended), "signing certificate `CN=ended`"),
        ("an intermediate of another trust domain", leaf(&foreign), "it was to sign for trust domain"),
        ("a URI name constraint", leaf(&constrained), "URI name constraint: that limits the host in a URI"),
    ]);
    // 05 and 06: whom it names.
    let dns = |p: &mut CertificateParams| {
        p.subject_alt_names = vec![SanType::DnsName("api.payments".try_into().unwrap())]
    };
    let long = format!("spiffe://cluster.local/{}", "a".repeat(2048 - 22));
    let long_domain = format!("spiffe://{}/a", "a".repeat(256));
    let mut rows: Vec<Row> = rows.into_iter().map(|rule| row(rule, &[id])).collect();
    rows.extend([
        row(("no certificate", None, "no certificate was presented"), &[]),
        row(("no name", changed(&|p| p.subject_alt_names.clear()), "no URI subject alternative name"), &[]),
        row(("a DNS name alone", changed(&dns), "no URI subject alternative name"), &[]),
        row(
            ("a signing certificate as a leaf", Some(itself.itself()), "has no path"),
            &["spiffe://cluster.local"],
        ),
    ]);
    let named = |what, uris: &[&str], rule| {
        let leaf = Leaf { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..Leaf::good(id) };
        row((what, Some(ours.issue(&leaf, |_| {})), rule), uris)
    };
    rows.extend([
        named("two identities", &[id, "spiffe://cluster.local/ns/a/sa/b"], "has 2 URI"),
        named("two identities, other order", &["spiffe://cluster.local/ns/a/sa/b", id], "has 2 URI"),
        named("an identity and a web address", &[id, "https://example.com/"], "has 2 URI"),
        named("a web address and an identity", &["https://example.com/", id], "has 2 URI"),
        named("an identity twice", &[id, id], "has 2 URI"),
        named("a web address", &["https://cluster.local/ns/a/sa/b"], "must start with `spiffe://`"),
        named("upper-case scheme", &["SPIFFE://cluster.local/ns/a/sa/b"], "scheme must be lower case"),
        named("upper-case trust domain", &["spiffe://Cluster.local/a"], "must be lower case"),
        named("user information", &["spiffe://user@cluster.local/a"], "user information"),
        named("a port", &["spiffe://cluster.local:8080/a"], "a port is not allowed"),
        named("a query", &["spiffe://cluster.local/a?b"], "a query is not allowed"),
        named("a fragment", &["spiffe://cluster.local/a#b"], "a fragment is not allowed"),
        named("an empty trust domain", &["spiffe:///a"], "trust domain is empty"),
        named("an encoded trust domain", &["spiffe://cluster%2elocal/a"], "percent-encoding"),
        named("no path", &["spiffe://cluster.local"], "has no path"),
        named("a trailing slash", &["spiffe://cluster.local/a/"], "trailing slash"),
        named("a doubled slash", &["spiffe://cluster.local/a//b"], "doubled slash"),
        named("a dot", &["spiffe://cluster.local/./a"], "segment `.`"),
        named("two dots", &["spiffe://cluster.local/b/../a"], "segment `..`"),
        named("an encoded path", &["spiffe://cluster.local/%61"], "percent-encoding"),
        named("2049 bytes", &[&long], "the limit is 2048"),
        named("a trust domain of 256 bytes", &[&long_domain], "the limit is 255"),
        named("an unknown trust domain", &["spiffe://other.example/a"], "trust domain is not trusted here"),
    ]);
    for (what, tail) in [
        ("a NUL", &b"\0"[..]),
        ("a NUL and more", b"\0.evil.example"),
        ("a carriage return", b"\r"),
        ("a line feed", b"\nINFO forged"),
        ("a foreign letter", "é".as_bytes()),
        ("no UTF-8 at all", b"\xff"),
    ] {
        let name = [id.as_bytes(), tail].concat();
        let shown = ours.issue(&Leaf::good(id), |p| raw_names(p, &[(6, &name)]));
        rows.push(row((what, Some(shown), "is not printable ASCII"), &[id]));
        let beside = ours.issue(&Leaf::good(id), |p| raw_names(p, &[(6, id.as_bytes()), (2, &name)]));
        rows.push(row((what, Some(beside), "is not printable ASCII"), &[id]));
    }
    rows
}

fn row((what, key, rule): Rule, presented: &[&str]) -> Row {
    let shown = presented.iter().map(|name| name.chars().take(SHOWN).collect()).collect();
    Row { what, key, rule, presented: shown }
}
