//! What a daemon claims for itself: its data root, its instance id, its pid file.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use shoal_model::id::InstanceId;

use super::settings::Settings;

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
        fs::create_dir_all(dir).with_context(|| format!("make '{}'", dir.display()))?;
    }
    let path = settings.data_root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
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
    if let Some(pidfile) = &settings.pidfile {
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
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            let fits = id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit());
            if !fits {
                bail!("'{}' does not hold 12 hex digits", path.display());
            }
            Ok(InstanceId::new(id))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let bytes: [u8; 6] = rand::random();
            let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let write = || -> std::io::Result<()> {
                let mut file = File::create(path.with_extension("new"))?;
                file.write_all(id.as_bytes())?;
                file.sync_all()?;
                fs::rename(path.with_extension("new"), &path)
            };
            write().with_context(|| format!("write '{}'", path.display()))?;
            Ok(InstanceId::new(id))
        }
        Err(error) => Err(error).with_context(|| format!("read '{}'", path.display())),
    }
}
