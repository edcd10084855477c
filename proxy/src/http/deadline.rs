//! How long a gRPC caller is willing to wait: the `grpc-timeout` of its request.

use crate::error::ProxyError;
use http::HeaderMap;
use std::time::Duration;

/// What the application is given beyond the deadline to say itself that it is over, since it knows more of it. The caller's
/// sidecar gives as much again, so that the one nearer to the application speaks first.
pub const GRACE: Duration = Duration::from_millis(100);

/// The `grpc-timeout` header: one to eight digits and a unit of `H`, `M`, `S`, `m`, `u`, `n` (gRPC over HTTP/2, Requests).
///
/// # Errors
/// Anything else, and more than one: two ends could wait for different times.
pub fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ProxyError> {
    const BAD: ProxyError = ProxyError::BadRequest("grpc-timeout is not one to eight digits and a unit");
    let mut values = headers.get_all("grpc-timeout").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let (unit, digits) = value.as_bytes().split_last().ok_or(BAD)?;
    if values.next().is_some() || !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let number = digits.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(BAD),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(values: &[&str], expected: Result<Option<Duration>, ()>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("grpc-timeout", value.parse().unwrap());
        }
        assert_eq!(grpc_timeout(&headers).map_err(drop), expected, "{values:?}");
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        check(&[], Ok(None));
        check(&["1H"], Ok(Some(Duration::from_secs(3600))));
        check(&["2M"], Ok(Some(Duration::from_secs(120))));
        check(&["3S"], Ok(Some(Duration::from_secs(3))));
        check(&["100m"], Ok(Some(Duration::from_millis(100))));
        check(&["5u"], Ok(Some(Duration::from_micros(5))));
        check(&["00000007n"], Ok(Some(Duration::from_nanos(7))));
        check(&["99999999H"], Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        for bad in ["", "S", "1", "123456789S", "1s", "1 S", " 1S", "+1S", "-1S", "1.5S", "1SS", "1d", "0x1S"]
        {
            check(&[bad], Err(()));
        }
        check(&["1S", "1S"], Err(()));
    }
}
