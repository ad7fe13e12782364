//! Private keys as older tools write them, in the envelope that the cryptography library reads:
//! PKCS #8 (RFC 5208), which names the algorithm and holds the key as it was.

/// Object identifier of the curve P-256, with its tag.
pub(crate) const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Object identifier of the curve P-384, with its tag.
pub(crate) const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// `ecPublicKey`.
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// `rsaEncryption`.
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const NULL: &[u8] = &[0x05, 0x00];
const VERSION_0: &[u8] = &[0x02, 0x01, 0x00];
const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;

/// An `ECPrivateKey` (RFC 5915) on `curve`.
pub(crate) fn pkcs8_of_ec(curve: &[u8], key: &[u8]) -> Vec<u8> {
    envelope(&[EC, curve].concat(), key)
}

/// An `RSAPrivateKey` (RFC 8017).
pub(crate) fn pkcs8_of_rsa(key: &[u8]) -> Vec<u8> {
    envelope(&[RSA, NULL].concat(), key)
}

fn envelope(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let parts = [VERSION_0, &element(SEQUENCE, algorithm), &element(OCTETS, key)].concat();
    element(SEQUENCE, &parts)
}

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let bytes = contents.len().to_be_bytes();
    match contents.len() {
        // Below 128 the length is one byte of its own.
        short @ 0..=127 => out.push(short as u8),
        _ => {
            let digits: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
            // A length has at most eight bytes.
            out.push(0x80 | digits.len() as u8);
            out.extend(digits);
        }
    }
    out.extend_from_slice(contents);
    out
}
