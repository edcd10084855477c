//! `postern demo`: brings the example mesh up and tells its story in numbered steps, each an assertion on real traffic.

mod capture;
mod collector;
mod narrator;
mod story;

use crate::{
    failure::Failure,
    up::{Mesh, Opened, Telling, telemetry_relay::Endpoint},
};
use collector::Collector;
use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

/// What `postern demo` adds to `postern up`: a collector before the first pod starts, and the story once all are ready.
pub fn story(hub: IpAddr) -> Telling<Result<Opened, Failure>> {
    Box::pin(async move {
        let collector = Collector::start(SocketAddr::new(hub, 0)).await.map_err(|cause| {
            Failure::new(
                format!("the demo's trace collector cannot listen on {hub}: {cause}."),
                "Stop what holds the address, or try again.",
            )
        })?;
        let telemetry_endpoint = Some(Endpoint::of_story(collector.address()));
        let tell = Box::new(move |mesh: Mesh| -> Telling<ExitCode> {
            Box::pin(async move { story::tell(&mesh, &collector).await })
        });
        Ok(Opened { telemetry_endpoint, tell, suggestions: story::suggestions() })
    })
}
