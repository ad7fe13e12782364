//! What of the store is damaged: noted once, loudly, and forgotten when it is mended.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_model::fault::report;

use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::index::Index;

/// What a note is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The index: read from its copy, or made anew.
    Index,
    /// The copy of the index.
    Copy,
    /// The removal of what nobody needs.
    Cleaning,
    /// A directory of the store.
    Directory(PathBuf),
    /// The configuration of an image.
    Configuration(ImageId),
    /// An unpacked layer.
    Layer(ChainId),
    /// The archive that a layer came as.
    Archive(Digest),
}

/// The notes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damage(BTreeMap<Part, String>);

impl Damage {
    /// Notes that a part is damaged, and says so in the log.
    pub(crate) fn note(&mut self, part: Part, error: &ImageError) {
        let text = report(error);
        if self.0.get(&part) != Some(&text) {
            tracing::error!(damage = %text, "the image store is damaged");
        }
        self.0.insert(part, text);
    }

    /// Forgets a part that is whole.
    pub(crate) fn mended(&mut self, part: &Part) {
        if let Some(text) = self.0.remove(part) {
            tracing::info!(damage = %text, "the image store is mended");
        }
    }

    /// Notes a failure, or forgets the one before.
    pub(crate) fn judge(&mut self, part: Part, result: Result<(), ImageError>) {
        match result {
            Ok(()) => self.mended(&part),
            Err(error) => self.note(part, &error),
        }
    }

    pub(crate) fn has(&self, part: &Part) -> bool {
        self.0.contains_key(part)
    }

    /// The notes about what `index` still needs.
    pub(crate) fn texts(&self, index: &Index) -> Vec<String> {
        let used = index.used_chains();
        let needed = |part: &Part| match part {
            Part::Configuration(id) => index.images.contains_key(id),
            Part::Layer(chain) => used.contains(chain),
            Part::Archive(blob) => {
                let of = |chain| index.layers.get(chain).is_some_and(|l| l.blob == *blob);
                used.iter().any(of)
            }
            Part::Index | Part::Copy | Part::Cleaning | Part::Directory(_) => true,
        };
        self.0.iter().filter(|(part, _)| needed(part)).map(|(_, text)| text.clone()).collect()
    }
}
