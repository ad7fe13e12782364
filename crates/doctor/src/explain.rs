//! The pages of docs/errors, embedded.

/// Every page by its id, ordered.
static PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// The page of a failure: what it means, how it shows, what to do. The id may be in any case.
#[must_use]
pub fn explain(id: &str) -> Option<&'static str> {
    let id = id.trim().trim_matches(['[', ']']).to_ascii_uppercase();
    PAGES
        .binary_search_by(|(known, _)| (*known).cmp(id.as_str()))
        .ok()
        .and_then(|at| PAGES.get(at).map(|(_, page)| *page))
}

/// All ids that have a page, ordered, each with its page's title.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES.iter().map(|(id, page)| {
        let title = page.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']);
        (*id, title.strip_prefix(*id).map_or(title, |t| t.trim_start_matches([':', ' '])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_in_any_case() {
        assert!(explain("SH-DOC-101").is_some_and(|page| page.contains("## Remedy")));
        assert_eq!(explain("[sh-doc-101]"), explain("SH-DOC-101"));
        assert_eq!(explain("SH-DOC-999"), None);
    }

    #[test]
    fn every_page_has_a_title_and_its_three_parts() {
        for (id, title) in all() {
            assert!(!title.is_empty() && !title.starts_with("SH-"), "{id}: {title}");
            let page = explain(id).unwrap_or_default();
            for part in ["## Meaning", "## Evidence", "## Remedy"] {
                assert!(page.contains(part), "{id} has no '{part}'");
            }
        }
    }
}
