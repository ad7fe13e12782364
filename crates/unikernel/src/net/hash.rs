//! The hash of addresses and ports: a few instructions, with a secret key, so that a peer cannot
//! choose ports that all fall into one place.

use core::hash::{BuildHasher, Hasher};

/// Makes hashers with one key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed(u64);

impl Keyed {
    /// With this key, which must be secret.
    pub(crate) const fn new(key: u64) -> Self {
        Self(key)
    }
}

impl BuildHasher for Keyed {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

/// A multiply-and-fold hash of single integers.
#[derive(Debug)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..eight.len()].copy_from_slice(eight);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // An odd constant with well-spread bits (the golden ratio); the fold brings the high half,
        // which depends on all bits of both, back down.
        let product =
            u128::from(self.0 ^ value) * u128::from(0x9e37_79b9_7f4a_7c15_u64 ^ (self.0 << 1));
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
}
