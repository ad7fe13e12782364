//! What `run`, `inspect` and `bench` are given: a project, an ELF file, an archive, or the name of
//! an image.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::archive;
use crate::cargo;
use crate::daemon;
use crate::error::ToolError;

/// First bytes of an ELF file.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The ELF file's bytes.
    pub bytes: Vec<u8>,
    /// The ELF file, if it is one of its own: several instances then share its pages.
    pub path: Option<PathBuf>,
}

/// The image that `name` means. A project is built.
///
/// # Errors
/// Those of what it means; [`ToolError::NoSource`] if nothing.
pub fn resolve(name: &str) -> Result<Image, ToolError> {
    let path = Path::new(name);
    if path.join("Cargo.toml").is_file() {
        let built = cargo::build(path, &cargo::Options::default())?;
        return Ok(Image { bytes: built.sealed, path: Some(built.path) });
    }
    if path.is_file() {
        return from_file(path, name);
    }
    let mut archive =
        tempfile::tempfile().map_err(ToolError::file("make", &std::env::temp_dir()))?;
    let socket = daemon::socket();
    daemon::save(&socket, name, &mut archive).map_err(|source| ToolError::NoSource {
        name: name.to_owned(),
        socket,
        source: Some(source),
    })?;
    Ok(Image { bytes: archive::extract(archive, name)?, path: None })
}

fn from_file(path: &Path, name: &str) -> Result<Image, ToolError> {
    let mut file = File::open(path).map_err(ToolError::file("open", path))?;
    let mut magic = [0; 4];
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *ELF_MAGIC;
    if is_elf {
        let bytes = fs::read(path).map_err(ToolError::file("read", path))?;
        let path = fs::canonicalize(path).map_err(ToolError::file("find", path))?;
        return Ok(Image { bytes, path: Some(path) });
    }
    file.seek(SeekFrom::Start(0)).map_err(ToolError::file("read", path))?;
    Ok(Image { bytes: archive::extract(file, name)?, path: None })
}
