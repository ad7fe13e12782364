//! What a registry has under a name: manifests, platforms, `distribution inspect`.

use super::auth::RegistryAuth;
use super::client::{Call, Client, no_body};
use crate::archive::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Document, Manifest, OCI_INDEX, OCI_MANIFEST,
};
use crate::config::{ImageConfig, Platform};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::ingest::{MAX_DOCUMENT, parse_config};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::view::{Descriptor, DistributionInspect};

/// A document with what its carrier says about it.
pub(super) struct Fetched {
    pub document: Document,
    pub descriptor: Descriptor,
}

impl Client {
    /// Gets the manifest or index under a tag or digest, and verifies what can be verified.
    pub(super) async fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, ImageError> {
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let action = "get the manifest";
        let call = Call::get(format!("manifests/{name}"), &accept, action);
        let answer = self.send(&call, &no_body).await?;
        let (headers, bytes) = self.read(action, answer, limit()).await?;
        let header = |name: &str| headers.get(name).and_then(|h| h.to_str().ok());
        let digest = Digest::of(&bytes);
        let told = header("docker-content-digest").and_then(Digest::parse);
        for promised in [expected.copied(), told].into_iter().flatten() {
            if promised != digest {
                let what = format!("the manifest '{name}' from '{}'", self.host());
                return Err(ImageError::DigestMismatch { what, expected: promised, found: digest });
            }
        }
        let said = header("content-type").unwrap_or_default();
        let said = said.split(';').next().unwrap_or_default().trim().to_owned();
        let what = format!("the manifest '{name}' from '{}'", self.host());
        let document = Document::parse(&bytes, &said, &what)?;
        let own = match &document {
            Document::Image(manifest) => manifest.media_type.clone(),
            Document::Index(index) => index.media_type.clone(),
        };
        let descriptor = Descriptor {
            media_type: own.unwrap_or(said),
            digest,
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
            urls: None,
        };
        Ok(Fetched { document, descriptor })
    }

    /// The manifest of one image: of an index, the one for `platform`.
    pub(super) async fn image(
        &self,
        fetched: Fetched,
        platform: &Platform,
        reference: &Reference,
    ) -> Result<Manifest, ImageError> {
        let index = match fetched.document {
            Document::Image(manifest) => return Ok(*manifest),
            Document::Index(index) => index,
        };
        let chosen = index.choose(platform, &reference.familiar())?.digest;
        match self.manifest(&chosen.to_string(), Some(&chosen)).await?.document {
            Document::Image(manifest) => Ok(*manifest),
            Document::Index(_) => Err(ImageError::InvalidDocument {
                what: format!("the manifest '{chosen}'"),
                reason: "an index within an index".into(),
            }),
        }
    }

    /// The configuration of an image, byte for byte and read.
    pub(super) async fn configuration(
        &self,
        manifest: &Manifest,
    ) -> Result<(Vec<u8>, ImageConfig), ImageError> {
        let digest = manifest.config.digest;
        let action = "get the configuration";
        let call = Call::get(format!("blobs/{digest}"), "", action);
        let answer = self.send(&call, &no_body).await?;
        let (_, bytes) = self.read(action, answer, limit()).await?;
        let found = Digest::of(&bytes);
        if found != digest {
            let what = format!("the configuration from '{}'", self.host());
            return Err(ImageError::DigestMismatch { what, expected: digest, found });
        }
        let config = parse_config(&bytes, &format!("the configuration {}", digest.short()))?;
        Ok((bytes, config))
    }
}

/// The most bytes of a document; one more, and its digest is wrong anyway.
fn limit() -> usize {
    usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX)
}

/// What to ask a registry for: the digest if there is one, else the tag.
pub(super) fn name_of(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").into(),
    }
}

impl ImageStore {
    /// What a registry has under a name.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub async fn distribution(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<DistributionInspect, ImageError> {
        let reference = Reference::parse(reference)?.or_latest();
        let client = Client::new(&reference, auth, &self.inner.options.insecure_registries);
        let fetched = client.manifest(&name_of(&reference), reference.digest()).await?;
        let platforms = match &fetched.document {
            Document::Index(index) => {
                index.images().filter_map(|entry| entry.platform.clone()).collect()
            }
            Document::Image(manifest) => {
                let (_, config) = client.configuration(manifest).await?;
                vec![Platform {
                    architecture: config.architecture,
                    os: config.os,
                    variant: config.variant,
                    ..Platform::default()
                }]
            }
        };
        Ok(DistributionInspect { descriptor: fetched.descriptor, platforms })
    }
}
