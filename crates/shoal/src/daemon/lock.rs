//! What a daemon claims for itself: its data root, its instance id, its pid file.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use shoal_durable::PRIVATE_FILE;
use shoal_model::id::InstanceId;

use super::settings::Settings;

/// Digits of an instance id.
const ID_DIGITS: usize = 12;
/// Longest file that is read for it.
const ID_BYTES_MAX: u64 = 256;

/// Claims that end with the daemon.
#[derive(Debug)]
pub struct Claims {
    _data_root: File,
    pidfile: Option<PathBuf>,
}

impl Drop for Claims {
    fn drop(&mut self) {
        if let Some(pidfile) = &self.pidfile {
            // Ignored because: a stale pid file is replaced by the next daemon.
            let _ = fs::remove_file(pidfile);
        }
    }
}

/// Makes the directories and claims them.
///
/// # Errors
/// Another daemon has them, or the file system refuses.
pub fn claim(settings: &Settings) -> Result<Claims> {
    for dir in [&settings.data_root, &settings.exec_root] {
        // Environments, keys and tokens are below: for root alone.
        shoal_durable::make_private_dir(dir)
            .with_context(|| format!("make '{}'", dir.display()))?;
    }
    let path = settings.data_root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE_FILE)
        .open(&path)
        .with_context(|| format!("open '{}'", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "data root '{}' is in use by another daemon; give each its own --data-root and \
             --exec-root",
            settings.data_root.display()
        ),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock '{}'", path.display()));
        }
    }
    make_private(&file, &path)?;
    if let Some(pidfile) = &settings.pidfile {
        // Others may read it: it tells only what `ps` does, and init systems look for it.
        fs::write(pidfile, std::process::id().to_string())
            .with_context(|| format!("write '{}'", pidfile.display()))?;
    }
    Ok(Claims { _data_root: file, pidfile: settings.pidfile.clone() })
}

/// The instance id of a data root; made when it is first asked for. A copy is kept in the exec
/// root: what runs carries the id, and would not be found again without it.
///
/// # Errors
/// There is none yet, and the file system refuses a new one.
pub fn instance_of(data_root: &Path, exec_root: &Path) -> Result<InstanceId> {
    let (path, copy) = (data_root.join("instance"), exec_root.join("instance"));
    let (first, second) = (id_in(&path), id_in(&copy));
    let known = first.clone().or_else(|| second.clone());
    let id = known.clone().unwrap_or_else(|| {
        let bytes: [u8; ID_DIGITS / 2] = rand::random();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    });
    for (path, has) in [(&path, first), (&copy, second)] {
        if has.as_ref() == Some(&id) {
            continue;
        }
        let written = shoal_durable::replace(path, id.as_bytes(), PRIVATE_FILE);
        match written.with_context(|| format!("write '{}'", path.display())) {
            // The other one is enough until there is space again.
            Err(error) if known.is_some() => tracing::error!(error = %format!("{error:#}")),
            written => written?,
        }
    }
    Ok(InstanceId::new(id))
}

/// The id in a file; `None` if it is not there or damaged, which is logged.
fn id_in(path: &Path) -> Option<String> {
    let damaged = |problem: String| {
        tracing::error!(path = %path.display(), problem, "an instance id is damaged");
        None
    };
    let text = match shoal_durable::read(path, ID_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes?).trim().to_owned(),
        Err(error) => return damaged(error.to_string()),
    };
    if text.len() != ID_DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return damaged(format!("'{text}' is not {ID_DIGITS} hex digits"));
    }
    // An earlier version made it readable by everybody.
    let rights = fs::Permissions::from_mode(PRIVATE_FILE);
    // Ignored because: the id is no secret.
    let _ = fs::set_permissions(path, rights);
    Some(text)
}

/// Makes a file readable by root alone, whoever made it.
fn make_private(file: &File, path: &Path) -> Result<()> {
    file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))
        .with_context(|| format!("set the rights of '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_instance_id_survives_damage_to_either_copy() {
        let (data, exec) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = || instance_of(data.path(), exec.path()).unwrap();
        let first = id();
        assert_eq!(id(), first);
        for (dir, damage) in [(&data, ""), (&exec, "nonsense"), (&data, "0123456789abcdef")] {
            fs::write(dir.path().join("instance"), damage).unwrap();
            assert_eq!(id(), first, "{damage}");
        }
        let file = data.path().join("instance");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
        for dir in [&data, &exec] {
            fs::write(dir.path().join("instance"), "both").unwrap();
        }
        assert_ne!(id(), first);
    }
}
