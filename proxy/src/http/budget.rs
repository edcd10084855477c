//! How much may be repeated: one request in five, so that repeats never become the load that keeps a service down.

use std::cell::Cell;

/// Tokens of one worker, in hundredths of a repeat.
#[derive(Debug)]
pub struct Budget(Cell<u32>);

/// What each request pays in: 20 % of a repeat (Linkerd's default).
const DEPOSIT: u32 = 20;
const PRICE: u32 = 100;
/// At most, and at the start: a hundred repeats, so that one dead endpoint costs no request.
const FULL: u32 = 100 * PRICE;

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(FULL))
    }
}

impl Budget {
    /// A request came.
    pub fn deposit(&self) {
        self.0.set((self.0.get() + DEPOSIT).min(FULL));
    }

    /// Pays for a repeat, when there is enough.
    pub fn withdraw(&self) -> bool {
        let left = self.0.get().checked_sub(PRICE);
        left.is_some_and(|left| {
            self.0.set(left);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn one_request_in_five_may_be_repeated_and_a_reserve_is_bounded() {
        let budget = Budget::default();
        let spend = || (0..100_000).take_while(|_| budget.withdraw()).count();
        assert_eq!(spend(), 100);
        assert!(!budget.withdraw());
        (0..50).for_each(|_| budget.deposit());
        assert_eq!(spend(), 10);
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!(spend(), 100);
    }
}
