//! `docker top`: the processes of a container as the host sees them.

use std::collections::BTreeMap;
use std::fs;

use crate::change::Phase;
use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::start::runtime_error;
use crate::unikernel::TOOLS;
use crate::view::summary::Top;

/// Kernel ticks in a second; the kernel's interface has had 100 on every machine for decades.
const TICKS_PER_SEC: u64 = 100;

/// What is known of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Process {
    uid: u32,
    pid: u32,
    ppid: u32,
    tty: u64,
    cpu_secs: u64,
    start_secs: u64,
    rss_kib: u64,
    command: String,
    name: String,
    state: String,
}

impl Engine {
    /// The processes of a container. Of the arguments of `ps`, `-ef` (the default), `aux` and
    /// `-o columns` are known.
    ///
    /// # Errors
    /// It does not run, or a column is not known.
    pub async fn top(&self, word: &str, ps_args: Option<&str>) -> Result<Top, EngineError> {
        let container = self.find(word)?;
        container.needs_container("list the processes of", TOOLS)?;
        if container.phase() == Phase::Restarting {
            let text = format!(
                "Container {} is restarting, wait until the container is running",
                container.id
            );
            return Err(EngineError::conflict(text));
        }
        let columns = columns(ps_args.unwrap_or_default())?;
        let shim = container.running_shim()?;
        let pids = shim.processes().await;
        let pids = pids.map_err(|e| runtime_error("list the processes of", &container, e))?;
        blocking("read processes", move || Ok(table(&columns, &pids))).await
    }
}

/// Reads the arguments of `ps`.
fn columns(args: &str) -> Result<Vec<String>, EngineError> {
    let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
    let args = args.trim();
    let wanted = args.strip_prefix("-eo").or_else(|| args.strip_prefix("-o"));
    let wanted = wanted.or_else(|| args.strip_prefix("-ao")).or_else(|| args.strip_prefix("o "));
    match (args, wanted) {
        ("" | "-ef" | "ef", _) => {
            Ok(list(&["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]))
        }
        ("aux" | "-aux", _) => Ok(list(&["USER", "PID", "RSS", "TTY", "STAT", "TIME", "COMMAND"])),
        (_, Some(words)) => words
            .split([',', ' '])
            .filter(|w| !w.is_empty())
            .map(|w| {
                let upper = w.to_ascii_uppercase();
                let known = KNOWN.contains(&upper.as_str());
                known
                    .then_some(upper)
                    .ok_or_else(|| EngineError::missing(format!("column '{w}' of top")))
            })
            .collect(),
        _ => Err(EngineError::missing(format!("arguments '{args}' of top"))),
    }
}

const KNOWN: &[&str] = &[
    "UID", "USER", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD", "COMMAND", "COMM", "ARGS",
    "RSS", "STAT", "S",
];

fn table(columns: &[String], pids: &[u32]) -> Top {
    let boot = boot_secs();
    let users = user_names();
    let rows = pids
        .iter()
        .filter_map(|pid| process(*pid))
        .map(|process| columns.iter().map(|column| cell(&process, column, boot, &users)).collect());
    Top { titles: columns.to_vec(), processes: rows.collect() }
}

fn cell(process: &Process, column: &str, boot: u64, users: &BTreeMap<u32, String>) -> String {
    match column {
        "UID" | "USER" => {
            users.get(&process.uid).cloned().unwrap_or_else(|| process.uid.to_string())
        }
        "PID" => process.pid.to_string(),
        "PPID" => process.ppid.to_string(),
        "STIME" => clock(boot + process.start_secs),
        "TTY" if process.tty == 0 => "?".to_owned(),
        "TTY" => format!("pts/{}", process.tty & 0xff),
        "TIME" => {
            let secs = process.cpu_secs;
            format!("{:02}:{:02}:{:02}", secs / 3_600, secs / 60 % 60, secs % 60)
        }
        "RSS" => process.rss_kib.to_string(),
        "STAT" | "S" => process.state.clone(),
        "COMM" => process.name.clone(),
        "C" => "0".to_owned(),
        _ => process.command.clone(),
    }
}

/// `hh:mm` in UTC.
fn clock(secs: u64) -> String {
    format!("{:02}:{:02}", secs / 3_600 % 24, secs / 60 % 60)
}

fn boot_secs() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn user_names() -> BTreeMap<u32, String> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// Reads one process; `None` if it is gone.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parse_process(pid, &stat, &status, &command)
}

fn parse_process(pid: u32, stat: &str, status: &str, command: &[u8]) -> Option<Process> {
    // The name is in brackets and may itself contain brackets and spaces.
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let in_status = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let words = command.split(|b| *b == 0).filter(|w| !w.is_empty());
    let command: Vec<String> = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    Some(Process {
        uid: u32::try_from(in_status("Uid:")?).ok()?,
        pid,
        ppid: u32::try_from(number(1)).ok()?,
        tty: number(4),
        cpu_secs: (number(11) + number(12)) / TICKS_PER_SEC,
        start_secs: number(19) / TICKS_PER_SEC,
        rss_kib: in_status("VmRSS:").unwrap_or(0),
        command: if command.is_empty() { format!("[{name}]") } else { command.join(" ") },
        state: fields.first().map(|s| (*s).to_owned()).unwrap_or_default(),
        name,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_read_even_with_an_odd_name() {
        let stat = "7 (a) b (c) S 1 7 7 34816 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 36000 0 0";
        let status = "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t  900 kB\n";
        let process = parse_process(7, stat, status, b"sleep\x009\x00").unwrap();
        assert_eq!((process.uid, process.ppid, process.rss_kib), (1000, 1, 900));
        assert_eq!((process.cpu_secs, process.start_secs), (2, 360));
        assert_eq!((process.name.as_str(), process.command.as_str()), ("a) b (c", "sleep 9"));
        assert_eq!(cell(&process, "TTY", 0, &BTreeMap::new()), "pts/0");
        assert_eq!(cell(&process, "TIME", 0, &BTreeMap::new()), "00:00:02");
    }

    #[test]
    fn columns_are_chosen_as_with_ps() {
        assert_eq!(columns("").unwrap().len(), 8);
        assert_eq!(columns("-eo pid,comm").unwrap(), ["PID", "COMM"]);
        assert!(columns("-eo pid,odd").is_err() && columns("--forest").is_err());
    }
}
