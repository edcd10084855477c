//! News that every connection of a worker has to hear: the way down, and trust that was lost. Told without a lock that workers would
//! share, and heard by one comparison, since a connection listens whenever it is polled.

use crate::drain::{self, Side};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// How far one side of a sidecar is on its way down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not on it.
    #[default]
    Up,
    /// Connections end with the answer that they are at; idle ones stay, since a request may be on its way.
    Leaving,
    /// The listener is closed, and idle connections go.
    Closing,
    /// No time is left.
    Over,
}

/// What one worker tells its connections.
#[derive(Debug, Default)]
pub struct News {
    told: Cell<u64>,
    phase: Cell<Phase>,
    hearers: RefCell<Slab<Waker>>,
}

impl News {
    /// How far the way down is.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Follows the drain of one side to its end.
    pub async fn follow(self: Rc<Self>, drain: drain::Watch, side: Side) {
        drain.started().await;
        self.enter(Phase::Leaving);
        drain.closed(side).await;
        self.enter(Phase::Closing);
        drain.over().await;
        self.enter(Phase::Over);
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.tell();
    }

    /// Has all who wait in [`News::until`] look again.
    pub fn tell(&self) {
        self.told.set(self.told.get().wrapping_add(1));
        for (_, hearer) in &*self.hearers.borrow() {
            hearer.wake_by_ref();
        }
    }

    /// Resolves once `is_so`, which is asked now and again at all news.
    pub async fn until(&self, is_so: impl Fn() -> bool) {
        let mut ear = Ear { news: self, heard: None };
        poll_fn(|cx| if ear.hears(cx) && is_so() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

struct Ear<'n> {
    news: &'n News,
    // What was told last, and the place among the hearers.
    heard: Option<(u64, usize)>,
}

impl Ear<'_> {
    fn hears(&mut self, cx: &Context<'_>) -> bool {
        let told = self.news.told.get();
        let mut hearers = self.news.hearers.borrow_mut();
        let Some((heard, place)) = self.heard else {
            self.heard = Some((told, hearers.insert(cx.waker().clone())));
            return true;
        };
        if let Some(waker) = hearers.get_mut(place) {
            waker.clone_from(cx.waker());
        }
        self.heard = Some((told, place));
        heard != told
    }
}

impl Drop for Ear<'_> {
    fn drop(&mut self) {
        if let Some((_, place)) = self.heard {
            self.news.hearers.borrow_mut().try_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
        time::Duration,
    };

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_by_news_and_asks_only_then() {
        let (news, asked, is_so) = (News::default(), Cell::new(0), Cell::new(false));
        let ask = || {
            asked.set(asked.get() + 1);
            is_so.get()
        };
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        {
            let mut waiting = pin!(news.until(ask));
            assert!(waiting.as_mut().poll(cx).is_pending());
            assert!(waiting.as_mut().poll(cx).is_pending());
            assert_eq!(asked.get(), 1, "nothing was told");
            news.tell();
            assert!(woken.0.swap(false, Ordering::Relaxed));
            assert!(waiting.as_mut().poll(cx).is_pending());
            assert_eq!(asked.get(), 2);
            is_so.set(true);
            news.tell();
            assert!(waiting.as_mut().poll(cx).is_ready());
        }
        assert!(news.hearers.borrow().is_empty(), "nobody is remembered");
        assert!(pin!(news.until(ask)).poll(cx).is_ready());
        assert!(news.hearers.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_way_down_is_told_step_by_step() {
        let (trigger, watch) = drain::channel();
        let news = Rc::new(News::default());
        let follow = news.clone().follow(watch, Side::Inbound);
        let steps = async {
            assert_eq!(news.phase(), Phase::Up);
            trigger.start(Duration::from_secs(30));
            news.until(|| news.phase() >= Phase::Leaving).await;
            assert_eq!(news.phase(), Phase::Leaving);
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(news.phase(), Phase::Closing);
            news.until(|| news.phase() == Phase::Over).await;
        };
        tokio::join!(follow, steps);
    }
}
