//! Which rule an image breaks.

/// Which rule an image breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// More bytes than any image has.
    #[error("the file has {bytes} bytes, more than {max}", max = super::FILE_BYTES_MAX)]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The file's header is not that of such a file.
    #[error("not a position-independent ELF64 file for x86-64: {what}")]
    Header {
        /// What differs.
        what: &'static str,
    },
    /// A program header lies or points outside of the file.
    #[error("program header {index} is malformed: {what}")]
    Segment {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A segment could be changed and run.
    #[error("program header {index} is writable and executable; no memory may be both")]
    WriteExecute {
        /// Which, from 0.
        index: usize,
    },
    /// The file asks for a dynamic linker.
    #[error("it asks for an interpreter; link it statically (-static-pie)")]
    Interpreter,
    /// The file uses thread-local storage, which a guest has none of.
    #[error("it uses thread-local storage, which a unikernel does not have")]
    ThreadLocal,
    /// The entry point is not in executable memory.
    #[error("its entry point {address:#x} is not in an executable segment")]
    Entry {
        /// It, from the base.
        address: u64,
    },
    /// There is no note with a manifest.
    #[error("it has no manifest note; only images built with the library 'unikernel' have one")]
    NoManifest,
    /// The note is there and its content is not a manifest.
    #[error("its manifest note is malformed: {what}")]
    Manifest {
        /// What is wrong.
        what: &'static str,
    },
    /// The dynamic table asks for something that the tender does not do.
    #[error("its dynamic table is refused: {what}")]
    Dynamic {
        /// What.
        what: &'static str,
    },
    /// A relocation is not a relative one within the image.
    #[error("relocation {index} is refused: {what}")]
    Relocation {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
}
