//! What the store tells: lists, details, histories.

use shoal_model::filter::Filters;
use shoal_model::spec::StringMap;
use shoal_model::time::{GO_ZERO_TIME, Timestamp};

use crate::config::{ImageConfig, labels};
use crate::digest::ImageId;
use crate::error::ImageError;
use crate::index::Index;
use crate::reference::Reference;
use crate::store::{ImageStore, State};
use crate::view::{
    GraphDriver, HistoryItem, ImageInspect, ImageMetadata, ImageSummary, RootFsView,
};

/// Names of an image in familiar form: those with tags, those with digests.
fn familiar_names(index: &Index, id: &ImageId) -> (Vec<String>, Vec<String>) {
    let names = index.names_of(id);
    let (digests, tags): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.digest().is_some());
    let familiar = |names: Vec<&Reference>| {
        let mut names: Vec<String> = names.into_iter().map(Reference::familiar).collect();
        names.sort();
        names
    };
    (familiar(tags), familiar(digests))
}

fn created(config: &ImageConfig) -> i64 {
    config.created.as_deref().and_then(Timestamp::parse).unwrap_or(Timestamp::ZERO).secs()
}

/// Filters of lists.
const LIST_FILTERS: &[&str] =
    &["before", "dangling", "label", "label!", "reference", "since", "until"];

impl ImageStore {
    /// Everything about one image.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn inspect(&self, word: &str) -> Result<ImageInspect, ImageError> {
        let id = self.resolve(word)?;
        let config = self.config(&id)?;
        let directories = self.mount_layers(&id)?;
        let state = self.inner.state();
        let Some(record) = state.index.images.get(&id) else {
            return Err(ImageError::NoSuchImage { reference: id.to_string() });
        };
        let (repo_tags, repo_digests) = familiar_names(&state.index, &id);
        let comment = config.history.last().and_then(|step| step.comment.clone());
        Ok(ImageInspect {
            id,
            repo_tags,
            repo_digests,
            parent: String::new(),
            comment: comment.unwrap_or_default(),
            created: config.created.clone().unwrap_or_else(|| GO_ZERO_TIME.into()),
            docker_version: String::new(),
            author: config.author.clone().unwrap_or_default(),
            config: config.config.clone(),
            architecture: config.architecture.clone(),
            variant: config.variant.clone(),
            os: config.os.clone(),
            size: state.index.size_of(record),
            graph_driver: graph_driver(&directories),
            root_fs: RootFsView { kind: "layers".into(), layers: config.rootfs.diff_ids.clone() },
            metadata: ImageMetadata { last_tag_time: record.tagged },
        })
    }

    /// The images, newest first.
    ///
    /// # Errors
    /// [`ImageError::InvalidFilter`]; images named by `before` and `since` that do not exist.
    pub fn list(&self, filters: &Filters) -> Result<Vec<ImageSummary>, ImageError> {
        filters.only(LIST_FILTERS)?;
        self.select(filters, filters.flag("dangling")?)
    }

    /// Those that `filters` select, with (`Some(false)`) or without (`Some(true)`) a name.
    pub(crate) fn select(
        &self,
        filters: &Filters,
        dangling: Option<bool>,
    ) -> Result<Vec<ImageSummary>, ImageError> {
        let made = |name: &str| -> Result<Vec<i64>, ImageError> {
            let made = |word| Ok(created(&*self.config(&self.resolve(word)?)?));
            filters.values(name).map(made).collect()
        };
        let (before, since) = (made("before")?, made("since")?);
        let until = filters.until((self.inner.options.clock)())?.map(Timestamp::secs);
        let state = self.inner.state();
        let mut list: Vec<ImageSummary> = Vec::new();
        for id in state.index.images.keys().filter(|id| state.index.visible(id)) {
            let Some(mut summary) = summarize(&state, id) else { continue };
            let in_time = before.iter().all(|at| summary.created < *at)
                && since.iter().all(|at| summary.created > *at)
                && until.is_none_or(|at| summary.created < at);
            if in_time
                && filters.prunes(&summary.labels)
                && names_fit(&mut summary, filters)
                && dangling.is_none_or(|dangling| dangling == summary.repo_tags.is_empty())
            {
                list.push(summary);
            }
        }
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.repo_tags.cmp(&b.repo_tags)));
        Ok(list)
    }

    /// How an image came about, newest step first.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn history(&self, word: &str) -> Result<Vec<HistoryItem>, ImageError> {
        let id = self.resolve(word)?;
        let config = self.config(&id)?;
        let state = self.inner.state();
        let chains = state.index.images.get(&id).map(|image| image.chains.clone());
        let mut sizes = chains
            .unwrap_or_default()
            .into_iter()
            .map(|c| state.index.layers.get(&c).map(|l| l.size));
        let seconds = |at: &Option<String>| {
            at.as_deref().and_then(Timestamp::parse).unwrap_or(Timestamp::ZERO).secs()
        };
        let mut items: Vec<HistoryItem> = Vec::new();
        for step in &config.history {
            let size = if step.empty_layer { None } else { sizes.next().flatten() };
            items.push(HistoryItem {
                id: "<missing>".into(),
                created: seconds(&step.created),
                created_by: step.created_by.clone().unwrap_or_default(),
                tags: None,
                size: size.unwrap_or(0),
                comment: step.comment.clone().unwrap_or_default(),
            });
        }
        items.reverse();
        if let Some(newest) = items.first_mut() {
            newest.id = id.to_string();
            newest.tags = Some(familiar_names(&state.index, &id).0);
        }
        Ok(items)
    }
}

fn graph_driver(directories: &[std::path::PathBuf]) -> GraphDriver {
    let shown: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
    let mut data = StringMap::new();
    if let Some((upper, lower)) = shown.split_first() {
        data.insert("UpperDir".into(), upper.clone());
        if !lower.is_empty() {
            data.insert("LowerDir".into(), lower.join(":"));
        }
    }
    GraphDriver { name: "overlay2".into(), data }
}

fn summarize(state: &State, id: &ImageId) -> Option<ImageSummary> {
    let record = state.index.images.get(id)?;
    // A damaged image is listed, so that it can be removed; what its configuration said is gone.
    let lost = ImageConfig::default();
    let config = state.configs.get(id).map_or(&lost, |config| config);
    let (repo_tags, repo_digests) = familiar_names(&state.index, id);
    Some(ImageSummary {
        id: *id,
        parent_id: String::new(),
        repo_tags,
        repo_digests,
        created: created(config),
        size: state.index.size_of(record),
        shared_size: -1,
        labels: labels(config),
        containers: i64::try_from(state.holders(id).count()).unwrap_or(i64::MAX),
    })
}

/// Whether the names of an image suit; leaves only those names that a pattern selects.
fn names_fit(summary: &mut ImageSummary, filters: &Filters) -> bool {
    if filters.has("reference") {
        let fits = |name: &String| filters.any("reference", |p| name_matches(p, name));
        summary.repo_tags.retain(fits);
        summary.repo_digests.retain(fits);
        return !summary.repo_tags.is_empty() || !summary.repo_digests.is_empty();
    }
    true
}

/// Whether `pattern` fits a familiar name, with or without its tag or digest.
fn name_matches(pattern: &str, name: &str) -> bool {
    let Ok(reference) = Reference::parse(name) else { return false };
    glob(pattern, name) || glob(pattern, &reference.familiar_name())
}

/// Shell patterns: `*` and `?` do not match a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // reach[j]: the pattern so far matches the first j characters.
    let mut reach = vec![false; text.len() + 1];
    if let Some(first) = reach.first_mut() {
        *first = true;
    }
    for p in pattern {
        let mut next = vec![false; text.len() + 1];
        for (j, slot) in next.iter_mut().enumerate() {
            let before = |reach: &[bool], j: usize| j > 0 && reach.get(j - 1) == Some(&true);
            let last = j.checked_sub(1).and_then(|i| text.get(i)).copied();
            *slot = match p {
                '?' => before(&reach, j) && last != Some('/'),
                '*' => reach.get(j) == Some(&true),
                p => before(&reach, j) && last == Some(p),
            };
        }
        if p == '*' {
            for j in 1..next.len() {
                let extended = next.get(j - 1) == Some(&true) && text.get(j - 1) != Some(&'/');
                if let Some(slot) = next.get_mut(j) {
                    *slot |= extended;
                }
            }
        }
        reach = next;
    }
    reach.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, name, fits) in [
            ("busybox", "busybox:1", true),
            ("busy*", "busybox:1", true),
            ("*:1", "busybox:1", true),
            ("b?sybox:*", "busybox:1", true),
            ("*", "a/b:1", false),
            ("a/*", "a/b:1", true),
            ("busy", "busybox:1", false),
        ] {
            assert_eq!(name_matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
