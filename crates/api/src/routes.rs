//! Every route, one line each. What Docker has and Shoal does not is here too: it answers 501 and
//! names what is missing.

use crate::handlers::{
    containers, distribution, exec, images, missing, networks, nodes, payloads, ping, service_logs,
    services, shoal, streams, swarm, system, tasks, volumes,
};
use crate::server::router::{Route, Router, Verb};

macro_rules! routes {
    ($($verb:ident $pattern:literal => $handler:path;)*) => {
        vec![$(Route {
            method: Verb::$verb,
            pattern: $pattern,
            handler: |call| Box::pin($handler(call)),
        }),*]
    };
}

/// The routing table.
#[must_use]
pub fn table() -> Router {
    let mut all = system_routes();
    all.extend(swarm_routes());
    all.extend(container_routes());
    all.extend(image_routes());
    all.extend(missing_routes());
    Router::new(all)
}

fn system_routes() -> Vec<Route> {
    routes! {
        Get "/_ping" => ping::ping;
        Head "/_ping" => ping::ping;
        Get "/version" => system::version;
        Get "/info" => system::info;
        Get "/events" => system::events;
        Get "/system/df" => system::disk_usage;
        Post "/auth" => images::login;
        Get "/plugins" => system::plugins;
        Get "/shoal/doctor" => shoal::doctor;
        Get "/shoal/network" => shoal::network;
        Get "/volumes" => volumes::list;
        Post "/volumes/create" => volumes::create;
        Post "/volumes/prune" => volumes::prune;
        Get "/volumes/{name}" => volumes::inspect;
        Delete "/volumes/{name}" => volumes::remove;
        Get "/networks" => networks::list;
        Post "/networks/create" => networks::create;
        Post "/networks/prune" => networks::prune;
        Get "/networks/{id}" => networks::inspect;
        Delete "/networks/{id}" => networks::remove;
        Post "/networks/{id}/connect" => networks::connect;
        Post "/networks/{id}/disconnect" => networks::disconnect;
    }
}

fn swarm_routes() -> Vec<Route> {
    routes! {
        Get "/swarm" => swarm::inspect;
        Post "/swarm/init" => swarm::init;
        Post "/swarm/join" => swarm::join;
        Post "/swarm/leave" => swarm::leave;
        Post "/swarm/update" => swarm::update;
        Get "/swarm/unlockkey" => swarm::unlock_key;
        Post "/swarm/unlock" => missing::unlock;
        Get "/nodes" => nodes::list;
        Get "/nodes/{id}" => nodes::inspect;
        Post "/nodes/{id}/update" => nodes::update;
        Delete "/nodes/{id}" => nodes::remove;
        Get "/services" => services::list;
        Post "/services/create" => services::create;
        Get "/services/{id}" => services::inspect;
        Post "/services/{id}/update" => services::update;
        Delete "/services/{id}" => services::remove;
        Get "/services/{id}/logs" => service_logs::of_service;
        Get "/tasks" => tasks::list;
        Get "/tasks/{id}" => tasks::inspect;
        Get "/tasks/{id}/logs" => service_logs::of_task;
        Get "/secrets" => payloads::secrets;
        Post "/secrets/create" => payloads::create_secret;
        Get "/secrets/{id}" => payloads::secret;
        Post "/secrets/{id}/update" => payloads::update_secret;
        Delete "/secrets/{id}" => payloads::remove_secret;
        Get "/configs" => payloads::configs;
        Post "/configs/create" => payloads::create_config;
        Get "/configs/{id}" => payloads::config;
        Post "/configs/{id}/update" => payloads::update_config;
        Delete "/configs/{id}" => payloads::remove_config;
    }
}

fn container_routes() -> Vec<Route> {
    routes! {
        Get "/containers/json" => containers::list;
        Post "/containers/create" => containers::create;
        Post "/containers/prune" => containers::prune;
        Get "/containers/{id}/json" => containers::inspect;
        Delete "/containers/{id}" => containers::remove;
        Post "/containers/{id}/start" => containers::start;
        Post "/containers/{id}/stop" => containers::stop;
        Post "/containers/{id}/restart" => containers::restart;
        Post "/containers/{id}/kill" => containers::kill;
        Post "/containers/{id}/pause" => containers::pause;
        Post "/containers/{id}/unpause" => containers::unpause;
        Post "/containers/{id}/rename" => containers::rename;
        Post "/containers/{id}/update" => containers::update;
        Post "/containers/{id}/resize" => containers::resize;
        Post "/containers/{id}/wait" => streams::wait;
        Post "/containers/{id}/attach" => streams::attach;
        Get "/containers/{id}/logs" => streams::logs;
        Get "/containers/{id}/stats" => streams::stats;
        Get "/containers/{id}/export" => streams::export;
        Head "/containers/{id}/archive" => streams::stat_archive;
        Get "/containers/{id}/archive" => streams::get_archive;
        Put "/containers/{id}/archive" => streams::put_archive;
        Get "/containers/{id}/top" => containers::top;
        Get "/containers/{id}/changes" => containers::changes;
        Get "/containers/{id}/attach/ws" => missing::websocket;
        Post "/containers/{id}/exec" => exec::create;
        Post "/exec/{id}/start" => exec::start;
        Post "/exec/{id}/resize" => exec::resize;
        Get "/exec/{id}/json" => exec::inspect;
    }
}

fn image_routes() -> Vec<Route> {
    routes! {
        Get "/images/json" => images::list;
        Post "/images/create" => images::create;
        Post "/images/load" => images::load;
        Get "/images/get" => images::save_many;
        Post "/images/prune" => images::prune;
        Get "/images/search" => missing::search;
        Get "/images/{name*}/json" => images::inspect;
        Get "/images/{name*}/history" => images::history;
        Get "/images/{name*}/get" => images::save_one;
        Post "/images/{name*}/tag" => images::tag;
        Post "/images/{name*}/push" => images::push;
        Delete "/images/{name*}" => images::remove;
        Get "/distribution/{name*}/json" => distribution::inspect;
    }
}

fn missing_routes() -> Vec<Route> {
    routes! {
        Post "/build" => missing::build;
        Post "/build/prune" => missing::build;
        Post "/build/cancel" => missing::build;
        Post "/session" => missing::build;
        Post "/grpc" => missing::build;
        Post "/commit" => missing::commit;
        Get "/containers/{id}/checkpoints" => missing::checkpoint;
        Post "/containers/{id}/checkpoints" => missing::checkpoint;
        Delete "/containers/{id}/checkpoints/{name}" => missing::checkpoint;
        Put "/volumes/{name}" => missing::cluster_volume;
        Get "/plugins/privileges" => missing::plugin;
        Post "/plugins/pull" => missing::plugin;
        Post "/plugins/create" => missing::plugin;
        Get "/plugins/{name*}/json" => missing::no_plugin;
        Delete "/plugins/{name*}" => missing::no_plugin;
        Post "/plugins/{name*}/enable" => missing::no_plugin;
        Post "/plugins/{name*}/disable" => missing::no_plugin;
        Post "/plugins/{name*}/upgrade" => missing::no_plugin;
        Post "/plugins/{name*}/push" => missing::no_plugin;
        Post "/plugins/{name*}/set" => missing::no_plugin;
    }
}
