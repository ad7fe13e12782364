//! The identity on disk: read back, replaced whole, and clear about what is wrong with it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use shoal_identity::authority::{BACKDATE, KeyAndCsr, NODE_VALIDITY, RootAuthority};
use shoal_identity::error::IdentityError;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn identity(validity: Duration) -> NodeIdentity {
    let (root, _) = RootAuthority::create(NOW).unwrap();
    let pair = KeyAndCsr::generate().unwrap();
    let role = NodeRole::Worker;
    let chain = root.issue(&pair.csr_pem, &"n1".into(), role, &"c1".into(), NOW, validity).unwrap();
    NodeIdentity::new(chain, pair.key_pem, root.cert_pem().to_owned()).unwrap()
}

#[test]
fn it_reads_back_as_written_and_only_root_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    assert_eq!(NodeIdentity::load(&path).unwrap(), None);
    let (first, second) = (identity(NODE_VALIDITY), identity(NODE_VALIDITY));
    first.save_in_clear(&path).unwrap();
    assert_eq!(NodeIdentity::load(&path).unwrap(), Some(first));
    second.save_in_clear(&path).unwrap();
    assert_eq!(NodeIdentity::load(&path).unwrap(), Some(second));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_broken_or_later_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    identity(NODE_VALIDITY).save_in_clear(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    for broken in ["", "{", "{\"version\":1}", &text[..text.len() / 2]] {
        std::fs::write(&path, broken).unwrap();
        let error = NodeIdentity::load(&path).unwrap_err();
        assert!(matches!(error, IdentityError::File { .. }), "{error}");
        assert!(error.to_string().contains("identity.json"), "{error}");
    }
    std::fs::write(&path, text.replace("\"version\":1", "\"version\":2")).unwrap();
    let error = NodeIdentity::load(&path).unwrap_err();
    assert!(matches!(error, IdentityError::FileVersion { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn key_and_certificate_must_belong_together() {
    let (one, other) = (identity(NODE_VALIDITY), identity(NODE_VALIDITY));
    let mixed = NodeIdentity::new(one.cert_pem, other.key_pem, one.root_pem);
    assert!(matches!(mixed, Err(IdentityError::Crypto { .. })), "{mixed:?}");
}

#[test]
fn renewal_is_spread_over_the_second_half_of_the_validity() {
    let identity = identity(NODE_VALIDITY);
    // It is dated back for clocks that differ.
    let issued = identity.not_before.plus(BACKDATE);
    let whole = identity.not_after.since(issued);
    assert_eq!(whole, NODE_VALIDITY);
    for (spread, share) in [(0.0, 0.5), (1.0, 0.8), (7.0, 0.8)] {
        assert_eq!(identity.renew_at(spread).since(issued), whole.mul_f64(share));
    }
    assert_eq!(identity.remaining(identity.not_after), Duration::ZERO);
}
