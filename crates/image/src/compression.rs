//! Finds out how a stream is compressed, by its first bytes, and undoes it.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Read at once; large enough that system calls do not count.
const BUFFER: usize = 128 * 1024;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn detect(start: &[u8]) -> io::Result<Self> {
        const UNSUPPORTED: [(&[u8], &str); 3] =
            [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4")];
        if let Some((_, name)) = UNSUPPORTED.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("compressed with {name}; only gzip and zstd are supported"),
            ));
        }
        // 0x5x2a4d18 begins a skippable zstd frame.
        let skippable = matches!(start, [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50);
        Ok(match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ if skippable => Self::Zstd,
            _ => Self::None,
        })
    }

    /// The media type of a layer compressed so.
    pub(crate) const fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// `reader` without its compression.
pub(crate) fn decompress<'a, R>(reader: R) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)>
where
    R: Read + Send + 'a,
{
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    // A pipe may give fewer bytes than a magic number has: chain what was read in front again.
    let mut start = Vec::with_capacity(6);
    reader.by_ref().take(6).read_to_end(&mut start)?;
    let compression = Compression::detect(&start)?;
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(reader));
    Ok((compression, decoder(compression, whole)?))
}

fn decoder<'a, R>(compression: Compression, reader: R) -> io::Result<Box<dyn Read + Send + 'a>>
where
    R: BufRead + Send + 'a,
{
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(reader)))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn check(packed: &[u8], wanted: Compression) {
        let (compression, mut reader) = decompress(packed).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((compression, text.as_str()), (wanted, "hello hello"));
    }

    #[test]
    fn every_supported_form_is_undone() {
        check(b"hello hello", Compression::None);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello hello").unwrap();
        check(&gzip.finish().unwrap(), Compression::Gzip);
        check(&zstd::encode_all(&b"hello hello"[..], 1).unwrap(), Compression::Zstd);
    }

    #[test]
    fn other_forms_are_named() {
        let error = decompress(&b"BZh91AY"[..]).err().unwrap();
        assert!(error.to_string().contains("bzip2"));
    }
}
