//! Small files that survive a crash, and reads that nobody can make endless.
//!
//! [`replace`] is the one way in which Shoal writes a file that a later daemon reads: after a crash
//! there is the old text or the new one, never half of either, and once it has returned, the new
//! one stays. [`replace_json_in_spare`] does it in space that it has from the time before, for what
//! a full disk must not refuse. [`read`] and [`read_beneath`] are for files that somebody else may
//! have made: regular ones only, and no more bytes than the caller allows, so that a FIFO cannot
//! hold the reader and `/dev/zero` cannot fill its memory.
//!
//! Everything here blocks. It decides nothing: formats, and what to do about damage, are the
//! caller's.

#![forbid(unsafe_code)]

mod read;
mod spare;
mod write;

pub use read::{read, read_beneath, read_json};
pub use spare::replace_json_in_spare;
pub use write::{PRIVATE_DIR, PRIVATE_FILE, make_private_dir, replace, replace_json, sync_dir};
