//! `docker ps`: which containers are listed, and how their lines read.

use std::sync::Arc;
use std::time::Duration;

use shoal_image::digest::ImageId;
use shoal_model::filter::Filters;
use shoal_model::time::Timestamp;

use crate::change::Phase;
use crate::container::{Container, health_status};
use crate::engine::{Engine, ListOptions, blocking};
use crate::error::EngineError;
use crate::ports::parse_port;
use crate::record::Record;
use crate::view::summary::{ContainerSummary, PortSummary, SummaryHostConfig, SummaryNetworks};
use crate::volumes::size_of;

const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

const STATUSES: &[&str] =
    &["created", "restarting", "running", "removing", "paused", "exited", "dead"];

/// Filters with everything looked up that does not depend on the container.
struct Wanted {
    filters: Filters,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    is_task: Option<bool>,
    exited: Vec<i64>,
    ancestors: Vec<String>,
}

impl Engine {
    /// Containers, the newest first.
    ///
    /// # Errors
    /// A filter that is not known or names a container that does not exist.
    pub async fn list(&self, options: ListOptions) -> Result<Vec<ContainerSummary>, EngineError> {
        let wanted = self.wanted(options.filters)?;
        let all = options.all || options.limit.is_some() || wanted.filters.has("status");
        // Only those that are listed are copied: an environment may be great.
        let mut chosen: Vec<(Timestamp, Arc<Container>)> = Vec::new();
        for container in self.all() {
            let created = container.read(|record| {
                let shown = (all || shows(record.run.phase)) && wanted.matches(record);
                shown.then_some(record.created)
            });
            chosen.extend(created.map(|created| (created, container)));
        }
        chosen.sort_by(|(one, a), (other, b)| other.cmp(one).then(a.id.cmp(&b.id)));
        chosen.truncate(options.limit.unwrap_or(usize::MAX));
        let mut list = Vec::with_capacity(chosen.len());
        for (_, container) in chosen {
            let record = container.read(Record::clone);
            let sizes = match options.size {
                true => Some(self.sizes(&container).await?),
                false => None,
            };
            list.push(self.summary(&record, sizes));
        }
        Ok(list)
    }

    fn wanted(&self, filters: Filters) -> Result<Wanted, EngineError> {
        filters.only(FILTERS)?;
        for status in filters.values("status") {
            if !STATUSES.contains(&status) {
                return Err(EngineError::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        let mut exited = Vec::new();
        for code in filters.values("exited") {
            let number = code.parse::<i64>();
            let bad = |_| EngineError::invalid(format!("invalid filter 'exited={code}'"));
            exited.push(number.map_err(bad)?);
        }
        let created = |name: &str| -> Result<Option<Timestamp>, EngineError> {
            let word = filters.values(name).next();
            word.map(|w| Ok(self.find(w)?.read(|record| record.created))).transpose()
        };
        // An image that is not here has no containers; its name may still be the one they used.
        let ancestors = filters
            .values("ancestor")
            .flat_map(|word| {
                let id = self.inner.images.resolve(word).ok().map(|id| id.to_string());
                [Some(word.to_owned()), id].into_iter().flatten()
            })
            .collect();
        Ok(Wanted {
            before: created("before")?,
            since: created("since")?,
            is_task: filters.flag("is-task")?,
            exited,
            ancestors,
            filters,
        })
    }

    /// Bytes that the container wrote, and those with its image's. Blocks a thread, not the caller.
    pub(crate) async fn sizes(&self, container: &Container) -> Result<(i64, i64), EngineError> {
        let upper = container.files().upper();
        let written = blocking("measure", move || Ok(size_of(&upper))).await?;
        let image = container.read(|record| record.image_id.clone());
        let below = self.inner.images.inspect(&image).map_or(0, |image| image.size);
        let amount = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok((amount(written), amount(written.saturating_add(below))))
    }

    fn summary(&self, record: &Record, sizes: Option<(i64, i64)>) -> ContainerSummary {
        let volumes = &self.inner.volumes;
        ContainerSummary {
            id: record.id.to_string(),
            names: vec![format!("/{}", record.name)],
            image: self.image_word(record),
            image_id: record.image_id.clone(),
            command: command_line(&record.argv()),
            created: record.created.secs(),
            ports: ports(record),
            size_rw: sizes.map(|(rw, _)| rw),
            size_root_fs: sizes.map(|(_, all)| all),
            labels: record.config.labels.clone().unwrap_or_default(),
            state: record.run.phase.as_str().to_owned(),
            status: status_line(record, self.now()),
            host_config: SummaryHostConfig { network_mode: record.network_mode().to_owned() },
            network_settings: SummaryNetworks { networks: crate::inspect::networks(record) },
            mounts: record.mounts.iter().map(|m| m.view(|name| volumes.path(name))).collect(),
        }
    }

    /// The name that the client used, if it still means that image; else the image's id.
    fn image_word(&self, record: &Record) -> String {
        let id = ImageId::parse(&record.image_id);
        let now = self.inner.images.resolve(&record.image).ok();
        if now.is_some() && now == id { record.image.clone() } else { record.image_id.clone() }
    }
}

/// Whether a container is listed without `all`.
fn shows(phase: Phase) -> bool {
    phase.is_alive() || phase == Phase::Restarting
}

impl Wanted {
    fn matches(&self, record: &Record) -> bool {
        let filters = &self.filters;
        let labels = record.config.labels.clone().unwrap_or_default();
        let name_matches =
            |want: &str| pattern(want, &record.name) || pattern(want, &format!("/{}", record.name));
        filters.any("name", name_matches)
            && filters.any("id", |want| pattern(want, record.id.as_str()))
            && filters.labels("label", &labels)
            && filters.exact("status", record.run.phase.as_str())
            && filters.exact("health", health_status(record).as_str())
            && filters.any("volume", |want| uses_volume(record, want))
            && filters.any("network", |want| on_network(record, want))
            && filters.any("publish", |want| publishes(record, want))
            && filters.any("expose", |want| exposes(record, want))
            && (self.ancestors.is_empty() || self.descends(record))
            && (self.exited.is_empty() || self.has_exited(record))
            && self.is_task.is_none_or(|want| want == record.task.is_some())
            && self.before.is_none_or(|at| record.created < at)
            && self.since.is_none_or(|at| record.created > at)
    }

    fn descends(&self, record: &Record) -> bool {
        self.ancestors.iter().any(|a| *a == record.image || *a == record.image_id)
    }

    fn has_exited(&self, record: &Record) -> bool {
        let over = record.run.started_at != Timestamp::ZERO && !record.run.phase.is_alive();
        over && self.exited.contains(&record.run.exit_code)
    }
}

/// Whether `want` occurs in `text`. Docker reads it as a regular expression; of those the anchors
/// are understood, which is what people use.
fn pattern(want: &str, text: &str) -> bool {
    match (want.strip_prefix('^'), want.strip_suffix('$')) {
        (Some(rest), None) => text.starts_with(rest),
        (None, Some(rest)) => text.ends_with(rest),
        (Some(rest), Some(_)) => rest.strip_suffix('$') == Some(text),
        (None, None) => text.contains(want),
    }
}

fn uses_volume(record: &Record, want: &str) -> bool {
    record.mounts.iter().any(|mount| {
        let view = mount.view(|name| name.into());
        view.name == want || view.destination == want || (view.source == want && !want.is_empty())
    })
}

fn on_network(record: &Record, want: &str) -> bool {
    let endpoints = record.run.attachment.iter().flat_map(|a| &a.endpoints);
    record.network_mode() == want
        || record.networking.endpoints_config.contains_key(want)
        || endpoints
            .into_iter()
            .any(|e| e.network_name == want || e.network_id.as_str().starts_with(want))
}

/// Reads `80`, `80/udp`, `8000-8010/tcp`: whether it holds `number` of `protocol`.
fn in_port_range(want: &str, number: u16, protocol: &str) -> bool {
    let (range, wanted_protocol) = want.split_once('/').unwrap_or((want, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let bounds = (first.parse::<u16>(), last.parse::<u16>());
    wanted_protocol == protocol
        && matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&number))
}

fn publishes(record: &Record, want: &str) -> bool {
    ports(record).iter().any(|p| p.public_port.is_some_and(|n| in_port_range(want, n, &p.protocol)))
}

fn exposes(record: &Record, want: &str) -> bool {
    ports(record).iter().any(|p| in_port_range(want, p.private_port, &p.protocol))
}

/// Published ports, then those that are only exposed.
fn ports(record: &Record) -> Vec<PortSummary> {
    let Some(attachment) = &record.run.attachment else { return Vec::new() };
    let mut list: Vec<PortSummary> = attachment
        .published
        .iter()
        .map(|port| PortSummary {
            ip: Some(port.host_ip.to_string()),
            private_port: port.container.number,
            public_port: Some(port.host_port),
            protocol: port.container.protocol.to_string(),
        })
        .collect();
    for (word, _) in record.config.exposed_ports.iter().flatten() {
        let Some(port) = parse_port(word) else { continue };
        let protocol = port.protocol.to_string();
        let known = |p: &PortSummary| p.private_port == port.number && p.protocol == protocol;
        if !list.iter().any(known) {
            let private_port = port.number;
            list.push(PortSummary { ip: None, private_port, public_port: None, protocol });
        }
    }
    list.sort();
    list
}

fn command_line(argv: &[String]) -> String {
    let word = |arg: &String| match arg.contains(' ') {
        true => format!("'{arg}'"),
        false => arg.clone(),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`…
fn status_line(record: &Record, now: Timestamp) -> String {
    let run = &record.run;
    let up = || format!("Up {}", span_words(now.since(run.started_at)));
    let ago = || span_words(now.since(run.finished_at));
    match run.phase {
        Phase::Running => match health_status(record) {
            crate::change::HealthStatus::None => up(),
            crate::change::HealthStatus::Starting => format!("{} (health: starting)", up()),
            health => format!("{} ({})", up(), health.as_str()),
        },
        Phase::Paused => format!("{} (Paused)", up()),
        Phase::Restarting => format!("Restarting ({}) {} ago", run.exit_code, ago()),
        Phase::Removing => "Removal In Progress".to_owned(),
        Phase::Dead => "Dead".to_owned(),
        Phase::Created => "Created".to_owned(),
        Phase::Exited => format!("Exited ({}) {} ago", run.exit_code, ago()),
    }
}

/// A span in words, as `docker ps` has them.
fn span_words(span: Duration) -> String {
    let secs = span.as_secs();
    let hours = (secs + 1_800) / 3_600;
    match secs {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{secs} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3_600 => format!("{} minutes", secs / 60),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 730 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", secs / 3_600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_part_and_by_anchor() {
        for (want, hit) in [("eb", true), ("^web$", true), ("^eb", false), ("w$", false)] {
            assert_eq!(pattern(want, "web"), hit, "{want}");
        }
    }

    #[test]
    fn port_ranges_have_a_protocol() {
        assert!(in_port_range("80", 80, "tcp") && !in_port_range("80", 80, "udp"));
        assert!(in_port_range("8000-8010/udp", 8005, "udp"));
        assert!(!in_port_range("x", 1, "tcp"));
    }

    #[test]
    fn spans_read_as_dockers() {
        let words = |secs| span_words(Duration::from_secs(secs));
        let cases = [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (90, "About a minute"),
            (600, "10 minutes"),
            (3_700, "About an hour"),
            (40 * 3_600, "40 hours"),
            (72 * 3_600, "3 days"),
            (15 * 86_400, "2 weeks"),
        ];
        for (secs, want) in cases {
            assert_eq!(words(secs), want);
        }
    }

    #[test]
    fn command_lines_quote_words_with_spaces() {
        assert_eq!(command_line(&["sh".into(), "-c".into(), "a b".into()]), "sh -c 'a b'");
    }
}
