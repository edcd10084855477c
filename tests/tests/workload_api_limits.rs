//! What one user of a real sidecar's Workload API may take, and that another user is served meanwhile. Alone in its process,
//! since it becomes another user for a moment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use hyper_util::rt::TokioIo;
use nix::unistd::{Uid, geteuid, seteuid};
use postern_api::open::{
    X509BundlesRequest, X509BundlesResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_tests::{
    mesh::within,
    standalone::{Settings, Standalone},
    up::skipped,
    workload_api::marked,
};
use std::{
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    time::Duration,
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// docs/operations.md.
const CONNECTIONS: usize = 64;
const CALLS: usize = 256;
const BURST: usize = 400;
/// Streams of one connection.
const STREAMS: usize = 100;
/// Any that is not ours.
const OTHER: u32 = 65534;

async fn call(channel: &Channel) -> Result<Streaming<X509BundlesResponse>, Status> {
    let mut client = SpiffeWorkloadApiClient::new(channel.clone());
    client.fetch_x509_bundles(marked(X509BundlesRequest {})).await.map(tonic::Response::into_inner)
}

/// A channel that opens its connection when it is used.
fn over(path: &Path, connect: fn(&Path) -> UnixStream) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = connect(&path);
        async move {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream).map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

fn ours(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap()
}

/// A connection that the kernel says another user made: it notes who connects, and when.
fn of_another(path: &Path) -> UnixStream {
    let own = geteuid();
    seteuid(Uid::from_raw(OTHER)).unwrap();
    let stream = UnixStream::connect(path);
    seteuid(own).unwrap();
    stream.unwrap()
}

/// Another user calls once, and is answered.
async fn another_is_served(path: &Path, meanwhile: &str) {
    if !geteuid().is_root() {
        return skipped("only root can be another user");
    }
    let channel = over(path, of_another);
    let answered = within(meanwhile, async { call(&channel).await?.message().await }).await;
    assert!(matches!(answered, Ok(Some(_))), "another user is served while {meanwhile}: {answered:?}");
}

/// A connection of our own that is served, as soon as there is room.
async fn served(path: &Path) -> Channel {
    within("we are served", async {
        loop {
            let channel = over(path, ours);
            if call(&channel).await.is_ok() {
                return channel;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_at_its_limits_is_refused_and_another_is_served() {
    let mesh = Standalone::start(Settings::default()).await;
    let path = mesh.workload_api("client");
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o711)).unwrap();

    let held: Vec<UnixStream> = (0..CONNECTIONS).map(|_| ours(&path)).collect();
    let further = path.clone();
    let closed = tokio::task::spawn_blocking(move || {
        // Closed without a word; one that is let in hears the server's settings.
        ours(&further).read(&mut [0; 9])
    });
    let closed = within("one connection more is closed", closed).await.unwrap();
    assert!(closed.is_err() || closed.is_ok_and(|bytes| bytes == 0));
    another_is_served(&path, "we hold every connection").await;
    drop(held);

    let mut channels = Vec::new();
    for _ in 0..CALLS.div_ceil(STREAMS) + 1 {
        channels.push(served(&path).await);
    }
    let mut open = Vec::new();
    for number in 0..CALLS {
        open.push(call(&channels[number / STREAMS]).await.unwrap());
    }
    let spare = channels.last().unwrap();
    let refused = call(spare).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("too many calls at once"), "{refused}");
    another_is_served(&path, "we hold every call").await;
    drop(open);
    let spare = &served(&path).await;

    // A hundred come back each second; this asks for more, as fast as it is answered.
    let mut calls = 0;
    let refused = loop {
        calls += 1;
        match call(spare).await {
            Ok(_) => assert!(calls < 20 * BURST, "nobody minds {calls} calls"),
            Err(status) if status.message().contains("at once") => {}
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("too many calls a second"), "{refused}");
    another_is_served(&path, "our burst is spent").await;
    served(&path).await;
}
