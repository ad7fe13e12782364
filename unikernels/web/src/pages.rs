//! Answers requests.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use unikernel::http::{Body, Broken, Handler, Reply, Request, Status, Stream};

use crate::conditions::{Verdict, range_holds, verdict};
use crate::path::{is_normal, normalise};
use crate::range::{Wanted, wanted};
use crate::site::{Found, Page, Site};

/// The page that tells who answers.
const WHOAMI: &str = "/whoami";

/// The web server.
#[derive(Debug)]
pub struct Web {
    /// Its files.
    pub site: Site,
    /// Its name on the whoami page.
    pub name: String,
}

impl<S: Stream> Handler<S> for Web {
    async fn handle(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_, S>,
        reply: &mut Reply<'_, S>,
    ) -> Result<(), Broken> {
        if !matches!(request.method, "GET" | "HEAD") {
            let head = reply.start(Status::METHOD_NOT_ALLOWED).field("Allow", b"GET, HEAD");
            return head.send(body, b"only GET and HEAD are answered here\n").await;
        }
        let path = request.path();
        if path == WHOAMI {
            return self.whoami(request, body, reply).await;
        }
        if is_normal(path) {
            return self.path(path, request, body, reply).await;
        }
        match normalise(path) {
            Ok(normal) => self.path(&normal, request, body, reply).await,
            Err(_) => reply.text(body, Status::BAD_REQUEST, b"this path leads to no file\n").await,
        }
    }
}

impl Web {
    async fn whoami<S: Stream>(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_, S>,
        reply: &mut Reply<'_, S>,
    ) -> Result<(), Broken> {
        let (me, client) = (request.local.ip(), request.peer.ip());
        let text = format!("{} at {me} sees {client}\n", self.name);
        let head = reply
            .start(Status::OK)
            .field("Content-Type", b"text/plain; charset=utf-8")
            .field("Cache-Control", b"no-store");
        head.send(body, text.as_bytes()).await
    }

    async fn path<S: Stream>(
        &self,
        path: &str,
        request: &Request<'_>,
        body: &mut Body<'_, S>,
        reply: &mut Reply<'_, S>,
    ) -> Result<(), Broken> {
        match self.site.find(path) {
            Found::Page(page) => serve(page, request, body, reply).await,
            Found::Folder => {
                let location = encode(path) + "/";
                let head = reply.start(Status::MOVED_PERMANENTLY);
                head.field("Location", location.as_bytes()).send(body, b"").await
            }
            Found::Nothing => reply.text(body, Status::NOT_FOUND, b"there is no such file\n").await,
        }
    }
}

/// Writes a path so that it can stand in a field: from the normal path, so that it never begins
/// with two slashes, which would name another host.
fn encode(path: &str) -> String {
    let mut to = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                to.push(char::from(byte));
            }
            other => to.push_str(&format!("%{other:02X}")),
        }
    }
    to
}

/// Answers with a file, or what the client needs of it.
async fn serve<S: Stream>(
    page: &Page,
    request: &Request<'_>,
    body: &mut Body<'_, S>,
    reply: &mut Reply<'_, S>,
) -> Result<(), Broken> {
    let prepared = page.prepared();
    let (etag, modified) = (prepared.etag.as_bytes(), page.modified());
    match verdict(request, etag, modified) {
        Verdict::Go => {}
        Verdict::NotModified => {
            let head = reply.start(Status::NOT_MODIFIED).lines(&prepared.lines);
            return head.send(body, b"").await;
        }
        Verdict::Failed => {
            let head = reply.start(Status::PRECONDITION_FAILED).lines(&prepared.lines);
            return head.send(body, b"").await;
        }
    }
    let data = page.file.data;
    let length = data.len() as u64;
    let ranges = match request.field("range") {
        // Ranges mean something for GET only (RFC 9110, section 14.2).
        Some(field) if request.method == "GET" && range_holds(request, etag, modified) => {
            wanted(field, length)
        }
        _ => Wanted::All,
    };
    match ranges {
        Wanted::All => reply.start(Status::OK).lines(&prepared.all_lines).send(body, data).await,
        Wanted::Nothing => {
            let range = format!("bytes */{length}");
            let head = reply.start(Status::RANGE_NOT_SATISFIABLE);
            head.field("Content-Range", range.as_bytes()).send(body, b"").await
        }
        Wanted::Parts(parts) => match parts.as_slice() {
            [one] => {
                let range = content_range(one, length);
                let head = reply.start(Status::PARTIAL_CONTENT).lines(&prepared.all_lines);
                head.field("Content-Range", range.as_bytes()).send(body, slice(data, one)).await
            }
            several => multipart(page, several, body, reply).await,
        },
    }
}

fn content_range(part: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end - 1)
}

fn slice<'a>(data: &'a [u8], part: &Range<u64>) -> &'a [u8] {
    // Cannot fail: parts lie inside of the file.
    let (start, end) = (part.start as usize, part.end as usize);
    data.get(start..end).unwrap_or_default()
}

/// Several parts in one answer (RFC 9110, section 14.6).
async fn multipart<S: Stream>(
    page: &Page,
    parts: &[Range<u64>],
    body: &mut Body<'_, S>,
    reply: &mut Reply<'_, S>,
) -> Result<(), Broken> {
    let prepared = page.prepared();
    let data = page.file.data;
    let length = data.len() as u64;
    // The content's hash is a boundary that nobody can have put into the file.
    let boundary = prepared.etag.trim_matches('"');
    let heads: Vec<Vec<u8>> = parts
        .iter()
        .map(|part| {
            let mut head = format!("\r\n--{boundary}\r\n").into_bytes();
            head.extend_from_slice(&prepared.type_line);
            let range = content_range(part, length);
            head.extend_from_slice(format!("Content-Range: {range}\r\n\r\n").as_bytes());
            head
        })
        .collect();
    let end = format!("\r\n--{boundary}--\r\n");
    let total = heads.iter().map(|head| head.len() as u64).sum::<u64>()
        + parts.iter().map(|part| part.end - part.start).sum::<u64>()
        + end.len() as u64;
    let kind = format!("multipart/byteranges; boundary={boundary}");
    let head = reply.start(Status::PARTIAL_CONTENT).lines(&prepared.lines);
    let mut pieces = head.field("Content-Type", kind.as_bytes()).pieces(total);
    for (head, part) in heads.iter().zip(parts) {
        pieces.write(body, head).await?;
        pieces.write(body, slice(data, part)).await?;
    }
    pieces.write(body, end.as_bytes()).await?;
    pieces.finish(body).await
}
