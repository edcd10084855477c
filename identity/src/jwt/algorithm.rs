//! The nine signature algorithms of JWT-SVID (section 2.1), and which key each of them takes.

use crate::jwt_key::{Curve, PublicKey};
use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, RsaParameters, UnparsedPublicKey};

/// RSA moduli outside of this many bits are not used: shorter ones are weak (RFC 7518 3.3 and 3.5), longer ones slow.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A value of `alg` that JWT-SVID 2.1 allows. Nothing symmetric, no `none`, no EdDSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

/// What a signature is checked with.
enum Method {
    Ec(Curve, &'static EcdsaVerificationAlgorithm),
    Rsa(&'static RsaParameters),
}

impl Algorithm {
    /// All of them, in the order of the specification.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// As the header writes it; the spelling counts (RFC 7515 4.1.1).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As the header writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Rs256 => Method::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Method::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Method::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Method::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Method::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Method::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Method::Ec(Curve::P256, &signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Method::Ec(Curve::P384, &signature::ECDSA_P384_SHA384_FIXED),
            Self::Es512 => Method::Ec(Curve::P521, &signature::ECDSA_P521_SHA512_FIXED),
        }
    }

    /// Whether a key may be used with this algorithm at all: the kind, the curve (RFC 7518 3.4), the size.
    pub fn fits(self, key: &PublicKey) -> bool {
        match (self.method(), key) {
            (Method::Ec(wanted, _), PublicKey::Ec { curve, .. }) => wanted == *curve,
            (Method::Rsa(_), PublicKey::Rsa { n, .. }) => RSA_BITS.contains(&bits(n)),
            _ => false,
        }
    }

    /// Whether `signature` over `message` was made by the owner of `key`. False also for a key that does not fit.
    pub fn verifies(self, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        match (self.method(), key) {
            (Method::Ec(wanted, algorithm), PublicKey::Ec { curve, point }) if wanted == *curve => {
                UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
            }
            (Method::Rsa(parameters), PublicKey::Rsa { n, e }) if RSA_BITS.contains(&bits(n)) => {
                let key = aws_lc_rs::rsa::PublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// Length of a big-endian number in bits.
fn bits(number: &[u8]) -> usize {
    let mut significant = number.iter().skip_while(|byte| **byte == 0);
    match significant.next() {
        None => 0,
        Some(first) => significant.count() * 8 + 8 - first.leading_zeros() as usize,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn jwt_svid_2_1_names_are_exact_and_no_others_are_known() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
            assert_eq!(Algorithm::from_name(&algorithm.name().to_lowercase()), None);
        }
        for other in ["none", "None", "", "HS256", "EdDSA", "ES256K", "RS1", "ES256 "] {
            assert_eq!(Algorithm::from_name(other), None, "{other}");
        }
    }

    #[test]
    fn bits_are_counted_without_leading_zeros() {
        for (number, expected) in [
            (&[][..], 0),
            (&[0, 0], 0),
            (&[1], 1),
            (&[0x80], 8),
            (&[0, 0x01, 0xff], 9),
            (&[0x80; 256], 2048),
            (&[0x7f; 256], 2047),
        ] {
            assert_eq!(bits(number), expected, "{number:?}");
        }
    }
}
