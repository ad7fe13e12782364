//! The whole state of a cluster in one file, and a store made from it.
//!
//! The file says what it is in clear: magic, version, a head as JSON, and a digest of these. Then
//! come pieces of the content, the length of each before it, and at the end a digest of everything
//! before. With a passphrase each piece is sealed, and bound to its head, its number and whether it
//! is the last: nothing can be left out, put elsewhere, or taken from another backup.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::Revision;
use shoal_model::level;
use shoal_model::time::Timestamp;

use crate::state_machine::Content;

const MAGIC: &[u8; 8] = b"SHOALBAK";
/// The version of the file's form.
const VERSION: u32 = 1;
/// Largest head that is read. Ours has some hundred bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of content in one piece.
const PIECE_BYTES: usize = 1 << 20;
/// Largest piece that is read: one of ours, sealed.
const PIECE_BYTES_MAX: usize = PIECE_BYTES + 64;
/// Bytes of a digest.
const DIGEST_LEN: usize = 32;
/// Bytes of a nonce: random ones never repeat in practice.
const NONCE_LEN: usize = 24;
/// What making a key from a passphrase costs: memory in KiB, passes, lanes. About a quarter of a
/// second; who guesses pays as much for each guess.
const COST: (u32, u32, u32) = (64 << 10, 3, 1);
/// Most that a file may make us spend on that.
const COST_MAX: (u32, u32, u32) = (1 << 20, 16, 16);

/// What a backup says of itself in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The cluster's id.
    pub cluster: String,
    /// The last write in it.
    pub revision: u64,
    /// When it was taken.
    pub taken: Timestamp,
    /// The lowest level of the cluster's format that can read it.
    pub level: u32,
    /// How its pieces are sealed; in clear if unsaid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealing>,
}

/// How a key is made of a passphrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sealing {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    /// Something known, sealed: tells a wrong passphrase from a damaged file.
    proof: String,
}

const KDF: &str = "argon2id";
const PROOF: &[u8] = b"shoal backup";

/// The state of a cluster, with all its secrets and its root key.
#[derive(Clone)]
pub struct Backup {
    /// What it says of itself.
    pub head: BackupHead,
    content: Vec<u8>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("head", &self.head).finish_non_exhaustive()
    }
}

/// Why a backup could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing in it.
    #[error("make a backup: this manager does not have the swarm's state yet")]
    Empty,
    /// Something else.
    #[error("read the backup: it is not one of shoal's")]
    NotOne,
    /// A later program wrote it.
    #[error("read the backup: its {what} is {found}, this program reads up to {known}")]
    Later {
        /// `format`, `level`.
        what: &'static str,
        /// In the file.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It is not what was written.
    #[error("read the backup: it is damaged or cut short ({problem})")]
    Damaged {
        /// Where, and how.
        problem: String,
    },
    /// It is sealed by another passphrase.
    #[error("read the backup: it is not sealed with this passphrase")]
    WrongPassphrase,
    /// It is sealed.
    #[error("read the backup: it is sealed, and no passphrase was given")]
    NeedsPassphrase,
    /// The key could not be made, or nothing sealed with it.
    #[error("seal the backup: {problem}")]
    Seal {
        /// What the library said.
        problem: String,
    },
}

impl Fault for BackupError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Empty => FaultKind::Unavailable,
            Self::Seal { .. } => FaultKind::Internal,
            _ => FaultKind::Invalid,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::Empty => "SH-STO-040",
            Self::NotOne => "SH-STO-041",
            Self::Later { .. } => "SH-STO-042",
            Self::Damaged { .. } => "SH-STO-043",
            Self::WrongPassphrase => "SH-STO-044",
            Self::NeedsPassphrase => "SH-STO-045",
            Self::Seal { .. } => "SH-STO-046",
        }))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Empty => "try again in a moment, or on another manager",
            Self::NotOne => "name a file that 'shoal backup' wrote",
            Self::Later { .. } => "restore with the version of shoal that wrote it, or a later one",
            Self::Damaged { .. } => "use another copy of this backup, or an earlier backup",
            Self::WrongPassphrase => "give the passphrase that 'shoal backup' was given",
            Self::NeedsPassphrase => "give it with --passphrase-file or SHOAL_BACKUP_PASSPHRASE",
            Self::Seal { .. } => "see that this machine has 64 MiB of memory to spare",
        };
        Some(text.to_owned())
    }
}

fn damaged(problem: impl Into<String>) -> BackupError {
    BackupError::Damaged { problem: problem.into() }
}

impl Backup {
    /// Of `state`.
    ///
    /// # Errors
    /// [`BackupError::Empty`] if there is no cluster in it.
    pub fn of(state: &ClusterState, taken: Timestamp) -> Result<Self, BackupError> {
        let cluster = state.cluster.as_ref().ok_or(BackupError::Empty)?.id.to_string();
        let content = serde_json::to_vec(&Content::of(state))
            .map_err(|e| BackupError::Seal { problem: e.to_string() })?;
        let revision = state.revision.0;
        Ok(Self {
            head: BackupHead { cluster, revision, taken, level: state.level(), sealed: None },
            content,
        })
    }

    /// The state in it.
    ///
    /// # Errors
    /// [`BackupError::Damaged`].
    pub fn state(&self) -> Result<ClusterState, BackupError> {
        let content: Content =
            serde_json::from_slice(&self.content).map_err(|e| damaged(e.to_string()))?;
        if content.revision != Revision(self.head.revision) {
            return Err(damaged("its content is of another revision than its head says"));
        }
        Ok(ClusterState::restore(content.revision, content.objects))
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    /// As it is kept: sealed with `passphrase`, or in clear.
    ///
    /// # Errors
    /// [`BackupError::Seal`].
    pub fn encode(&self, passphrase: Option<&str>) -> Result<Vec<u8>, BackupError> {
        let (sealed, cipher) = match passphrase {
            Some(passphrase) => {
                let (sealing, cipher) = Sealing::new(passphrase)?;
                (Some(sealing), Some(cipher))
            }
            None => (None, None),
        };
        let head = BackupHead { sealed, ..self.head.clone() };
        let head =
            serde_json::to_vec(&head).map_err(|e| BackupError::Seal { problem: e.to_string() })?;
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(length(&head));
        out.extend(&head);
        let bound: [u8; DIGEST_LEN] = Sha256::digest(&out).into();
        out.extend(bound);
        let pieces: Vec<&[u8]> = self.content.chunks(PIECE_BYTES).collect();
        for (number, piece) in pieces.iter().enumerate() {
            let piece = match &cipher {
                Some(cipher) => seal(cipher, &place(&bound, number, pieces.len()), piece)?,
                None => piece.to_vec(),
            };
            out.extend(length(&piece));
            out.extend(piece);
        }
        out.extend(0u32.to_le_bytes());
        let digest: [u8; DIGEST_LEN] = Sha256::digest(&out).into();
        out.extend(digest);
        Ok(out)
    }

    /// Reads what [`Self::encode`] made.
    ///
    /// # Errors
    /// Says which of the things that can be wrong with a file is wrong with this one.
    pub fn decode(bytes: &[u8], passphrase: Option<&str>) -> Result<Self, BackupError> {
        let (head, bound, mut rest) = read_head(bytes)?;
        let cut = |at: &[u8]| damaged(format!("it ends after {} bytes", bytes.len() - at.len()));
        let mut pieces = Vec::new();
        loop {
            let (piece, after) = split(rest, PIECE_BYTES_MAX).ok_or_else(|| cut(rest))?;
            rest = after;
            if piece.is_empty() {
                break;
            }
            pieces.push(piece);
        }
        let (written, found) = bytes.split_at(bytes.len() - rest.len());
        if found != Sha256::digest(written).as_slice() {
            let problem = if found.len() < DIGEST_LEN { "its end is missing" } else { "digest" };
            return Err(damaged(problem));
        }
        let cipher = match (&head.sealed, passphrase) {
            (None, _) => None,
            (Some(_), None) => return Err(BackupError::NeedsPassphrase),
            (Some(sealing), Some(passphrase)) => Some(sealing.cipher(passphrase)?),
        };
        let mut content = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            match &cipher {
                None => content.extend_from_slice(piece),
                Some(cipher) => {
                    let plain = open(cipher, &place(&bound, number, pieces.len()), piece);
                    let problem = || damaged(format!("piece {number} cannot be opened"));
                    content.extend(plain.ok_or_else(problem)?);
                }
            }
        }
        Ok(Self { head: BackupHead { sealed: None, ..head }, content })
    }

    /// What the backup says of itself, and whether it is sealed.
    ///
    /// # Errors
    /// Its head cannot be read.
    pub fn look(bytes: &[u8]) -> Result<(BackupHead, bool), BackupError> {
        let (head, _, _) = read_head(bytes)?;
        let sealed = head.sealed.is_some();
        Ok((head, sealed))
    }
}

type Head<'a> = (BackupHead, [u8; DIGEST_LEN], &'a [u8]);

fn read_head(bytes: &[u8]) -> Result<Head<'_>, BackupError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::NotOne)?;
    let cut = || damaged("its head is cut short");
    let (version, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(BackupError::Later { what: "format", found, known: VERSION });
    }
    let (text, rest) = split(rest, HEAD_BYTES_MAX).ok_or_else(cut)?;
    let (digest, after) = rest.split_first_chunk::<DIGEST_LEN>().ok_or_else(cut)?;
    let before = bytes.len() - rest.len();
    let written: [u8; DIGEST_LEN] = Sha256::digest(&bytes[..before]).into();
    if *digest != written {
        return Err(damaged("its head is not what was written"));
    }
    let head: BackupHead = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    let known = level::READS;
    if head.level > known {
        return Err(BackupError::Later { what: "level", found: head.level, known });
    }
    Ok((head, written, after))
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// A length, and as many bytes.
fn split(bytes: &[u8], most: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > most { None } else { rest.split_at_checked(length) }
}

/// Where a piece belongs.
fn place(head: &[u8; DIGEST_LEN], number: usize, count: usize) -> String {
    format!("backup:{}:{number}:{}", hex::encode(head), number + 1 == count)
}

fn seal(cipher: &XChaCha20Poly1305, place: &str, plain: &[u8]) -> Result<Vec<u8>, BackupError> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let payload = Payload { msg: plain, aad: place.as_bytes() };
    let sealed = cipher.encrypt(&XNonce::from(nonce), payload);
    let sealed = sealed.map_err(|e| BackupError::Seal { problem: e.to_string() })?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn open(cipher: &XChaCha20Poly1305, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE_LEN>()?;
    cipher.decrypt(&XNonce::from(*nonce), Payload { msg, aad: place.as_bytes() }).ok()
}

impl Sealing {
    fn new(passphrase: &str) -> Result<(Self, XChaCha20Poly1305), BackupError> {
        let salt: [u8; 16] = rand::random();
        let (memory_kib, passes, lanes) = COST;
        let (kdf, salt, proof) = (KDF.to_owned(), hex::encode(salt), String::new());
        let mut this = Self { kdf, memory_kib, passes, lanes, salt, proof };
        let cipher = this.derive(passphrase)?;
        this.proof = hex::encode(seal(&cipher, "backup:proof", PROOF)?);
        Ok((this, cipher))
    }

    /// The cipher, if `passphrase` is the right one.
    fn cipher(&self, passphrase: &str) -> Result<XChaCha20Poly1305, BackupError> {
        let cost = (self.memory_kib, self.passes, self.lanes);
        if self.kdf != KDF || cost.0 > COST_MAX.0 || cost.1 > COST_MAX.1 || cost.2 > COST_MAX.2 {
            return Err(damaged("its key is made in a way that is not known"));
        }
        let cipher = self.derive(passphrase)?;
        let proof = hex::decode(&self.proof).map_err(|e| damaged(e.to_string()))?;
        match open(&cipher, "backup:proof", &proof) {
            Some(known) if known == PROOF => Ok(cipher),
            _ => Err(BackupError::WrongPassphrase),
        }
    }

    fn derive(&self, passphrase: &str) -> Result<XChaCha20Poly1305, BackupError> {
        let failed = |e: argon2::Error| BackupError::Seal { problem: e.to_string() };
        let salt = hex::decode(&self.salt).map_err(|e| damaged(e.to_string()))?;
        let params = argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32));
        let (algorithm, version) = (argon2::Algorithm::Argon2id, argon2::Version::V0x13);
        let argon = argon2::Argon2::new(algorithm, version, params.map_err(failed)?);
        let mut key = [0; 32];
        argon.hash_password_into(passphrase.as_bytes(), &salt, &mut key).map_err(failed)?;
        Ok(XChaCha20Poly1305::new(&Key::from(key)))
    }
}
