//! Every route, one line each. What Docker has and Shoal does not is here too: it answers 501 and
//! names what is missing. The first word of a line says what becomes of the request when its client
//! leaves: see [`Conduct`].

use crate::handlers::{
    containers, distribution, exec, images, missing, networks, nodes, payloads, ping, service_logs,
    services, shoal, streams, swarm, system, tasks, volumes,
};
use crate::server::router::{Conduct, Route, Router, Verb};

macro_rules! routes {
    ($($conduct:ident $verb:ident $pattern:literal => $handler:path;)*) => {
        vec![$(Route {
            method: Verb::$verb,
            conduct: Conduct::$conduct,
            pattern: $pattern,
            handler: |call| Box::pin($handler(call)),
        }),*]
    };
}

/// The routing table.
#[must_use]
pub fn table() -> Router {
    Router::new(all())
}

/// Every route, in order of precedence.
#[must_use]
pub fn all() -> Vec<Route> {
    let mut all = system_routes();
    all.extend(swarm_routes());
    all.extend(container_routes());
    all.extend(image_routes());
    all.extend(missing_routes());
    all
}

fn system_routes() -> Vec<Route> {
    routes! {
        Read Get "/_ping" => ping::ping;
        Read Head "/_ping" => ping::ping;
        Read Get "/version" => system::version;
        Read Get "/info" => system::info;
        Read Get "/events" => system::events;
        Read Get "/system/df" => system::disk_usage;
        Read Post "/auth" => images::login;
        Read Get "/plugins" => system::plugins;
        Read Get "/shoal/doctor" => shoal::doctor;
        Read Get "/shoal/network" => shoal::network;
        Read Get "/shoal/backup" => shoal::backup;
        Change Post "/shoal/restore" => shoal::restore;
        Read Get "/volumes" => volumes::list;
        Change Post "/volumes/create" => volumes::create;
        Change Post "/volumes/prune" => volumes::prune;
        Read Get "/volumes/{name}" => volumes::inspect;
        Change Delete "/volumes/{name}" => volumes::remove;
        Read Get "/networks" => networks::list;
        Change Post "/networks/create" => networks::create;
        Change Post "/networks/prune" => networks::prune;
        Read Get "/networks/{id}" => networks::inspect;
        Change Delete "/networks/{id}" => networks::remove;
        Change Post "/networks/{id}/connect" => networks::connect;
        Change Post "/networks/{id}/disconnect" => networks::disconnect;
    }
}

fn swarm_routes() -> Vec<Route> {
    routes! {
        Read Get "/swarm" => swarm::inspect;
        Change Post "/swarm/init" => swarm::init;
        Change Post "/swarm/join" => swarm::join;
        Change Post "/swarm/leave" => swarm::leave;
        Change Post "/swarm/update" => swarm::update;
        Read Get "/swarm/unlockkey" => swarm::unlock_key;
        Change Post "/swarm/unlock" => swarm::unlock;
        Read Get "/nodes" => nodes::list;
        Read Get "/nodes/{id}" => nodes::inspect;
        Change Post "/nodes/{id}/update" => nodes::update;
        Change Delete "/nodes/{id}" => nodes::remove;
        Read Get "/services" => services::list;
        Change Post "/services/create" => services::create;
        Read Get "/services/{id}" => services::inspect;
        Change Post "/services/{id}/update" => services::update;
        Change Delete "/services/{id}" => services::remove;
        Read Get "/services/{id}/logs" => service_logs::of_service;
        Read Get "/tasks" => tasks::list;
        Read Get "/tasks/{id}" => tasks::inspect;
        Read Get "/tasks/{id}/logs" => service_logs::of_task;
        Read Get "/secrets" => payloads::secrets;
        Change Post "/secrets/create" => payloads::create_secret;
        Read Get "/secrets/{id}" => payloads::secret;
        Change Post "/secrets/{id}/update" => payloads::update_secret;
        Change Delete "/secrets/{id}" => payloads::remove_secret;
        Read Get "/configs" => payloads::configs;
        Change Post "/configs/create" => payloads::create_config;
        Read Get "/configs/{id}" => payloads::config;
        Change Post "/configs/{id}/update" => payloads::update_config;
        Change Delete "/configs/{id}" => payloads::remove_config;
    }
}

fn container_routes() -> Vec<Route> {
    routes! {
        Read Get "/containers/json" => containers::list;
        Change Post "/containers/create" => containers::create;
        Change Post "/containers/prune" => containers::prune;
        Read Get "/containers/{id}/json" => containers::inspect;
        Change Delete "/containers/{id}" => containers::remove;
        Change Post "/containers/{id}/start" => containers::start;
        Change Post "/containers/{id}/stop" => containers::stop;
        Change Post "/containers/{id}/restart" => containers::restart;
        Change Post "/containers/{id}/kill" => containers::kill;
        Change Post "/containers/{id}/pause" => containers::pause;
        Change Post "/containers/{id}/unpause" => containers::unpause;
        Change Post "/containers/{id}/rename" => containers::rename;
        Change Post "/containers/{id}/update" => containers::update;
        Change Post "/containers/{id}/resize" => containers::resize;
        Stream Post "/containers/{id}/wait" => streams::wait;
        Stream Post "/containers/{id}/attach" => streams::attach;
        Read Get "/containers/{id}/logs" => streams::logs;
        Read Get "/containers/{id}/stats" => streams::stats;
        Read Get "/containers/{id}/export" => streams::export;
        Read Head "/containers/{id}/archive" => streams::stat_archive;
        Read Get "/containers/{id}/archive" => streams::get_archive;
        Change Put "/containers/{id}/archive" => streams::put_archive;
        Read Get "/containers/{id}/top" => containers::top;
        Read Get "/containers/{id}/changes" => containers::changes;
        Read Get "/containers/{id}/attach/ws" => missing::websocket;
        Change Post "/containers/{id}/exec" => exec::create;
        Change Post "/exec/{id}/start" => exec::start;
        Change Post "/exec/{id}/resize" => exec::resize;
        Read Get "/exec/{id}/json" => exec::inspect;
    }
}

fn image_routes() -> Vec<Route> {
    routes! {
        Read Get "/images/json" => images::list;
        Change Post "/images/create" => images::create;
        Change Post "/images/load" => images::load;
        Read Get "/images/get" => images::save_many;
        Change Post "/images/prune" => images::prune;
        Read Get "/images/search" => missing::search;
        Read Get "/images/{name*}/json" => images::inspect;
        Read Get "/images/{name*}/history" => images::history;
        Read Get "/images/{name*}/get" => images::save_one;
        Change Post "/images/{name*}/tag" => images::tag;
        Stream Post "/images/{name*}/push" => images::push;
        Change Delete "/images/{name*}" => images::remove;
        Read Get "/distribution/{name*}/json" => distribution::inspect;
    }
}

fn missing_routes() -> Vec<Route> {
    routes! {
        Read Post "/build" => missing::build;
        Read Post "/build/prune" => missing::build;
        Read Post "/build/cancel" => missing::build;
        Read Post "/session" => missing::build;
        Read Post "/grpc" => missing::build;
        Read Post "/commit" => missing::commit;
        Read Get "/containers/{id}/checkpoints" => missing::checkpoint;
        Read Post "/containers/{id}/checkpoints" => missing::checkpoint;
        Read Delete "/containers/{id}/checkpoints/{name}" => missing::checkpoint;
        Read Put "/volumes/{name}" => missing::cluster_volume;
        Read Get "/plugins/privileges" => missing::plugin;
        Read Post "/plugins/pull" => missing::plugin;
        Read Post "/plugins/create" => missing::plugin;
        Read Get "/plugins/{name*}/json" => missing::no_plugin;
        Read Delete "/plugins/{name*}" => missing::no_plugin;
        Read Post "/plugins/{name*}/enable" => missing::no_plugin;
        Read Post "/plugins/{name*}/disable" => missing::no_plugin;
        Read Post "/plugins/{name*}/upgrade" => missing::no_plugin;
        Read Post "/plugins/{name*}/push" => missing::no_plugin;
        Read Post "/plugins/{name*}/set" => missing::no_plugin;
    }
}
