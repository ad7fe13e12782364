//! Shapes of the cluster and its nodes.

use super::{ANY_MAP, INT, PORT, Shape, TEXT_MAP, TEXTS, UINT};

const AVAILABILITY: Shape = Shape::Choice(&["active", "pause", "drain"]);

const CA_CONFIG: Shape = Shape::Object(&[
    ("NodeCertExpiry", INT),
    (
        "ExternalCAs",
        Shape::List(&Shape::Object(&[
            ("Protocol", Shape::Text),
            ("URL", Shape::Text),
            ("Options", TEXT_MAP),
            ("CACert", Shape::Text),
        ])),
    ),
    ("SigningCACert", Shape::Text),
    ("SigningCAKey", Shape::Text),
    ("ForceRotate", UINT),
]);

/// `SwarmSpec`.
pub const CLUSTER_SPEC: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Labels", TEXT_MAP),
    ("Orchestration", Shape::Object(&[("TaskHistoryRetentionLimit", INT)])),
    (
        "Raft",
        Shape::Object(&[
            ("SnapshotInterval", UINT),
            ("KeepOldSnapshots", UINT),
            ("LogEntriesForSlowFollowers", UINT),
            ("ElectionTick", INT),
            ("HeartbeatTick", INT),
        ]),
    ),
    ("Dispatcher", Shape::Object(&[("HeartbeatPeriod", INT)])),
    ("CAConfig", CA_CONFIG),
    ("TaskDefaults", ANY_MAP),
    ("EncryptionConfig", Shape::Object(&[("AutoLockManagers", Shape::Bool)])),
]);

/// The body of `POST /swarm/init`.
pub const INIT: Shape = Shape::Object(&[
    ("ListenAddr", Shape::Text),
    ("AdvertiseAddr", Shape::Text),
    ("DataPathAddr", Shape::Text),
    ("DataPathPort", PORT),
    ("DefaultAddrPool", TEXTS),
    ("SubnetSize", Shape::Int(0, 128)),
    ("ForceNewCluster", Shape::Bool),
    ("Spec", CLUSTER_SPEC),
    ("AutoLockManagers", Shape::Bool),
    ("Availability", AVAILABILITY),
]);

/// The body of `POST /swarm/join`.
pub const JOIN: Shape = Shape::Object(&[
    ("ListenAddr", Shape::Text),
    ("AdvertiseAddr", Shape::Text),
    ("DataPathAddr", Shape::Text),
    ("RemoteAddrs", TEXTS),
    ("JoinToken", Shape::Text),
    ("Availability", AVAILABILITY),
]);

/// The body of `POST /swarm/unlock`.
pub const UNLOCK: Shape = Shape::Object(&[("UnlockKey", Shape::Text)]);

/// `NodeSpec`.
pub const NODE_SPEC: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Labels", TEXT_MAP),
    ("Role", Shape::Choice(&["worker", "manager"])),
    ("Availability", AVAILABILITY),
]);
