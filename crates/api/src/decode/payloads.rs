//! Shapes of secrets and configs.

use super::{Shape, TEXT_MAP};

const DRIVER: Shape = Shape::Object(&[("Name", Shape::Text), ("Options", TEXT_MAP)]);

/// `SecretSpec` and `ConfigSpec`.
pub const PAYLOAD_SPEC: Shape = Shape::Object(&[
    ("Name", Shape::Text),
    ("Labels", TEXT_MAP),
    ("Data", Shape::Text),
    ("Driver", DRIVER),
    ("Templating", DRIVER),
]);
