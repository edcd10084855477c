//! One program that is kept running: started, listened to, started again when it ends, stopped in order.
use super::journal::{Journal, Source};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    io,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

/// The first pause before a new start, doubled each time up to `LONGEST_PAUSE`. Short, since a pod without its sidecar is cut off.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Who ran so long has recovered.
const GOOD_RUN: Duration = Duration::from_secs(30);

/// Whose program it is, and how it is stopped.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The pod, as its log is called.
    pub pod: String,
    /// App or sidecar.
    pub source: Source,
    /// For people: the container's name, or `sidecar`.
    pub what: String,
    /// From the polite signal to the final one.
    pub grace: Duration,
}

/// Keeps a program running until `stop`. `make` is asked for the command before every start.
pub async fn keep(
    identity: Identity,
    journal: Arc<Journal>,
    stop: CancellationToken,
    make: impl Fn() -> io::Result<Command>,
) {
    let mut pause = FIRST_PAUSE;
    let Identity { pod, what, .. } = &identity;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let ended = match make().and_then(|command| start(command, &identity, &journal)) {
            Ok(mut child) => {
                tokio::select! {
                    status = child.wait() => match status {
                        Ok(status) => format!("ended ({status})"),
                        Err(e) => format!("was lost ({e})"),
                    },
                    () = stop.cancelled() => {
                        end(&mut child, identity.grace).await;
                        return;
                    }
                }
            }
            Err(e) => format!("could not be started ({e})"),
        };
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() >= GOOD_RUN {
            pause = FIRST_PAUSE;
        }
        journal.note(&format!("{pod}: {what} {ended}; it starts again in {pause:?}."));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Starts a program whose output goes to the journal.
fn start(command: Command, identity: &Identity, journal: &Arc<Journal>) -> io::Result<Child> {
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(journal.clone().follow(identity.pod.clone(), identity.source, stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(journal.clone().follow(identity.pod.clone(), identity.source, stderr));
    }
    Ok(child)
}

/// Asks the program and what it has started to end; insists after `grace`.
pub async fn end(child: &mut Child, grace: Duration) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else { return };
    let _ = killpg(group, Signal::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.start_kill();
        let _ = child.wait().await;
    } else {
        // What the program has left behind in its session goes with it.
        let _ = killpg(group, Signal::SIGKILL);
    }
}
