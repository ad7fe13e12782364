//! Fields of tar headers as Docker reads them.

use std::io;

/// User and group of an entry. A field without any digit means 0, as for Docker.
///
/// # Errors
/// A field that is no number, or one over 32 bits.
pub fn owner(header: &tar::Header) -> io::Result<(u32, u32)> {
    let old = header.as_old();
    Ok((id(&old.uid, || header.uid())?, id(&old.gid, || header.gid())?))
}

fn id(field: &[u8], read: impl FnOnce() -> io::Result<u64>) -> io::Result<u32> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    u32::try_from(read()?).map_err(|_| io::Error::other("an owner's number is out of range"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_owner_that_is_not_given_is_root() {
        let mut header = tar::Header::new_gnu();
        assert_eq!(owner(&header).unwrap(), (0, 0));
        header.as_old_mut().uid = *b"       \0";
        header.set_gid(7);
        assert_eq!(owner(&header).unwrap(), (0, 7));
        header.as_old_mut().uid = *b"nobody \0";
        assert!(owner(&header).is_err());
    }
}
