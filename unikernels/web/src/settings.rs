//! What the server is told by arguments and environment.

use alloc::string::{String, ToString};

/// What cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// An argument that there is not.
    #[error("unknown argument '{0}': known are --port N, --root PATH, --name NAME")]
    Argument(String),
    /// An argument without its value.
    #[error("'{0}' needs a value behind it")]
    Value(String),
    /// Not a port.
    #[error("'{0}' is not a port: give --port or WEB_PORT a number from 1 to 65535")]
    Port(String),
}

/// The folder whose files are served if none is named.
pub const ROOT: &str = "/srv";

/// All settings. Arguments go before the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// TCP port.
    pub port: u16,
    /// The folder whose files are served, without a slash at its end; nothing: [`ROOT`].
    pub root: Option<String>,
    /// The name on the whoami page; nothing: the host name.
    pub name: Option<String>,
}

impl Settings {
    /// Reads the arguments after the program's name, and the variables `WEB_PORT`, `WEB_ROOT` and
    /// `WEB_NAME`.
    ///
    /// # Errors
    /// The first one that is not understood.
    pub fn read<'a>(
        mut arguments: impl Iterator<Item = &'a str>,
        variable: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, SettingError> {
        let mut port = variable("WEB_PORT");
        let mut root = variable("WEB_ROOT");
        let mut name = variable("WEB_NAME");
        while let Some(argument) = arguments.next() {
            let to = match argument {
                "--port" => &mut port,
                "--root" => &mut root,
                "--name" => &mut name,
                other => return Err(SettingError::Argument(other.to_string())),
            };
            let value = arguments.next();
            *to = Some(value.ok_or_else(|| SettingError::Value(argument.to_string()))?);
        }
        let port = port.unwrap_or("80");
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| SettingError::Port(port.to_string()))?;
        let root = root.map(|root| root.trim_end_matches('/').to_string());
        Ok(Self { port, root, name: name.map(ToString::to_string) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_go_before_the_environment() {
        let none = |_: &str| None;
        let some = |name: &str| (name == "WEB_PORT").then_some("81");
        let read = |arguments: &[&'static str], port: bool| {
            let variable = move |name: &str| if port { some(name) } else { none(name) };
            Settings::read(arguments.iter().copied(), variable)
        };
        let settings = read(&[], false);
        let expected = Settings { port: 80, root: None, name: None };
        assert_eq!(settings, Ok(expected));
        assert_eq!(read(&[], true).map(|settings| settings.port), Ok(81));
        assert_eq!(read(&["--port", "82"], true).map(|settings| settings.port), Ok(82));
        let root = read(&["--root", "/a/"], true).map(|settings| settings.root);
        assert_eq!(root, Ok(Some("/a".into())));
        assert_eq!(read(&["--port", "x"], true), Err(SettingError::Port("x".to_string())));
        assert_eq!(read(&["--port"], true), Err(SettingError::Value("--port".to_string())));
        assert_eq!(read(&["x"], true), Err(SettingError::Argument("x".to_string())));
    }
}
