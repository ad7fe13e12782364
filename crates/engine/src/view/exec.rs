//! `GET /exec/{id}/json`.

use serde::Serialize;

/// An exec, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExecInspect {
    /// Whether clients may detach; always true.
    #[serde(rename = "CanRemove")]
    pub can_remove: bool,
    /// The container.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Keys that detach a client.
    #[serde(rename = "DetachKeys")]
    pub detach_keys: String,
    /// Exit status; `null` while it runs.
    #[serde(rename = "ExitCode")]
    pub exit_code: Option<i64>,
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Whether standard error goes to the client.
    #[serde(rename = "OpenStderr")]
    pub open_stderr: bool,
    /// Whether standard input comes from the client.
    #[serde(rename = "OpenStdin")]
    pub open_stdin: bool,
    /// Whether standard output goes to the client.
    #[serde(rename = "OpenStdout")]
    pub open_stdout: bool,
    /// What runs.
    #[serde(rename = "ProcessConfig")]
    pub process_config: ProcessConfig,
    /// Whether it runs.
    #[serde(rename = "Running")]
    pub running: bool,
    /// Its process on the host; 0 when none.
    #[serde(rename = "Pid")]
    pub pid: i64,
}

/// What an exec runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessConfig {
    /// Whether it has a terminal.
    pub tty: bool,
    /// The program.
    pub entrypoint: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Whether it has every capability.
    pub privileged: bool,
    /// `user[:group]`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
}
