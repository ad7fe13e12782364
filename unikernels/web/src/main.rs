//! The web appliance: `web [--port N] [--root PATH] [--name NAME]`.
//!
//! Serves the files of the folder `/srv` (mount one there, or say another with `--root`), and at
//! `/whoami` who answers and whom it sees. Without files of its own it shows a page that says so.
//! See [`web_server::settings`] for the same as environment variables.

#![cfg_attr(shoal_image, no_std, no_main)]

extern crate alloc;

use alloc::string::ToString;

use unikernel::fs;
use unikernel::http::{Limits, serve};
use unikernel::net::{Error, TcpListener};
use web_server::pages::Web;
use web_server::settings::{SettingError, Settings};
use web_server::site::Site;

unikernel::main! {
    main: run,
    devices: [net("net")],
    heap_bytes_min: 4 << 20,
}

/// Connections that wait to be accepted.
const BACKLOG: usize = 512;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// An argument or variable is wrong.
    #[error("read the settings: {0}")]
    Settings(SettingError),
    /// The port cannot be had.
    #[error("listen on port {port}: {error}")]
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
    let mut site = Site::load(&settings.root);
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
