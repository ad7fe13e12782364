//! Why a task failed, said so that its first 29 characters name the cause: `docker service ps` cuts
//! the text at 30.

use shoal_engine::change::ContainerChange;
use shoal_engine::error::EngineError;
use shoal_image::error::ImageError;
pub(crate) use shoal_life::task::Failure;
use shoal_model::fault::{Fault, FaultId, chain};

/// A failure of the kind that docs/errors explains.
pub(crate) fn of(step: &'static str, error: &impl Fault) -> Failure {
    Failure { step, text: finish(chain(error), error) }
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

/// The exit status of a process that was killed (128 + SIGKILL).
const KILLED: i64 = 137;

/// How a process ended; empty if it ended well. That the kernel killed one of its children for lack
/// of memory, some time, is no end: only if it was killed itself is that why.
pub(crate) fn of_exit(change: &ContainerChange) -> String {
    if change.oom_killed && change.exit_code == KILLED {
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
    if let Some(remedy) = shoal_model::fault::remedy(fault)
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

#[cfg(test)]
mod tests {
    use shoal_engine::change::{HealthStatus, Phase};
    use shoal_model::id::ContainerId;

    use super::*;

    #[test]
    fn an_earlier_lack_of_memory_is_no_end() {
        let exit = |exit_code, oom_killed| {
            of_exit(&ContainerChange {
                id: ContainerId::new("c"),
                name: String::new(),
                task_id: None,
                phase: Phase::Exited,
                removed: false,
                pid: 0,
                exit_code,
                error: String::new(),
                oom_killed,
                health: HealthStatus::None,
            })
        };
        assert_eq!(exit(0, true), "");
        assert_eq!(exit(3, true), "task: non-zero exit (3)");
        assert!(exit(137, true).starts_with("out of memory"), "{}", exit(137, true));
        assert_eq!(exit(137, false), "task: non-zero exit (137)");
    }
}
