//! The key file, and who may read it: the keys that a manager's files are sealed with, in clear or
//! wrapped by the unlock key.
//!
//! It holds several generations of keys while the files are being sealed anew, and is replaced in
//! one step: whatever is cut, it opens with the unlock key of before or with the one of after, and
//! has every key that a file may still be sealed with. Its revision says which change of the
//! cluster asked for the present unlock key, so that a state that is behind the file, as after a
//! crash, does not bring an earlier key back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::seal::{KEY_LEN, Sealer};
use crate::unlock::UnlockKey;

/// The file's name.
const FILE: &str = "store.key";
/// The version of a file with one key, in clear, of the first generation.
const PLAIN_VERSION: u32 = 1;
/// The version of every other one.
const VERSION: u32 = 2;
/// Largest key file that is read.
const FILE_LEN_MAX: u64 = 64 << 10;
/// The first generation of keys.
pub(crate) const FIRST_GENERATION: u64 = 1;
/// Most generations in the file. Each rotation drops the earlier ones once it is done; one that
/// cannot be done, because the disk is full, must not add keys for ever.
const GENERATIONS_MAX: usize = 64;

/// As it is kept.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    version: u32,
    /// Of version 1: the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Whether an unlock key wraps the keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    wrapped: bool,
    /// The revision of the cluster that asked for that.
    #[serde(default, skip_serializing_if = "is_zero")]
    revision: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeptKey>,
}

#[derive(Serialize, Deserialize)]
struct KeptKey {
    generation: u64,
    key: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde passes it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the file holds, open.
#[derive(Clone)]
pub(crate) struct DataKeys {
    /// What wraps them; nothing if they are in clear.
    wrap: Option<UnlockKey>,
    revision: u64,
    /// By generation; never empty.
    keys: BTreeMap<u64, [u8; KEY_LEN]>,
}

impl DataKeys {
    fn first(wrap: Option<UnlockKey>) -> Self {
        Self { wrap, revision: 0, keys: BTreeMap::from([(FIRST_GENERATION, rand::random())]) }
    }

    /// The generation that everything is to be sealed with.
    pub(crate) fn newest(&self) -> u64 {
        self.keys.keys().next_back().copied().unwrap_or(FIRST_GENERATION)
    }

    /// The sealer of a generation, if its key is still there.
    pub(crate) fn sealer(&self, generation: u64) -> Option<Sealer> {
        self.keys.get(&generation).map(|key| Sealer::new(*key))
    }

    fn kept(&self) -> Result<KeyFile, StoreError> {
        let plain = self.keys.get(&FIRST_GENERATION).filter(|_| self.keys.len() == 1);
        if let (None, 0, Some(key)) = (&self.wrap, self.revision, plain) {
            let key = Some(hex::encode(key));
            let (version, wrapped, revision, keys) = (PLAIN_VERSION, false, 0, Vec::new());
            return Ok(KeyFile { version, key, wrapped, revision, keys });
        }
        let wrap = self.wrap.as_ref().map(|key| Sealer::new(key.bytes()));
        let keep = |(generation, key): (&u64, &[u8; KEY_LEN])| {
            let kept = match &wrap {
                None => key.to_vec(),
                Some(wrap) => wrap.seal(&place(*generation, self.revision), key)?,
            };
            Ok(KeptKey { generation: *generation, key: hex::encode(kept) })
        };
        let keys = self.keys.iter().map(keep).collect::<Result<_, StoreError>>()?;
        let (version, wrapped, revision) = (VERSION, wrap.is_some(), self.revision);
        Ok(KeyFile { version, key: None, wrapped, revision, keys })
    }
}

fn place(generation: u64, revision: u64) -> String {
    format!("key:{generation}:{revision}")
}

/// Something beside the store, sealed with the store's newest key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedAside {
    generation: u64,
    data: String,
}

/// The key file of one store, and the unlock key that opens it, if somebody gave one. Cheap to
/// clone; all clones are the same.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// What may open the file. More than one only while it is not known whether a replacement of
    /// it has happened.
    given: Mutex<Vec<UnlockKey>>,
    /// Why the files are not sealed as the cluster wants them; empty if they are.
    trouble: Mutex<String>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Of the store in `dir`. Nobody has given an unlock key yet.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let path = dir.join(FILE);
        Self(Arc::new(Inner { path, given: Mutex::default(), trouble: Mutex::default() }))
    }

    /// Takes the unlock key that a user gives. Whether it fits shows when the file is read.
    pub fn offer(&self, key: UnlockKey) {
        *self.given() = vec![key];
    }

    /// Forgets the unlock key.
    pub fn forget(&self) {
        self.given().clear();
        self.say(String::new());
    }

    /// Makes the key file before there is a store, if there is none, wrapped by the unlock key that
    /// was given: nothing is ever in clear then.
    ///
    /// # Errors
    /// [`StoreError::Key`].
    pub fn prepare(&self) -> Result<(), StoreError> {
        if let Some(dir) = self.0.path.parent() {
            shoal_durable::make_private_dir(dir).map_err(|e| self.failed("make", &e))?;
        }
        let given = self.given();
        if self.0.path.exists() && self.read(&given).is_ok() {
            return Ok(());
        }
        self.write(&DataKeys::first(given.last().cloned()))
    }

    /// Why the files are not sealed as the cluster wants them; empty if they are.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says so; whether that is news.
    pub fn say(&self, trouble: String) -> bool {
        let mut known = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *known != trouble;
        *known = trouble;
        news
    }

    /// Seals `plain`, which lies beside the store as `what`, if the store is locked after a
    /// restart; nothing if it is not.
    ///
    /// # Errors
    /// As [`Self::open_aside`].
    pub fn seal_aside(&self, what: &str, plain: &[u8]) -> Result<Option<SealedAside>, StoreError> {
        let given = self.given();
        if !self.0.path.exists() {
            return Ok(None);
        }
        let keys = self.read(&given)?;
        if keys.wrap.is_none() {
            return Ok(None);
        }
        let generation = keys.newest();
        let sealer = keys.sealer(generation).ok_or_else(|| self.lost(generation))?;
        let data = hex::encode(sealer.seal(&aside(what), plain)?);
        Ok(Some(SealedAside { generation, data }))
    }

    /// Whether what lies beside the store is sealed, or in clear, as [`Self::seal_aside`] would
    /// make it now.
    ///
    /// # Errors
    /// As [`Self::open_aside`].
    pub fn fits_aside(&self, sealed: Option<&SealedAside>) -> Result<bool, StoreError> {
        let given = self.given();
        if !self.0.path.exists() {
            return Ok(sealed.is_none());
        }
        let keys = self.read(&given)?;
        let wanted = keys.wrap.is_some().then(|| keys.newest());
        Ok(sealed.map(|sealed| sealed.generation) == wanted)
    }

    /// Opens what [`Self::seal_aside`] made.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if the unlock key is wanting, [`StoreError::Key`] and
    /// [`StoreError::Seal`] for files that cannot be used.
    pub fn open_aside(&self, what: &str, sealed: &SealedAside) -> Result<Vec<u8>, StoreError> {
        let SealedAside { generation, data } = sealed;
        let sealer = self.load()?.sealer(*generation).ok_or_else(|| self.lost(*generation))?;
        let data = hex::decode(data).map_err(|_| StoreError::Seal { record: aside(what) })?;
        sealer.open(&aside(what), &data)
    }

    /// What the file holds.
    pub(crate) fn load(&self) -> Result<DataKeys, StoreError> {
        self.read(&self.given())
    }

    /// Has the keys wrapped by `wrap`, or in clear, because the cluster asked for it at `revision`,
    /// with one more key, which is on no disk yet. Does nothing if they are, or if a later change
    /// asked for what is there.
    pub(crate) fn renew(
        &self,
        wrap: Option<&UnlockKey>,
        revision: u64,
    ) -> Result<DataKeys, StoreError> {
        let mut given = self.given();
        let mut keys = self.read(&given)?;
        if keys.wrap.as_ref() == wrap || keys.revision >= revision {
            return Ok(keys);
        }
        if keys.keys.len() >= GENERATIONS_MAX {
            let problem = "too many rotations have begun and not ended".to_owned();
            return Err(StoreError::Key { action: "write", path: self.0.path.clone(), problem });
        }
        keys.keys.insert(keys.newest() + 1, rand::random());
        (keys.wrap, keys.revision) = (wrap.cloned(), revision);
        given.extend(wrap.cloned());
        self.write(&keys)?;
        *given = wrap.cloned().into_iter().collect();
        Ok(keys)
    }

    /// Drops all keys but the newest: nothing is sealed with them any more.
    pub(crate) fn retire(&self) -> Result<(), StoreError> {
        let given = self.given();
        let mut keys = self.read(&given)?;
        let newest = keys.newest();
        if keys.keys.len() == 1 {
            return Ok(());
        }
        keys.keys.retain(|generation, _| *generation == newest);
        self.write(&keys)
    }

    /// Held while the file is read and replaced, so that nobody comes in between.
    fn given(&self) -> MutexGuard<'_, Vec<UnlockKey>> {
        self.0.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, given: &[UnlockKey]) -> Result<DataKeys, StoreError> {
        let path = &self.0.path;
        let failed = |problem: String| self.unfit("read", problem);
        let meta = fs::metadata(path).map_err(|e| failed(e.to_string()))?;
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(failed("others than its owner may read it (mode must be 0600)".into()));
        }
        let read = shoal_durable::read_json(path, FILE_LEN_MAX);
        let file: Option<KeyFile> = read.map_err(|e| failed(e.to_string()))?;
        let file = file.ok_or_else(|| failed("there is none".to_owned()))?;
        match (file.version, &file.key) {
            (PLAIN_VERSION, Some(key)) => {
                let keys = BTreeMap::from([(FIRST_GENERATION, self.plain(key)?)]);
                Ok(DataKeys { wrap: None, revision: 0, keys })
            }
            (VERSION, _) if !file.keys.is_empty() => self.opened(&file, given),
            (PLAIN_VERSION | VERSION, _) => Err(failed("it has no key".to_owned())),
            (found, _) => Err(failed(format!(
                "its format version is {found}, this program knows up to {VERSION}"
            ))),
        }
    }

    fn opened(&self, file: &KeyFile, given: &[UnlockKey]) -> Result<DataKeys, StoreError> {
        let revision = file.revision;
        if !file.wrapped {
            let keys = file.keys.iter().map(|kept| Ok((kept.generation, self.plain(&kept.key)?)));
            let keys = keys.collect::<Result<_, StoreError>>()?;
            return Ok(DataKeys { wrap: None, revision, keys });
        }
        let locked = || StoreError::Locked { path: self.0.path.clone(), tried: !given.is_empty() };
        let opened = given.iter().rev().find_map(|key| {
            let wrap = Sealer::new(key.bytes());
            let open = |kept: &KeptKey| {
                let sealed = hex::decode(&kept.key).ok()?;
                let plain = wrap.open(&place(kept.generation, revision), &sealed).ok()?;
                Some((kept.generation, <[u8; KEY_LEN]>::try_from(plain).ok()?))
            };
            let keys = file.keys.iter().map(open).collect::<Option<_>>()?;
            Some(DataKeys { wrap: Some(key.clone()), revision, keys })
        });
        opened.ok_or_else(locked)
    }

    fn plain(&self, text: &str) -> Result<[u8; KEY_LEN], StoreError> {
        let mut key = [0; KEY_LEN];
        hex::decode_to_slice(text, &mut key).map_err(|e| self.failed("read", &e))?;
        Ok(key)
    }

    fn write(&self, keys: &DataKeys) -> Result<(), StoreError> {
        let file = keys.kept()?;
        shoal_durable::replace_json(&self.0.path, &file).map_err(|e| self.failed("write", &e))
    }

    fn failed(&self, action: &'static str, why: &dyn std::fmt::Display) -> StoreError {
        self.unfit(action, why.to_string())
    }

    fn unfit(&self, action: &'static str, problem: String) -> StoreError {
        StoreError::Key { action, path: self.0.path.clone(), problem }
    }

    /// A key that something is sealed with is not there.
    pub(crate) fn lost(&self, generation: u64) -> StoreError {
        self.unfit("read", format!("it has no key of generation {generation}"))
    }
}

fn aside(what: &str) -> String {
    format!("aside:{what}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn made() -> (tempfile::TempDir, Keyring) {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::of(dir.path());
        keyring.prepare().unwrap();
        (dir, keyring)
    }

    fn text(dir: &tempfile::TempDir) -> String {
        fs::read_to_string(dir.path().join(FILE)).unwrap()
    }

    #[test]
    fn a_key_in_clear_is_read_by_earlier_programs_and_a_wrapped_one_is_not_there_in_clear() {
        let (dir, keyring) = made();
        assert!(text(&dir).starts_with("{\"version\":1,\"key\":\""), "{}", text(&dir));
        let first = keyring.load().unwrap().keys[&FIRST_GENERATION];
        let key = UnlockKey::generate();
        let keys = keyring.renew(Some(&key), 7).unwrap();
        assert_eq!(keys.newest(), 2);
        assert_eq!(keys.keys[&FIRST_GENERATION], first);
        for key in keys.keys.values() {
            assert!(!text(&dir).contains(&hex::encode(key)));
        }
        keyring.retire().unwrap();
        assert_eq!(keyring.load().unwrap().keys.keys().collect::<Vec<_>>(), [&2]);
    }

    #[test]
    fn it_opens_with_its_own_unlock_key_only() {
        let (dir, keyring) = made();
        let (first, second) = (UnlockKey::generate(), UnlockKey::generate());
        keyring.renew(Some(&first), 1).unwrap();
        let other = Keyring::of(dir.path());
        let locked = |keyring: &Keyring| match keyring.load() {
            Err(StoreError::Locked { tried, .. }) => Some(tried),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        };
        assert_eq!(locked(&other), Some(false));
        other.offer(second.clone());
        assert_eq!(locked(&other), Some(true));
        other.offer(first.clone());
        assert_eq!(locked(&other), None);
        keyring.renew(Some(&second), 2).unwrap();
        assert_eq!(locked(&other), Some(true));
        other.offer(second);
        assert_eq!(locked(&other), None);
        // A state that is behind the file brings no earlier key back, and does not open it.
        other.renew(Some(&first), 1).unwrap();
        other.renew(None, 2).unwrap();
        assert_eq!(locked(&Keyring::of(dir.path())), Some(false));
        other.renew(None, 3).unwrap();
        assert_eq!(locked(&Keyring::of(dir.path())), None);
        assert_eq!(keyring.load().unwrap().newest(), 4);
    }

    #[test]
    fn a_replacement_that_failed_leaves_what_was() {
        let (dir, keyring) = made();
        let (first, second) = (UnlockKey::generate(), UnlockKey::generate());
        keyring.renew(Some(&first), 1).unwrap();
        // What is written beside the file cannot be.
        let beside = dir.path().join(".store.key.new");
        fs::create_dir_all(beside.join("in the way")).unwrap();
        assert!(keyring.renew(Some(&second), 2).is_err());
        assert_eq!(keyring.load().unwrap().newest(), 2);
        fs::remove_dir_all(&beside).unwrap();
        assert_eq!(keyring.renew(Some(&second), 2).unwrap().newest(), 3);
        assert_eq!(*keyring.given(), [second]);
    }

    #[test]
    fn rotations_that_do_not_end_are_bounded() {
        let (_dir, keyring) = made();
        for revision in 2..=u64::try_from(GENERATIONS_MAX).unwrap() {
            keyring.renew(Some(&UnlockKey::generate()), revision).unwrap();
        }
        let error = keyring.renew(None, 1000).err().unwrap();
        assert!(error.to_string().contains("too many rotations"), "{error}");
        keyring.retire().unwrap();
        keyring.renew(None, 1000).unwrap();
    }

    #[test]
    fn what_lies_beside_is_sealed_while_the_store_is_locked() {
        let (dir, keyring) = made();
        assert_eq!(keyring.seal_aside("x", b"secret").unwrap(), None);
        keyring.renew(Some(&UnlockKey::generate()), 1).unwrap();
        let sealed = keyring.seal_aside("x", b"secret").unwrap().unwrap();
        assert_eq!(keyring.open_aside("x", &sealed).unwrap(), b"secret");
        assert!(matches!(keyring.open_aside("y", &sealed), Err(StoreError::Seal { .. })));
        let locked = Keyring::of(dir.path()).open_aside("x", &sealed);
        assert!(matches!(locked, Err(StoreError::Locked { tried: false, .. })));
        // Whoever renews the key seals it anew before the earlier one is retired.
        keyring.renew(Some(&UnlockKey::generate()), 2).unwrap();
        assert_eq!(keyring.open_aside("x", &sealed).unwrap(), b"secret");
        keyring.retire().unwrap();
        assert!(matches!(keyring.open_aside("x", &sealed), Err(StoreError::Key { .. })));
    }
}
