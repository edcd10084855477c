//! Addresses of names, by the system's resolver: a blocking call, which never runs on a worker.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// Calls of the resolver at the same time: a resolver that hangs must not take all threads for blocking work.
const AT_ONCE: usize = 16;
static TURNS: std::sync::LazyLock<Arc<Semaphore>> =
    std::sync::LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));

/// The addresses of `name`, each once, sorted; never an unspecified or multicast one, which nobody can be called at.
///
/// # Errors
/// There are none, or no answer within `patience`.
pub async fn addresses(name: &str, patience: Duration) -> io::Result<Vec<IpAddr>> {
    let name = name.to_owned();
    let answer = async {
        let turn = TURNS.clone().acquire_owned().await.map_err(io::Error::other)?;
        tokio::task::spawn_blocking(move || {
            // Held until the resolver is done, also when nobody waits any more.
            let _turn = turn;
            let found = (name.as_str(), 0).to_socket_addrs()?;
            let mut addresses: Vec<IpAddr> = found
                .map(|address| address.ip().to_canonical())
                .filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            Ok::<_, io::Error>(addresses)
        })
        .await
        .map_err(io::Error::other)?
    };
    let late = || {
        io::Error::new(io::ErrorKind::TimedOut, format!("the resolver did not answer within {patience:?}"))
    };
    match tokio::time::timeout(patience, answer).await.map_err(|_| late())?? {
        none if none.is_empty() => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")),
        addresses => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test]
    async fn a_name_has_addresses_or_an_error_in_time() {
        let patience = Duration::from_secs(10);
        assert_eq!(addresses("127.0.0.1", patience).await.unwrap(), [IpAddr::from([127, 0, 0, 1])]);
        assert!(addresses("localhost", patience).await.unwrap().iter().all(IpAddr::is_loopback));
        assert!(addresses("0.0.0.0", patience).await.is_err());
        let late = addresses("localhost", Duration::ZERO).await;
        assert!(late.is_ok() || late.unwrap_err().kind() == io::ErrorKind::TimedOut);
    }
}
