//! Archives of images: `docker save`, `docker load`, `docker import`.

pub(crate) mod changes;
pub(crate) mod import;
pub(crate) mod load;
pub(crate) mod manifest;
pub(crate) mod parts;
pub(crate) mod save;
