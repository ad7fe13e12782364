//! What is kept when a test fails.

use std::path::Path;
use std::process::Command;

use crate::host::Host;
use crate::run;

/// What is asked of every network namespace.
const QUESTIONS: &[&str] = &[
    "ip -s -d link",
    "ip addr",
    "ip rule",
    "ip route show table all",
    "ip neigh",
    "bridge fdb",
    "nft list ruleset",
    "conntrack -L",
    "ss -tanp",
];

/// Keeps logs, and the state of every network namespace that a host's daemons hold.
pub(crate) fn keep(dir: &Path, hosts: &[Host]) {
    // Ignored because: evidence of an earlier failure may or may not be there.
    let _ = std::fs::remove_dir_all(dir);
    for host in hosts {
        let to = dir.join(host.name());
        std::fs::create_dir_all(&to).unwrap();
        for (number, log) in host.logs().into_iter().enumerate() {
            if let Ok(text) = std::fs::read_to_string(&log) {
                std::fs::write(to.join(format!("daemon-{number}.log")), text).unwrap();
            }
        }
        let own = format!("/run/netns/{}", host.netns());
        ask(&to.join("host.txt"), Path::new(&own));
        for namespace in std::fs::read_dir(host.dir().join("d0/exec/netns")).into_iter().flatten() {
            let path = namespace.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            ask(&to.join(format!("{name}.txt")), &path);
        }
    }
}

fn ask(to: &Path, namespace: &Path) {
    let mut text = String::new();
    for question in QUESTIONS {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display()));
        let output = run(command.args(question.split_whitespace()));
        text.push_str(&format!("$ {question}\n"));
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.push('\n');
    }
    std::fs::write(to, text).unwrap();
}
