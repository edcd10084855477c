//! Expressions that people write, good and bad, and what they are of a call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use proptest::prelude::*;

/// Of `GET /v1/charges` that took 250 ms and was answered with 503.
fn known(attribute: Attribute) -> Option<Value<'static>> {
    let text = |text: &'static str| Some(Value::Text(Cow::Borrowed(text)));
    match attribute {
        Attribute::RequestPath | Attribute::RequestUrlPath => text("/v1/charges"),
        Attribute::RequestMethod => text("GET"),
        Attribute::RequestHost => text("shop.example:80"),
        Attribute::ResponseCode => Some(Value::Int(503)),
        Attribute::RequestDuration => Some(Value::Duration(Duration::from_millis(250))),
        Attribute::ConnectionMtls => Some(Value::Bool(true)),
        _ => None,
    }
}

fn header(name: &HeaderName) -> Option<&'static str> {
    (name == "x-tenant").then_some("blue")
}

fn is(text: &str) -> Result<bool, Absent> {
    let filter = Filter::parse(text).unwrap_or_else(|mistake| panic!("{text}: {mistake:?}"));
    filter.matches(known, header)
}

#[test]
fn an_expression_is_what_cel_says_it_is() {
    for (text, expected) in [
        ("response.code >= 400", Ok(true)),
        ("response.code<400", Ok(false)),
        ("response.code == 503 && request.method == \"GET\"", Ok(true)),
        ("!(response.code == 200)", Ok(true)),
        ("!connection.mtls", Ok(false)),
        ("connection.mtls == true", Ok(true)),
        ("connection.mtls && request.url_path.contains('charge')", Ok(true)),
        ("request.path.startsWith('/v1') && !request.path.endsWith('/')", Ok(true)),
        ("'/v1/charges'.startsWith(request.path)", Ok(true)),
        ("request.host != 'shop.example'", Ok(true)),
        ("response.code in [404, 503]", Ok(true)),
        ("response.code in []", Ok(false)),
        ("request.method in ['POST', 'PUT',]", Ok(false)),
        ("request.headers['x-tenant'] == 'blue'", Ok(true)),
        ("request.headers[\"x-tenant\"].contains('re')", Ok(false)),
        ("'x-tenant' in request.headers", Ok(true)),
        ("!('x-other' in request.headers)", Ok(true)),
        ("request.duration > duration('0.2s')", Ok(true)),
        ("request.duration >= duration('1m30s')", Ok(false)),
        ("has(response.code)", Ok(true)),
        ("has(response.grpc_status)", Ok(false)),
        ("has(request.headers.cookies)", Ok(false)),
        ("has(response.grpc_status) && response.grpc_status != 0", Ok(false)),
        ("true", Ok(true)),
        ("false || (true)", Ok(true)),
        ("1 < 2 && -1 < 0 && 'a' < 'b'", Ok(true)),
        ("'it\\'s' == \"it's\"", Ok(true)),
        // && binds tighter.
        ("true || true && false", Ok(true)),
        ("(true || true) && false", Ok(false)),
        // What is absent is an error, unless the other side decides.
        ("response.grpc_status != 0", Err(Absent)),
        ("!(response.grpc_status == 0)", Err(Absent)),
        ("response.grpc_status != 0 || true", Ok(true)),
        ("response.grpc_status != 0 || false", Err(Absent)),
        ("false && response.grpc_status == 0", Ok(false)),
        ("response.grpc_status == 0 && false", Ok(false)),
        ("response.grpc_status == 0 && true", Err(Absent)),
        ("request.headers['x-other'] == ''", Err(Absent)),
        ("request.useragent.startsWith('kube-probe')", Err(Absent)),
        ("'a' in ['b', request.id]", Err(Absent)),
        ("'a' in [request.id, 'a']", Ok(true)),
    ] {
        assert_eq!(is(text), expected, "{text}");
    }
}

#[test]
fn a_mistake_has_its_place_and_its_remedy() {
    for (text, at, reason, hint) in [
        ("", 0, "ends too early", "write"),
        ("response.code", 0, "a number, not true or false", "response.code >= 400"),
        ("response.code >= '400'", 17, "a number with a text", "without quotes"),
        ("request.method == 1", 18, "a text with a number", "in quotes"),
        ("response.cod >= 400", 0, "no attribute `response.cod`", "did you mean `response.code`?"),
        ("response.code >= 400 &&", 23, "ends too early", "write"),
        ("response.code >= 400 & true", 21, "`&`", "`&&`"),
        ("response.code = 400", 14, "`=`", "`==`"),
        ("response.code >= 400 response.code", 21, "`response` is not expected", "&&"),
        ("response.code >= 400.5", 17, "whole decimal number", "digits"),
        ("response.code >= 400 ? true : false", 21, "no choices", "=="),
        ("true + 1 > 2", 5, "no choices, no sums", "=="),
        ("response.code >= 400 + 1", 21, "no choices, no sums", "=="),
        ("1 == 1 == 1", 7, "`==` is not expected", "before"),
        ("!response.code == 200", 1, "`!` before a number", "brackets"),
        ("response.code && true", 0, "`&&` takes what is true or false", "compare"),
        ("true || request.path", 8, "`||` takes what is true or false", "compare"),
        ("connection.mtls < true", 0, "does not order", "=="),
        ("request.path.matches('^/v1')", 13, "no function `matches`", "regular expressions"),
        ("request.path.size() > 1", 13, "no function `size`", "startsWith"),
        ("size(request.path) > 1", 0, "no function `size`", "has()"),
        ("response.code.startsWith('5')", 0, "`startsWith` of a number", "texts"),
        ("request.query == ''", 0, "no attribute `request.query`", "never kept"),
        ("source.principal == 'a'", 0, "no attribute", "connection.uri_san_peer_certificate"),
        ("metadata.filter == 1", 0, "no attribute", "docs/telemetry.md"),
        ("request.headers == 'a'", 0, "all headers", "request.headers['x-name']"),
        ("request.headers[x] == 'a'", 0, "in quotes", "request.headers['x-name']"),
        ("request.headers['X-Tenant'] == 'a'", 0, "lower case", "`x-tenant`"),
        ("request.headers['a b'] == 'a'", 0, "no name of a header", "x-name"),
        ("request.headers['authorization'] == 'a'", 0, "secrets", "another"),
        ("has(request.headers.cookie)", 4, "secrets", "another"),
        ("request.path in request.headers", 16, "`in` needs a list", "'x-debug' in request.headers"),
        ("response.code in ['a']", 18, "the list has a text", "one type"),
        ("response.code in [1 2]", 20, "`2` is not expected", "operator"),
        ("has(true)", 4, "`has` asks", "has(response.code)"),
        ("has(response.code", 17, "`)` is missing", "bracket"),
        ("request.duration > 5", 19, "a duration with a number", "duration('250ms')"),
        ("request.duration > duration('5')", 28, "a duration is a text", "250ms"),
        ("request.path == 'a", 16, "does not end", "quote"),
        ("request.path == 'ä' ;", 20, "`;`", "operators"),
        ("request.path == r'a'", 16, "raw texts", "quotes"),
        ("request.path == 'a\\x'", 18, "escape", "backslash"),
        ("request.path == -'a'", 16, "`-`", "calculate"),
        ("99999999999999999999 == 1", 0, "whole decimal number", "digits"),
    ] {
        let mistake = Filter::parse(text).expect_err(text);
        assert!(mistake.reason.contains(reason), "{text}: {mistake:?}");
        assert!(mistake.hint.contains(hint), "{text}: {mistake:?}");
        assert_eq!(mistake.at, at, "{text}: {mistake:?}");
    }
}

#[test]
fn an_expression_is_bounded_in_size_depth_and_headers() {
    let nested = |levels: usize| format!("{}true{}", "(".repeat(levels), ")".repeat(levels));
    assert!(Filter::parse(&nested(DEEPEST - 1)).is_ok());
    assert!(Filter::parse(&nested(DEEPEST)).unwrap_err().reason.contains("levels"));
    assert!(Filter::parse(&format!("{}true", "!".repeat(4000))).unwrap_err().reason.contains("levels"));
    // Wide is not deep.
    let wide = format!("{}false", "false||".repeat(580));
    assert_eq!(is(&wide), Ok(false));
    assert!(Filter::parse(&format!("{}true", " ".repeat(LONGEST))).unwrap_err().reason.contains("bytes"));
    let headers = |count: usize| {
        let all: Vec<_> = (0..count).map(|number| format!("'x-{number}' in request.headers")).collect();
        Filter::parse(&all.join(" || "))
    };
    assert_eq!(headers(HEADERS).unwrap().headers().len(), HEADERS);
    assert!(headers(HEADERS + 1).unwrap_err().reason.contains("headers"));
    let twice = Filter::parse("'x-a' in request.headers && request.headers['x-a'] != 'b'").unwrap();
    assert_eq!(twice.headers().len(), 1);
}

#[test]
fn every_attribute_can_be_asked_for_and_stands_in_the_docs() {
    let docs = include_str!("../../../docs/telemetry.md");
    for (name, kind, _) in ATTRIBUTES {
        let literal = match kind {
            Kind::Bool => "true",
            Kind::Int => "1",
            Kind::Text => "'a'",
            Kind::Duration => "duration('1s')",
        };
        Filter::parse(&format!("{name} == {literal} && has({name})")).unwrap();
        assert!(docs.contains(&format!("`{name}`")), "{name} is not in docs/telemetry.md");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Neither reading nor evaluating fails on anything, and a place is within the text.
    #[test]
    fn no_text_makes_it_panic(
        text in "([a-z.]{0,12}|response\\.code|request\\.path|request\\.headers|has|in|[0-9]{1,3}|'[^']{0,4}'|[\\[\\]()!&|=<>.,?\" -]{1,3}|\\PC){0,20}"
    ) {
        match Filter::parse(&text) {
            Ok(filter) => drop(filter.matches(known, header)),
            Err(mistake) => prop_assert!(mistake.at <= text.chars().count(), "{mistake:?}"),
        }
    }

    /// Not and and or are those of logic, with a third value for what cannot be told.
    #[test]
    fn logic_is_that_of_three_values(parts in proptest::collection::vec(0..3_usize, 2..6), is_or: bool, negated: bool) {
        let text = |part: &usize| ["true", "false", "response.grpc_status == 0"][*part];
        let value = |part: &usize| [Ok(true), Ok(false), Err(Absent)][*part];
        let all: Vec<_> = parts.iter().map(text).collect();
        let joined = all.join(if is_or { " || " } else { " && " });
        let values: Vec<_> = parts.iter().map(value).collect();
        let expected = if values.contains(&Ok(is_or)) {
            Ok(is_or)
        } else if values.contains(&Err(Absent)) {
            Err(Absent)
        } else {
            Ok(!is_or)
        };
        let expected = if negated { expected.map(|is| !is) } else { expected };
        let whole = if negated { format!("!({joined})") } else { joined };
        prop_assert_eq!(is(&whole), expected, "{}", whole);
    }
}
