//! Leftovers of an earlier life, and the end of this one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use shoal_model::fault::report;
use shoal_netlink::netns;

use super::namespace::{self, Namespace};
use super::{Worker, doors, tables};
use crate::desired::DesiredNetwork;
use crate::error::NetworkError;
use crate::layout::doors::Senders;

impl Worker {
    /// Removes what this instance has and nobody wants any more. What is wanted stays as it is.
    /// What cannot be removed keeps nothing else; the first such failure is given.
    pub(super) fn remove_leftovers(&mut self, want: &DesiredNetwork) -> Result<(), NetworkError> {
        let mut failed = Ok(());
        let mut note = |result: Result<(), NetworkError>| {
            if failed.is_ok() {
                failed = result;
            }
        };
        let wanted: BTreeSet<PathBuf> = want
            .networks
            .keys()
            .map(|id| self.path('n', id.as_str()))
            .chain(want.sandboxes.keys().map(|id| self.path('c', id.as_str())))
            .collect();
        for path in self.namespaces()? {
            if !wanted.contains(&path) {
                note(self.remove_namespace(&path));
            }
        }
        for (network, link) in self.host.host_links()? {
            if !want.networks.contains_key(&network) {
                note(self.delete_host_link(&link.name));
            }
        }
        note(self.remove_old_tables(want));
        failed
    }

    /// Tables on the host that nothing is left for.
    fn remove_old_tables(&self, want: &DesiredNetwork) -> Result<(), NetworkError> {
        let tables = match self.host.handle.nft_tables() {
            Ok(tables) => tables,
            // A kernel without nftables has no tables of ours, and whoever needs one hears of it.
            Err(error) => {
                let cause = report(&error);
                tracing::warn!(cause, "tables on the host that nobody wants were not looked for");
                return Ok(());
            }
        };
        let instance = &self.config.instance;
        let guarded = !Senders::of(want).numbers.is_empty();
        let old = [
            (tables::host_table(instance), !want.networks.is_empty()),
            (doors::guard_table(instance), guarded),
        ];
        let old: Vec<_> = old
            .into_iter()
            .filter(|(table, wanted)| !wanted && tables.contains(table))
            .map(|(table, _)| table)
            .collect();
        tables::delete_on_host(&self.host, &old)
    }

    /// Every file among the namespaces of this instance.
    fn namespaces(&self) -> Result<Vec<PathBuf>, NetworkError> {
        let dir = self.config.exec_root.join("netns");
        let unreadable = |source: std::io::Error| NetworkError::Files {
            path: dir.clone(),
            source: source.into(),
        };
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("n-") || name.starts_with("c-") {
                out.push(entry.path());
            }
        }
        // Networks first: their ports reach into the workloads' namespaces.
        out.sort();
        out.reverse();
        Ok(out)
    }

    fn remove_namespace(&self, path: &std::path::Path) -> Result<(), NetworkError> {
        let network = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("n-"));
        if network && netns::exists(path) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            return Namespace::open(path.to_owned(), &name.unwrap_or_default())?
                .remove(&self.host, None);
        }
        namespace::delete(path)
    }

    fn delete_host_link(&self, name: &str) -> Result<(), NetworkError> {
        self.host.handle.delete_link(name).map_err(|source| NetworkError::Link {
            what: format!("remove '{name}'"),
            network: "host".to_owned(),
            source: source.into(),
        })
    }

    /// Lets go of helpers and sockets; the data plane stays.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.host_ports.close();
        self.networks.clear();
        self.sandboxes.clear();
    }

    /// Removes everything of this instance. Goes on after a failure, returns the first one.
    pub(crate) fn teardown(&mut self) -> Result<(), NetworkError> {
        self.host_ports.close();
        self.networks.clear();
        self.sandboxes.clear();
        self.guests.clear();
        self.desired = None;
        self.lost.clear();
        self.senders = None;
        self.host_rules = None;
        self.host_links = None;
        self.forwarding = false;
        let instance = &self.config.instance;
        let own = [tables::host_table(instance), doors::guard_table(instance)];
        let mut first = tables::delete_on_host(&self.host, &own);
        let mut note = |done: Result<(), NetworkError>| {
            if first.is_ok() {
                first = done;
            }
        };
        match self.namespaces() {
            Ok(paths) => paths.iter().for_each(|path| note(self.remove_namespace(path))),
            Err(error) => note(Err(error)),
        }
        match self.host.host_links() {
            Ok(links) => links.values().for_each(|link| note(self.delete_host_link(&link.name))),
            Err(error) => note(Err(error)),
        }
        note(self.closed_links.forget(&self.host));
        first
    }
}
