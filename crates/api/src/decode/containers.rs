//! Shapes of containers, execs and volumes.

use super::{ANY_MAP, Fields, INT, Shape, TEXT_MAP, TEXTS, UINT};

/// `HealthConfig`.
pub const HEALTH: Shape = Shape::Object(&[
    ("Test", Shape::Words),
    ("Interval", INT),
    ("Timeout", INT),
    ("Retries", INT),
    ("StartPeriod", INT),
    ("StartInterval", INT),
]);

/// `Ulimit`.
pub const ULIMIT: Shape = Shape::Object(&[("Name", Shape::Text), ("Soft", INT), ("Hard", INT)]);

/// `Mount`.
pub const MOUNT: Shape = Shape::Object(&[
    ("Type", Shape::Text),
    ("Source", Shape::Text),
    ("Target", Shape::Text),
    ("ReadOnly", Shape::Bool),
    ("Consistency", Shape::Text),
    (
        "BindOptions",
        Shape::Object(&[
            ("Propagation", Shape::Text),
            ("NonRecursive", Shape::Bool),
            ("CreateMountpoint", Shape::Bool),
            ("ReadOnlyNonRecursive", Shape::Bool),
            ("ReadOnlyForceRecursive", Shape::Bool),
        ]),
    ),
    (
        "VolumeOptions",
        Shape::Object(&[
            ("NoCopy", Shape::Bool),
            ("Labels", TEXT_MAP),
            ("Subpath", Shape::Text),
            ("DriverConfig", Shape::Object(&[("Name", Shape::Text), ("Options", TEXT_MAP)])),
        ]),
    ),
    ("ImageOptions", Shape::Object(&[("Subpath", Shape::Text)])),
    (
        "TmpfsOptions",
        Shape::Object(&[("SizeBytes", INT), ("Mode", UINT), ("Options", Shape::List(&TEXTS))]),
    ),
    ("ClusterOptions", ANY_MAP),
]);

const CONFIG: Fields = &[
    ("Hostname", Shape::Text),
    ("Domainname", Shape::Text),
    ("User", Shape::Text),
    ("AttachStdin", Shape::Bool),
    ("AttachStdout", Shape::Bool),
    ("AttachStderr", Shape::Bool),
    ("ExposedPorts", ANY_MAP),
    ("Tty", Shape::Bool),
    ("OpenStdin", Shape::Bool),
    ("StdinOnce", Shape::Bool),
    ("Env", TEXTS),
    ("Cmd", Shape::Words),
    ("Healthcheck", HEALTH),
    ("ArgsEscaped", Shape::Bool),
    ("Image", Shape::Text),
    ("Volumes", ANY_MAP),
    ("WorkingDir", Shape::Text),
    ("Entrypoint", Shape::Words),
    ("NetworkDisabled", Shape::Bool),
    ("MacAddress", Shape::Text),
    ("OnBuild", TEXTS),
    ("Labels", TEXT_MAP),
    ("StopSignal", Shape::Text),
    ("StopTimeout", INT),
    ("Shell", TEXTS),
];

const RESTART_POLICY: Shape = Shape::Object(&[("Name", Shape::Text), ("MaximumRetryCount", INT)]);

const PORT_BINDING: Shape = Shape::Object(&[("HostIp", Shape::Text), ("HostPort", Shape::Text)]);

/// Members that `POST /containers/{id}/update` shares with `HostConfig`.
const RESOURCES: Fields = &[
    ("CpuShares", INT),
    ("Memory", INT),
    ("CgroupParent", Shape::Text),
    ("BlkioWeight", UINT),
    ("BlkioWeightDevice", Shape::List(&ANY_MAP)),
    ("BlkioDeviceReadBps", Shape::List(&ANY_MAP)),
    ("BlkioDeviceWriteBps", Shape::List(&ANY_MAP)),
    ("BlkioDeviceReadIOps", Shape::List(&ANY_MAP)),
    ("BlkioDeviceWriteIOps", Shape::List(&ANY_MAP)),
    ("CpuPeriod", INT),
    ("CpuQuota", INT),
    ("CpuRealtimePeriod", INT),
    ("CpuRealtimeRuntime", INT),
    ("CpusetCpus", Shape::Text),
    ("CpusetMems", Shape::Text),
    (
        "Devices",
        Shape::List(&Shape::Object(&[
            ("PathOnHost", Shape::Text),
            ("PathInContainer", Shape::Text),
            ("CgroupPermissions", Shape::Text),
        ])),
    ),
    ("DeviceCgroupRules", TEXTS),
    ("DeviceRequests", Shape::List(&ANY_MAP)),
    ("KernelMemory", INT),
    ("KernelMemoryTCP", INT),
    ("MemoryReservation", INT),
    ("MemorySwap", INT),
    ("MemorySwappiness", INT),
    ("NanoCpus", INT),
    ("OomKillDisable", Shape::Bool),
    ("Init", Shape::Bool),
    ("PidsLimit", INT),
    ("Ulimits", Shape::List(&ULIMIT)),
    ("CpuCount", INT),
    ("CpuPercent", INT),
    ("IOMaximumIOps", INT),
    ("IOMaximumBandwidth", INT),
    ("RestartPolicy", RESTART_POLICY),
];

const HOST_CONFIG: Fields = &[
    ("Binds", TEXTS),
    ("ContainerIDFile", Shape::Text),
    ("LogConfig", Shape::Object(&[("Type", Shape::Text), ("Config", TEXT_MAP)])),
    ("NetworkMode", Shape::Text),
    ("PortBindings", Shape::Map(&Shape::List(&PORT_BINDING))),
    ("AutoRemove", Shape::Bool),
    ("VolumeDriver", Shape::Text),
    ("VolumesFrom", TEXTS),
    ("Mounts", Shape::List(&MOUNT)),
    ("ConsoleSize", Shape::List(&UINT)),
    ("Annotations", TEXT_MAP),
    ("CapAdd", Shape::Words),
    ("CapDrop", Shape::Words),
    ("CgroupnsMode", Shape::Text),
    ("Dns", TEXTS),
    ("DnsOptions", TEXTS),
    ("DnsSearch", TEXTS),
    ("ExtraHosts", TEXTS),
    ("GroupAdd", TEXTS),
    ("IpcMode", Shape::Text),
    ("Cgroup", Shape::Text),
    ("Links", TEXTS),
    ("OomScoreAdj", INT),
    ("PidMode", Shape::Text),
    ("Privileged", Shape::Bool),
    ("PublishAllPorts", Shape::Bool),
    ("ReadonlyRootfs", Shape::Bool),
    ("SecurityOpt", TEXTS),
    ("StorageOpt", TEXT_MAP),
    ("Tmpfs", TEXT_MAP),
    ("UTSMode", Shape::Text),
    ("UsernsMode", Shape::Text),
    ("ShmSize", INT),
    ("Sysctls", TEXT_MAP),
    ("Runtime", Shape::Text),
    ("Isolation", Shape::Text),
    ("MaskedPaths", TEXTS),
    ("ReadonlyPaths", TEXTS),
];

/// `EndpointSettings`.
pub const ENDPOINT_SETTINGS: Shape = Shape::Object(&[
    (
        "IPAMConfig",
        Shape::Object(&[
            ("IPv4Address", Shape::Text),
            ("IPv6Address", Shape::Text),
            ("LinkLocalIPs", TEXTS),
        ]),
    ),
    ("Links", TEXTS),
    ("Aliases", TEXTS),
    ("MacAddress", Shape::Text),
    ("DriverOpts", TEXT_MAP),
    ("GwPriority", INT),
    ("NetworkID", Shape::Text),
    ("EndpointID", Shape::Text),
    ("Gateway", Shape::Text),
    ("IPAddress", Shape::Text),
    ("IPPrefixLen", INT),
    ("IPv6Gateway", Shape::Text),
    ("GlobalIPv6Address", Shape::Text),
    ("GlobalIPv6PrefixLen", INT),
    ("DNSNames", TEXTS),
]);

const CREATE_PARTS: Fields = &[
    ("HostConfig", Shape::Merged(&[HOST_CONFIG, RESOURCES])),
    ("NetworkingConfig", Shape::Object(&[("EndpointsConfig", Shape::Map(&ENDPOINT_SETTINGS))])),
];

/// The body of `POST /containers/create`.
pub const CREATE: Shape = Shape::Merged(&[CONFIG, CREATE_PARTS]);

/// The body of `POST /containers/{id}/update`.
pub const UPDATE: Shape = Shape::Object(RESOURCES);

/// The body of `POST /containers/{id}/exec`.
pub const EXEC_CREATE: Shape = Shape::Object(&[
    ("AttachStdin", Shape::Bool),
    ("AttachStdout", Shape::Bool),
    ("AttachStderr", Shape::Bool),
    ("ConsoleSize", Shape::List(&Shape::Int(0, 65_535))),
    ("Detach", Shape::Bool),
    ("DetachKeys", Shape::Text),
    ("Tty", Shape::Bool),
    ("Env", TEXTS),
    ("Cmd", TEXTS),
    ("Privileged", Shape::Bool),
    ("User", Shape::Text),
    ("WorkingDir", Shape::Text),
]);

/// The body of `POST /exec/{id}/start`.
pub const EXEC_START: Shape = Shape::Object(&[
    ("Detach", Shape::Bool),
    ("Tty", Shape::Bool),
    ("ConsoleSize", Shape::List(&Shape::Int(0, 65_535))),
]);

/// The body of `POST /volumes/create`.
pub const VOLUME: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Driver", Shape::Text),
    ("DriverOpts", TEXT_MAP),
    ("Labels", TEXT_MAP),
    ("ClusterVolumeSpec", ANY_MAP),
]);
