//! Memory for what is on its way: while there is none, bodies of both directions wait where they come from.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Sleep;

/// Between two looks whether a body may go on that waits for memory.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether there is memory for more of the bodies that are on their way. One for each worker, so a cell is enough.
#[derive(Debug, Default)]
pub struct Headroom {
    is_full: Cell<bool>,
}

impl Headroom {
    /// While it is full nothing more is read of any body: what the other side does not take then waits where it comes from.
    pub fn set_full(&self, is_full: bool) {
        self.is_full.set(is_full);
    }
}

/// Where one body waits.
#[derive(Debug, Default)]
pub struct Gate {
    headroom: Rc<Headroom>,
    // While there is none.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    /// For one body.
    pub fn new(headroom: Rc<Headroom>) -> Self {
        Self { headroom, pause: None }
    }

    /// Ready when more of the body may be read.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.headroom.is_full.get() {
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::future::poll_fn;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_while_memory_is_full_and_goes_on_soon_after() {
        let headroom = Rc::<Headroom>::default();
        let mut gates = [Gate::new(headroom.clone()), Gate::new(headroom.clone())];
        let began = Instant::now();
        for gate in &mut gates {
            poll_fn(|cx| gate.poll(cx)).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "there is room");

        headroom.set_full(true);
        for gate in &mut gates {
            let waited = tokio::time::timeout(PAUSE * 100, poll_fn(|cx| gate.poll(cx))).await;
            assert!(waited.is_err(), "it went on without room");
        }
        headroom.set_full(false);
        let again = Instant::now();
        for gate in &mut gates {
            poll_fn(|cx| gate.poll(cx)).await;
        }
        assert!(again.elapsed() <= PAUSE, "woken by the pause, by nothing else: {:?}", again.elapsed());
    }
}
