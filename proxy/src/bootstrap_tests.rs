//! What the flags and files of a start may say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

fn parse(extra: &[&str]) -> Result<Flags, clap::Error> {
    let base = ["proxy", "--control-plane", "127.0.0.1:15012", "--trust-bundle", "root.pem"];
    Cli::try_parse_from(base.iter().chain(extra)).map(|cli| cli.flags)
}

#[test]
fn flags_are_checked_where_they_are_written() {
    assert!(parse(&[]).is_ok());
    assert!(parse(&["--explicit-inbound", "127.0.0.1:0=127.0.0.1:80"]).is_ok());
    assert!(parse(&["--explicit-outbound", "[::1]:1=[fd00::1]:80"]).is_ok());
    let modes = [
        (&[][..], InterceptionMode::Redirect),
        (&["--interception-mode", "TPROXY"], InterceptionMode::Tproxy),
    ];
    for (flags, mode) in modes {
        assert_eq!(parse(flags).unwrap().interception_mode, mode);
    }
    for socket in ["unix:/run/workload.sock", "unix:///run/workload.sock"] {
        let flags = parse(&["--workload-api", socket]).unwrap();
        assert_eq!(flags.workload_api, Some("/run/workload.sock".into()));
    }
    for wrong in [
        &["--explicit-inbound", "127.0.0.1:0"][..],
        &["--explicit-inbound", "127.0.0.1=127.0.0.1:80"],
        &["--explicit-inbound", "127.0.0.1:1=127.0.0.1:2", "--inbound", "0.0.0.0:15006"],
        &["--explicit-inbound", "127.0.0.1:1=127.0.0.1:2", "--interception-mode", "tproxy"],
        &["--interception-mode", "none"],
        &["--workers", "0"],
        &["--admin", "15000"],
        &["--identity-from", "unix:///run/agent.sock", "--join-token-file", "token"],
        &["--workload-api", "/run/workload.sock"],
        &["--workload-api", "unix:run/workload.sock"],
        &["--workload-api", "unix://host/workload.sock"],
        &["--access-log-format", "text"],
        &["--access-log-header", "Authorization"],
        &["--access-log-header", "proxy-authorization"],
        &["--access-log-header", "COOKIE"],
        &["--access-log-header", "set-cookie"],
        &["--access-log-header", "no name"],
        &["--audit", "some"],
        &["--surprise"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_the_access_log_shall_have_must_have_a_place_in_it() {
    let read = |flags: &[&str]| parse(flags).unwrap().access_log.read();
    let (_, lines) =
        read(&["--access-log-header", "User-Agent", "--access-log-format", "istio-text"]).unwrap();
    assert_eq!(
        (lines.format, lines.headers.as_slice()),
        (Some(access_log::Format::IstioText), &[http::header::USER_AGENT][..])
    );
    assert!(read(&["--access-log-header", "x-tenant"]).is_ok());
    let sixteen: Vec<String> = (0..16).map(|n| format!("--access-log-header=x-{n}")).collect();
    let mut names: Vec<&str> = sixteen.iter().map(String::as_str).collect();
    assert_eq!(read(&names).unwrap().1.headers.len(), 16);
    names.push("--access-log-header=x-16");
    for wrong in [
        &names[..],
        &["--access-log-header", "x-tenant", "--access-log-format", "istio-json"],
        &["--access-log", "off", "--audit", "lossless"],
    ] {
        let error = read(wrong).unwrap_err();
        assert!(!error.downcast_ref::<Failure>().unwrap().remedy.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_join_token_is_needed_to_begin_and_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let error = join_tokens(path.clone(), false).unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert!(failure.cause.contains("cannot be read") && failure.remedy.contains("new join token"));
    assert!(join_tokens(path.clone(), true).unwrap().read().unwrap().is_none());
    std::fs::write(&path, "").unwrap();
    assert!(join_tokens(path.clone(), true).is_err(), "an empty one is a mistake");
    std::fs::write(&path, " sesame\n").unwrap();
    let token = join_tokens(path, false).unwrap().read().unwrap().unwrap();
    assert_eq!(token.0, "sesame");
    assert!(!format!("{token:?}").contains("sesame"));
}

#[test]
fn a_spent_join_token_goes_and_a_newer_one_in_its_file_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first").unwrap();
    let tokens = join_tokens(path.clone(), false).unwrap();
    let first = tokens.read().unwrap().unwrap();
    assert_eq!(tokens.read().unwrap().unwrap().0, "first", "as often as it takes");
    let tokens = tokens.spent(&first).unwrap();
    assert!(!path.exists() && tokens.read().unwrap().is_none());
    std::fs::write(&path, "second").unwrap();
    let tokens = tokens.spent(&first).unwrap();
    assert_eq!(tokens.read().unwrap().unwrap().0, "second", "what was not spent stays");
    assert!(JoinTokens::Given(JoinToken("first".into())).spent(&first).is_none());
}

#[test]
fn a_projected_token_is_read_again_at_each_use() {
    let folder = tempfile::tempdir().unwrap();
    let file = TokenFile(folder.path().join("token"));
    assert!(file.read().unwrap_err().contains("cannot be read"));
    for token in ["first", "second"] {
        std::fs::write(&file.0, format!("{token}\n")).unwrap();
        assert_eq!(file.read().unwrap().0, token);
    }
    for (content, reason) in [("", "is empty"), (&"x".repeat(65 * 1024), "is larger")] {
        std::fs::write(&file.0, content).unwrap();
        assert!(file.read().unwrap_err().contains(reason));
    }
}

#[test]
fn a_control_plane_is_an_address_or_a_name_or_a_socket() {
    assert_eq!(located("unix:/run/p.sock").unwrap(), Address::Unix("/run/p.sock".into()));
    assert_eq!(located("127.0.0.1:1").unwrap(), Address::Tcp("127.0.0.1:1".parse().unwrap()));
    assert!(located("unix:run/p.sock").is_err());
    assert_eq!(resolve("127.0.0.1:15012").unwrap(), "127.0.0.1:15012".parse().unwrap());
    assert_eq!(resolve("[::1]:15012").unwrap(), "[::1]:15012".parse().unwrap());
    assert!(resolve("127.0.0.1").is_err());
}
