//! `postern dashboard`: the page of the control plane for a browser on this machine, for as long as the command runs.
//!
//! The control plane of `postern up` may be in a network of its own; its admin socket is a file, which can be reached all the same.

use crate::{
    authority::{Where, socket::ControlPlane},
    exchange::handed_on,
    failure::{Failure, OK},
};
use clap::Args;
use postern_control_plane::admin::{page::PagePort, pages::Status};
use std::{net::SocketAddr, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Flags of `postern dashboard`.
#[derive(Args, Debug, Clone)]
pub struct DashboardArgs {
    /// Where the browser finds it: an address of this machine's own; port 0 = any
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15013")]
    listen: SocketAddr,
    #[command(flatten)]
    place: Where,
}

/// Runs the command until it is interrupted: 0 then, 1 when the control plane cannot be asked or the port is taken.
pub fn run(args: &DashboardArgs) -> u8 {
    match show(args) {
        Ok(()) => OK,
        Err(failure) => failure.report(),
    }
}

fn show(args: &DashboardArgs) -> Result<(), Failure> {
    if !args.listen.ip().is_loopback() {
        return Err(Failure::usage(
            format!("{} is an address that others can reach.", args.listen),
            "Give --listen one like 127.0.0.1:15013; from elsewhere, go through ssh.",
        ));
    }
    let control_plane = ControlPlane::find(&args.place)?;
    // Whoever opens a browser in vain is not helped: first look whether somebody answers.
    let _: Status = control_plane.page("/status")?;
    let socket = Arc::from(control_plane.path());
    control_plane.run(async {
        let cannot = |cause: String| Failure::new(cause, "Choose another port with --listen, or 0 for any.");
        let port = PagePort::bind(args.listen).await.map_err(|cause| cannot(format!("{cause:#}.")))?;
        let mut ended = signal(SignalKind::terminate()).map_err(|cause| cannot(format!("{cause}.")))?;
        println!("the mesh is shown at http://{}/ until Ctrl-C", port.address());
        let source = move |asked: String| {
            let socket: Arc<std::path::Path> = Arc::clone(&socket);
            handed_on(socket, asked)
        };
        let stop = CancellationToken::new();
        tokio::select! {
            () = port.serve(source, stop) => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = ended.recv() => {}
        }
        Ok(())
    })
}
