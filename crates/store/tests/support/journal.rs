//! A medium in memory that remembers every write and every sync of several files in one order, and
//! can say what a crash at any moment could have left of each.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shoal_store::{Medium, OpenMedium};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Op {
    Write {
        at: u64,
        data: Vec<u8>,
    },
    Length(u64),
    Sync,
    /// From now on the file lies there.
    Rename(PathBuf),
}

/// A file, whatever it is called.
type Inode = usize;

#[derive(Debug, Default)]
struct Disks {
    /// What was there before, durable.
    before: Vec<Vec<u8>>,
    now: Vec<Vec<u8>>,
    /// What lies where, and what lay there when the journal first heard of it.
    names: BTreeMap<PathBuf, Inode>,
    first: BTreeMap<PathBuf, Inode>,
    ops: Vec<(Inode, Op)>,
    /// What lay beside the files, as far as it had changed by each position.
    beside: Vec<(usize, Vec<u8>)>,
}

/// The journal of all files. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Disks>>);

/// One of them, open.
#[derive(Debug)]
struct Open {
    journal: Journal,
    inode: Inode,
    /// A small file of its directory, which is remembered too.
    beside: PathBuf,
}

/// What becomes of writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All are lost.
    Lost,
    /// Some are, in no order.
    Some,
    /// Some are, and one is there in part.
    Torn,
}

/// Numbers that look random and are the same each time (xorshift).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(below.max(1)).unwrap()).unwrap()
    }
}

impl Journal {
    /// Opens files on this medium; what is at their path is taken over.
    pub fn medium(&self) -> OpenMedium {
        let journal = self.clone();
        Arc::new(move |path: &Path| {
            let mut disks = journal.0.lock().unwrap();
            // What is made to take another's place is another file each time.
            let fresh = path.extension().is_some_and(|it| it == "next");
            let known = disks.names.get(path).copied().filter(|_| !fresh);
            let inode = match known {
                Some(inode) => inode,
                None => {
                    let bytes = std::fs::read(path)?;
                    disks.before.push(bytes.clone());
                    disks.now.push(bytes);
                    let inode = disks.now.len() - 1;
                    disks.names.insert(path.to_owned(), inode);
                    disks.first.entry(path.to_owned()).or_insert(inode);
                    inode
                }
            };
            let beside = path.with_file_name("store.key");
            Ok(Box::new(Open { journal: journal.clone(), inode, beside }))
        })
    }

    /// What may have lain beside the files at `position`: what is replaced between two writes may
    /// have been or not.
    pub fn beside(&self, position: usize) -> Vec<Vec<u8>> {
        let disks = self.0.lock().unwrap();
        let before = disks.beside.iter().rev().find(|(at, _)| *at < position);
        let now = disks.beside.iter().find(|(at, _)| *at == position);
        before.or(disks.beside.first()).into_iter().chain(now).map(|(_, b)| b.clone()).collect()
    }

    /// How much has happened.
    pub fn position(&self) -> usize {
        self.0.lock().unwrap().ops.len()
    }

    /// What `path` may hold after a crash at `position`.
    pub fn crashed(&self, path: &Path, position: usize, fate: Fate, dice: &mut Dice) -> Vec<u8> {
        let disks = self.0.lock().unwrap();
        let ops = &disks.ops[..position];
        let here = |(inode, op): &(Inode, Op)| match op {
            Op::Rename(to) if to == path => Some(*inode),
            _ => None,
        };
        let lies = ops.iter().rev().find_map(here).unwrap_or_else(|| disks.first[path]);
        let mut image = disks.before[lies].clone();
        let ops: Vec<&Op> = ops.iter().filter(|(of, _)| *of == lies).map(|(_, op)| op).collect();
        let synced = ops.iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |at| at + 1);
        for op in &ops[..synced] {
            carry_out(&mut image, op);
        }
        let loose: Vec<&Op> = ops[synced..].to_vec();
        let torn = dice.roll(loose.len());
        for (number, op) in loose.iter().enumerate() {
            match (fate, op) {
                (Fate::Lost, _) => {}
                (Fate::Torn, Op::Write { at, data }) if number == torn => {
                    let sectors = data.len() / SECTOR;
                    let part = data[..dice.roll(sectors + 1) * SECTOR].to_vec();
                    carry_out(&mut image, &Op::Write { at: *at, data: part });
                }
                (_, op) if dice.roll(2) == 0 => carry_out(&mut image, op),
                _ => {}
            }
        }
        image
    }
}

fn carry_out(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, data } => {
            let at = usize::try_from(*at).unwrap();
            // A write behind the end that was lost makes the file as long as it must be.
            if image.len() < at + data.len() {
                image.resize(at + data.len(), 0);
            }
            image[at..at + data.len()].copy_from_slice(data);
        }
        Op::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
        Op::Sync | Op::Rename(_) => {}
    }
}

impl Open {
    fn note(&self, op: Op) {
        let beside = std::fs::read(&self.beside).unwrap_or_default();
        let mut disks = self.journal.0.lock().unwrap();
        if disks.beside.last().is_none_or(|(_, last)| *last != beside) {
            let at = disks.ops.len();
            disks.beside.push((at, beside));
        }
        carry_out(&mut disks.now[self.inode], &op);
        disks.ops.push((self.inode, op));
    }
}

impl Medium for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.journal.0.lock().unwrap().now[self.inode].len()).unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disks = self.journal.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let found = disks.now[self.inode].get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Op::Write { at: offset, data: data.to_vec() });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Op::Length(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Op::Sync);
        Ok(())
    }

    fn renamed(&self, path: &Path) {
        self.journal.0.lock().unwrap().names.insert(path.to_owned(), self.inode);
        self.note(Op::Rename(path.to_owned()));
    }
}
