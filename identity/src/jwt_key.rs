//! A public key that signs tokens of one trust domain, in its JWK form (RFC 7517, RFC 7518 section 6).

use crate::id::quoted;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use x509_parser::{public_key::PublicKey as Parsed, x509::SubjectPublicKeyInfo};

/// A key of a bundle with `use: jwt-svid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtKey {
    /// Key id; unique in its bundle, never empty.
    pub kid: String,
    /// The key itself.
    pub key: PublicKey,
}

/// The kinds of key that JWT-SVID allows (section 2.1 of JWT-SVID by its algorithms).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Elliptic curve: the uncompressed point, `04 || x || y`.
    Ec {
        /// Which curve.
        curve: Curve,
        /// The point.
        point: Vec<u8>,
    },
    /// RSA: modulus and exponent, big-endian, without leading zero bytes.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
}

/// The curves of ES256, ES384 and ES512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// As JWK names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of one coordinate.
    pub fn coordinate_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl JwtKey {
    /// Reads an element with `use: jwt-svid`; `None` when its kind of key is not one we know, which is no error
    /// (SPIFFE Trust Domain and Bundle 4.2.1).
    ///
    /// # Errors
    /// A key of a known kind that cannot be read, or without a `kid`.
    pub(crate) fn from_jwk(jwk: &Map<String, Value>) -> Result<Option<Self>, String> {
        let key = match jwk.get("kty").and_then(Value::as_str) {
            Some("EC") => {
                let Some(curve) = Curve::from_name(text(jwk, "crv")?) else { return Ok(None) };
                let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
                let size = curve.coordinate_bytes();
                if x.len() != size || y.len() != size {
                    return Err(format!("the coordinates of a {} key have {size} bytes", curve.name()));
                }
                PublicKey::Ec { curve, point: [&[4], x.as_slice(), y.as_slice()].concat() }
            }
            Some("RSA") => PublicKey::Rsa { n: number(jwk, "n")?, e: number(jwk, "e")? },
            _ => return Ok(None),
        };
        let kid = text(jwk, "kid")?;
        if kid.is_empty() {
            return Err("`kid` of a jwt-svid key is empty".into());
        }
        Ok(Some(Self { kid: kid.to_owned(), key }))
    }

    pub(crate) fn to_jwk(&self) -> Value {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.key {
            PublicKey::Ec { curve, point } => {
                let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
                json!({
                    "kty": "EC", "use": "jwt-svid", "kid": self.kid,
                    "crv": curve.name(), "x": encoded(x), "y": encoded(y),
                })
            }
            PublicKey::Rsa { n, e } => json!({
                "kty": "RSA", "use": "jwt-svid", "kid": self.kid, "n": encoded(n), "e": encoded(e),
            }),
        }
    }
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    jwk.get(name).and_then(Value::as_str).ok_or_else(|| format!("member `{name}` is missing or no text"))
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    let value = text(jwk, name)?;
    URL_SAFE_NO_PAD.decode(value).map_err(|cause| {
        format!("member `{name}` is not base64url without padding: {}: {cause}", quoted(value))
    })
}

fn number(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    let bytes = bytes(jwk, name)?;
    let significant: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    if significant.is_empty() { Err(format!("member `{name}` is zero")) } else { Ok(significant) }
}

/// The members by which a JWK describes the key of a certificate (RFC 7518 section 6), `kty` at least.
pub(crate) fn public_members(key: &SubjectPublicKeyInfo<'_>) -> Map<String, Value> {
    let encoded = |bytes: &[u8]| Value::from(URL_SAFE_NO_PAD.encode(bytes));
    let trimmed =
        |bytes: &[u8]| encoded(bytes.get(usize::from(bytes.first() == Some(&0))..).unwrap_or_default());
    let mut jwk = Map::new();
    match key.parsed() {
        Ok(Parsed::EC(point)) => {
            jwk.insert("kty".into(), "EC".into());
            let parameters = key.algorithm.parameters.as_ref();
            let curve = parameters.and_then(|oid| oid.as_oid().ok()).map(|oid| oid.to_id_string());
            let curve = match curve.as_deref() {
                Some("1.2.840.10045.3.1.7") => Some(Curve::P256),
                Some("1.3.132.0.34") => Some(Curve::P384),
                Some("1.3.132.0.35") => Some(Curve::P521),
                _ => None,
            };
            let coordinates = point.data().get(1..).unwrap_or_default();
            if let Some(curve) = curve
                && let Some((x, y)) = coordinates.split_at_checked(curve.coordinate_bytes())
            {
                jwk.insert("crv".into(), curve.name().into());
                jwk.insert("x".into(), encoded(x));
                jwk.insert("y".into(), encoded(y));
            }
        }
        Ok(Parsed::RSA(key)) => {
            jwk.insert("kty".into(), "RSA".into());
            jwk.insert("n".into(), trimmed(key.modulus));
            jwk.insert("e".into(), trimmed(key.exponent));
        }
        // Ed25519 and the like: octet key pairs.
        _ => {
            jwk.insert("kty".into(), "OKP".into());
        }
    }
    jwk
}
