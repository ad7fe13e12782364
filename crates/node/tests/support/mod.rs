//! Nodes whose agents do not run: nothing here touches the kernel.

// Each test binary uses its own part of it.
#![allow(dead_code)]

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_agent::agent::{Agent, AgentConfig};
use shoal_identity::external::NoHttps;
use shoal_model::id::InstanceId;
use shoal_model::object::NodeDescription;
use shoal_model::time::{Clock, Timestamp};
use shoal_network::node_network::{NetworkConfig, NodeNetwork};
use shoal_node::node::{AddressOptions, InitOptions, JoinOptions, Node, NodeConfig, Standing};

/// Generous: the machine may be busy with something else.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// The machine's own clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

pub async fn open(root: &Path) -> Node {
    open_at(root, Arc::new(now)).await
}

/// A node that lives by a clock of its own.
pub async fn open_at(root: &Path, clock: Clock) -> Node {
    let network = NodeNetwork::open(NetworkConfig {
        instance: InstanceId::new("0123456789abcdef"),
        exec_root: root.join("run"),
        host_netns: None,
        program: None,
    })
    .await
    .unwrap();
    let agent = AgentConfig {
        data_root: root.to_owned(),
        clock: Arc::clone(&clock),
        describe: Arc::new(NodeDescription::default),
    };
    let agent = Agent::open(agent, network).unwrap();
    let (data_root, https) = (root.to_owned(), Arc::new(NoHttps));
    let cert_expiry_min = Duration::from_secs(3600);
    let config = NodeConfig { data_root, default_advertise: None, clock, https, cert_expiry_min };
    Node::open(config, agent).await.unwrap()
}

pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

pub fn init_at(address: &str) -> InitOptions {
    InitOptions {
        addrs: AddressOptions { listen: address.to_owned(), ..AddressOptions::default() },
        default_address_pools: vec!["10.0.0.0/8".parse().unwrap()],
        subnet_prefix_len: 24,
        data_path_port: 4789,
        ..InitOptions::default()
    }
}

/// Joins as a worker the swarm whose manager is `manager`, at `address`.
pub fn join_of(manager: &Node, address: &str) -> JoinOptions {
    let state = manager.control().unwrap().state();
    JoinOptions {
        addrs: AddressOptions {
            listen: "127.0.0.1:0".into(),
            advertise: "127.0.0.1".into(),
            ..AddressOptions::default()
        },
        remote_addrs: vec![address.to_owned()],
        join_token: state.cluster.as_ref().unwrap().join_tokens.worker.clone(),
        ..JoinOptions::default()
    }
}

pub fn is_in(standing: &Standing) -> bool {
    matches!(standing, Standing::Active { .. })
}

pub async fn changed_to(node: &Node, want: impl Fn(&Standing) -> bool) -> Standing {
    let mut changes = node.changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            let standing = node.standing();
            if want(&standing) {
                return standing;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the membership does not change")
}
