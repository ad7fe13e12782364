//! What an image says and what a client says, put together.

use std::collections::HashMap;

use shoal_model::spec::Extra;
use shoal_model::spec::container::{ContainerConfig, HealthConfig, Words};

use crate::error::EngineError;

/// Puts the image's configuration under the client's. A client's word wins; maps are joined.
///
/// # Errors
/// Nothing to run.
pub(crate) fn merge(
    mut user: ContainerConfig,
    image: &ContainerConfig,
) -> Result<ContainerConfig, EngineError> {
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if !filled(&user.user) {
        user.user.clone_from(&image.user);
    }
    if !filled(&user.working_dir) {
        user.working_dir.clone_from(&image.working_dir);
    }
    if !filled(&user.stop_signal) {
        user.stop_signal.clone_from(&image.stop_signal);
    }
    if user.stop_timeout.is_none() {
        user.stop_timeout = image.stop_timeout;
    }
    merge_command(&mut user, image)?;
    user.env = Some(merge_env(image.env.as_deref(), user.env.as_deref()));
    user.exposed_ports = merge_map(image.exposed_ports.as_ref(), user.exposed_ports);
    user.volumes = merge_map(image.volumes.as_ref(), user.volumes);
    let mut labels = image.labels.clone().unwrap_or_default();
    labels.extend(user.labels.unwrap_or_default());
    user.labels = Some(labels);
    user.healthcheck = merge_health(image.healthcheck.as_ref(), user.healthcheck);
    Ok(user)
}

fn merge_command(user: &mut ContainerConfig, image: &ContainerConfig) -> Result<(), EngineError> {
    let len = |words: &Option<Words>| words.as_ref().map_or(0, |w| w.list().len());
    if len(&user.entrypoint) == 0 {
        if len(&user.cmd) == 0 {
            user.cmd.clone_from(&image.cmd);
        }
        if user.entrypoint.is_none() {
            user.entrypoint.clone_from(&image.entrypoint);
        }
    }
    // `--entrypoint ""` arrives as one empty word: no entrypoint at all.
    if user.entrypoint.as_ref().is_some_and(|w| w.list() == [""]) {
        user.entrypoint = None;
    }
    if len(&user.entrypoint) + len(&user.cmd) == 0 {
        return Err(EngineError::invalid("no command specified"));
    }
    Ok(())
}

/// The image's variables that the client did not set, then the client's. A client's line without
/// `=` takes a variable away.
pub(crate) fn merge_env(below: Option<&[String]>, above: Option<&[String]>) -> Vec<String> {
    fn key(line: &str) -> &str {
        line.split_once('=').map_or(line, |(key, _)| key)
    }
    let (below, above) = (below.unwrap_or(&[]), above.unwrap_or(&[]));
    // Places keep the order; a client decides how many there are, so each line is looked up once.
    let mut places: Vec<Option<&String>> = Vec::with_capacity(below.len() + above.len());
    let mut place_of: HashMap<&str, usize> = HashMap::with_capacity(places.capacity());
    for line in below.iter().chain(above) {
        match (place_of.get(key(line)).copied(), line.contains('=')) {
            (Some(at), true) => {
                if let Some(place) = places.get_mut(at) {
                    *place = Some(line);
                }
            }
            (Some(at), false) => {
                if let Some(place) = places.get_mut(at) {
                    *place = None;
                }
                place_of.remove(key(line));
            }
            (None, true) => {
                place_of.insert(key(line), places.len());
                places.push(Some(line));
            }
            (None, false) => {}
        }
    }
    places.into_iter().flatten().cloned().collect()
}

fn merge_map(below: Option<&Extra>, above: Option<Extra>) -> Option<Extra> {
    let mut map = below.cloned().unwrap_or_default();
    map.extend(above.unwrap_or_default());
    (!map.is_empty()).then_some(map)
}

fn merge_health(image: Option<&HealthConfig>, user: Option<HealthConfig>) -> Option<HealthConfig> {
    let Some(image) = image else { return user };
    let Some(mut user) = user else { return Some(image.clone()) };
    let unset = |span: &Option<shoal_model::time::Nanos>| span.is_none_or(|s| s.0 == 0);
    if user.test.as_ref().is_none_or(Vec::is_empty) {
        user.test.clone_from(&image.test);
    }
    if unset(&user.interval) {
        user.interval = image.interval;
    }
    if unset(&user.timeout) {
        user.timeout = image.timeout;
    }
    if unset(&user.start_period) {
        user.start_period = image.start_period;
    }
    if unset(&user.start_interval) {
        user.start_interval = image.start_interval;
    }
    if user.retries.is_none_or(|n| n == 0) {
        user.retries = image.retries;
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(list: &[&str]) -> Option<Words> {
        Some(Words::List(list.iter().map(|w| (*w).to_owned()).collect()))
    }

    fn lines(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    fn check_command(
        image: (Option<Words>, Option<Words>),
        user: (Option<Words>, Option<Words>),
        want: &[&str],
    ) {
        let config = |(entrypoint, cmd)| ContainerConfig { entrypoint, cmd, ..Default::default() };
        let merged = merge(config(user), &config(image));
        let argv = merged.map(|c| {
            let list = |w: Option<Words>| w.map(|w| w.list()).unwrap_or_default();
            [list(c.entrypoint), list(c.cmd)].concat()
        });
        assert_eq!(argv.unwrap_or_default(), want);
    }

    #[test]
    fn a_client_replaces_command_or_entrypoint_as_docker_does() {
        let image = || (words(&["/entry"]), words(&["serve"]));
        check_command(image(), (None, None), &["/entry", "serve"]);
        check_command(image(), (None, words(&["x"])), &["/entry", "x"]);
        check_command(image(), (words(&["sh"]), None), &["sh"]);
        check_command(image(), (words(&[""]), words(&["x"])), &["x"]);
        check_command(image(), (words(&[""]), None), &[]);
        check_command((None, None), (None, None), &[]);
        check_command(image(), (words(&[]), None), &["serve"]);
    }

    #[test]
    fn environments_are_joined_by_name() {
        let image = lines(&["PATH=/bin", "A=1", "B=2"]);
        let user = lines(&["A=9", "B", "C=3"]);
        assert_eq!(merge_env(Some(&image), Some(&user)), ["PATH=/bin", "A=9", "C=3"]);
    }

    #[test]
    fn a_great_environment_takes_no_time() {
        // Quadratic, this would be 4 × 10¹⁰ comparisons: minutes.
        let image: Vec<String> = (0..200_000).map(|n| format!("V{n}=image")).collect();
        let user: Vec<String> = (0..200_000).rev().map(|n| format!("V{n}=user")).collect();
        let merged = merge_env(Some(&image), Some(&user));
        assert_eq!((merged.len(), merged[0].as_str()), (200_000, "V0=user"));
    }

    #[test]
    fn a_variable_that_was_taken_away_may_come_back() {
        let lines = lines(&["A=1", "B=2", "A", "A=3"]);
        assert_eq!(merge_env(None, Some(&lines)), ["B=2", "A=3"]);
    }

    #[test]
    fn health_checks_are_joined_member_by_member() {
        let image = HealthConfig { test: Some(lines(&["CMD", "x"])), ..Default::default() };
        let user = HealthConfig { retries: Some(5), ..Default::default() };
        let merged = merge_health(Some(&image), Some(user)).unwrap();
        assert_eq!((merged.test, merged.retries), (image.test, Some(5)));
    }
}
