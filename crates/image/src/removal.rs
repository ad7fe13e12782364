//! Names given and taken away; images deleted. The rules and texts are Docker's.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_model::filter::Filters;
use shoal_model::id::ContainerId;

use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::index::{Index, lookup_key};
use crate::reference::Reference;
use crate::store::{Hold, ImageStore, Inner, RemoveOptions};
use crate::view::{Deleted, Pruned};

impl ImageStore {
    /// Gives an image one more name.
    ///
    /// # Errors
    /// As [`Self::resolve`]; [`ImageError::TagWithDigest`].
    pub async fn tag(&self, word: &str, target: &str) -> Result<(), ImageError> {
        let id = self.resolve(word)?;
        let target = Reference::parse(target)?;
        if target.digest().is_some() {
            return Err(ImageError::TagWithDigest);
        }
        self.blocking(move |inner| {
            let now = (inner.options.clock)();
            inner.change(|index| {
                let image = index.images.get_mut(&id);
                let gone = || ImageError::NoSuchImage { reference: id.to_string() };
                image.ok_or_else(gone)?.tagged = now;
                index.names.insert(lookup_key(&target), id);
                Ok(())
            })
        })
        .await
    }

    /// Takes a name away, and deletes the image with its last one. Given an id, deletes the image
    /// with all its names.
    ///
    /// # Errors
    /// As [`Self::resolve`]; conflicts in Docker's words.
    pub async fn remove(
        &self,
        word: &str,
        options: RemoveOptions,
    ) -> Result<Vec<Deleted>, ImageError> {
        let id = self.resolve(word)?;
        let word = word.to_owned();
        self.blocking(move |inner| remove(inner, &word, &id, options.force)).await
    }

    /// Deletes images that nothing uses: those without a tag, or with `dangling=false` tagged ones
    /// too.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn prune(&self, filters: &Filters) -> Result<Pruned, ImageError> {
        filters.only(PRUNE_FILTERS)?;
        let all = filters.flag("dangling")? == Some(false);
        let candidates = self.select(filters, (!all).then_some(true))?;
        self.blocking(move |inner| {
            let mut deleted = Vec::new();
            let mut freed = 0;
            for image in candidates {
                if inner.state().holders(&image.id).next().is_some() {
                    continue;
                }
                let before = stored(inner);
                deleted.extend(remove(inner, &image.id.to_string(), &image.id, true)?);
                freed += before.saturating_sub(stored(inner));
            }
            let images_deleted = (!deleted.is_empty()).then_some(deleted);
            Ok(Pruned { images_deleted, space_reclaimed: freed })
        })
        .await
    }
}

/// Filters of prunes.
const PRUNE_FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

/// Bytes of all unpacked layers.
fn stored(inner: &Inner) -> u64 {
    inner.state().index.layers.values().map(|layer| layer.size).sum()
}

/// What stands against a removal, and how hard.
struct Users {
    running: Option<ContainerId>,
    stopped: Option<ContainerId>,
}

impl Users {
    fn of(inner: &Inner, id: &ImageId) -> Self {
        let state = inner.state();
        let find = |running: bool| {
            let fits = |(container, hold): (&ContainerId, &Hold)| {
                (hold.running == running).then(|| container.clone())
            };
            state.holders(id).find_map(fits)
        };
        Self { running: find(true), stopped: find(false) }
    }

    fn any(&self) -> Option<&ContainerId> {
        self.running.as_ref().or(self.stopped.as_ref())
    }
}

fn short(container: &ContainerId) -> String {
    container.as_str().chars().take(12).collect()
}

fn remove(
    inner: &Arc<Inner>,
    word: &str,
    id: &ImageId,
    force: bool,
) -> Result<Vec<Deleted>, ImageError> {
    let users = Users::of(inner, id);
    let by_id = is_id(word, id);
    let (mut answer, gone) = inner.change_freeing(|index| {
        let names = index.names_of(id);
        let mut answer = Vec::new();
        if by_id {
            if is_single(&names) {
                check_users(&users, id, force)?;
            } else {
                check(&users, &names, id, force)?;
            }
            untag(index, &names, &mut answer);
        } else {
            untag_one(index, word, id, &users, force, &mut answer)?;
            let left = index.names_of(id);
            // A container that runs keeps the image, now without a name.
            if !left.is_empty() || users.running.is_some() || (users.any().is_some() && !force) {
                return Ok((answer, false));
            }
        }
        match index.images.get_mut(id) {
            Some(image) if users.any().is_some() => image.hidden = true,
            _ => drop(index.images.remove(id)),
        }
        Ok((answer, true))
    })?;
    if gone {
        answer.push(Deleted::Deleted(id.to_string()));
        // Topmost first, as Docker tells it.
        let chains = inner.collect()?;
        answer
            .extend(chains.iter().rev().map(|chain: &ChainId| Deleted::Deleted(chain.to_string())));
    }
    Ok(answer)
}

/// Whether `word` is an id or the beginning of one, and no name.
fn is_id(word: &str, id: &ImageId) -> bool {
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    Digest::from_hex(digits).is_some() || (!digits.is_empty() && id.hex().starts_with(digits))
}

/// Whether the names are one tag at most, with digests of the same repository only.
fn is_single(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    let repositories: BTreeSet<String> = names.iter().map(Reference::repository).collect();
    names.len() <= 1 || (tags <= 1 && repositories.len() == 1)
}

fn check(users: &Users, names: &[Reference], id: &ImageId, force: bool) -> Result<(), ImageError> {
    check_users(users, id, force)?;
    if force || names.is_empty() {
        return Ok(());
    }
    Err(conflict(id, "must be forced", "image is referenced in multiple repositories".into()))
}

fn check_users(users: &Users, id: &ImageId, force: bool) -> Result<(), ImageError> {
    if let Some(container) = &users.running {
        let reason = format!("image is being used by running container {}", short(container));
        return Err(conflict(id, "cannot be forced", reason));
    }
    match &users.stopped {
        Some(container) if !force => {
            let reason = format!("image is being used by stopped container {}", short(container));
            Err(conflict(id, "must be forced", reason))
        }
        _ => Ok(()),
    }
}

fn conflict(id: &ImageId, force: &'static str, reason: String) -> ImageError {
    ImageError::DeleteConflict { image: id.short(), force, reason }
}

fn untag(index: &mut Index, names: &[Reference], answer: &mut Vec<Deleted>) {
    for name in names {
        index.names.remove(name);
        answer.push(Deleted::Untagged(name.familiar()));
    }
}

fn untag_one(
    index: &mut Index,
    word: &str,
    id: &ImageId,
    users: &Users,
    force: bool,
    answer: &mut Vec<Deleted>,
) -> Result<(), ImageError> {
    if !force
        && is_single(&index.names_of(id))
        && let Some(container) = users.any()
    {
        return Err(ImageError::ReferenceInUse {
            reference: word.into(),
            container: short(container),
            image: id.short(),
        });
    }
    let name = lookup_key(&Reference::parse(word)?);
    untag(index, std::slice::from_ref(&name), answer);
    if name.digest().is_some() {
        return Ok(());
    }
    // With the last tag of a repository go its digests.
    let same: Vec<Reference> = index
        .names_of(id)
        .into_iter()
        .filter(|other| other.repository() == name.repository())
        .collect();
    if same.iter().all(|other| other.digest().is_some()) {
        untag(index, &same, answer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_tag_with_its_digest_is_a_single_name() {
        let digest = Digest::of(b"");
        let names = |texts: &[String]| -> Vec<Reference> {
            texts.iter().map(|text| Reference::parse(text).unwrap()).collect()
        };
        assert!(is_single(&names(&[])));
        assert!(is_single(&names(&["a:1".into()])));
        assert!(is_single(&names(&["a:1".into(), format!("a@{digest}")])));
        assert!(!is_single(&names(&["a:1".into(), "a:2".into()])));
        assert!(!is_single(&names(&["a:1".into(), format!("b@{digest}")])));
    }

    #[test]
    fn ids_are_told_from_names() {
        let id = Digest::of(b"");
        assert!(is_id(&id.to_string(), &id));
        assert!(is_id(&id.short(), &id));
        assert!(!is_id("busybox", &id));
    }
}
