//! Reads `{"type": …, "body": …}` so that a kind from a later version is skipped, not an error, and
//! a broken body of a known kind is an error, not skipped. The derived reader can do only one of
//! them, and copies every body on the way.

/// Implements `Deserialize` for a message enum with an `Unknown` variant.
macro_rules! read_envelope {
    ($enum:ident { $($kind:literal => $variant:ident),* $(,)? }) => {
        // A kind that is not listed would be skipped in silence; this does not compile then.
        const _: fn(&$enum) = |message| match message {
            $($enum::$variant(_) => {})*
            $enum::Unknown => {}
        };

        impl<'de> serde::Deserialize<'de> for $enum {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Envelope;

                impl<'de> serde::de::Visitor<'de> for Envelope {
                    type Value = $enum;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object with 'type' and 'body'")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<$enum, A::Error> {
                        use serde::de::{Error as _, IgnoredAny};
                        let mut kind: Option<String> = None;
                        let mut early: Option<serde_json::Value> = None;
                        let mut message = None;
                        while let Some(key) = map.next_key::<String>()? {
                            match (key.as_str(), kind.as_deref()) {
                                ("type", _) => kind = Some(map.next_value()?),
                                // Ours always say the kind first; others may not.
                                ("body", None) => early = Some(map.next_value()?),
                                $(("body", Some($kind)) => {
                                    message = Some($enum::$variant(map.next_value()?));
                                })*
                                _ => {
                                    map.next_value::<IgnoredAny>()?;
                                }
                            }
                        }
                        let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
                        match (kind.as_str(), message, early) {
                            (_, Some(message), _) => Ok(message),
                            $(($kind, None, Some(body)) => serde_json::from_value(body)
                                .map($enum::$variant)
                                .map_err(A::Error::custom),
                            ($kind, None, None) => Err(A::Error::missing_field("body")),)*
                            _ => Ok($enum::Unknown),
                        }
                    }
                }

                from.deserialize_map(Envelope)
            }
        }
    };
}

pub(crate) use read_envelope;
