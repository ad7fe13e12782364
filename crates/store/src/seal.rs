//! Encryption of every value on disk.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::error::StoreError;

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 32;
/// Bytes of a nonce. 192 random bits never repeat in practice, so no counter has to be kept.
const NONCE_LEN: usize = 24;
/// Encrypts and decrypts values.
pub(crate) struct Sealer(XChaCha20Poly1305);

impl Sealer {
    /// Encrypts `plain` for the place `record`: read back from any other place it is refused.
    pub(crate) fn seal(&self, record: &str, plain: &[u8]) -> Result<Vec<u8>, StoreError> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let payload = Payload { msg: plain, aad: record.as_bytes() };
        let sealed = self
            .0
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| StoreError::Seal { record: record.to_owned() })?;
        let mut out = nonce.to_vec();
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Decrypts what [`Self::seal`] made for the same `record`.
    pub(crate) fn open(&self, record: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let refused = || StoreError::Seal { record: record.to_owned() };
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
        let payload = Payload { msg: body, aad: record.as_bytes() };
        self.0.decrypt(&XNonce::from(*nonce), payload).map_err(|_| refused())
    }

    /// With a given key.
    pub(crate) fn new(key: [u8; KEY_LEN]) -> Self {
        Self(XChaCha20Poly1305::new(&Key::from(key)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_opens_only_in_its_place_with_its_key() {
        let sealer = Sealer::new([1; KEY_LEN]);
        let sealed = sealer.seal("log:7", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(sealer.open("log:7", &sealed).unwrap(), b"secret");
        let error = sealer.open("log:8", &sealed).unwrap_err();
        assert!(error.to_string().contains("'log:8'"), "{error}");
        assert!(Sealer::new([2; KEY_LEN]).open("log:7", &sealed).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn garbage_is_refused_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Sealer::new([3; KEY_LEN]).open("x", &bytes).is_err());
        }
    }
}
