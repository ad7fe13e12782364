//! A disk: what is durable of a file, and what was written since the last sync.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_store::{Medium, OpenMedium};

use crate::chance::Dice;
use crate::world::{Life, World};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Op {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
struct File {
    /// What is durable. `None` before it was opened for the first time.
    synced: Option<Vec<u8>>,
    /// As the system shows it.
    now: Vec<u8>,
    /// What the difference is made of, in order.
    loose: Vec<Op>,
}

/// How a disk behaves at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mood {
    /// Of a thousand writes and syncs so many fail.
    pub fails: u64,
    /// Nothing can grow.
    pub full: bool,
    /// Milliseconds more for each piece of work.
    pub slow: u64,
}

/// The disk of one host. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<File>>);

/// How a crash ends what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: the system keeps what it has taken.
    Kill,
    /// The host loses power: of what was never synced some is there, some is not, and something is
    /// torn.
    Power,
}

impl Disk {
    fn file(&self) -> std::sync::MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file for the process `life`, which takes it from its path the first time.
    pub fn medium(&self, world: &World, life: &Arc<Life>) -> OpenMedium {
        let (disk, world, life) = (self.clone(), world.clone(), Arc::clone(life));
        Arc::new(move |path: &Path| {
            life.check()?;
            let mut file = disk.file();
            if file.synced.is_none() {
                file.now = std::fs::read(path)?;
                file.synced = Some(file.now.clone());
            }
            drop(file);
            let (disk, world, life) = (disk.clone(), world.clone(), Arc::clone(&life));
            Ok(Box::new(Open { disk, world, life }))
        })
    }

    /// What becomes of it in a crash; how many writes were loose, and how many of them are there.
    pub fn crash(&self, how: Crash, dice: &mut Dice) -> (usize, usize) {
        let mut file = self.file();
        let loose = file.loose.len();
        if how == Crash::Kill || file.synced.is_none() {
            return (loose, loose);
        }
        let mut image = file.synced.take().unwrap_or_default();
        let torn = dice.below(loose as u64);
        // All of it was on its way, as a rule: most crashes leave most of it, or nothing.
        let keeps = *dice.pick(&[0, 100, 500, 900, 1000]).unwrap_or(&500);
        let mut kept = 0;
        for (number, op) in std::mem::take(&mut file.loose).into_iter().enumerate() {
            match op {
                Op::Write { at, data } if number as u64 == torn => {
                    let sectors = dice.below((data.len() / SECTOR) as u64 + 1);
                    let part = usize::try_from(sectors).unwrap_or_default() * SECTOR;
                    carry_out(&mut image, &Op::Write { at, data: data[..part].to_vec() });
                }
                op if dice.happens(keeps) => {
                    kept += 1;
                    carry_out(&mut image, &op);
                }
                _ => {}
            }
        }
        file.now.clone_from(&image);
        file.synced = Some(image);
        (loose, kept)
    }
}

fn carry_out(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, data } => {
            // A write behind the end that was lost makes the file as long as it must be.
            if image.len() < at + data.len() {
                image.resize(at + data.len(), 0);
            }
            image[*at..at + data.len()].copy_from_slice(data);
        }
        Op::Length(length) => image.resize(*length, 0),
    }
}

/// The file, open in one process.
#[derive(Debug)]
struct Open {
    disk: Disk,
    world: World,
    life: Arc<Life>,
}

impl Open {
    /// Fails if the process is dead, dies right now, or its disk is in such a mood.
    fn may(&self, grows: bool) -> io::Result<()> {
        self.life.step()?;
        let mood = self.life.mood();
        if mood.full && grows {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if mood.fails > 0 && self.world.dice(|dice| dice.happens(mood.fails)) {
            self.world.note(self.life.name(), format_args!("the disk fails"));
            return Err(io::Error::other("input/output error"));
        }
        Ok(())
    }

    fn put(&self, op: Op) {
        let mut file = self.disk.file();
        carry_out(&mut file.now, &op);
        file.loose.push(op);
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl Medium for Open {
    fn len(&self) -> io::Result<u64> {
        self.life.check()?;
        Ok(self.disk.file().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.life.check()?;
        let file = self.disk.file();
        let at = place(offset)?;
        let found = file.now.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = place(offset)?;
        let grows = at + data.len() > self.disk.file().now.len();
        self.may(grows)?;
        self.put(Op::Write { at, data: data.to_vec() });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let length = place(len)?;
        let grows = length > self.disk.file().now.len();
        self.may(grows)?;
        self.put(Op::Length(length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.may(false)?;
        let mut file = self.disk.file();
        let loose = std::mem::take(&mut file.loose);
        if let Some(synced) = &mut file.synced {
            for op in &loose {
                carry_out(synced, op);
            }
        }
        Ok(())
    }
}
