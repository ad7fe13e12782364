//! What the store knows: names, images, layers. Kept in one file that is replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_model::time::Timestamp;

use crate::digest::{ChainId, DiffId, Digest, ImageId};
use crate::reference::Reference;

/// The version of the file that this program writes and reads.
pub(crate) const INDEX_VERSION: u32 = 1;

/// The content of `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    pub version: u32,
    /// Every tag and every repository digest, normal form.
    pub names: BTreeMap<Reference, ImageId>,
    pub images: BTreeMap<ImageId, ImageRecord>,
    pub layers: BTreeMap<ChainId, LayerRecord>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: INDEX_VERSION,
            names: BTreeMap::new(),
            images: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Its layers, bottom first.
    pub chains: Vec<ChainId>,
    /// When a name was last given to it.
    pub tagged: Timestamp,
    /// Deleted by force while a stopped container uses it: nobody sees it, its layers stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// One unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Its directory below `l/`.
    pub directory: String,
    pub diff: DiffId,
    /// Bytes of its files.
    pub size: u64,
    /// Bytes of its uncompressed archive.
    pub archive_size: u64,
    /// The archive as it came.
    pub blob: Digest,
    pub blob_size: u64,
    pub media_type: String,
}

impl Index {
    /// The names of an image, normal form, ordered.
    pub(crate) fn names_of(&self, id: &ImageId) -> Vec<Reference> {
        self.names.iter().filter(|(_, named)| *named == id).map(|(name, _)| name.clone()).collect()
    }

    /// What a user calls an image: its first name, or the beginning of its id.
    pub(crate) fn called(&self, id: &ImageId) -> String {
        let name = self.names.iter().find(|(_, named)| *named == id);
        name.map_or_else(|| id.short(), |(name, _)| name.familiar())
    }

    /// A visible image by what a user wrote for it, if it is here.
    pub(crate) fn find(&self, word: &str) -> Option<ImageId> {
        if let Some(id) = Digest::parse(word).or_else(|| Digest::from_hex(word))
            && self.visible(&id)
        {
            return Some(id);
        }
        if let Ok(name) = Reference::parse(word)
            && let Some(id) = self.named(&name)
        {
            return Some(id);
        }
        self.by_prefix(word)
    }

    /// The image with exactly this name; of a name with a digest, only the digest counts.
    pub(crate) fn named(&self, name: &Reference) -> Option<ImageId> {
        let key = lookup_key(name);
        if let Some(id) = self.names.get(&key) {
            return Some(*id);
        }
        // A digest may also be an image's own id: Docker's clients write `name@<id>` for it.
        let id = name.digest()?;
        let same_repository = |other: &Reference| other.repository() == name.repository();
        (self.visible(id) && self.names_of(id).iter().any(same_repository)).then_some(*id)
    }

    fn by_prefix(&self, word: &str) -> Option<ImageId> {
        let prefix = word.strip_prefix("sha256:").unwrap_or(word);
        if prefix.is_empty() || prefix.bytes().any(|b| !b.is_ascii_hexdigit()) {
            return None;
        }
        let mut fitting =
            self.images.iter().filter(|(id, image)| !image.hidden && id.hex().starts_with(prefix));
        let (id, _) = fitting.next()?;
        // Two images: it names neither.
        fitting.next().is_none().then_some(*id)
    }

    pub(crate) fn visible(&self, id: &ImageId) -> bool {
        self.images.get(id).is_some_and(|image| !image.hidden)
    }

    /// Bytes of the files of an image.
    pub(crate) fn size_of(&self, image: &ImageRecord) -> u64 {
        image.chains.iter().filter_map(|chain| self.layers.get(chain)).map(|l| l.size).sum()
    }

    /// The layers that images need.
    pub(crate) fn used_chains(&self) -> BTreeSet<ChainId> {
        self.images.values().flat_map(|image| image.chains.iter().copied()).collect()
    }
}

/// The key under which a name is kept: with a digest, the tag does not count.
pub(crate) fn lookup_key(name: &Reference) -> Reference {
    match name.digest() {
        Some(digest) => name.with_digest(*digest),
        None => name.clone().or_latest(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn index(names: &[(&str, &[u8])]) -> Index {
        let mut index = Index::default();
        for (name, content) in names {
            let id = Digest::of(content);
            let record = ImageRecord { chains: vec![], tagged: Timestamp(1), hidden: false };
            index.images.insert(id, record);
            index.names.insert(lookup_key(&Reference::parse(name).unwrap()), id);
        }
        index
    }

    #[test]
    fn images_are_found_by_name_id_and_prefix() {
        let index = index(&[("a", b"1"), ("b:x", b"2")]);
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(index.find("a"), Some(one));
        assert_eq!(index.find("docker.io/library/a:latest"), Some(one));
        assert_eq!(index.find("b"), None);
        assert_eq!(index.find("b:x"), Some(two));
        assert_eq!(index.find(&two.to_string()), Some(two));
        assert_eq!(index.find(&two.hex()), Some(two));
        assert_eq!(index.find(&two.short()), Some(two));
        assert_eq!(index.find(&format!("sha256:{}", one.short())), Some(one));
        assert_eq!(index.find("zz"), None);
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let manifest = Digest::of(b"manifest");
        let mut index = index(&[("a:1", b"1")]);
        let name = Reference::parse(&format!("a@{manifest}")).unwrap();
        index.names.insert(name, Digest::of(b"1"));
        assert_eq!(index.find(&format!("a:other@{manifest}")), Some(Digest::of(b"1")));
        assert_eq!(index.find(&format!("b@{manifest}")), None);
    }

    #[test]
    fn the_file_reads_back() {
        let before = index(&[("a", b"1"), ("b:x", b"2")]);
        let text = serde_json::to_string(&before).unwrap();
        let after: Index = serde_json::from_str(&text).unwrap();
        assert_eq!((after.names, after.images), (before.names, before.images));
    }
}
