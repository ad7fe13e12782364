//! Rules about the text of source files.

use super::{none, root, sources};

/// Crates that may contain `unsafe`, by the beginning of their files' paths.
const UNSAFE_ALLOWED: &[&str] =
    &["crates/netlink/", "crates/tender/", "crates/unikernel/", "crates/runtime/src/process"];

/// A file longer than this must be taken apart.
const FILE_LINES_MAX: usize = 600;
/// Test files may hold more: tables.
const TEST_FILE_LINES_MAX: usize = 1200;
/// What fits beside another file on a screen.
const LINE_CHARS_MAX: usize = 100;

#[test]
fn unsafe_stays_in_its_rooms_and_is_explained() {
    let mut wrong = Vec::new();
    for source in sources("crates") {
        let may = UNSAFE_ALLOWED.iter().any(|room| source.path.starts_with(room));
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            let place = format!("{}:{}", source.path, at + 1);
            if !may && !source.is_test() {
                wrong.push(format!("{place}: unsafe outside its rooms"));
            }
            let above = lines.get(at.saturating_sub(8)..=at).unwrap_or_default();
            if may && !above.iter().any(|l| l.contains("SAFETY:")) {
                wrong.push(format!("{place}: no SAFETY note"));
            }
        }
    }
    none(&wrong, "unsafe");
}

#[test]
fn crates_forbid_unsafe_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let file = ["src/lib.rs", "src/main.rs"]
            .iter()
            .map(|file| dir.join(file))
            .find(|file| file.exists())
            .unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let has_unsafe = ["netlink", "tender", "unikernel", "runtime"].contains(&name.as_str());
        if !has_unsafe && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{name}: no #![forbid(unsafe_code)]"));
        }
        let opening = text.lines().take_while(|l| l.starts_with("//!")).count();
        if !(5..=40).contains(&opening) {
            wrong.push(format!("{name}: opens with {opening} lines of purpose, not 5 to 25"));
        }
    }
    none(&wrong, "crate roots");
}

#[test]
fn files_and_lines_stay_readable() {
    let mut wrong = Vec::new();
    for source in ["crates", "testing", "xtask"].iter().flat_map(|folder| sources(folder)) {
        let lines = source.text.lines().count();
        let most = if source.is_test() { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
        if lines > most {
            wrong.push(format!("{}: {lines} lines, more than {most}", source.path));
        }
        for (at, line) in source.text.lines().enumerate() {
            let chars = line.chars().count();
            // A long literal (a URL, a recorded message) is not made better by breaking it.
            if chars > LINE_CHARS_MAX && !line.contains('"') && !line.contains("://") {
                wrong.push(format!("{}:{}: {chars} characters", source.path, at + 1));
            }
        }
    }
    none(&wrong, "too long");
}

#[test]
fn no_test_is_ignored() {
    let mut wrong = Vec::new();
    let hidden = concat!("#[", "ignore");
    for source in ["crates", "testing", "xtask"].iter().flat_map(|folder| sources(folder)) {
        for (at, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with(hidden) {
                wrong.push(format!("{}:{}: an ignored test", source.path, at + 1));
            }
        }
    }
    none(&wrong, "tests");
}

#[test]
fn causes_are_not_formatted_into_messages() {
    let mut wrong = Vec::new();
    for source in sources("crates") {
        for (at, line) in source.product().lines().enumerate() {
            let attribute = line.trim_start().starts_with("#[error(");
            if attribute && (line.contains("{source") || line.contains("{cause")) {
                wrong.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    none(&wrong, "Display of an error must not print its source: the chain printer does");
}

/// Crates that the simulation drives: what is ready first, and where it blocks, must not depend on
/// chance.
const SIMULATED: &[&str] =
    &["crates/store", "crates/manager", "crates/wire", "crates/agent", "crates/node"];

#[test]
fn what_is_ready_at_once_is_taken_in_a_known_order() {
    let mut wrong = Vec::new();
    for source in SIMULATED.iter().flat_map(|folder| sources(folder)).filter(|s| !s.is_test()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("select! {")) {
            if lines.get(at + 1).is_none_or(|next| next.trim() != "biased;") {
                wrong.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    none(&wrong, "select! without biased: begin with it, and put what stops the loop first");
}

#[test]
fn the_store_blocks_only_where_it_is_told_to() {
    let mut wrong = Vec::new();
    for source in sources("crates/store/src").into_iter().filter(|s| !s.is_test()) {
        if source.path == "crates/store/src/outside.rs" {
            continue;
        }
        for (at, line) in source.product().lines().enumerate() {
            if ["spawn_blocking", "thread::", "std::time::Instant"].iter().any(|w| line.contains(w))
            {
                wrong.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    none(&wrong, "the store: what may block is done by its Outside");
}
