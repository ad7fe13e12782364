//! Who a process is, by the container's own user and group files.

use crate::protocol::{Failure, FailureKind};

/// Most lines of a user or group file that are read: the files are the image's, not ours.
const LINES_MAX: usize = 100_000;

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `gid` first, then the others.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().take(LINES_MAX).filter_map(|line| {
        let mut parts = line.trim().split(':');
        let name = parts.next()?;
        let uid = parts.nth(1)?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let home = parts.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().take(LINES_MAX).filter_map(|line| {
        let mut parts = line.trim().split(':');
        let name = parts.next()?;
        let gid = parts.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: parts.next().unwrap_or("") })
    })
}

/// Resolves `user[:group]` and additional groups by Docker's rules. Numbers need not be listed,
/// names must.
pub(crate) fn resolve(
    word: &str,
    additional: &[String],
    passwd: &str,
    group: &str,
) -> Result<User, Failure> {
    let (user, group_word) = word.split_once(':').unwrap_or((word, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd_entries(passwd)
        .find(|e| e.name == user)
        .or_else(|| passwd_entries(passwd).find(|e| number == Some(e.uid)));
    let (uid, mut gid, name, home) = match (entry, number) {
        (Some(e), _) => (e.uid, e.gid, Some(e.name), e.home),
        (None, Some(uid)) => (uid, 0, None, ""),
        (None, None) => {
            let text = format!("unable to find user {user}: no matching entries in passwd file");
            return Err(Failure::new(FailureKind::Invalid, text));
        }
    };
    let mut groups = Vec::new();
    if group_word.is_empty() {
        let listed = |g: &GroupEntry<'_>| {
            name.is_some_and(|name| g.members.split(',').any(|member| member == name))
        };
        groups.extend(group_entries(group).filter(listed).map(|g| g.gid));
    } else {
        gid = find_group(group_word, group)?;
    }
    for word in additional {
        groups.push(find_group(word, group)?);
    }
    let mut all = vec![gid];
    for group in groups {
        if !all.contains(&group) {
            all.push(group);
        }
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { uid, gid, groups: all, home: home.to_owned() })
}

fn find_group(word: &str, group: &str) -> Result<u32, Failure> {
    let found = group_entries(group).find(|g| g.name == word).map(|g| g.gid);
    found.or_else(|| word.parse().ok()).ok_or_else(|| {
        let text = format!("unable to find group {word}: no matching entries in group file");
        Failure::new(FailureKind::Invalid, text)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:100::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nadm:x:4:web,root\n";

    fn check(word: &str, additional: &[&str]) -> Result<(u32, Vec<u32>, String), String> {
        let additional: Vec<String> = additional.iter().map(|w| (*w).to_owned()).collect();
        resolve(word, &additional, PASSWD, GROUP)
            .map(|u| (u.uid, u.groups, u.home))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn names_and_numbers_resolve() {
        assert_eq!(check("", &[]).unwrap(), (0, vec![0, 4], "/root".into()));
        assert_eq!(check("web", &["7"]).unwrap(), (1000, vec![100, 4, 7], "/srv".into()));
        assert_eq!(check("1000:adm", &[]).unwrap(), (1000, vec![4], "/srv".into()));
        assert_eq!(check("55", &[]).unwrap(), (55, vec![0], "/".into()));
        assert_eq!(check("55:66", &[]).unwrap(), (55, vec![66], "/".into()));
    }

    #[test]
    fn unknown_names_are_refused_in_docker_words() {
        let text = check("nobody", &[]).unwrap_err();
        assert_eq!(text, "unable to find user nobody: no matching entries in passwd file");
        assert!(check("0:nogroup", &[]).unwrap_err().contains("no matching entries in group file"));
    }

    #[test]
    fn so_many_lines_are_read_and_no_more() {
        let find = |before: usize| {
            let passwd = "x:x:1:1::/:\n".repeat(before) + "web:x:7:8::/srv:\n";
            resolve("web", &[], &passwd, GROUP)
        };
        assert_eq!(find(LINES_MAX - 1).unwrap().uid, 7);
        assert!(find(LINES_MAX).is_err());
        let find = |before: usize| {
            let group = "x:x:1:\n".repeat(before) + "late:x:9:\n";
            resolve("0:late", &[], PASSWD, &group)
        };
        assert_eq!(find(LINES_MAX - 1).unwrap().gid, 9);
        assert!(find(LINES_MAX).is_err());
    }
}
