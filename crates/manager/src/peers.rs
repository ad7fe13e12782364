//! What other managers ask of this one.

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_identity::peer::PeerIdentity;
use shoal_model::fault::FaultKind;
use shoal_wire::fault::RemoteFault;
use shoal_wire::peers::Lane;
use shoal_wire::server::ManagerHandler;

/// A manager that knows of no other one.
pub(crate) struct Alone;

#[async_trait]
impl ManagerHandler for Alone {
    async fn raft(
        &self,
        _from: PeerIdentity,
        _lane: Lane,
        _body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        Err(refusal())
    }

    async fn control(
        &self,
        _from: PeerIdentity,
        _body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        Err(refusal())
    }
}

fn refusal() -> RemoteFault {
    RemoteFault::new(FaultKind::NotImplemented, "not implemented: more than one manager")
}
