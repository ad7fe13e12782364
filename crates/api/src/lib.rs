//! The Docker Engine API: routes, wire conversions, streams; merges cluster and node.
//!
//! This crate decides nothing. It reads a request, asks a backend, and writes the answer in exactly
//! the JSON that Docker's clients expect. What it needs from the rest of the house are the narrow
//! traits in [`backend`]; [`adapter`] implements them for the real engine, image store and manager.
//!
//! Begin reading at [`routes`] (every route, one line each), [`server`] (how a request travels),
//! [`decode`] (how bodies are read as Go reads them), [`render`] (objects of the cluster as JSON).

#![forbid(unsafe_code)]

pub mod adapter;
pub mod anywhere;
pub mod backend;
pub mod decode;
pub mod error;
pub mod handlers;
pub mod http;
pub mod render;
pub mod routes;
pub mod server;
