//! Images of this node: names, content, layers, archives, registries.
//!
//! [`store::ImageStore`] is the whole service. Blobs are kept under their SHA-256 digest, layers
//! are unpacked once for each chain of layers into directories that overlayfs can mount as they are
//! (whiteouts as character devices 0/0, opaque directories by extended attribute), names and
//! records live in one small index file that is replaced atomically. What fails leaves nothing
//! behind. What is damaged is named, mended from what else is there, and takes only its own images
//! along; a store always opens.
//!
//! This crate starts no containers, mounts nothing, reads no environment, and trusts no byte that
//! comes from an archive or a registry: digests are verified, entries of a layer cannot leave it.
//!
//! Begin reading at [`store`], then `ingest` (how content gets in) and `unpack` (how a layer
//! becomes a directory), and `opening` (what a start makes of what it finds).

#![forbid(unsafe_code)]

mod archive;
pub mod builder;
mod compression;
pub mod config;
mod damage;
pub mod digest;
pub mod error;
mod files;
pub mod header;
mod index;
mod ingest;
mod lock;
mod opening;
pub mod progress;
mod query;
mod rebuild;
pub mod reference;
pub mod registry;
mod removal;
pub mod store;
mod unpack;
pub mod view;
