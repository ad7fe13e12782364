//! Shapes of services.

use super::{ANY_MAP, INT, PORT, Shape, TEXT_MAP, TEXTS, UINT};
use crate::decode::containers::{HEALTH, MOUNT, ULIMIT};

const NETWORK_ATTACHMENT: Shape =
    Shape::Object(&[("Target", Shape::Text), ("Aliases", TEXTS), ("DriverOpts", TEXT_MAP)]);

const GENERIC_RESOURCE: Shape = Shape::Object(&[
    ("NamedResourceSpec", Shape::Object(&[("Kind", Shape::Text), ("Value", Shape::Text)])),
    ("DiscreteResourceSpec", Shape::Object(&[("Kind", Shape::Text), ("Value", INT)])),
]);

const RESOURCES: Shape = Shape::Object(&[
    ("NanoCPUs", INT),
    ("MemoryBytes", INT),
    ("Pids", INT),
    ("GenericResources", Shape::List(&GENERIC_RESOURCE)),
]);

const PLATFORM: Shape = Shape::Object(&[("Architecture", Shape::Text), ("OS", Shape::Text)]);

const SPREAD: Shape = Shape::Object(&[("SpreadDescriptor", Shape::Text)]);
const PREFERENCE: Shape = Shape::Object(&[("Spread", SPREAD)]);

const PRIVILEGES: Shape = Shape::Object(&[
    (
        "CredentialSpec",
        Shape::Object(&[("Config", Shape::Text), ("File", Shape::Text), ("Registry", Shape::Text)]),
    ),
    (
        "SELinuxContext",
        Shape::Object(&[
            ("Disable", Shape::Bool),
            ("User", Shape::Text),
            ("Role", Shape::Text),
            ("Type", Shape::Text),
            ("Level", Shape::Text),
        ]),
    ),
    ("Seccomp", Shape::Object(&[("Mode", Shape::Text), ("Profile", Shape::Text)])),
    ("AppArmor", Shape::Object(&[("Mode", Shape::Text)])),
    ("NoNewPrivileges", Shape::Bool),
]);

const FILE_TARGET: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("UID", Shape::Text),
    ("GID", Shape::Text),
    ("Mode", UINT),
]);

const SECRET_REFERENCE: Shape =
    Shape::Object(&[("File", FILE_TARGET), ("SecretID", Shape::Text), ("SecretName", Shape::Text)]);

const CONFIG_REFERENCE: Shape = Shape::Object(&[
    ("File", FILE_TARGET),
    ("Runtime", ANY_MAP),
    ("ConfigID", Shape::Text),
    ("ConfigName", Shape::Text),
]);

const CONTAINER_SPEC: Shape = Shape::Object(&[
    ("Image", Shape::Text),
    ("Labels", TEXT_MAP),
    ("Command", TEXTS),
    ("Args", TEXTS),
    ("Hostname", Shape::Text),
    ("Env", TEXTS),
    ("Dir", Shape::Text),
    ("User", Shape::Text),
    ("Groups", TEXTS),
    ("Privileges", PRIVILEGES),
    ("TTY", Shape::Bool),
    ("OpenStdin", Shape::Bool),
    ("ReadOnly", Shape::Bool),
    ("Mounts", Shape::List(&MOUNT)),
    ("StopSignal", Shape::Text),
    ("StopGracePeriod", INT),
    ("Healthcheck", HEALTH),
    ("Hosts", TEXTS),
    ("DNSConfig", Shape::Object(&[("Nameservers", TEXTS), ("Search", TEXTS), ("Options", TEXTS)])),
    ("Secrets", Shape::List(&SECRET_REFERENCE)),
    ("Configs", Shape::List(&CONFIG_REFERENCE)),
    ("Isolation", Shape::Text),
    ("Init", Shape::Bool),
    ("Sysctls", TEXT_MAP),
    ("CapabilityAdd", TEXTS),
    ("CapabilityDrop", TEXTS),
    ("Ulimits", Shape::List(&ULIMIT)),
    ("OomScoreAdj", INT),
]);

/// `TaskSpec`.
pub const TASK_SPEC: Shape = Shape::Object(&[
    ("ContainerSpec", CONTAINER_SPEC),
    ("PluginSpec", ANY_MAP),
    ("NetworkAttachmentSpec", Shape::Object(&[("ContainerID", Shape::Text)])),
    ("Resources", Shape::Object(&[("Limits", RESOURCES), ("Reservations", RESOURCES)])),
    (
        "RestartPolicy",
        Shape::Object(&[
            ("Condition", Shape::Text),
            ("Delay", INT),
            ("MaxAttempts", UINT),
            ("Window", INT),
        ]),
    ),
    (
        "Placement",
        Shape::Object(&[
            ("Constraints", TEXTS),
            ("Preferences", Shape::List(&PREFERENCE)),
            ("MaxReplicas", UINT),
            ("Platforms", Shape::List(&PLATFORM)),
        ]),
    ),
    ("ForceUpdate", UINT),
    ("Runtime", Shape::Text),
    ("Networks", Shape::List(&NETWORK_ATTACHMENT)),
    ("LogDriver", Shape::Object(&[("Name", Shape::Text), ("Options", TEXT_MAP)])),
]);

const UPDATE_CONFIG: Shape = Shape::Object(&[
    ("Parallelism", UINT),
    ("Delay", INT),
    ("FailureAction", Shape::Text),
    ("Monitor", INT),
    ("MaxFailureRatio", Shape::Number),
    ("Order", Shape::Text),
]);

const PORT_CONFIG: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Protocol", Shape::Choice(&["tcp", "udp", "sctp"])),
    ("TargetPort", PORT),
    ("PublishedPort", PORT),
    ("PublishMode", Shape::Choice(&["ingress", "host"])),
]);

/// `ServiceSpec`.
pub const SERVICE_SPEC: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Labels", TEXT_MAP),
    ("TaskTemplate", TASK_SPEC),
    (
        "Mode",
        Shape::Object(&[
            ("Replicated", Shape::Object(&[("Replicas", UINT)])),
            ("Global", Shape::Object(&[])),
            (
                "ReplicatedJob",
                Shape::Object(&[("MaxConcurrent", UINT), ("TotalCompletions", UINT)]),
            ),
            ("GlobalJob", Shape::Object(&[])),
        ]),
    ),
    ("UpdateConfig", UPDATE_CONFIG),
    ("RollbackConfig", UPDATE_CONFIG),
    ("Networks", Shape::List(&NETWORK_ATTACHMENT)),
    (
        "EndpointSpec",
        Shape::Object(&[
            ("Mode", Shape::Choice(&["vip", "dnsrr"])),
            ("Ports", Shape::List(&PORT_CONFIG)),
        ]),
    ),
]);
