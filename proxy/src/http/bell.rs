//! What calls the task of an HTTP/1 connection to an upstream, and does not call it for nothing.
//!
//! hyper calls a connection whenever somebody takes a piece of the answer's body, since there may be room for the next one. After the
//! last piece of a body with a length there is none: the connection has read all of it before, and looks at its sockets and channels in
//! vain, which is a twentieth of what a small answer costs. So that call is left out; all others go through.

use futures_util::task::AtomicWaker;
use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
};

/// One for each connection. All of it happens on one thread; a waker has to be made for more.
#[derive(Debug, Default)]
pub struct Bell {
    task: AtomicWaker,
    is_held: AtomicBool,
    has_rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_held.load(Ordering::Relaxed) {
            self.has_rung.store(true, Ordering::Relaxed);
        } else {
            self.task.wake();
        }
    }
}

impl Bell {
    /// Runs `connection`, which is called by this bell and by nothing else.
    pub async fn run<F: Future>(self: Arc<Self>, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        let waker = Waker::from(self.clone());
        poll_fn(|cx| {
            self.task.register(cx.waker());
            connection.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await
    }

    /// Takes something from the connection: `take` says what, and whether that was the last of it. A call by that is left out then, and
    /// only late otherwise.
    pub fn quietly<T>(&self, take: impl FnOnce() -> (T, bool)) -> T {
        self.is_held.store(true, Ordering::Relaxed);
        let (taken, is_last) = take();
        self.is_held.store(false, Ordering::Relaxed);
        if self.has_rung.swap(false, Ordering::Relaxed) && !is_last {
            self.task.wake();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::{cell::RefCell, task::Poll};

    #[derive(Default)]
    struct Calls(AtomicBool);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_the_call_for_the_last_piece_is_left_out() {
        let (bell, calls) = (Arc::<Bell>::default(), Arc::<Calls>::default());
        let kept = RefCell::new(None::<Waker>);
        let connection = poll_fn(|cx| {
            *kept.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let mut running = pin!(bell.clone().run(connection));
        let task = Waker::from(calls.clone());
        // Whether something calls the task, which then runs.
        let mut calls_it = |something: &dyn Fn()| {
            assert!(running.as_mut().poll(&mut Context::from_waker(&task)).is_pending());
            something();
            calls.0.swap(false, Ordering::Relaxed)
        };
        let ring = || {
            if let Some(waker) = &*kept.borrow() {
                waker.wake_by_ref();
            }
        };
        assert!(calls_it(&ring), "whatever else calls it");
        for (is_last, expected) in [(false, true), (true, false), (false, true)] {
            assert_eq!(calls_it(&|| bell.quietly(|| (ring(), is_last))), expected, "last: {is_last}");
        }
        assert!(!calls_it(&|| bell.quietly(|| ((), false))), "nobody has rung");
        assert!(calls_it(&ring), "it is held no longer than the taking takes");
    }
}
