//! Certificates per second and core, with proof of token: a join token is redeemed, the CSR's signature verified, the leaf
//! signed. One thread, CPU time, and in the same rounds the two operations that nobody can leave out: how fast a core makes
//! those is the machine's affair, how much is added to them is ours. `--smoke` makes a few, in a debug build too, and judges nothing.
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
    let (mut spent, mut floors) = (Vec::new(), Vec::new());
    let floor = Floor::new();
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
            floors.push(floor.cost(certificates / 4));
        }
        tokens.prune(now + LIFETIME);
    }
    let (least, most) = spent.iter().fold((f64::MAX, 0.0), |(a, b): (f64, f64), us| (a.min(*us), b.max(*us)));
    let each = median(&spent);
    println!(
        "certificates with proof of token: {:.0} per second and core ({each:.1} µs each; rounds {least:.1} to {most:.1})",
        1e6 / each
    );
    let ratio = median(&spent.iter().zip(&floors).map(|(all, floor)| all / floor).collect::<Vec<_>>());
    println!(
        "one verification and one signature of aws-lc, on P-256: {:.1} µs; a certificate costs {ratio:.2} times that",
        median(&floors)
    );
    if smoke {
        return ExitCode::SUCCESS;
    }
    let measured = [("microseconds per certificate", each), ("certificate to its two operations", ratio)];
    budgets::judge(&["issuance"], &Measured::from(measured.map(|(name, value)| (name.to_owned(), value))))
}

/// The two operations.
struct Floor {
    random: SystemRandom,
    key: EcdsaKeyPair,
    public: UnparsedPublicKey<Vec<u8>>,
}

impl Floor {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
        Self { random: SystemRandom::new(), key, public }
    }

    /// Microseconds for both.
    fn cost(&self, times: usize) -> f64 {
        let message = [7; 400];
        let before = thread_cpu();
        for _ in 0..times {
            let signature = self.key.sign(&self.random, black_box(&message)).unwrap();
            self.public.verify(black_box(&message), signature.as_ref()).unwrap();
        }
        (thread_cpu() - before).as_secs_f64() * 1e6 / times as f64
    }
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
