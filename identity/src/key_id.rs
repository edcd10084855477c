//! The name of a key: what revocation and the bookkeeping of authorities speak of.

use aws_lc_rs::digest;
use std::{fmt, str::FromStr};

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER), as pins are made (RFC 7469 2.4). A certificate that is renewed
/// with the same key keeps it. Written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

impl KeyId {
    /// Of a SubjectPublicKeyInfo in DER, tag and length included.
    pub fn of_spki(spki: &[u8]) -> Self {
        let mut id = [0; 32];
        id.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        Self(id)
    }

    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hex digits: enough to tell the authorities of one mesh apart on a screen.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl TryFrom<&[u8]> for KeyId {
    type Error = String;

    fn try_from(bytes: &[u8]) -> Result<Self, String> {
        let digest = bytes.try_into().map_err(|_| format!("a key id has 32 bytes, not {}", bytes.len()))?;
        Ok(Self(digest))
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a key id is 64 hex digits".to_owned();
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut id = [0; 32];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_key_id_survives_its_text_form_and_refuses_everything_else() {
        let id = KeyId::of_spki(b"any");
        assert_eq!(id.to_string().parse::<KeyId>().unwrap(), id);
        assert_eq!(KeyId::try_from(&id.as_bytes()[..]).unwrap(), id);
        assert!(id.to_string().starts_with(&id.short()));
        for wrong in ["", "ab", &"g".repeat(64), &"ä".repeat(32), &"+1".repeat(32)[..63]] {
            assert!(wrong.parse::<KeyId>().is_err(), "{wrong}");
        }
        assert!(KeyId::try_from(&[1, 2][..]).is_err());
    }
}
