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

/// The instance id of a data root; made when it is first asked for.
///
/// # Errors
/// The file system refuses.
pub fn instance_of(data_root: &Path) -> Result<InstanceId> {
    let path = data_root.join("instance");
    let known = shoal_durable::read(&path, ID_BYTES_MAX)
        .with_context(|| format!("read '{}'", path.display()))?;
    let text = known.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    if let Some(id) = &text
        && id.len() == ID_DIGITS
        && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        let file = File::open(&path).with_context(|| format!("open '{}'", path.display()))?;
        make_private(&file, &path)?;
        return Ok(InstanceId::new(id));
    }
    if let Some(damaged) = text {
        // Everything in the kernel that carries the old id is a stranger's from now on, and stays;
        // to refuse the start would keep every container down for the sake of those.
        tracing::error!(
            path = %path.display(), %damaged,
            "the instance id is damaged, this node takes a new one: what runs is not found again"
        );
    }
    let bytes: [u8; ID_DIGITS / 2] = rand::random();
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    shoal_durable::replace(&path, id.as_bytes(), PRIVATE_FILE)
        .with_context(|| format!("write '{}'", path.display()))?;
    Ok(InstanceId::new(id))
}

/// Makes a file readable by root alone, whoever made it.
fn make_private(file: &File, path: &Path) -> Result<()> {
    file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))
        .with_context(|| format!("set the rights of '{}'", path.display()))
}
