//! Why a task failed, said so that its first 29 characters name the cause: `docker service ps` cuts
//! the text at 30.

use shoal_engine::change::ContainerChange;
use shoal_engine::error::EngineError;
use shoal_image::error::ImageError;
use shoal_model::fault::{Fault, FaultId, chain};

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The step that failed, for `Status.Message`.
    pub step: &'static str,
    /// Cause first, then everything else, for `Status.Err`.
    pub text: String,
}

impl Failure {
    /// A cause that needs no more words.
    pub(crate) fn plain(text: &str) -> Self {
        Self { step: "failed", text: text.to_owned() }
    }
}

/// A failure of the engine.
pub(crate) fn of_engine(error: &EngineError) -> Failure {
    let (step, text) = match error {
        EngineError::Start { reason, .. } => ("starting", reason.clone()),
        EngineError::Network { source, .. } => ("attaching networks", chain(source)),
        EngineError::Runtime { source, .. } => ("starting", chain(source.as_ref())),
        other => ("preparing", chain(other)),
    };
    Failure { step, text: finish(text, error) }
}

/// A failure to get the image.
pub(crate) fn of_pull(image: &str, error: &ImageError) -> Failure {
    let text = format!("No such image: {image}: {}", chain(error));
    Failure { step: "preparing", text: finish(text, error) }
}

/// How a process ended; empty if it ended well.
pub(crate) fn of_exit(change: &ContainerChange) -> String {
    if change.oom_killed {
        return format!(
            "out of memory: killed at its memory limit (exit status {}) [SH-AGT-007]",
            change.exit_code
        );
    }
    match (change.error.as_str(), change.exit_code) {
        ("", 0) => String::new(),
        ("", code) => format!("task: non-zero exit ({code})"),
        (error, _) => error.to_owned(),
    }
}

/// Remedy and id, behind the cause.
fn finish(mut text: String, fault: &impl Fault) -> String {
    if let Some(remedy) = fault.remedy()
        && !text.contains(&remedy)
    {
        text.push_str("; ");
        text.push_str(&remedy);
    }
    if let Some(FaultId(id)) = fault.id()
        && !text.contains(id)
    {
        text.push_str(&format!(" [{id}]"));
    }
    text
}
