//! Which mounts a container gets: its binds, volumes and memory file systems, resolved once at its
//! creation.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use shoal_model::spec::StringMap;
use shoal_model::spec::container::{BindOptions, ContainerConfig, HostConfig, Mount};
use shoal_runtime::container_plan::{MountKind, MountPlan, Propagation};

use crate::admission::is_unset;
use crate::error::EngineError;
use crate::view::container::MountPoint;

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    /// Absolute path inside, without `.` and `..`.
    pub target: String,
    pub read_only: bool,
    /// The options as the client wrote them.
    #[serde(default)]
    pub mode: String,
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    Bind {
        path: String,
        recursive: bool,
        #[serde(default)]
        propagation: Propagation,
        /// Whether a missing source is made as a directory.
        create: bool,
    },
    Volume {
        name: String,
        /// Whether the image's content goes into it when it is empty.
        copy_up: bool,
        /// Whether it goes with its container.
        anonymous: bool,
        #[serde(default)]
        labels: StringMap,
    },
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
        options: Vec<String>,
    },
}

impl MountRecord {
    /// As the runtime wants it; `volume` gives a volume's directory.
    pub fn plan(&self, volume: impl Fn(&str) -> std::path::PathBuf) -> MountPlan {
        let kind = match &self.source {
            MountSource::Bind { path, recursive, propagation, .. } => MountKind::Bind {
                source: path.into(),
                recursive: *recursive,
                propagation: *propagation,
            },
            MountSource::Volume { name, .. } => MountKind::Bind {
                source: volume(name),
                recursive: true,
                propagation: Propagation::Rprivate,
            },
            MountSource::Tmpfs { size_bytes, mode, options } => {
                MountKind::Tmpfs { size_bytes: *size_bytes, mode: *mode, options: options.clone() }
            }
        };
        MountPlan { target: (&self.target).into(), read_only: self.read_only, kind }
    }

    /// As clients see it.
    pub fn view(&self, volume: impl Fn(&str) -> std::path::PathBuf) -> MountPoint {
        let mut point = MountPoint {
            destination: self.target.clone(),
            mode: self.mode.clone(),
            rw: !self.read_only,
            ..MountPoint::default()
        };
        match &self.source {
            MountSource::Bind { path, propagation, .. } => {
                point.kind = "bind".into();
                point.source.clone_from(path);
                point.propagation = propagation_word(*propagation).into();
            }
            MountSource::Volume { name, .. } => {
                point.kind = "volume".into();
                point.name.clone_from(name);
                point.source = volume(name).to_string_lossy().into_owned();
                point.driver = "local".into();
            }
            MountSource::Tmpfs { .. } => point.kind = "tmpfs".into(),
        }
        point
    }

    /// The volume that it shows.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, .. } => Some(name),
            _ => None,
        }
    }
}

fn propagation_word(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Rprivate => "rprivate",
        Propagation::Private => "private",
        Propagation::Rslave => "rslave",
        Propagation::Slave => "slave",
        Propagation::Rshared => "rshared",
        Propagation::Shared => "shared",
    }
}

fn parse_propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "rprivate" => Propagation::Rprivate,
        "private" => Propagation::Private,
        "rslave" => Propagation::Rslave,
        "slave" => Propagation::Slave,
        "rshared" => Propagation::Rshared,
        "shared" => Propagation::Shared,
        _ => return None,
    })
}

/// All mounts that a container asks for. Anonymous volumes get their names from `fresh`.
///
/// # Errors
/// Whatever cannot be right, in Docker's words.
pub(crate) fn resolve(
    host: &HostConfig,
    config: &ContainerConfig,
    mut fresh: impl FnMut() -> String,
) -> Result<Vec<MountRecord>, EngineError> {
    let mut mounts = Vec::new();
    for text in host.binds.as_deref().unwrap_or(&[]) {
        mounts.push(parse_bind(text)?);
    }
    for mount in host.mounts.as_deref().unwrap_or(&[]) {
        mounts.push(parse_mount(mount, &mut fresh)?);
    }
    let mut seen = BTreeSet::new();
    for mount in &mounts {
        if !seen.insert(mount.target.clone()) {
            let text = format!("Duplicate mount point: {}", mount.target);
            return Err(EngineError::invalid(text));
        }
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        let mount = parse_tmpfs(target, options)?;
        // A tmpfs in the short form gives way to a mount at the same place, as in Docker.
        if seen.insert(mount.target.clone()) {
            mounts.push(mount);
        }
    }
    for target in config.volumes.iter().flatten().map(|(target, _)| target) {
        let target = clean_target(target)?;
        if seen.insert(target.clone()) {
            let source = MountSource::Volume {
                name: fresh(),
                copy_up: true,
                anonymous: true,
                labels: StringMap::new(),
            };
            mounts.push(MountRecord { target, read_only: false, mode: String::new(), source });
        }
    }
    Ok(mounts)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean_target(target: &str) -> Result<String, EngineError> {
    let bad = |why: &str| EngineError::invalid(format!("invalid mount path: '{target}' {why}"));
    if !target.starts_with('/') {
        return Err(bad("mount path must be absolute"));
    }
    let mut clean = String::new();
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => {
                clean.push('/');
                clean.push_str(&name.to_string_lossy());
            }
            Component::ParentDir => return Err(bad("mount path must not contain '..'")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean.is_empty() {
        let text = format!("invalid specification: destination can't be '/': '{target}'");
        return Err(EngineError::invalid(text));
    }
    Ok(clean)
}

/// `source:target[:options]`.
fn parse_bind(text: &str) -> Result<MountRecord, EngineError> {
    let invalid = || EngineError::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(invalid()),
    };
    if source.is_empty() || target.is_empty() {
        return Err(invalid());
    }
    let (mut read_only, mut copy_up, mut propagation) = (false, true, None);
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nocopy" => copy_up = false,
            // Labels need SELinux, which is never used; consistency means nothing on Linux.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            word => propagation = Some(parse_propagation(word).ok_or_else(invalid)?),
        }
    }
    let source = if source.starts_with('/') {
        MountSource::Bind {
            path: source.to_owned(),
            recursive: true,
            propagation: propagation.unwrap_or_default(),
            create: true,
        }
    } else {
        if propagation.is_some() {
            return Err(invalid());
        }
        crate::volumes::check_name(source)?;
        let labels = StringMap::new();
        MountSource::Volume { name: source.to_owned(), copy_up, anonymous: false, labels }
    };
    Ok(MountRecord { target: clean_target(target)?, read_only, mode: options.to_owned(), source })
}

/// The long form.
fn parse_mount(
    mount: &Mount,
    fresh: &mut impl FnMut() -> String,
) -> Result<MountRecord, EngineError> {
    let invalid = |why: &str| {
        EngineError::invalid(format!("invalid mount config for type \"{}\": {why}", mount.kind))
    };
    if mount.target.is_empty() {
        return Err(invalid("field Target must not be empty"));
    }
    if let Some((name, _)) = mount.extra.iter().find(|(_, value)| !is_unset(value)) {
        return Err(EngineError::missing(format!("mount member '{name}'")));
    }
    let source = match mount.kind.as_str() {
        "bind" => long_bind(mount, &invalid)?,
        "volume" => long_volume(mount, fresh)?,
        "tmpfs" => {
            if mount.source.as_deref().is_some_and(|s| !s.is_empty()) {
                return Err(invalid("field Source must not be specified"));
            }
            long_tmpfs(mount)?
        }
        "image" | "cluster" | "npipe" => {
            return Err(EngineError::missing(format!("mount type '{}'", mount.kind)));
        }
        other => return Err(EngineError::invalid(format!("mount type unknown: \"{other}\""))),
    };
    Ok(MountRecord {
        target: clean_target(&mount.target)?,
        read_only: mount.read_only.unwrap_or(false),
        mode: String::new(),
        source,
    })
}

fn long_bind(
    mount: &Mount,
    invalid: &impl Fn(&str) -> EngineError,
) -> Result<MountSource, EngineError> {
    let path = mount.source.clone().unwrap_or_default();
    if path.is_empty() {
        return Err(invalid("field Source must not be empty"));
    }
    if !path.starts_with('/') {
        let text = format!("invalid mount path: '{path}' mount path must be absolute");
        return Err(invalid(&text));
    }
    let default = BindOptions::default();
    let options = mount.bind_options.as_ref().unwrap_or(&default);
    if let Some((name, _)) = options.extra.iter().find(|(_, value)| !is_unset(value)) {
        return Err(EngineError::missing(format!("bind option '{name}'")));
    }
    let propagation = match options.propagation.as_deref() {
        None | Some("") => Propagation::Rprivate,
        Some(word) => parse_propagation(word)
            .ok_or_else(|| invalid(&format!("invalid propagation '{word}'")))?,
    };
    let create = options.create_mountpoint.unwrap_or(false);
    let recursive = !options.non_recursive.unwrap_or(false);
    Ok(MountSource::Bind { path, recursive, propagation, create })
}

fn long_volume(
    mount: &Mount,
    fresh: &mut impl FnMut() -> String,
) -> Result<MountSource, EngineError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Options {
        no_copy: bool,
        labels: Option<StringMap>,
        driver_config: Option<serde_json::Value>,
        #[serde(flatten)]
        extra: shoal_model::spec::Extra,
    }
    let options: Options = match &mount.volume_options {
        None => Options::default(),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|e| EngineError::invalid(format!("invalid VolumeOptions: {e}")))?,
    };
    if let Some((name, _)) = options.extra.iter().find(|(_, value)| !is_unset(value)) {
        return Err(EngineError::missing(format!("volume option '{name}'")));
    }
    if let Some(driver) = options.driver_config {
        let name = driver.get("Name").and_then(|n| n.as_str()).unwrap_or_default();
        if !matches!(name, "" | "local") || driver.get("Options").is_some_and(|o| !is_unset(o)) {
            return Err(EngineError::missing(format!("volume driver '{name}' with options")));
        }
    }
    let given = mount.source.clone().filter(|s| !s.is_empty());
    let anonymous = given.is_none();
    let name = given.unwrap_or_else(fresh);
    crate::volumes::check_name(&name)?;
    let labels = options.labels.unwrap_or_default();
    Ok(MountSource::Volume { name, copy_up: !options.no_copy, anonymous, labels })
}

/// The mode of a tmpfs's root when nobody says: what a `/tmp` needs.
const TMPFS_MODE: u32 = 0o1777;

fn long_tmpfs(mount: &Mount) -> Result<MountSource, EngineError> {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mut words = Vec::new();
    for (name, value) in options.extra.iter().filter(|(_, value)| !is_unset(value)) {
        // `Options`: a list of one- or two-word lists, from API 1.46 on.
        let lists = (name == "Options").then(|| value.as_array()).flatten();
        let Some(lists) = lists else {
            return Err(EngineError::missing(format!("tmpfs option '{name}'")));
        };
        for list in lists {
            let parts: Vec<String> = serde_json::from_value(list.clone())
                .map_err(|e| EngineError::invalid(format!("invalid TmpfsOptions: {e}")))?;
            words.push(parts.join("="));
        }
    }
    Ok(MountSource::Tmpfs {
        size_bytes: options.size_bytes.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
        mode: options.mode.filter(|mode| *mode != 0).unwrap_or(TMPFS_MODE),
        options: words,
    })
}

/// `target` and comma-separated options of the short form.
fn parse_tmpfs(target: &str, text: &str) -> Result<MountRecord, EngineError> {
    let (mut size_bytes, mut mode, mut options) = (None, TMPFS_MODE, Vec::new());
    let mut read_only = false;
    for option in text.split(',').filter(|o| !o.is_empty()) {
        let bad = || EngineError::invalid(format!("invalid tmpfs option \"{option}\""));
        match option.split_once('=') {
            Some(("size", value)) => {
                size_bytes = Some(crate::logs::parse_size(value).ok_or_else(bad)?);
            }
            Some(("mode", value)) => {
                mode = u32::from_str_radix(value, 8).map_err(|_| bad())?;
            }
            None if option == "ro" => read_only = true,
            None if option == "rw" => read_only = false,
            _ => options.push(option.to_owned()),
        }
    }
    let source = MountSource::Tmpfs { size_bytes, mode, options };
    Ok(MountRecord { target: clean_target(target)?, read_only, mode: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resolve_json(host: serde_json::Value) -> Result<Vec<MountRecord>, EngineError> {
        let host: HostConfig = serde_json::from_value(host).unwrap();
        let volumes = serde_json::json!({"Volumes": {"/data": {}, "/own/": {}}});
        let config: ContainerConfig = serde_json::from_value(volumes).unwrap();
        resolve(&host, &config, || "fresh".into())
    }

    #[test]
    fn binds_volumes_and_tmpfs_are_told_apart() {
        let mounts = resolve_json(serde_json::json!({
            "Binds": ["/srv:/data:ro,rslave", "cache:/var//cache/"],
            "Mounts": [{"Type": "volume", "Target": "/anon"}],
            "Tmpfs": {"/run": "size=64m,mode=755,noexec"},
        }))
        .unwrap();
        let targets: Vec<&str> = mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets, ["/data", "/var/cache", "/anon", "/run", "/own"]);
        let views: Vec<MountPoint> = mounts.iter().map(|m| m.view(|n| n.into())).collect();
        assert_eq!((views[0].kind.as_str(), views[0].rw), ("bind", false));
        assert_eq!(views[0].propagation, "rslave");
        assert_eq!((views[1].kind.as_str(), views[1].name.as_str()), ("volume", "cache"));
        assert_eq!(views[2].name, "fresh");
        let tmpfs = MountSource::Tmpfs {
            size_bytes: Some(64 << 20),
            mode: 0o755,
            options: vec!["noexec".into()],
        };
        assert_eq!(mounts[3].source, tmpfs);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let cases = [
            serde_json::json!({"Binds": ["/a"]}),
            serde_json::json!({"Binds": ["/a:b"]}),
            serde_json::json!({"Binds": ["/a:/"]}),
            serde_json::json!({"Binds": ["/a:/b/../c"]}),
            serde_json::json!({"Binds": ["/a:/b:xx"]}),
            serde_json::json!({"Binds": ["/a:/b", "/c:/b/"]}),
            serde_json::json!({"Binds": ["a/b:/c"]}),
            serde_json::json!({"Mounts": [{"Type": "bind", "Target": "/b"}]}),
            serde_json::json!({"Mounts": [{"Type": "odd", "Target": "/b"}]}),
            serde_json::json!({"Mounts": [{"Type": "image", "Source": "x", "Target": "/b"}]}),
        ];
        for case in cases {
            assert!(resolve_json(case.clone()).is_err(), "{case}");
        }
    }
}
