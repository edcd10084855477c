//! What a sidecar says of the certificate that it has in force, read with suspicion: it decides when an authority may go.

use super::status::Held;
use postern_api::v1;
use postern_identity::KeyId;
use std::time::{Duration, SystemTime};

/// A serial number has at most 20 octets (RFC 5280 4.1.2.2).
const MAX_SERIAL: usize = 40;
/// More certificates than the verifier takes in a chain, root included, are no chain.
const MAX_AUTHORITIES: usize = postern_identity::verify::MAX_CHAIN;
/// The end of the year 9999, the last that a certificate can name (RFC 5280 4.1.2.5).
const MAX_TIME: i64 = 253_402_300_799;

/// Reads a report.
///
/// # Errors
/// It is none of a certificate that could be in force; a sentence for the sidecar.
pub(crate) fn held(report: &v1::Certificate) -> Result<Held, String> {
    let wrong = |what: &str| Err(format!("the report of the certificate in force {what}"));
    let serial = &report.serial;
    let is_hex = serial.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if serial.is_empty() || serial.len() > MAX_SERIAL || !is_hex {
        return wrong("has a serial number that is not 1 to 40 lower-case hex digits");
    }
    let (begin, end) = (report.not_before_unix_seconds, report.not_after_unix_seconds);
    if begin < 0 || end <= begin || end > MAX_TIME {
        return wrong("has an end that is not after its begin");
    }
    if report.authorities.is_empty() || report.authorities.len() > MAX_AUTHORITIES {
        return wrong("names no authority, or more than a chain can have");
    }
    let keys: Result<Vec<KeyId>, String> =
        report.authorities.iter().map(|key| KeyId::try_from(key.as_slice())).collect();
    let Ok(authorities) = keys else { return wrong("names an authority by something else than 32 bytes") };
    Ok(Held { serial: serial.clone(), not_before: instant(begin), not_after: instant(end), authorities })
}

fn instant(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn sound() -> v1::Certificate {
        v1::Certificate {
            serial: "0a1b".into(),
            not_before_unix_seconds: 1_800_000_000,
            not_after_unix_seconds: 1_800_003_600,
            authorities: vec![vec![1; 32], vec![2; 32]],
        }
    }

    fn check(change: impl FnOnce(&mut v1::Certificate), expected: Result<(), &str>) {
        let mut report = sound();
        change(&mut report);
        match (held(&report), expected) {
            (Ok(_), Ok(())) => {}
            (Err(told), Err(part)) => assert!(told.contains(part), "{told}"),
            (outcome, expected) => panic!("{report:?}: {outcome:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_report_of_a_certificate_is_taken_and_anything_else_refused() {
        check(|_| {}, Ok(()));
        check(|r| r.serial = "f".repeat(40), Ok(()));
        for serial in ["", "0A", "xyz", "0a\n", &"f".repeat(41)] {
            check(|r| r.serial = serial.into(), Err("serial number"));
        }
        check(|r| r.not_after_unix_seconds = r.not_before_unix_seconds, Err("not after its begin"));
        check(|r| r.not_before_unix_seconds = -1, Err("not after its begin"));
        check(|r| r.not_after_unix_seconds = i64::MAX, Err("not after its begin"));
        check(|r| r.authorities.clear(), Err("names no authority"));
        check(|r| r.authorities = vec![vec![1; 32]; 9], Err("more than a chain"));
        check(|r| r.authorities = vec![vec![1; 32]; 8], Ok(()));
        check(|r| r.authorities.push(vec![1; 31]), Err("32 bytes"));
    }
}
