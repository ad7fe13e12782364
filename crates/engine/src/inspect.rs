//! `docker inspect` of a container.

use std::collections::BTreeMap;

use crate::attacher::EndpointInfo;
use crate::change::Phase;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::view::container::{
    ContainerInspect, EndpointView, GraphDriver, HostPort, NetworkSettings, State, UnikernelView,
};

impl Engine {
    /// A container, in full.
    ///
    /// # Errors
    /// No such container.
    pub async fn inspect(&self, word: &str, size: bool) -> Result<ContainerInspect, EngineError> {
        let container = self.find(word)?;
        let unikernel = match container.is_unikernel() {
            true => Some(UnikernelView {
                uid: crate::unikernel::uid(&container.id),
                running: match container.running_shim() {
                    Ok(shim) => shim.guest_facts().await,
                    Err(_) => None,
                },
            }),
            false => None,
        };
        let sizes = if size { Some(self.sizes(&container).await?) } else { None };
        let record = container.read(Record::clone);
        let execs = self.inner.execs.running(&container.id);
        let files = container.files();
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let (path, args) = match record.argv().split_first() {
            Some((program, args)) => (program.clone(), args.to_vec()),
            None => (String::new(), Vec::new()),
        };
        let logged = record.host.log_config.as_ref().is_none_or(|log| log.driver != "none");
        Ok(ContainerInspect {
            id: record.id.to_string(),
            created: record.created,
            path,
            args,
            state: state(&record),
            image: record.image_id.clone(),
            resolv_conf_path: text(files.resolv_conf()),
            hostname_path: text(files.hostname()),
            hosts_path: text(files.hosts()),
            log_path: if logged { text(files.log(&record.id)) } else { String::new() },
            name: format!("/{}", record.name),
            restart_count: record.run.restarts,
            driver: "overlay2".into(),
            platform: "linux".into(),
            mount_label: String::new(),
            process_label: String::new(),
            app_armor_profile: String::new(),
            exec_ids: (!execs.is_empty()).then_some(execs),
            graph_driver: self.graph_driver(&container),
            size_rw: sizes.map(|(rw, _)| rw),
            size_root_fs: sizes.map(|(_, all)| all),
            mounts: record
                .mounts
                .iter()
                .map(|m| m.view(|name| self.inner.volumes.path(name)))
                .collect(),
            network_settings: network_settings(&record),
            unikernel,
            host_config: record.host,
            config: record.config,
        })
    }

    fn graph_driver(&self, container: &Container) -> GraphDriver {
        let files = container.files();
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let lower: Vec<String> =
            self.layers(container).unwrap_or_default().into_iter().map(text).collect();
        let data = [
            ("LowerDir", lower.join(":")),
            ("UpperDir", text(files.upper())),
            ("WorkDir", text(files.work())),
        ];
        GraphDriver {
            data: data.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            name: "overlay2".into(),
        }
    }
}

fn state(record: &Record) -> State {
    let run = &record.run;
    let restarting = run.phase == Phase::Restarting;
    State {
        status: run.phase.as_str().into(),
        running: run.phase.is_alive() || restarting,
        paused: run.phase == Phase::Paused,
        restarting,
        oom_killed: run.oom_killed,
        dead: run.phase == Phase::Dead,
        pid: i64::from(run.pid),
        exit_code: run.exit_code,
        error: run.error.clone(),
        started_at: run.started_at,
        finished_at: run.finished_at,
        health: run.health.clone(),
    }
}

fn network_settings(record: &Record) -> NetworkSettings {
    let mut settings = NetworkSettings { networks: networks(record), ..NetworkSettings::default() };
    let Some(attachment) = &record.run.attachment else { return settings };
    settings.sandbox_id.clone_from(&attachment.sandbox_id);
    settings.sandbox_key =
        attachment.netns.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    for (word, _) in record.config.exposed_ports.iter().flatten() {
        settings.ports.insert(word.clone(), None);
    }
    for port in &attachment.published {
        let bindings = settings.ports.entry(port.container.to_string()).or_default();
        bindings.get_or_insert_default().push(HostPort {
            host_ip: port.host_ip.to_string(),
            host_port: port.host_port.to_string(),
        });
    }
    if let Some(bridge) = settings.networks.get("bridge").cloned() {
        settings.endpoint_id = bridge.endpoint_id;
        settings.gateway = bridge.gateway;
        settings.ip_address = bridge.ip_address;
        settings.ip_prefix_len = bridge.ip_prefix_len;
        settings.ipv6_gateway = bridge.ipv6_gateway;
        settings.global_ipv6_address = bridge.global_ipv6_address;
        settings.global_ipv6_prefix_len = bridge.global_ipv6_prefix_len;
        settings.mac_address = bridge.mac_address;
    }
    settings
}

/// A container's networks by name: as attached, or as asked for while it does not run.
pub(crate) fn networks(record: &Record) -> BTreeMap<String, EndpointView> {
    if let Some(attachment) = &record.run.attachment {
        return attachment
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.network_name.clone(), endpoint_view(endpoint)))
            .collect();
    }
    if record.shares_network_of().is_some() {
        return BTreeMap::new();
    }
    let mut networks: BTreeMap<String, EndpointView> = record
        .networking
        .endpoints_config
        .iter()
        .map(|(word, settings)| {
            let word = if word == "default" { record.network_mode() } else { word };
            let settings = settings.clone().unwrap_or_default();
            let view = EndpointView {
                ipam_config: settings.ipam_config,
                aliases: settings.aliases,
                ..EndpointView::default()
            };
            (word.to_owned(), view)
        })
        .collect();
    if networks.is_empty() {
        networks.insert(record.network_mode().to_owned(), EndpointView::default());
    }
    networks
}

fn endpoint_view(endpoint: &EndpointInfo) -> EndpointView {
    fn text<T: ToString>(value: Option<&T>) -> String {
        value.map(T::to_string).unwrap_or_default()
    }
    let list = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
    let (v4, v6) = (endpoint.ipv4.as_ref(), endpoint.ipv6.as_ref());
    EndpointView {
        ipam_config: endpoint.ipam.clone(),
        links: None,
        aliases: list(&endpoint.aliases),
        mac_address: text(endpoint.mac.as_ref()),
        driver_opts: None,
        gw_priority: 0,
        network_id: endpoint.network_id.to_string(),
        endpoint_id: endpoint.endpoint_id.clone(),
        gateway: text(endpoint.gateway.as_ref()),
        ip_address: text(v4.map(|(address, _)| address)),
        ip_prefix_len: v4.map_or(0, |(_, len)| i64::from(*len)),
        ipv6_gateway: text(endpoint.gateway6.as_ref()),
        global_ipv6_address: text(v6.map(|(address, _)| address)),
        global_ipv6_prefix_len: v6.map_or(0, |(_, len)| i64::from(*len)),
        dns_names: list(&endpoint.dns_names),
    }
}
