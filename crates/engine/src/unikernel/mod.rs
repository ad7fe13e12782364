//! Unikernels: containers whose image is a single sealed program that the tender runs.
//!
//! An image says so by its label ([`LABEL`]). From there on the same record, shim, log, networks
//! and restart policies serve both kinds; what differs is here: which wishes make sense
//! ([`admit`], [`wishes`]), whether the image has what it needs ([`devices`]), what the runtime is
//! told ([`tender_plan`]), how health is found out ([`probe`]), and why one ended ([`end`]).

pub(crate) mod admit;
pub(crate) mod devices;
pub(crate) mod end;
pub(crate) mod files;
pub(crate) mod probe;
pub(crate) mod tender_plan;
mod wishes;

use serde::{Deserialize, Serialize};
use shoal_image::config::ImageConfig;
use shoal_model::id::ContainerId;

use crate::container::Container;
use crate::error::EngineError;

/// The label of an image's config that tells what it holds.
pub(crate) const LABEL: &str = "shoal.workload";
/// The label's value for a unikernel.
const UNIKERNEL: &str = "unikernel";

/// What looks into a unikernel that runs.
pub(crate) const TOOLS: &str =
    "'docker logs', 'docker stats', 'shoal unikernel top' or 'shoal unikernel pcap'";
/// What serves instead of looking at a unikernel's files.
pub(crate) const IMAGES: &str = "'shoal unikernel inspect' on its image";

/// First of the users that tenders become: far above what hosts give out, one for each of so many
/// instances, so that no two of them may signal or trace each other.
const UID_FIRST: u32 = 1_879_048_192;
/// How many of them there are.
const UID_COUNT: u32 = 1 << 24;

/// What a container's image holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// A root file system with programs.
    #[default]
    Container,
    /// One sealed program.
    Unikernel,
}

impl Workload {
    /// What the image with this configuration holds.
    ///
    /// # Errors
    /// A kind that this version does not know.
    pub fn of(config: &ImageConfig) -> Result<Self, EngineError> {
        let label = config.config.labels.as_ref().and_then(|labels| labels.get(LABEL));
        match label.map(String::as_str) {
            None | Some("" | "container") => Ok(Self::Container),
            Some(UNIKERNEL) => Ok(Self::Unikernel),
            Some(other) => Err(EngineError::missing(format!("images of the kind {LABEL}={other}"))),
        }
    }
}

/// The user that the tender of a unikernel becomes: by its id, the same after every restart.
pub(crate) fn uid(id: &ContainerId) -> u32 {
    // Ids are random hex digits: any six of them are as good as a draw.
    let digits = id.as_str().get(..6).unwrap_or_default();
    UID_FIRST + u32::from_str_radix(digits, 16).unwrap_or(0) % UID_COUNT
}

/// Refuses what a unikernel cannot do: says why and what serves instead.
pub(crate) fn refuse(what: &str, why: &str, instead: &str) -> EngineError {
    EngineError::Unikernel {
        what: what.to_owned(),
        why: why.to_owned(),
        instead: instead.to_owned(),
    }
}

impl Container {
    pub fn is_unikernel(&self) -> bool {
        self.read(|record| record.workload == Workload::Unikernel)
    }

    /// Refuses `what` if this is a unikernel: it has neither processes nor a file system.
    ///
    /// # Errors
    /// It is one.
    pub fn needs_container(&self, what: &str, instead: &str) -> Result<(), EngineError> {
        if self.is_unikernel() {
            let why = "it is one sealed program without shell, processes and file system";
            return Err(refuse(what, why, instead));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(label: Option<&str>) -> ImageConfig {
        let mut config = ImageConfig::default();
        if let Some(label) = label {
            let labels = config.config.labels.get_or_insert_default();
            labels.insert(LABEL.to_owned(), label.to_owned());
        }
        config
    }

    #[test]
    fn the_images_label_decides() {
        assert_eq!(Workload::of(&config(None)).unwrap(), Workload::Container);
        assert_eq!(Workload::of(&config(Some("unikernel"))).unwrap(), Workload::Unikernel);
        assert!(Workload::of(&config(Some("wasm"))).is_err());
    }

    #[test]
    fn every_instance_has_a_user_of_its_own() {
        let one = uid(&ContainerId::new("000001aaaa"));
        assert_eq!(one, UID_FIRST + 1);
        assert_ne!(one, uid(&ContainerId::new("ff00aabbcc")));
        assert!(uid(&ContainerId::new("ffffff")) < UID_FIRST + UID_COUNT);
    }
}
