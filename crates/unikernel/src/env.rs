//! Arguments, environment and host name of the task.

use crate::boot;

/// The non-empty-terminated strings of `bytes`; those that are not UTF-8 are left out.
fn strings(bytes: &'static [u8]) -> impl Iterator<Item = &'static str> {
    let without_end = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let count = if bytes.is_empty() { 0 } else { usize::MAX };
    without_end
        .split(|byte| *byte == 0)
        .take(count)
        .filter_map(|one| core::str::from_utf8(one).ok())
}

/// The arguments; the first is the program's name.
pub fn args() -> impl Iterator<Item = &'static str> {
    strings(boot::info().map_or(&[], |boot| boot::bytes(boot.args)))
}

/// All environment variables as `(name, value)`.
pub fn vars() -> impl Iterator<Item = (&'static str, &'static str)> {
    strings(boot::info().map_or(&[], |boot| boot::bytes(boot.env)))
        .filter_map(|line| line.split_once('='))
}

/// The value of the environment variable `name`.
#[must_use]
pub fn var(name: &str) -> Option<&'static str> {
    vars().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The host name of the task.
#[must_use]
pub fn hostname() -> &'static str {
    boot::info().map_or("", |boot| boot::text(boot.hostname))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &'static [u8], expected: &[&str]) {
        assert_eq!(strings(bytes).collect::<Vec<_>>(), expected, "{bytes:?}");
    }

    #[test]
    fn zero_ended_strings_are_taken_apart() {
        check(b"", &[]);
        check(b"\0", &[""]);
        check(b"a\0", &["a"]);
        check(b"a\0\0b=c\0", &["a", "", "b=c"]);
        check(b"a\0b", &["a", "b"]);
        check(b"\xff\0ok\0", &["ok"]);
    }
}
