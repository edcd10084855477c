//! What we note per connection or request: opened once, written once when dropped, whichever way it ends.
use super::Telemetry;
use crate::error::ProxyError;
use postern_identity::Peer;
use std::net::SocketAddr;
/// Which journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction { Inbound, Outbound }
/// One line of the access log in the making. Dropping it writes it: access line, metrics, span, exactly once.
pub struct Record { }
#[allow(unused_variables, missing_docs)]
impl Record {
    /// Opens the record of a connection, as soon as its addresses are known. `telemetry.connection(..)` is the same.
    pub fn open(telemetry: &Telemetry, direction: Direction, downstream: SocketAddr, destination: SocketAddr) -> Self { todo!() }
    /// The record of one request on this connection: inherits addresses, peer, TLS facts. From the first request on, the connection itself writes no line.
    pub fn request(&mut self) -> Record { todo!() }
    pub fn set_peer(&mut self, peer: &Peer) { }
    /// Our own identity and workload name.
    pub fn set_own_identity(&mut self, id: &str) { }
    pub fn set_tls(&mut self, facts: &crate::tls::TlsFacts) { }
    /// `http/1.1`, `http/2`, `grpc`, `tcp`.
    pub fn set_protocol(&mut self, protocol: &'static str) { }
    /// Method, authority and path (without query) as decided on; reads `traceparent` from the headers, or starts a trace.
    pub fn set_request(&mut self, method: &http::Method, authority: &str, path: &str, headers: &http::HeaderMap) { }
    /// The `traceparent` to send on: our span as the parent of what follows.
    pub fn traceparent(&self) -> Option<http::HeaderValue> { None }
    /// The decision with its reason. A denial makes a decision id and remembers the facts for `GET /decisions/<id>`.
    pub fn set_decision(&mut self, decision: &postern_config::Decision<'_>, facts: &postern_config::Facts<'_>, policy_version: &str) { }
    /// Set by a denial.
    pub fn decision_id(&self) -> Option<&str> { None }
    pub fn set_upstream(&mut self, address: SocketAddr, identity: Option<&str>) { }
    /// Destination service host, for labels.
    pub fn set_service(&mut self, namespace: &str, name: &str, host: &str) { }
    pub fn set_status(&mut self, status: u16) { }
    pub fn set_grpc_status(&mut self, status: u16) { }
    pub fn set_error(&mut self, error: &ProxyError) { }
    /// From downstream.
    pub fn add_received(&mut self, bytes: u64) { }
    /// To downstream.
    pub fn add_sent(&mut self, bytes: u64) { }
    /// Called when we hand the request to the other side, and when its answer begins: the time in between is not ours.
    pub fn upstream_started(&mut self) { }
    pub fn upstream_answered(&mut self) { }
}
