//! The web appliance: `web [--port N] [--root PATH] [--name NAME]`.
//!
//! Serves the files of the folder `/srv` (mount one there, or say another with `--root`), and at
//! `/whoami` who answers and whom it sees. Without files of its own it shows a page that says so.
//! See [`web_server::settings`] for the same as environment variables.

#![cfg_attr(shoal_image, no_std, no_main)]

extern crate alloc;

use alloc::string::{String, ToString};

use unikernel::fs;
use unikernel::http::{Limits, serve};
use unikernel::net::{Error, TcpListener};
use web_server::pages::Web;
use web_server::settings::{ROOT, SettingError, Settings};
use web_server::site::Site;

unikernel::main! {
    main: run,
    devices: [net("net")],
    heap_bytes_min: 4 << 20,
}

/// Connections that wait to be accepted.
const BACKLOG: usize = 512;

/// Why the server does not start, the cause first: lists of tasks show the beginning only.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// An argument or variable is wrong.
    #[error("{0}")]
    Settings(SettingError),
    /// A folder was named and is not there: without files it would show a welcome instead.
    #[error(
        "no folder '{0}': mount one there (-v FOLDER:{0}:ro), or name another with --root or \
         WEB_ROOT"
    )]
    NoRoot(String),
    /// The port cannot be had.
    #[error("cannot listen on port {port}: {error}")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        error: Error,
    },
}

async fn run() -> Result<(), StartError> {
    let arguments = unikernel::env::args().skip(1);
    let settings = Settings::read(arguments, unikernel::env::var).map_err(StartError::Settings)?;
    let port = settings.port;
    if let Some(root) = settings.root.as_ref().filter(|root| !fs::is_directory(root)) {
        return Err(StartError::NoRoot(root.clone()));
    }
    let mut site = Site::load(settings.root.as_deref().unwrap_or(ROOT));
    if site.is_empty() {
        let welcome = include_bytes!("../files/index.html");
        site.add("/index.html", fs::File { data: welcome, modified: 0 });
    }
    let name = settings.name.unwrap_or_else(|| unikernel::env::hostname().to_string());
    let listener =
        TcpListener::bind(port, BACKLOG).map_err(|error| StartError::Listen { port, error })?;
    unikernel::println!("{name} serves {} files on port {port}", site.len());
    serve(listener, Web { site, name }, Limits::default()).await;
    Ok(())
}
