//! Local volumes: directories below the data root that outlive containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;

use crate::error::EngineError;
use crate::recover::stray;
use crate::remove::REMOVING;
use crate::view::volume::Volume;

/// The format of a volume's record.
const VOLUME_VERSION: u32 = 1;
const RECORD: &str = "volume.json";
const DATA: &str = "_data";
/// The longest record that is read: a name and labels.
const RECORD_BYTES_MAX: u64 = 4 << 20;

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
        shoal_durable::make_private_dir(&root)
            .map_err(EngineError::io("create the directory", &root))?;
        let (mut known, mut damaged) = (BTreeMap::new(), Vec::new());
        let entries = fs::read_dir(&root).map_err(EngineError::io("read", &root))?;
        for entry in entries {
            let dir = entry.map_err(EngineError::io("read", &root))?.path();
            if !dir.is_dir() {
                damaged.push(stray(&dir, "it is no volume; move it away"));
                continue;
            }
            let removing =
                dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(REMOVING));
            if removing || (matches!(dir.join(RECORD).try_exists(), Ok(false)) && is_unused(&dir)) {
                // A removal that was cut off, or a creation: nothing refers to it.
                if let Err(error) = fs::remove_dir_all(&dir) {
                    damaged.push(EngineError::io("remove", &dir)(error));
                }
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
        let record = VolumeRecord {
            version: VOLUME_VERSION,
            name: name.to_owned(),
            created: now,
            labels,
            options,
        };
        let dir = self.root.join(name);
        make(&dir, &record).inspect_err(|_| {
            // Ignored because: the failure that led here is the one to report. What somebody has
            // put there stays: beside the record only empty directories go.
            let _ = fs::remove_file(dir.join(RECORD));
            // Ignored because: see above.
            let _ = fs::remove_dir(dir.join(DATA)).and_then(|()| fs::remove_dir(&dir));
        })?;
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
        let aside = {
            let mut known = self.known();
            if !known.contains_key(name) {
                return Err(EngineError::NoSuchVolume { name: name.to_owned() });
            }
            let dir = self.root.join(name);
            // A name that no volume can have; the next start finishes what is cut off here.
            let aside = self.root.join(format!("{REMOVING}{}", crate::names::random_hex()));
            fs::rename(&dir, &aside).map_err(EngineError::io("move aside", &dir))?;
            known.remove(name);
            aside
        };
        fs::remove_dir_all(&aside).map_err(EngineError::io("remove", &aside))
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

/// Makes a volume's directories and its record.
fn make(dir: &Path, record: &VolumeRecord) -> Result<(), EngineError> {
    let (data, path) = (dir.join(DATA), dir.join(RECORD));
    shoal_durable::make_private_dir(dir).map_err(EngineError::io("create the directory", dir))?;
    // What is in the volume belongs to the containers that mount it.
    fs::create_dir_all(&data).map_err(EngineError::io("create the directory", &data))?;
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|e| EngineError::Record { path: dir.to_owned(), source: Box::new(e) })?;
    shoal_durable::replace(&path, &bytes, shoal_durable::PRIVATE_FILE)
        .map_err(EngineError::io("write", path))
}

/// Whether nobody has put anything into a directory without a record.
fn is_unused(dir: &Path) -> bool {
    match fs::read_dir(dir.join(DATA)) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn read(dir: &Path) -> Result<VolumeRecord, EngineError> {
    let path = dir.join(RECORD);
    let record = shoal_durable::read_json::<VolumeRecord>(&path, RECORD_BYTES_MAX);
    let record = record
        .map_err(|e| EngineError::Record { path: path.clone(), source: Box::new(e) })?
        .ok_or_else(|| stray(dir, "its record is gone; what is in it is left alone"))?;
    if dir.file_name().is_none_or(|name| name != record.name.as_str()) {
        return Err(stray(&path, "it is the record of another volume"));
    }
    Ok(record)
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
