//! Tables of targets, hosts and headers: what has one reading, and what has none (RFC 9110, 9112, 9113).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use http::Request;

/// Host and target, or the status of the refusal.
type Read = Result<(String, String), u16>;

fn check_in(
    mode: Normalization,
    version: Version,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Read {
    let Ok(builder) = Request::builder().method(method).uri(target).version(version).body(()) else {
        return Err(400);
    };
    let mut parts = builder.into_parts().0;
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        parts.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let target = canonical(&mut parts, mode, Size::Whole, "10.0.0.1:80".parse().unwrap())
        .map_err(|error| error.http_status())?;
    assert!(!parts.headers.contains_key(HOST));
    Ok((target.host().to_owned(), target.path_and_query.as_str().to_owned()))
}

fn check(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> Read {
    check_in(Normalization::Base, version, method, target, headers)
}

fn ok(host: &str, path: &str) -> Read {
    Ok((host.to_owned(), path.to_owned()))
}

#[test]
fn a_host_has_exactly_one_reading() {
    let cases: &[(&[(&str, &str)], Read)] = &[
        (&[("host", "a")], ok("a", "/")),
        (&[("host", "Secret.COM.")], ok("secret.com", "/")),
        (&[("host", "secret.com:8080")], ok("secret.com:8080", "/")),
        (&[("host", "secret.com.:8080")], ok("secret.com:8080", "/")),
        (&[("host", "[::1]:80")], ok("[::1]:80", "/")),
        (&[("host", "[0:0::1]")], ok("[::1]", "/")),
        (&[("host", "my_svc")], ok("my_svc", "/")),
        (&[], Err(400)),
        (&[("host", "a"), ("host", "a")], Err(400)),
        (&[("host", "a"), ("host", "b")], Err(400)),
        (&[("host", "a, b")], Err(400)),
        (&[("host", "user@a")], Err(400)),
        (&[("host", "a/b")], Err(400)),
        (&[("host", "a b")], Err(400)),
        (&[("host", "")], Err(400)),
        (&[("host", ".")], Err(400)),
        (&[("host", "a..b")], Err(400)),
        (&[("host", "a:")], Err(400)),
        (&[("host", "a:+80")], Err(400)),
        (&[("host", "a:99999")], Err(400)),
        (&[("host", "a%2eb")], Err(400)),
        (&[("host", "[fe80::1%25eth0]")], Err(400)),
        (&[("host", "[::1")], Err(400)),
        (&[("host", "bücher.de")], Err(400)),
    ];
    for (headers, expected) in cases {
        assert_eq!(&check(Version::HTTP_11, "GET", "/", headers), expected, "{headers:?}");
    }
    let long = "a".repeat(256);
    assert_eq!(check(Version::HTTP_11, "GET", "/", &[("host", &long)]), Err(400));
    assert_eq!(check(Version::HTTP_10, "GET", "/", &[]), ok("10.0.0.1:80", "/"));
}

#[test]
fn the_targets_authority_and_host_never_differ() {
    let host = |value| [("host", value)];
    assert_eq!(check(Version::HTTP_11, "GET", "http://a/x", &host("a")), ok("a", "/x"));
    assert_eq!(check(Version::HTTP_11, "GET", "http://a", &host("A")), ok("a", "/"));
    assert_eq!(check(Version::HTTP_11, "GET", "http://a/x", &host("b")), Err(400));
    assert_eq!(check(Version::HTTP_11, "GET", "http://a/x", &[]), Err(400));
    assert_eq!(check(Version::HTTP_11, "GET", "ftp://a/x", &host("a")), Err(400));
    assert_eq!(check(Version::HTTP_11, "GET", "a:80", &host("a:80")), Err(400));
    assert_eq!(check(Version::HTTP_11, "GET", "admin", &host("admin")), Err(400));
    assert_eq!(check(Version::HTTP_2, "GET", "http://a/x", &[]), ok("a", "/x"));
    assert_eq!(check(Version::HTTP_2, "GET", "http://a/x", &host("a")), ok("a", "/x"));
    assert_eq!(check(Version::HTTP_2, "GET", "http://a/x", &host("b")), Err(400));
    assert_eq!(check(Version::HTTP_2, "GET", "http://u:p@a/x", &[]), Err(400));
    assert_eq!(check(Version::HTTP_2, "GET", "/x", &[]), Err(400));
}

#[test]
fn a_path_has_exactly_one_reading() {
    let host = [("host", "a")];
    let cases: &[(&str, &str, Read)] = &[
        ("GET", "/v1/charges?a=/../b", ok("a", "/v1/charges?a=/../b")),
        ("GET", "/x/../admin", ok("a", "/admin")),
        ("GET", "/../../admin", ok("a", "/admin")),
        ("OPTIONS", "*", ok("a", "*")),
        ("GET", "*", Err(400)),
        ("GET", "/%00", Err(400)),
        ("GET", "/a%", Err(400)),
        ("GET", "/a%2", Err(400)),
        ("GET", "/a%zz", Err(400)),
        ("GET", "/\u{e4}", Err(400)),
        ("CONNECT", "a:80", Err(405)),
        ("get", "/", ok("a", "/")),
    ];
    for (method, target, expected) in cases {
        assert_eq!(&check(Version::HTTP_11, method, target, &host), expected, "{method} {target}");
    }
    let long = format!("/{}", "a".repeat(MAX_TARGET));
    assert_eq!(check(Version::HTTP_11, "GET", &long, &host), Err(414));
    let decoded =
        |target| check_in(Normalization::DecodeAndMergeSlashes, Version::HTTP_11, "GET", target, &host);
    assert_eq!(decoded("/app%2fx/../admin"), ok("a", "/app/admin"));
}

#[test]
fn headers_with_two_readings_are_refused() {
    let with = |name, value| check(Version::HTTP_2, "POST", "http://a/", &[(name, value)]).err();
    assert_eq!(with("content-length", "10"), None);
    assert_eq!(with("content-length", "0"), None);
    for bad in ["+1", "0001", "", "0x1", "1,1", "1234567890123456789", "-1", "1 "] {
        assert_eq!(with("content-length", bad), Some(400), "{bad:?}");
    }
    let two = [("content-length", "1"), ("content-length", "1")];
    assert_eq!(check(Version::HTTP_2, "POST", "http://a/", &two), Err(400));
    assert_eq!(with("x", " blank"), Some(400));
    assert_eq!(with("x", "blank\t"), Some(400));
    assert_eq!(with("expect", "100-Continue"), None);
    assert_eq!(with("expect", "foo"), Some(417));
}

#[test]
fn headers_are_limited_in_number_and_size() {
    let judge = |size, method: &str, lines: &[(&str, usize)]| {
        let mut headers = HeaderMap::new();
        for (name, length) in lines {
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::try_from("v".repeat(*length)).unwrap(),
            );
        }
        screen(&method.parse().unwrap(), &headers, size).map_err(|error| error.http_status())
    };
    for (size, most, bytes) in [(Size::Whole, 100, 64 << 10), (Size::WithOurs, 92, 63 << 10)] {
        let lines = |count| vec![("x", 1); count];
        assert_eq!(judge(size, "GET", &lines(most)), Ok(0));
        assert_eq!(judge(size, "GET", &lines(most + 1)), Err(431), "{size:?}");
        // One line when they are joined, and never more than a hundred before.
        let crumbs = |count, beside| [vec![("cookie", 1); count], lines(beside)].concat();
        assert_eq!(judge(size, "GET", &crumbs(101 - most, most - 1)), Ok(101 - most));
        assert_eq!(judge(size, "GET", &crumbs(100 - most, most)), if most < 100 { Err(431) } else { Ok(0) });
        assert_eq!(judge(size, "GET", &crumbs(101, 0)), Err(431));
        assert_eq!(judge(size, "GET", &[("x", bytes - 4)]), Ok(0));
        assert_eq!(judge(size, "GET", &[("x", bytes - 3)]), Err(431), "{size:?}");
        assert_eq!(judge(size, &"G".repeat(bytes), &[("x", 0)]), Err(431), "a method is part of the head");
    }
}

#[test]
fn cookie_crumbs_are_joined_once() {
    let mut headers = HeaderMap::new();
    headers.append(COOKIE, HeaderValue::from_static("a=1"));
    headers.append(COOKIE, HeaderValue::from_static("b=2"));
    join_cookies(&mut headers);
    assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
}
