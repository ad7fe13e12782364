//! The handle that the agent uses. Every call that touches the kernel runs on a blocking thread,
//! one at a time.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::check::Check;
use shoal_model::fault::report;
use shoal_model::id::{InstanceId, NetworkId};
use tokio::net::TcpStream;

use crate::checks;
use crate::desired::{DesiredNetwork, Guest, SandboxId};
use crate::error::NetworkError;
use crate::layout::guest::TAP;
use crate::layout::port_name;
use crate::resolver::Resolver;
use crate::status::{Applied, Drift, NetworkStatus};
use crate::worker::{Pass, Worker};

/// What a daemon tells its network once.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Marks every kernel object of this daemon.
    pub instance: InstanceId,
    /// Run-time directory of this daemon; namespaces are mounted below `netns/`.
    pub exec_root: PathBuf,
    /// The network namespace that plays the host; absent: the one this process is in.
    pub host_netns: Option<PathBuf>,
    /// The program to run as `<program> resolver …`; absent: no resolver (tests of other parts).
    pub program: Option<PathBuf>,
}

/// This node's network. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct NodeNetwork {
    config: Arc<NetworkConfig>,
    worker: Arc<Mutex<Worker>>,
    resolver: Arc<Resolver>,
}

impl NodeNetwork {
    /// Opens what this instance already has in the kernel; changes nothing. The first apply adopts
    /// what is still wanted and removes the rest.
    ///
    /// # Errors
    /// If the run-time directory or the host's namespace is unusable.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let mine = config.clone();
        let opened = blocking(move || {
            let resolver = Resolver::open(mine.program.clone(), &mine.exec_root)?;
            Ok((Worker::open(mine, runtime)?, resolver))
        });
        let (worker, resolver) = opened.await?;
        Ok(Self {
            config: Arc::new(config),
            worker: Arc::new(Mutex::new(worker)),
            resolver: Arc::new(resolver),
        })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let worker = Arc::clone(&self.worker);
        blocking(move || {
            // After a panic the worker's memory may be behind the kernel; the next verify sees it.
            work(&mut worker.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
    }

    /// Makes the kernel like `desired`, by the difference. Idempotent. What fails is named in the
    /// result, the rest is done nevertheless.
    ///
    /// # Errors
    /// Only if nothing could be tried at all.
    pub async fn apply(&self, desired: DesiredNetwork) -> Result<Applied, NetworkError> {
        let pass = self.with(move |worker| worker.apply(desired)).await?;
        self.publish(pass, false).await
    }

    /// Hands the names of a pass over. Nobody else's pass waits for that: a helper that hangs keeps
    /// only those waiting who need the names, and those for a few seconds.
    async fn publish(&self, pass: Pass, check: bool) -> Result<Applied, NetworkError> {
        let Pass { number, mut done, names } = pass;
        let resolver = Arc::clone(&self.resolver);
        let published = blocking(move || resolver.publish(number, names, check)).await;
        done.resolver = published.err().map(|error| report(&error));
        self.note_resolver(done.resolver.clone()).await?;
        Ok(done)
    }

    async fn note_resolver(&self, error: Option<String>) -> Result<(), NetworkError> {
        self.with(move |worker| {
            worker.note_resolver(error);
            Ok(())
        })
        .await
    }

    /// Takes `address` out of every bucket of `network` at once and resets its connections, on
    /// this node's own evidence (its task exited). Lasts until an apply with a newer revision, or
    /// until the workload's port is gone and a new one has the address; on networks of this node
    /// alone, until the next apply.
    ///
    /// # Errors
    /// If the kernel refuses the change; the next apply tries again.
    pub async fn backend_lost(
        &self,
        network: &NetworkId,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let network = network.clone();
        self.with(move |worker| worker.backend_lost(&network, address)).await
    }

    /// Compares the kernel with the last desired state, repairs it and tries again what failed.
    /// Call it every half minute or so.
    ///
    /// # Errors
    /// Only if the kernel's state could not be read at all.
    pub async fn verify(&self) -> Result<Vec<Drift>, NetworkError> {
        let (drift, pass) = self.with(Worker::verify).await?;
        match pass {
            Some(pass) => drop(self.publish(pass, true).await?),
            None => {
                let resolver = Arc::clone(&self.resolver);
                let error = blocking(move || resolver.check()).await.err();
                self.note_resolver(error.map(|error| report(&error))).await?;
            }
        }
        Ok(drift)
    }

    /// Where the network namespace of `sandbox` is mounted, whether it exists yet or not.
    #[must_use]
    pub fn sandbox_path(&self, sandbox: &SandboxId) -> PathBuf {
        self.config.exec_root.join("netns").join(format!("c-{sandbox}"))
    }

    /// Where the TAP device of a guest is: a namespace's path, and the device's name in it.
    #[must_use]
    pub fn tap_place(&self, sandbox: &SandboxId, guest: &Guest) -> (PathBuf, String) {
        if guest.direct {
            (self.network_path(&guest.home), port_name(sandbox))
        } else {
            (self.sandbox_path(sandbox), TAP.to_owned())
        }
    }

    /// Connects to `to` from inside the namespace at `netns`, within `limit`.
    ///
    /// # Errors
    /// The namespace cannot be entered, or nobody accepts.
    pub async fn connect_from(
        &self,
        netns: &Path,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<TcpStream, NetworkError> {
        let netns = netns.to_owned();
        let refused = move |source: std::io::Error| NetworkError::Connect { to, source };
        let stream = blocking(move || {
            let connect = || std::net::TcpStream::connect_timeout(&to, limit);
            let connected = shoal_netlink::netns::run_in(&netns, connect).map_err(|source| {
                NetworkError::Namespace { path: netns.clone(), source: source.into() }
            })?;
            let stream = connected.map_err(refused)?;
            stream.set_nonblocking(true).map_err(refused)?;
            Ok(stream)
        });
        TcpStream::from_std(stream.await?).map_err(refused)
    }

    /// Where the namespace of `network` is mounted, whether it exists yet or not.
    #[must_use]
    pub fn network_path(&self, network: &NetworkId) -> PathBuf {
        self.config.exec_root.join("netns").join(format!("n-{network}"))
    }

    /// What the kernel must be able to do; for the node's description and `shoal doctor`.
    #[must_use]
    pub fn checks(&self) -> Vec<Box<dyn Check>> {
        checks::all(&self.config)
    }

    /// What is there now.
    pub async fn status(&self) -> NetworkStatus {
        self.with(|worker| Ok(worker.status())).await.unwrap_or_default()
    }

    /// Lets go of held ports and of every handle; the data plane stays as it is, for the next life
    /// of the daemon. Everything but [`Self::teardown`] is refused afterwards.
    pub async fn close(&self) {
        let closed = self.with(|worker| {
            worker.close();
            Ok(())
        });
        // Ignored because: closing itself cannot fail, only the thread that it runs on.
        let _ = closed.await;
    }

    /// Removes everything that this instance has in the kernel. A later apply begins anew.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is gone nevertheless.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        let resolver = Arc::clone(&self.resolver);
        blocking(move || {
            resolver.stop();
            Ok(())
        })
        .await?;
        self.with(Worker::teardown).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(NetworkError::Closed),
        },
    }
}
