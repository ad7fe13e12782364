//! Identifiers. Swarm objects have 25 base-36 characters, containers and layers 64 hex digits;
//! Docker's clients slice both.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Length of the id of every swarm object, as Docker's clients expect it.
pub const SWARM_ID_LEN: usize = 25;

/// Turns 16 random bytes into a swarm id: 25 base-36 digits, most significant first.
///
/// 36^25 is a little more than 2^128, so every 128-bit number has exactly one such id.
#[must_use]
pub fn swarm_id_from_bytes(bytes: [u8; 16]) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest = u128::from_be_bytes(bytes);
    let mut out = [b'0'; SWARM_ID_LEN];
    for slot in out.iter_mut().rev() {
        // `rest % 36` is below 36, so the index is always inside the table.
        *slot = DIGITS[(rest % 36) as usize];
        rest /= 36;
    }
    out.iter().map(|b| char::from(*b)).collect()
}

/// Gives out fresh ids. The composition root backs it with the system's random source, tests with
/// a counter, so that pure code stays reproducible.
pub trait IdSource {
    /// Sixteen bytes that nobody has been given before.
    fn fresh(&mut self) -> [u8; 16];
}

/// An [`IdSource`] that counts: for tests and simulations only.
#[derive(Debug, Default, Clone)]
pub struct CountingIds(pub u128);

impl IdSource for CountingIds {
    fn fresh(&mut self) -> [u8; 16] {
        self.0 += 1;
        self.0.to_be_bytes()
    }
}

// Ids are shared, not copied: every snapshot of the cluster's state clones every table's keys.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps an id that was received or stored.
            #[must_use]
            pub fn new(id: impl Into<String>) -> Self {
                Self(Arc::from(id.into()))
            }

            /// The id's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(Arc::from(id))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

macro_rules! swarm_id_type {
    ($(#[$doc:meta])* $name:ident) => {
        id_type!($(#[$doc])* $name);

        impl $name {
            /// A new id from `ids`.
            pub fn generate(ids: &mut dyn IdSource) -> Self {
                Self(Arc::from(swarm_id_from_bytes(ids.fresh())))
            }
        }
    };
}

swarm_id_type!(
    /// One cluster.
    ClusterId
);
swarm_id_type!(
    /// One member of a cluster, for as long as it is a member.
    NodeId
);
swarm_id_type!(
    /// One service.
    ServiceId
);
swarm_id_type!(
    /// One task: a single attempt at running one instance of a service.
    TaskId
);
swarm_id_type!(
    /// One network. Swarm-scoped networks have 25 characters, this node's own ones 64 hex digits.
    NetworkId
);
swarm_id_type!(
    /// One secret.
    SecretId
);
swarm_id_type!(
    /// One config.
    ConfigId
);
swarm_id_type!(
    /// One agent's session with a manager.
    SessionId
);
id_type!(
    /// One container on one node: 64 hex digits.
    ContainerId
);
id_type!(
    /// One daemon's data root, for its whole life: 12 hex digits. Every kernel object that a daemon
    /// makes carries it, so that daemons on one machine never touch each other's things.
    InstanceId
);

impl InstanceId {
    /// The first four digits, for names that the kernel limits to 15 bytes.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..4).unwrap_or(&self.0)
    }
}

/// The store's revision (the Raft index) at which something was written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Of what is not written yet: newer than everything that is.
    pub const UNWRITTEN: Self = Self(u64::MAX);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swarm_ids_have_25_base36_digits() {
        for bytes in [[0; 16], [255; 16], [7; 16]] {
            let id = swarm_id_from_bytes(bytes);
            assert_eq!(id.len(), SWARM_ID_LEN);
            assert!(id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
        }
        assert_eq!(swarm_id_from_bytes([255; 16]), "f5lxx1zz5pnorynqglhzmsp33");
    }
}
