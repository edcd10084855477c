//! `postern app call` and `postern app loop`: ask, print the answer, and end with a code that a script can read.

use super::{
    Outcome,
    client::{self, Answer, Call, NoAnswer},
    complain, duration, load, say,
};
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// The most of a TCP answer that is kept.
const TCP_ANSWER_LIMIT: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// Method; POST when there is a body, else GET
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// Body (for tcp://, the bytes to send)
    #[arg(short, long)]
    data: Option<String>,
    /// Header `name: value`; may be given many times
    #[arg(short = 'H', long = "header", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// HTTP/2 without TLS (prior knowledge) instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// Longest wait for one answer
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct CallArgs {
    /// http://host[:port]/path or tcp://host:port
    url: String,
    #[command(flatten)]
    request: RequestArgs,
    /// Call this many times and print a summary
    #[arg(short = 'n', long)]
    count: Option<u64>,
    /// Calls a second, over all connections
    #[arg(long)]
    rate: Option<f64>,
    /// Call for this long and print a summary
    #[arg(long = "for", value_parser = duration)]
    time: Option<Duration>,
    /// Connections at once
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Print the answer as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LoopArgs {
    /// URLs to call, one after the other
    #[arg(required = true)]
    urls: Vec<String>,
    /// Pause between rounds
    #[arg(long, default_value = "1s", value_parser = duration)]
    every: Duration,
    #[command(flatten)]
    request: RequestArgs,
}

/// What a URL asks for.
enum Target {
    Http(Box<Call>),
    Tcp { host: String, port: u16, data: Bytes },
}

/// Calls once, or as often as the flags say.
pub(super) async fn call(args: CallArgs) -> Outcome {
    let target = match target(&args.url, &args.request) {
        Ok(target) => target,
        Err(cause) => return usage(&cause),
    };
    let many = args.count.is_some() || args.time.is_some();
    match target {
        Target::Tcp { .. } if many => usage("-n and --for work with http:// only"),
        Target::Http(call) if many => {
            let plan = load::Plan {
                count: args.count,
                time: args.time,
                rate: args.rate,
                connections: args.connections,
                timeout: args.request.timeout,
            };
            let summary = load::run(*call, plan).await;
            match serde_json::to_string(&summary) {
                Ok(text) => say(&text),
                Err(cause) => complain(&format!("the summary could not be written: {cause}"), ""),
            }
            summary.outcome()
        }
        target => once(&args.url, target, args.request.timeout, args.json).await,
    }
}

/// Calls each URL, waits, and begins again.
pub(super) async fn call_for_ever(args: LoopArgs) -> Outcome {
    let mut targets = Vec::new();
    for url in &args.urls {
        match target(url, &args.request) {
            Ok(target) => targets.push((url.as_str(), target)),
            Err(cause) => return usage(&cause),
        }
    }
    let mut round = tokio::time::interval(args.every.max(Duration::from_millis(1)));
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        for (url, target) in &targets {
            let began = Instant::now();
            let ended = match timed(target, args.request.timeout).await {
                Ok(Reply::Http(answer)) => answer.status.as_u16().to_string(),
                Ok(Reply::Tcp(bytes)) => format!("{} bytes", bytes.len()),
                Err(NoAnswer(why)) => format!("no answer: {why}"),
            };
            let method = match target {
                Target::Http(call) => call.method.as_str(),
                Target::Tcp { .. } => "TCP",
            };
            say(&format!("{method} {url} -> {ended} in {:.1} ms", began.elapsed().as_secs_f64() * 1000.0));
        }
    }
}

enum Reply {
    Http(Answer),
    Tcp(Vec<u8>),
}

async fn once(url: &str, target: Target, limit: Duration, as_json: bool) -> Outcome {
    let began = Instant::now();
    let reply = timed(&target, limit).await;
    let took = began.elapsed();
    let outcome = match &reply {
        Ok(Reply::Http(answer)) if answer.status.is_success() => Outcome::Yes,
        Ok(Reply::Http(_)) => Outcome::No,
        Ok(Reply::Tcp(_)) => Outcome::Yes,
        Err(_) => Outcome::NoAnswer,
    };
    if as_json {
        say(&describe(url, &reply, took).to_string());
        return outcome;
    }
    match reply {
        Ok(Reply::Http(answer)) => {
            say(&format!("{:?} {}", answer.version, answer.status));
            say(String::from_utf8_lossy(&answer.body).trim_end_matches('\n'));
        }
        Ok(Reply::Tcp(bytes)) => say(String::from_utf8_lossy(&bytes).trim_end_matches('\n')),
        Err(NoAnswer(why)) => complain(&format!("{url}: {why}"), ""),
    }
    outcome
}

fn describe(url: &str, reply: &Result<Reply, NoAnswer>, took: Duration) -> Value {
    let mut object = Map::new();
    object.insert("url".into(), json!(url));
    object.insert("duration_us".into(), json!(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)));
    match reply {
        Ok(Reply::Http(answer)) => {
            object.insert("status".into(), json!(answer.status.as_u16()));
            object.insert("version".into(), json!(format!("{:?}", answer.version)));
            object.insert("headers".into(), headers_json(&answer.headers));
            object.insert("body".into(), json!(String::from_utf8_lossy(&answer.body)));
        }
        Ok(Reply::Tcp(bytes)) => {
            object.insert("body".into(), json!(String::from_utf8_lossy(bytes)));
        }
        Err(NoAnswer(why)) => {
            object.insert("error".into(), json!(why));
        }
    }
    Value::Object(object)
}

/// Every value of every header, in order: `{"name": ["value", ..]}`.
pub(super) fn headers_json(headers: &http::HeaderMap) -> Value {
    let mut object = Map::new();
    for name in headers.keys() {
        let values: Vec<Value> =
            headers.get_all(name).iter().map(|v| json!(String::from_utf8_lossy(v.as_bytes()))).collect();
        object.insert(name.as_str().to_owned(), Value::Array(values));
    }
    Value::Object(object)
}

async fn timed(target: &Target, limit: Duration) -> Result<Reply, NoAnswer> {
    let work = async {
        match target {
            Target::Http(call) => client::ask(call).await.map(Reply::Http),
            Target::Tcp { host, port, data } => exchange_bytes(host, *port, data).await.map(Reply::Tcp),
        }
    };
    timeout(limit, work).await.unwrap_or_else(|_| Err(NoAnswer(format!("no answer within {limit:?}"))))
}

async fn exchange_bytes(host: &str, port: u16, data: &[u8]) -> Result<Vec<u8>, NoAnswer> {
    let mut stream = client::dial(host, port).await?;
    let named = |e: std::io::Error| NoAnswer::from_error(&e);
    stream.write_all(data).await.map_err(named)?;
    stream.shutdown().await.map_err(named)?;
    let mut answer = Vec::new();
    (&mut stream).take(TCP_ANSWER_LIMIT).read_to_end(&mut answer).await.map_err(named)?;
    if answer.is_empty() && !data.is_empty() {
        return Err(NoAnswer("connection closed before an answer".into()));
    }
    Ok(answer)
}

fn target(url: &str, args: &RequestArgs) -> Result<Target, String> {
    let uri: Uri = url.parse().map_err(|e| format!("`{url}` is not a URL: {e}"))?;
    let Some(authority) = uri.authority() else {
        return Err(format!("`{url}` names no host; write http://host[:port]/path or tcp://host:port"));
    };
    let body = Bytes::from(args.data.clone().unwrap_or_default());
    match uri.scheme_str() {
        Some("http") => Ok(Target::Http(Box::new(Call {
            authority: authority.as_str().to_owned(),
            method: args.method.clone().unwrap_or(if args.data.is_some() {
                Method::POST
            } else {
                Method::GET
            }),
            headers: args.headers.clone(),
            body,
            http2: args.http2,
            uri,
        }))),
        Some("tcp") => {
            let port =
                uri.port_u16().ok_or_else(|| format!("`{url}` names no port; write tcp://host:port"))?;
            let host =
                uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            Ok(Target::Tcp { host, port, data: body })
        }
        Some("https") => Err("https is not spoken here: the sidecar does the TLS; write http://".into()),
        _ => Err(format!("`{url}` has no known scheme; write http://host[:port]/path or tcp://host:port")),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("`{text}` has no colon; write name: value"))?;
    let name = name.trim().parse().map_err(|_| format!("`{}` is not a header name", name.trim()))?;
    let value = value.trim().parse().map_err(|_| format!("`{}` is not a header value", value.trim()))?;
    Ok((name, value))
}

fn usage(cause: &str) -> Outcome {
    complain(cause, "see `postern app call --help`");
    Outcome::Usage
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn args(data: Option<&str>) -> RequestArgs {
        RequestArgs {
            method: None,
            data: data.map(Into::into),
            headers: vec![],
            http2: false,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_url_becomes_a_call_and_a_bad_one_says_what_to_write() {
        let Target::Http(call) = target("http://h:8080/a/../b?x=1", &args(None)).unwrap() else {
            panic!("not http")
        };
        assert_eq!(
            (call.method.as_str(), call.uri.path(), call.host_port()),
            ("GET", "/a/../b", ("h".into(), 8080))
        );
        let Target::Http(call) = target("http://[::1]/", &args(Some("x"))).unwrap() else {
            panic!("not http")
        };
        assert_eq!((call.method.as_str(), call.host_port()), ("POST", ("::1".into(), 80)));
        assert!(
            matches!(target("tcp://[::1]:9/", &args(None)).unwrap(), Target::Tcp { port: 9, ref host, .. } if host == "::1")
        );
        for bad in ["https://h/", "h", "ftp://h/", "tcp://h", "http://", "/x"] {
            assert!(target(bad, &args(None)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_header_is_name_colon_value() {
        assert_eq!(header("X-A:  b: c").unwrap(), ("x-a".parse().unwrap(), "b: c".parse().unwrap()));
        assert!(header("no colon").is_err() && header("sp ace: x").is_err());
    }
}
