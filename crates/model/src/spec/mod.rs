//! Specs: what a user asks for, in the JSON shape of the Docker Engine API.
//!
//! A client must read back what it sent, so every field is optional, absent stays absent, and
//! fields that Shoal does not know are kept in `extra`. Defaults are applied by accessor methods
//! (`replicas()`, `stop_grace_period()`…), never by writing them into the spec.

pub mod cluster;
pub mod container;
pub mod generic;
pub mod network;
pub mod node;
pub mod payload;
pub mod service;
pub mod task;

/// Fields that Shoal does not know, kept so that nothing a client sent is lost.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// String to string, ordered so that equal maps print equally.
pub type StringMap = std::collections::BTreeMap<String, String>;
