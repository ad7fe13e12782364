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

/// Major and minor number of a device. A field without any digit means 0: so GNU tar and Python
/// write a pipe's.
///
/// # Errors
/// A field that is no number.
pub fn device(header: &tar::Header) -> io::Result<(u32, u32)> {
    let ustar = header.as_ustar().map(|fields| (&fields.dev_major, &fields.dev_minor));
    let gnu = || header.as_gnu().map(|fields| (&fields.dev_major, &fields.dev_minor));
    let Some((major, minor)) = ustar.or_else(gnu) else { return Ok((0, 0)) };
    let number = |field: &[u8], read: fn(&tar::Header) -> io::Result<Option<u32>>| {
        if is_blank(field) { Ok(0) } else { read(header).map(Option::unwrap_or_default) }
    };
    let major = number(major, tar::Header::device_major)?;
    Ok((major, number(minor, tar::Header::device_minor)?))
}

fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

fn id(field: &[u8], read: impl FnOnce() -> io::Result<u64>) -> io::Result<u32> {
    if is_blank(field) {
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

    #[test]
    fn a_device_without_numbers_has_none() {
        for mut header in [tar::Header::new_gnu(), tar::Header::new_ustar()] {
            assert_eq!(device(&header).unwrap(), (0, 0));
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            assert_eq!(device(&header).unwrap(), (1, 3));
            // Its place in the header, in both formats.
            header.as_mut_bytes()[329..337].copy_from_slice(b"nothing\0");
            assert!(device(&header).is_err());
        }
        assert_eq!(device(&tar::Header::new_old()).unwrap(), (0, 0));
    }
}
