//! Unikernels as images of a registry: an archive for `docker load`, and the way back.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};

use serde::Deserialize;
use shoal_image::builder::{FileSpec, ImageSpec};
use shoal_model::spec::container::{ContainerConfig, Words};

use crate::error::ToolError;
use crate::inspect::Inspection;

/// Where the ELF file is in an image.
pub const IMAGE_PATH: &str = "/unikernel";
/// Label of an image's configuration that says what it is.
pub const LABEL_WORKLOAD: &str = "shoal.workload";
/// Value of [`LABEL_WORKLOAD`].
pub const WORKLOAD: &str = "unikernel";
/// Label with the version of the contract between guest and tender.
pub const LABEL_ABI: &str = "shoal.unikernel.abi";
/// Label with the devices, `name=kind` or `name=kind?` if optional, separated by commas.
pub const LABEL_DEVICES: &str = "shoal.unikernel.devices";
/// Label with the least heap in bytes.
pub const LABEL_HEAP: &str = "shoal.unikernel.heap-bytes-min";

/// Most bytes of a unikernel inside an archive: as many as the tender takes.
const UNIKERNEL_BYTES_MAX: u64 = shoal_tender::elf::FILE_BYTES_MAX as u64;
/// Most bytes of an archive's own list of contents: real ones have some hundred.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Writes an archive for `docker load`. Equal images give equal bytes. Answers the image's id.
///
/// # Errors
/// [`ToolError::Wrap`].
pub fn write(
    sealed: &[u8],
    about: &Inspection,
    name: &str,
    ports: &[String],
    out: impl Write,
) -> Result<String, ToolError> {
    let spec = spec(sealed, about, name, ports);
    let id = spec
        .write_archive(out)
        .map_err(|source| ToolError::Wrap { name: name.to_owned(), source: Box::new(source) })?;
    Ok(id.to_string())
}

fn spec(sealed: &[u8], about: &Inspection, name: &str, ports: &[String]) -> ImageSpec {
    let devices: Vec<String> = about
        .devices
        .iter()
        .map(|d| format!("{}={}{}", d.name, d.kind, if d.optional { "?" } else { "" }))
        .collect();
    let labels = [
        (LABEL_WORKLOAD, WORKLOAD.to_owned()),
        (LABEL_ABI, about.abi_version.to_string()),
        (LABEL_DEVICES, devices.join(",")),
        (LABEL_HEAP, about.heap_bytes_min.to_string()),
    ];
    let config = ContainerConfig {
        entrypoint: Some(Words::List(vec![IMAGE_PATH.to_owned()])),
        labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        exposed_ports: (!ports.is_empty())
            .then(|| ports.iter().map(|port| (port.clone(), serde_json::json!({}))).collect()),
        ..ContainerConfig::default()
    };
    let files = vec![FileSpec::bytes(IMAGE_PATH, 0o555, sealed)];
    ImageSpec { name: name.to_owned(), files, config }
}

/// What an archive says about one image.
#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// Takes the unikernel out of an archive as `docker save` writes it. `name` is for messages.
///
/// # Errors
/// [`ToolError::NotAUnikernel`].
pub fn extract(mut archive: impl Read + Seek, name: &str) -> Result<Vec<u8>, ToolError> {
    let wrong = |reason: String| ToolError::NotAUnikernel { name: name.to_owned(), reason };
    let unreadable = |error: std::io::Error| wrong(format!("it cannot be read ({error})"));
    let listed = find(&mut archive, Path::new("manifest.json"), MANIFEST_BYTES_MAX)
        .map_err(unreadable)?
        .ok_or_else(|| wrong("it has no 'manifest.json'".to_owned()))?;
    let listed: Vec<Listed> = serde_json::from_slice(&listed)
        .map_err(|error| wrong(format!("its 'manifest.json' is malformed ({error})")))?;
    let layers = listed.into_iter().next().map(|image| image.layers).unwrap_or_default();
    // An upper layer's file covers a lower one's.
    for layer in layers.iter().rev() {
        let Some(layer) =
            find(&mut archive, Path::new(layer), 2 * UNIKERNEL_BYTES_MAX).map_err(unreadable)?
        else {
            return Err(wrong(format!("its layer '{layer}' is missing")));
        };
        let inside = IMAGE_PATH.trim_start_matches('/');
        let mut layer = std::io::Cursor::new(layer);
        let file = find(&mut layer, Path::new(inside), UNIKERNEL_BYTES_MAX).map_err(unreadable)?;
        if let Some(file) = file {
            return Ok(file);
        }
    }
    Err(wrong(format!("no layer has '{IMAGE_PATH}'")))
}

/// The content of one file of an uncompressed archive.
fn find(
    archive: &mut (impl Read + Seek),
    path: &Path,
    bytes_max: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    archive.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let ordinary = entry.header().entry_type().is_file();
        if !ordinary || !same(&entry.path()?, path) {
            continue;
        }
        if entry.size() > bytes_max {
            return Err(std::io::Error::other("a file in it is too large"));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        return Ok(Some(content));
    }
    Ok(None)
}

/// Whether two paths mean the same within an archive: `./a` is `a`.
fn same(a: &Path, b: &Path) -> bool {
    fn plain(path: &Path) -> impl Iterator<Item = Component<'_>> {
        path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir))
    }
    plain(a).eq(plain(b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_list_of_contents_has_a_bound() {
        let says = |bytes: u64| {
            let mut header = tar::Header::new_ustar();
            header.set_path("manifest.json").unwrap();
            header.set_size(bytes);
            header.set_cksum();
            // What the header says is judged before anything behind it is read.
            let archive = std::io::Cursor::new(header.as_bytes().to_vec());
            extract(archive, "a.tar").unwrap_err().to_string()
        };
        let (most, more) = (says(MANIFEST_BYTES_MAX), says(MANIFEST_BYTES_MAX + 1));
        assert!(!most.contains("too large"), "{most}");
        assert!(more.contains("too large"), "{more}");
    }
}
