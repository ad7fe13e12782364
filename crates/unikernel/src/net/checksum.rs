//! The Internet checksum (RFC 1071), eight bytes at a time.

/// Adds `bytes` to a running sum.
pub(crate) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut wide = u128::from(sum);
    let mut eights = bytes.chunks_exact(8);
    for eight in &mut eights {
        let mut word = [0; 8];
        word.copy_from_slice(eight);
        wide += u128::from(u64::from_be_bytes(word));
    }
    let mut last = [0; 8];
    let rest = eights.remainder();
    last[..rest.len()].copy_from_slice(rest);
    wide += u128::from(u64::from_be_bytes(last));
    // Twice: the first fold may carry again.
    let folded = (wide & u128::from(u64::MAX)) + (wide >> 64);
    (folded as u64).wrapping_add((folded >> 64) as u64)
}

/// Folds a running sum to 16 bits, not inverted.
pub(crate) const fn fold(sum: u64) -> u16 {
    let mut sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    let mut sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of an IPv4 pseudo header (RFC 9293, section 3.1).
pub(crate) fn pseudo_header(source: [u8; 4], target: [u8; 4], protocol: u8, len: usize) -> u64 {
    let addresses = u64::from(u32::from_be_bytes(source)) + u64::from(u32::from_be_bytes(target));
    addresses + u64::from(protocol) + len as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the RFC writes it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn it_is_the_checksum_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(fold(add(0, &bytes)), plain(&bytes));
        }
    }

    #[test]
    fn carries_are_not_lost() {
        assert_eq!(fold(add(0, &[0xff; 4096])), 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(add(u64::MAX, &[0, 0, 0, 0, 0, 0, 0, 1])), 1);
    }
}
