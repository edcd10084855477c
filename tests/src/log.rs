//! The access log of one sidecar, as it comes in.

use serde_json::Value;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// All lines so far, and a way to wait for one.
#[derive(Clone)]
pub struct AccessLog {
    lines: Arc<Mutex<Vec<Value>>>,
    grown: watch::Receiver<usize>,
}

impl AccessLog {
    /// Collects what arrives on the channel.
    pub fn collect(mut arriving: mpsc::Receiver<String>) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (tell, grown) = watch::channel(0);
        let kept = lines.clone();
        tokio::spawn(async move {
            while let Some(line) = arriving.recv().await {
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|e| panic!("an access-log line is not one JSON object: {e}: {line}"));
                kept.lock().unwrap().push(value);
                tell.send_modify(|n| *n += 1);
            }
        });
        Self { lines, grown }
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// Forgets every line so far: many of them would be growth where memory is measured.
    pub fn forget(&self) {
        *self.lines.lock().unwrap() = Vec::new();
    }

    /// Resolves when there are this many lines; fails after five seconds.
    pub async fn at_least(&self, number: usize) {
        let mut grown = self.grown.clone();
        let enough = async {
            while self.lines.lock().unwrap().len() < number {
                let _ = grown.changed().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), enough).await.is_err() {
            panic!("fewer than {number} access-log lines within 5 s: {:#?}", self.lines());
        }
    }

    /// Resolves when the lines so far satisfy `enough`; fails after five seconds.
    pub async fn until(&self, what: &str, enough: impl Fn(&[Value]) -> bool) {
        let mut grown = self.grown.clone();
        let waiting = async {
            while !enough(&self.lines.lock().unwrap()) {
                let _ = grown.changed().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), waiting).await.is_err() {
            panic!("no access-log line {what} within 5 s: {:#?}", self.lines());
        }
    }

    /// The first line, past or future, that has all these fields with these values; fails after five seconds.
    pub async fn next_with(&self, fields: &[(&str, Value)]) -> Value {
        self.next_matching(&format!("{fields:?}"), |line| fields.iter().all(|(k, v)| line.get(k) == Some(v)))
            .await
    }

    /// The first line, past or future, that `wanted` accepts; fails after five seconds with all that was seen.
    pub async fn next_matching(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut grown = self.grown.clone();
        let search = async {
            loop {
                grown.borrow_and_update();
                if let Some(line) = self.lines.lock().unwrap().iter().find(|line| wanted(line)) {
                    return line.clone();
                }
                if grown.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(5), search).await {
            Ok(line) => line,
            Err(_) => {
                let seen: Vec<String> = self.lines().iter().map(Value::to_string).collect();
                panic!("no access-log line {what} within 5 s; seen:\n{}", seen.join("\n"))
            }
        }
    }
}
