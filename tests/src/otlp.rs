//! A receiver of OTLP made of the official protocol definitions by another language (`tests/clients/otlp_receiver.py`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use crate::workload_api::{Client, python};
use postern_proxy::bootstrap::otel::{Exporter, Protocol, Signal};
use serde_json::Value;

pub struct Receiver {
    pub client: Client,
    pub ports: Value,
}

impl Receiver {
    /// `None` where there is no Python; `mode` is one of the script's.
    pub async fn start(mode: &str) -> Option<Self> {
        Self::start_with(&[mode]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Option<Self> {
        let mut client = Client::script(&python()?, "otlp_receiver.py", arguments);
        let ports = client.says().await;
        Some(Self { client, ports })
    }

    pub fn exporter(&self, signal: Signal, protocol: Protocol) -> Exporter {
        let port = &self.ports[if protocol == Protocol::Grpc { "grpc" } else { "http" }];
        Exporter::new(signal, &format!("http://127.0.0.1:{port}"), protocol).unwrap()
    }

    /// The next of a signal (`span`, `metrics`, `log`) that `is_it`.
    pub async fn next(&mut self, signal: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let said = self.client.says().await;
            if said["signal"] == signal && is_it(&said) {
                return said;
            }
        }
    }
}
