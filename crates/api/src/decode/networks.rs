//! Shapes of networks.

use super::containers::ENDPOINT_SETTINGS;
use super::{ANY_MAP, Shape, TEXT_MAP};

const IPAM_CONFIG: Shape = Shape::Object(&[
    ("Subnet", Shape::Text),
    ("IPRange", Shape::Text),
    ("Gateway", Shape::Text),
    ("AuxiliaryAddresses", TEXT_MAP),
    ("AuxAddress", TEXT_MAP),
]);

/// The body of `POST /networks/create`.
pub const NETWORK: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("CheckDuplicate", Shape::Bool),
    ("Driver", Shape::Text),
    ("Scope", Shape::Text),
    ("Internal", Shape::Bool),
    ("Attachable", Shape::Bool),
    ("Ingress", Shape::Bool),
    ("ConfigOnly", Shape::Bool),
    ("ConfigFrom", Shape::Object(&[("Network", Shape::Text)])),
    (
        "IPAM",
        Shape::Object(&[
            ("Driver", Shape::Text),
            ("Options", TEXT_MAP),
            ("Config", Shape::List(&IPAM_CONFIG)),
        ]),
    ),
    ("EnableIPv4", Shape::Bool),
    ("EnableIPv6", Shape::Bool),
    ("Options", TEXT_MAP),
    ("Labels", TEXT_MAP),
]);

/// The body of `POST /networks/{id}/connect`.
pub const CONNECT: Shape =
    Shape::Object(&[("Container", Shape::Text), ("EndpointConfig", ENDPOINT_SETTINGS)]);

/// The body of `POST /networks/{id}/disconnect`.
pub const DISCONNECT: Shape = Shape::Object(&[("Container", Shape::Text), ("Force", Shape::Bool)]);

/// The body of `POST /auth`.
pub const CREDENTIALS: Shape = Shape::Object(&[
    ("username", Shape::Text),
    ("password", Shape::Text),
    ("email", Shape::Text),
    ("serveraddress", Shape::Text),
    ("identitytoken", Shape::Text),
    ("registrytoken", Shape::Text),
    ("auth", Shape::Any),
]);

/// Anything; for routes whose body Shoal only looks at.
pub const OPAQUE: Shape = ANY_MAP;
