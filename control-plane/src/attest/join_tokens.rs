//! Join tokens: 256 random bits for one pod, good for one certificate, kept as a hash only.

use super::Attested;
use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

/// More tokens than this are never waiting at once; the one that would expire first makes room.
const MAX_TOKENS: usize = if cfg!(test) { 1_000 } else { 100_000 };
/// So that a token is recognised where it leaked, by people and by secret scanners.
const PREFIX: &str = "pjt1.";

/// One-use tokens, hashed. Whoever reads this memory later cannot use them.
#[derive(Default)]
pub struct JoinTokens {
    // A lookup by hash tells nothing about the token by its timing.
    tokens: Mutex<HashMap<[u8; 32], Token>>,
}

struct Token {
    attested: Attested,
    expires: SystemTime,
    /// Kept until it expires, so that our log can tell a replay from a guess.
    used: bool,
}

/// Why a token was refused. `Display`, which the caller may see, is the same for all; `Debug` is for our log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// Never issued, or expired so long ago that it was forgotten.
    Unknown,
    /// Redeemed before.
    Used,
    /// Not redeemed in time.
    Expired,
}

impl fmt::Display for TokenRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the join token is unknown, used or expired; start the pod again to get a new one")
    }
}

impl std::error::Error for TokenRefusal {}

impl JoinTokens {
    /// A new token that stands for `attested` once, until `ttl` from `now`. The text is secret: hand it to the pod by
    /// file or inherited descriptor, never by argument.
    pub fn issue(&self, attested: Attested, ttl: Duration, now: SystemTime) -> String {
        let secret: [u8; 32] = rand::random();
        let text = secret.iter().fold(String::from(PREFIX), |text, byte| text + &format!("{byte:02x}"));
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, token| token.expires > now);
        }
        if tokens.len() >= MAX_TOKENS {
            let first = tokens.iter().min_by_key(|(_, token)| token.expires).map(|(hash, _)| *hash);
            if let Some(token) = first.and_then(|hash| tokens.remove(&hash)) {
                tracing::warn!(
                    pod = token.attested.pod,
                    limit = MAX_TOKENS,
                    "too many join tokens are waiting; the one that expires first was dropped"
                );
            }
        }
        let expires = now.checked_add(ttl).unwrap_or(now);
        tokens.insert(hash(&text), Token { attested, expires, used: false });
        text
    }

    /// Uses a token up and says for whom it stood.
    ///
    /// # Errors
    /// When it is unknown, used or expired; the caller cannot tell which.
    pub fn redeem(&self, token: &str, now: SystemTime) -> Result<Attested, TokenRefusal> {
        let result = match self.tokens.lock().get_mut(&hash(token)) {
            None => Err(TokenRefusal::Unknown),
            Some(token) if token.used => Err(TokenRefusal::Used),
            Some(token) if token.expires <= now => Err(TokenRefusal::Expired),
            Some(token) => {
                token.used = true;
                Ok(token.attested.clone())
            }
        };
        if let Err(refusal) = result {
            tracing::warn!(cause = ?refusal, "a join token was refused");
        }
        result
    }

    /// Whether [`JoinTokens::redeem`] would take it now. Only for who keeps tokens for others: nothing is used up.
    pub fn is_good(&self, token: &str, now: SystemTime) -> bool {
        self.tokens.lock().get(&hash(token)).is_some_and(|token| !token.used && token.expires > now)
    }

    /// Forgets all tokens whose time has passed. Call it now and then; nothing depends on it but memory.
    pub fn prune(&self, now: SystemTime) {
        self.tokens.lock().retain(|_, token| token.expires > now);
    }
}

/// Shows how many there are, and nothing of them.
impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinTokens({})", self.tokens.lock().len())
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn pod(name: &str) -> Attested {
        Attested { namespace: "shop".into(), service_account: "cart".into(), pod: name.into() }
    }

    /// Redeems a token issued at the start, `after` it.
    fn check(after: Duration, expected: Result<Attested, TokenRefusal>) {
        let tokens = JoinTokens::default();
        let token = tokens.issue(pod("a"), TTL, start());
        assert_eq!(tokens.is_good(&token, start() + after), expected.is_ok(), "{after:?}");
        assert_eq!(tokens.redeem(&token, start() + after), expected, "{after:?}");
        assert!(!tokens.is_good(&token, start() + after), "used, or never good");
    }

    #[test]
    fn a_token_is_good_until_its_time_has_come() {
        check(Duration::ZERO, Ok(pod("a")));
        check(TTL - Duration::from_secs(1), Ok(pod("a")));
        check(TTL, Err(TokenRefusal::Expired));
        check(TTL * 100, Err(TokenRefusal::Expired));
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = JoinTokens::default();
        let (first, second) = (tokens.issue(pod("a"), TTL, start()), tokens.issue(pod("b"), TTL, start()));
        assert_ne!(first, second);
        assert_eq!(tokens.redeem(&first, start()), Ok(pod("a")));
        assert_eq!(tokens.redeem(&first, start()), Err(TokenRefusal::Used));
        assert_eq!(tokens.redeem(&second, start()), Ok(pod("b")));
    }

    #[test]
    fn a_token_redeemed_by_many_at_once_is_good_for_exactly_one() {
        let tokens = JoinTokens::default();
        let token = tokens.issue(pod("a"), TTL, start());
        let good: usize = std::thread::scope(|scope| {
            let redeemers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| usize::from(tokens.redeem(&token, start()).is_ok()))).collect();
            redeemers.into_iter().map(|redeemer| redeemer.join().unwrap()).sum()
        });
        assert_eq!(good, 1);
    }

    #[test]
    fn refusals_look_the_same_from_outside() {
        let tokens = JoinTokens::default();
        let token = tokens.issue(pod("a"), TTL, start());
        tokens.redeem(&token, start()).unwrap();
        let used = tokens.redeem(&token, start()).unwrap_err();
        let unknown = tokens.redeem("pjt1.guess", start()).unwrap_err();
        assert_ne!(used, unknown);
        assert_eq!(used.to_string(), unknown.to_string());
        assert_eq!(tokens.redeem("", start()), Err(TokenRefusal::Unknown));
        assert_eq!(tokens.redeem(&token.to_uppercase(), start()), Err(TokenRefusal::Unknown));
    }

    #[test]
    fn a_token_has_256_bits_and_leaves_no_trace_in_debug() {
        let tokens = JoinTokens::default();
        let token = tokens.issue(pod("a"), TTL, start());
        assert_eq!(token.len(), PREFIX.len() + 64);
        assert_eq!(format!("{tokens:?}"), "JoinTokens(1)");
        tokens.prune(start() + TTL);
        assert_eq!(format!("{tokens:?}"), "JoinTokens(0)");
    }

    #[test]
    fn the_number_of_waiting_tokens_is_bounded() {
        let tokens = JoinTokens::default();
        let first = tokens.issue(pod("first"), TTL, start());
        for _ in 0..MAX_TOKENS {
            tokens.issue(pod("x"), TTL * 2, start());
        }
        assert_eq!(format!("{tokens:?}"), format!("JoinTokens({MAX_TOKENS})"));
        assert_eq!(
            tokens.redeem(&first, start()),
            Err(TokenRefusal::Unknown),
            "the first to expire made room"
        );
        // Once they have expired, all make room.
        let last = tokens.issue(pod("last"), TTL, start() + TTL * 3);
        assert_eq!(format!("{tokens:?}"), "JoinTokens(1)");
        assert_eq!(tokens.redeem(&last, start() + TTL * 3), Ok(pod("last")));
    }
}
