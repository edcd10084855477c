//! Certificates per second and core, with proof of token: a join token is redeemed, the CSR's signature verified, the leaf
//! signed. One thread, CPU time. `--smoke` makes a few, in a debug build too, and judges nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use postern_benches::{
    budgets::{self, Measured, median},
    process::thread_cpu,
};
use postern_control_plane::{Attested, JoinTokens, authority::Authority};
use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, SystemTime},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// CSRs, each with a key of its own; more than fit into the nearest caches together with what they touch.
const KEYS: usize = 512;
const ROUNDS: usize = 9;
const CERTIFICATES: usize = 8_000;
const LIFETIME: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    budgets::refuse_debug_build(smoke);
    let (keys, rounds, certificates) = if smoke { (8, 1, 200) } else { (KEYS, ROUNDS, CERTIFICATES) };
    let now = SystemTime::now();
    let authority = Authority::in_memory("cluster.local".parse().unwrap(), now).unwrap();
    let requests: Vec<Vec<u8>> = (0..keys).map(|_| csr()).collect();
    let tokens = JoinTokens::default();
    let mut spent = Vec::new();
    for round in 0..=rounds {
        let pods: Vec<String> = (0..certificates).map(|n| tokens.issue(pod(n), LIFETIME, now)).collect();
        let before = thread_cpu();
        for (token, csr) in pods.iter().zip(requests.iter().cycle()) {
            let attested = tokens.redeem(token, now).unwrap();
            black_box(authority.issue(csr, &attested, LIFETIME, now).unwrap());
        }
        // The first round warms caches up and is not kept.
        if round > 0 {
            spent.push((thread_cpu() - before).as_secs_f64() * 1e6 / certificates as f64);
        }
        tokens.prune(now + LIFETIME);
    }
    let (least, most) = spent.iter().fold((f64::MAX, 0.0), |(a, b): (f64, f64), us| (a.min(*us), b.max(*us)));
    let each = median(&spent);
    println!(
        "certificates with proof of token: {:.0} per second and core ({each:.1} µs each; rounds {least:.1} to {most:.1})",
        1e6 / each
    );
    let floor = floor(if smoke { 20 } else { 2_000 });
    println!("of which one verification and one signature of aws-lc, on P-256: {floor:.1} µs");
    if smoke {
        return ExitCode::SUCCESS;
    }
    budgets::judge(&["issuance"], &Measured::from([("microseconds per certificate".to_owned(), each)]))
}

/// Microseconds for the two operations that nobody can leave out.
fn floor(times: usize) -> f64 {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
    let message = [7; 400];
    let before = thread_cpu();
    for _ in 0..times {
        let signature = key.sign(&random, black_box(&message)).unwrap();
        public.verify(black_box(&message), signature.as_ref()).unwrap();
    }
    (thread_cpu() - before).as_secs_f64() * 1e6 / times as f64
}

fn csr() -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    request.der().to_vec()
}

fn pod(n: usize) -> Attested {
    Attested {
        namespace: format!("team-{}", n % 97),
        service_account: format!("service-{}", n % 500),
        pod: format!("pod-{n}"),
    }
}
