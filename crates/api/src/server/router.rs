//! From method and path to a handler. Image names contain slashes, so a segment may match several.

use futures::future::BoxFuture;
use http::Method;

use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::Answer;
use crate::http::query::percent_decode;

/// A handler of a route.
pub type Handler = fn(Call) -> BoxFuture<'static, ApiResult<Answer>>;

/// One route: method, pattern, handler.
#[derive(Clone, Copy)]
pub struct Route {
    /// The method; `HEAD` has routes of its own.
    pub method: Verb,
    /// Segments: literal, `{name}` for one, `{name*}` for one or more.
    pub pattern: &'static str,
    /// What becomes of the request when its client leaves.
    pub conduct: Conduct,
    /// What answers.
    pub handler: Handler,
}

/// What becomes of a request when its client leaves. Every route chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// It changes nothing here, so it ends with its client.
    Read,
    /// It changes something, so its handler runs to the end ([`crate::server::changes`]).
    Change,
    /// It is there for its client, and ends with it.
    Stream,
}

/// The methods that the API has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
}

impl Verb {
    /// From HTTP's.
    #[must_use]
    pub fn of(method: &Method) -> Option<Self> {
        match *method {
            Method::GET => Some(Self::Get),
            Method::HEAD => Some(Self::Head),
            Method::POST => Some(Self::Post),
            Method::PUT => Some(Self::Put),
            Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }
}

/// All routes, in order of precedence.
pub struct Router {
    routes: Vec<Route>,
}

/// Where a request goes.
pub enum Target {
    /// To this route, with the values of the pattern's segments.
    Found(Route, Vec<(&'static str, String)>),
    /// The path exists with other methods.
    OtherMethod,
    /// No such path.
    Unknown,
}

impl Router {
    /// From a table; the first match wins.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes }
    }

    /// Finds the handler of a request.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Target {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let mut known = false;
        for route in &self.routes {
            let pattern: Vec<&'static str> =
                route.pattern.trim_start_matches('/').split('/').collect();
            let mut params = Vec::new();
            if !matches(&pattern, &segments, &mut params) {
                continue;
            }
            if Verb::of(method) == Some(route.method) {
                return Target::Found(*route, params);
            }
            known = true;
        }
        if known { Target::OtherMethod } else { Target::Unknown }
    }
}

fn matches(
    pattern: &[&'static str],
    path: &[&str],
    params: &mut Vec<(&'static str, String)>,
) -> bool {
    let Some((first, later)) = pattern.split_first() else { return path.is_empty() };
    let name = first.strip_prefix('{').and_then(|p| p.strip_suffix('}'));
    let Some(name) = name else {
        return path
            .split_first()
            .is_some_and(|(head, tail)| head == first && matches(later, tail, params));
    };
    let Some(many) = name.strip_suffix('*') else {
        return path.split_first().is_some_and(|(head, tail)| {
            params.push((name, percent_decode(head, false)));
            !head.is_empty() && matches(later, tail, params)
        });
    };
    for taken in (1..=path.len()).rev() {
        let (head, tail) = path.split_at(taken);
        let depth = params.len();
        params.push((many, percent_decode(&head.join("/"), false)));
        if matches(later, tail, params) {
            return true;
        }
        params.truncate(depth);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pattern: &'static str, path: &str) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let pattern: Vec<&'static str> = pattern.trim_start_matches('/').split('/').collect();
        let path: Vec<&str> = path.trim_matches('/').split('/').collect();
        matches(&pattern, &path, &mut found)
            .then(|| found.into_iter().map(|(_, value)| value).collect())
    }

    #[test]
    fn image_names_may_have_slashes() {
        let found = params("/images/{name*}/json", "/images/localhost:5000/a/json/json");
        assert_eq!(found, Some(vec!["localhost:5000/a/json".to_owned()]));
        assert_eq!(params("/images/{name*}/json", "/images/json"), None);
        assert_eq!(params("/containers/{id}/json", "/containers/a/b/json"), None);
        assert_eq!(
            params("/containers/{id}/json", "/containers/a%20b/json").map(|p| p.len()),
            Some(1)
        );
    }
}
