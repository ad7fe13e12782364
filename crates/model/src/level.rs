//! Levels: which form of the cluster's data a program can read, and which one it may write.
//!
//! Programs of two versions are managers of one cluster while it is upgraded. What one of them
//! writes into the log, the others must apply in the same way, or not at all. So there is a number
//! for all forms together, the *level*: [`Cluster::level`](crate::object::Cluster::level) says what
//! may be written, each log entry says the lowest level that can apply it, and each node says what
//! it can read ([`NodeDescription::reads`](crate::object::NodeDescription::reads)). The plan raises
//! the cluster's level by one once everybody can read the next, and never lowers it.
//!
//! **To add something** (a kind of change, of object, a word, a field that decides something):
//! raise [`READS`] and [`WRITES`], say the number where the thing is ([`Object::needs`] and
//! [`Change::needs`]), and write it only while
//! [`ClusterState::level`](crate::cluster_state::ClusterState::level) is as high. What `apply` does
//! differently depends on that level too, and on nothing else: it is the same on all members.
//! A field that is only shown needs no level: who does not know it keeps it
//! ([`Extra`](crate::spec::Extra)).
//!
//! [`Object::needs`]: crate::change::Object::needs
//! [`Change::needs`]: crate::change::Change::needs

/// The level of clusters and nodes that do not say theirs.
pub const FIRST: u32 = 1;

/// The highest level that this program can read.
#[cfg(not(feature = "next-level"))]
pub const READS: u32 = FIRST;
/// The same, of the program that stands for the next version in tests.
#[cfg(feature = "next-level")]
pub const READS: u32 = FIRST + 1;

/// The highest level that this program writes, and raises a cluster to. It may be lower than
/// [`READS`] for a version, so that the one before can still take part.
pub const WRITES: u32 = READS;

/// Above every level: what this program does not know at all.
pub const UNKNOWN: u32 = u32::MAX;

pub(crate) const fn first() -> u32 {
    FIRST
}
