//! Local volumes: directories below the data root that outlive containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;

use crate::error::EngineError;
use crate::record::replace_file;
use crate::view::volume::Volume;

/// The format of a volume's record.
const VOLUME_VERSION: u32 = 1;
const RECORD: &str = "volume.json";
const DATA: &str = "_data";

/// The label of volumes that nobody named.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct VolumeRecord {
    version: u32,
    name: String,
    created: Timestamp,
    labels: StringMap,
    options: Option<StringMap>,
}

/// Every volume of this node.
pub(crate) struct Volumes {
    root: PathBuf,
    known: Mutex<BTreeMap<String, VolumeRecord>>,
}

/// Checks a volume's name.
pub(crate) fn check_name(name: &str) -> Result<(), EngineError> {
    let mut bytes = name.bytes();
    let fine = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.len() > 0
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if fine && name.len() <= 255 {
        return Ok(());
    }
    Err(EngineError::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use \
         absolute path"
    )))
}

impl Volumes {
    /// Reads what is there; makes the directory. Blocks.
    pub fn open(root: PathBuf) -> Result<(Self, Vec<EngineError>), EngineError> {
        fs::create_dir_all(&root).map_err(EngineError::io("create the directory", &root))?;
        let (mut known, mut damaged) = (BTreeMap::new(), Vec::new());
        let entries = fs::read_dir(&root).map_err(EngineError::io("read", &root))?;
        for entry in entries {
            let dir = entry.map_err(EngineError::io("read", &root))?.path();
            if !dir.join(RECORD).exists() {
                // A creation or removal that was cut off: nothing refers to it.
                fs::remove_dir_all(&dir).map_err(EngineError::io("remove", &dir))?;
                continue;
            }
            match read(&dir) {
                Ok(record) => drop(known.insert(record.name.clone(), record)),
                Err(error) => damaged.push(error),
            }
        }
        Ok((Self { root, known: Mutex::new(known) }, damaged))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, VolumeRecord>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name).join(DATA)
    }

    /// Makes a volume, or gives the one with that name. Says whether it is new. Blocks.
    pub fn create(
        &self,
        name: &str,
        labels: StringMap,
        options: Option<StringMap>,
        now: Timestamp,
    ) -> Result<bool, EngineError> {
        check_name(name)?;
        let mut known = self.known();
        if known.contains_key(name) {
            return Ok(false);
        }
        let dir = self.root.join(name);
        let data = dir.join(DATA);
        fs::create_dir_all(&data).map_err(EngineError::io("create the directory", &data))?;
        let record = VolumeRecord {
            version: VOLUME_VERSION,
            name: name.to_owned(),
            created: now,
            labels,
            options,
        };
        let bytes = serde_json::to_vec_pretty(&record)
            .map_err(|e| EngineError::Record { path: dir.clone(), source: Box::new(e) })?;
        replace_file(&dir, RECORD, &bytes)?;
        known.insert(name.to_owned(), record);
        Ok(true)
    }

    /// One volume.
    pub fn get(&self, name: &str) -> Result<Volume, EngineError> {
        let known = self.known();
        let record = known.get(name).or_else(|| {
            // Like containers, volumes may be named by a unique beginning: anonymous ones are long.
            let mut hits = known.range(name.to_owned()..).take_while(|(n, _)| n.starts_with(name));
            let first = hits.next().filter(|_| name.len() >= 12);
            first.filter(|_| hits.next().is_none()).map(|(_, record)| record)
        });
        record
            .map(|record| self.view(record))
            .ok_or_else(|| EngineError::NoSuchVolume { name: name.to_owned() })
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<Volume> {
        self.known().values().map(|record| self.view(record)).collect()
    }

    /// Removes a volume and what is in it; the caller has made sure that nobody uses it. Blocks.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        if self.known().remove(name).is_none() {
            return Err(EngineError::NoSuchVolume { name: name.to_owned() });
        }
        let dir = self.root.join(name);
        // The record goes first: without it the next start finishes the removal.
        let record = dir.join(RECORD);
        fs::remove_file(&record).map_err(EngineError::io("remove", &record))?;
        fs::remove_dir_all(&dir).map_err(EngineError::io("remove", &dir))
    }

    /// Whether nothing is in it. Blocks.
    pub fn is_empty(&self, name: &str) -> Result<bool, EngineError> {
        let path = self.path(name);
        let mut entries = fs::read_dir(&path).map_err(EngineError::io("read", &path))?;
        Ok(entries.next().is_none())
    }

    fn view(&self, record: &VolumeRecord) -> Volume {
        Volume {
            created_at: record.created,
            driver: "local".into(),
            labels: record.labels.clone(),
            mountpoint: self.path(&record.name).to_string_lossy().into_owned(),
            name: record.name.clone(),
            options: record.options.clone(),
            scope: "local".into(),
            usage_data: None,
        }
    }
}

fn read(dir: &Path) -> Result<VolumeRecord, EngineError> {
    let path = dir.join(RECORD);
    let bytes = fs::read(&path).map_err(EngineError::io("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|e| EngineError::Record { path, source: Box::new(e) })
}

/// Bytes below `path`, each file with several names once. Blocks.
pub(crate) fn size_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = BTreeSet::new();
    let mut waiting = vec![path.to_owned()];
    let mut total = 0_u64;
    while let Some(dir) = waiting.pop() {
        // Ignored because: what vanishes or cannot be read while it is counted does not count.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                waiting.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino())) {
                total = total.saturating_add(meta.size());
            }
        }
    }
    total
}
