//! Further processes in a running container, and the records that outlive them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_model::fault;
use shoal_model::id::ContainerId;
use shoal_runtime::container_plan::{ExecPlan, ProcessPlan, TtySize};
use shoal_runtime::protocol::FailureKind;
use shoal_runtime::{RuntimeError, Shim};
use tokio::sync::oneshot;

use crate::change::Phase;
use crate::container::Container;
use crate::detach_keys::DetachKeys;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::merge::merge_env;
use crate::names;
use crate::record::Record;
use crate::request::{ExecCreate, ExecStart};
use crate::session::{self, AtEof, Manner, SessionEnd};
use crate::start::runtime_error;
use crate::stream::StdioSession;
use crate::unikernel::TOOLS;
use crate::view::exec::{ExecInspect, ProcessConfig};

/// How many execs are remembered. Clients ask for the exit status right after the end; a health
/// check by `docker exec` every second would otherwise fill the memory for ever.
const EXECS_MAX: usize = 1_000;

/// The records, oldest first.
#[derive(Default)]
pub(crate) struct Execs {
    list: Mutex<VecDeque<Arc<Exec>>>,
}

struct Exec {
    id: String,
    container: ContainerId,
    body: ExecCreate,
    argv: Vec<String>,
    state: Mutex<ExecState>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum ExecState {
    #[default]
    Created,
    Running {
        pid: u32,
    },
    Ended {
        code: i64,
    },
}

impl Exec {
    fn state(&self) -> MutexGuard<'_, ExecState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_running(&self) -> bool {
        matches!(*self.state(), ExecState::Running { .. })
    }

    /// Records the end once; says whether it was the first to say so.
    fn end(&self, code: i64) -> bool {
        let mut state = self.state();
        let first = !matches!(*state, ExecState::Ended { .. });
        if first {
            *state = ExecState::Ended { code };
        }
        first
    }

    fn line(&self) -> String {
        self.argv.join(" ")
    }
}

impl Execs {
    fn list(&self) -> MutexGuard<'_, VecDeque<Arc<Exec>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, exec: Arc<Exec>) -> Result<(), EngineError> {
        let mut list = self.list();
        if list.len() >= EXECS_MAX {
            let oldest = list.iter().position(|e| !e.is_running()).ok_or_else(|| {
                EngineError::conflict(format!("{EXECS_MAX} execs run already on this node"))
            })?;
            list.remove(oldest);
        }
        list.push_back(exec);
        Ok(())
    }

    fn get(&self, id: &str) -> Result<Arc<Exec>, EngineError> {
        let list = self.list();
        let exact = list.iter().find(|e| e.id == id);
        let mut prefixed = list.iter().filter(|e| !id.is_empty() && e.id.starts_with(id));
        let found = match (exact, prefixed.next(), prefixed.next()) {
            (Some(exec), ..) | (None, Some(exec), None) => Some(Arc::clone(exec)),
            _ => None,
        };
        found.ok_or_else(|| EngineError::NoSuchExec { id: id.to_owned() })
    }

    /// Ids of a container's running execs.
    pub fn running(&self, container: &ContainerId) -> Vec<String> {
        let list = self.list();
        let own = list.iter().filter(|e| e.container == *container && e.is_running());
        own.map(|e| e.id.clone()).collect()
    }

    /// A container ended, and its execs with it.
    pub fn container_ended(&self, container: &ContainerId) {
        for exec in self.list().iter().filter(|e| e.container == *container && e.is_running()) {
            exec.end(137);
        }
    }

    /// A container is gone, and its records with it.
    pub fn container_removed(&self, container: &ContainerId) {
        self.list().retain(|exec| exec.container != *container);
    }
}

impl Engine {
    /// Prepares a further process; gives its id.
    ///
    /// # Errors
    /// The container does not run, or nothing is to be run.
    pub async fn exec_create(&self, word: &str, body: ExecCreate) -> Result<String, EngineError> {
        let container = self.find(word)?;
        container.needs_container("run a command in", TOOLS)?;
        check_running(&container)?;
        let argv = body.cmd.as_ref().map(|words| words.list()).unwrap_or_default();
        if argv.is_empty() {
            return Err(EngineError::invalid("No exec command specified"));
        }
        DetachKeys::parse(body.detach_keys.as_deref())?;
        let exec = Arc::new(Exec {
            id: names::random_hex(),
            container: container.id.clone(),
            body,
            argv,
            state: Mutex::default(),
        });
        let id = exec.id.clone();
        let action = format!("exec_create: {}", exec.line());
        self.inner.execs.add(exec)?;
        self.note(&container, &action, &[("execID", id.clone())]);
        Ok(id)
    }

    /// Runs a prepared process. Gives no session if it was started detached. A program that cannot
    /// be run ends an attached session with the reason as its only output, as in Docker.
    ///
    /// # Errors
    /// No such exec, it was started before, the container does not run.
    pub async fn exec_start(
        &self,
        id: &str,
        body: ExecStart,
    ) -> Result<Option<StdioSession>, EngineError> {
        let exec = self.inner.execs.get(id)?;
        let container = self.find(exec.container.as_str())?;
        check_running(&container)?;
        let engine = self.clone();
        self.owned(async move { engine.exec_start_here(exec, container, body).await }).await
    }

    async fn exec_start_here(
        &self,
        exec: Arc<Exec>,
        container: Arc<Container>,
        body: ExecStart,
    ) -> Result<Option<StdioSession>, EngineError> {
        let shim = container.running_shim()?;
        let keys = DetachKeys::parse(exec.body.detach_keys.as_deref())?;
        {
            let mut state = exec.state();
            if *state != ExecState::Created {
                let text = format!("exec command {} is already running", exec.id);
                return Err(EngineError::conflict(text));
            }
            *state = ExecState::Running { pid: 0 };
        }
        let plan = exec_plan(&exec, &container, &body);
        let tty = exec.body.tty;
        let handle = match shim.exec(plan).await {
            Ok(handle) => handle,
            Err(source) => {
                let error = self.exec_failed(&exec, &container, source);
                return if body.detach {
                    Err(error)
                } else {
                    Ok(Some(session::refusal(tty, &error)))
                };
            }
        };
        {
            let mut state = exec.state();
            if let ExecState::Running { pid } = &mut *state {
                *pid = handle.pid;
            }
        }
        let action = format!("exec_start: {}", exec.line());
        self.note(&container, &action, &[("execID", exec.id.clone())]);
        self.follow_exec(&exec, &container, &shim);
        if body.detach {
            return Ok(None);
        }
        let (ready, streams) = oneshot::channel();
        // Ignored because: the receiver is in our hands.
        let _ = ready.send(handle.streams);
        let (engine, subject) = (self.clone(), Arc::clone(&exec));
        let manner = Manner {
            tty,
            stdin: exec.body.attach_stdin,
            stdout: exec.body.attach_stdout,
            stderr: exec.body.attach_stderr,
            at_eof: AtEof::Close,
            keys,
            before: None,
            on_end: Box::new(move |end| match end {
                // Recorded before the output ends: clients ask for the status right after.
                SessionEnd::Exited(code) => engine.exec_ended(&subject, &container, code.into()),
                SessionEnd::Detached => {
                    engine.note(&container, "exec_detach", &[("execID", subject.id.clone())]);
                }
                SessionEnd::Left => {}
            }),
        };
        Ok(Some(session::open(self, streams, manner)))
    }

    /// An exec, in full.
    ///
    /// # Errors
    /// No such exec.
    pub async fn exec_inspect(&self, id: &str) -> Result<ExecInspect, EngineError> {
        let exec = self.inner.execs.get(id)?;
        let state = exec.state().clone();
        let (running, pid, exit_code) = match state {
            ExecState::Created => (false, 0, None),
            ExecState::Running { pid } => (true, i64::from(pid), None),
            ExecState::Ended { code } => (false, 0, Some(code)),
        };
        let (entrypoint, arguments) = match exec.argv.split_first() {
            Some((program, rest)) => (program.clone(), rest.to_vec()),
            None => (String::new(), Vec::new()),
        };
        Ok(ExecInspect {
            can_remove: false,
            container_id: exec.container.to_string(),
            detach_keys: exec.body.detach_keys.clone().unwrap_or_default(),
            exit_code,
            id: exec.id.clone(),
            open_stderr: exec.body.attach_stderr,
            open_stdin: exec.body.attach_stdin,
            open_stdout: exec.body.attach_stdout,
            process_config: ProcessConfig {
                tty: exec.body.tty,
                entrypoint,
                arguments,
                privileged: exec.body.privileged,
                user: exec.body.user.clone().unwrap_or_default(),
            },
            running,
            pid,
        })
    }

    /// Changes the size of an exec's terminal.
    ///
    /// # Errors
    /// No such exec, or it does not run or has no terminal.
    pub async fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> Result<(), EngineError> {
        let exec = self.inner.execs.get(id)?;
        let container = self.find(exec.container.as_str())?;
        let shim = container.running_shim()?;
        let resized = shim.exec_resize(&exec.id, TtySize { rows, columns }).await;
        resized.map_err(|e| runtime_error("resize the terminal of an exec in", &container, e))
    }

    /// Waits for the end of an exec, whoever still listens to it.
    fn follow_exec(&self, exec: &Arc<Exec>, container: &Arc<Container>, shim: &Shim) {
        let (engine, exec) = (self.clone(), Arc::clone(exec));
        let (container, shim) = (Arc::clone(container), shim.clone());
        self.spawn(async move {
            // If the shim cannot say, the container has ended, and 137 is what its processes got.
            let code = shim.exec_wait(&exec.id).await.map_or(137, |status| status.code);
            engine.exec_ended(&exec, &container, code.into());
        });
    }

    fn exec_ended(&self, exec: &Exec, container: &Container, code: i64) {
        if exec.end(code) {
            let attributes = [("execID", exec.id.clone()), ("exitCode", code.to_string())];
            self.note(container, "exec_die", &attributes);
        }
    }

    fn exec_failed(&self, exec: &Exec, container: &Container, source: RuntimeError) -> EngineError {
        let program = exec.argv.first().cloned().unwrap_or_default();
        let (exit_code, words) = match source.failure_kind() {
            Some(FailureKind::ProgramNotFound) => {
                (127, format!("exec: \"{program}\": executable file not found in $PATH: "))
            }
            Some(FailureKind::ProgramNotExecutable) => {
                (126, format!("exec: \"{program}\": permission denied: "))
            }
            _ => (126, String::new()),
        };
        exec.end(exit_code);
        let attributes = [("execID", exec.id.clone()), ("exitCode", exit_code.to_string())];
        self.note(container, "exec_die", &attributes);
        let reason = format!("{words}{}", fault::chain(&source));
        EngineError::Start { reason, exit_code }
    }
}

fn check_running(container: &Container) -> Result<(), EngineError> {
    match container.phase() {
        Phase::Running => Ok(()),
        Phase::Paused => Err(EngineError::conflict(format!(
            "Container {} is paused, unpause the container before exec",
            container.id
        ))),
        Phase::Restarting => Err(EngineError::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            container.id
        ))),
        _ => Err(container.not_running()),
    }
}

fn exec_plan(exec: &Exec, container: &Container, start: &ExecStart) -> ExecPlan {
    let body = &exec.body;
    let size = start.console_size.or(body.console_size);
    let env = container.read(|record| exec_env(record, body.tty, body.env.as_deref()));
    ExecPlan {
        id: exec.id.clone(),
        process: ProcessPlan {
            argv: exec.argv.clone(),
            env,
            cwd: body.working_dir.clone().unwrap_or_default(),
            user: body.user.clone().unwrap_or_default(),
            tty: body.tty,
            tty_size: size.map(|[rows, columns]| TtySize { rows, columns }),
            open_stdin: body.attach_stdin,
            ..ProcessPlan::default()
        },
        privileged: body.privileged,
        attach_output: !start.detach && (body.attach_stdout || body.attach_stderr),
    }
}

/// The container's variables, then the exec's own.
pub(crate) fn exec_env(record: &Record, tty: bool, own: Option<&[String]>) -> Vec<String> {
    let mut below = crate::workload_plan::environment(record);
    if tty && !below.iter().any(|line| line.starts_with("TERM=")) {
        below.push("TERM=xterm".to_owned());
    }
    merge_env(Some(&below), own)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn exec(number: usize, state: ExecState) -> Arc<Exec> {
        Arc::new(Exec {
            id: format!("exec-{number}"),
            container: ContainerId::new("c"),
            body: ExecCreate::default(),
            argv: Vec::new(),
            state: Mutex::new(state),
        })
    }

    #[test]
    fn the_oldest_that_has_ended_makes_room() {
        let execs = Execs::default();
        execs.add(exec(0, ExecState::Running { pid: 1 })).unwrap();
        for number in 1..=EXECS_MAX {
            execs.add(exec(number, ExecState::Ended { code: 0 })).unwrap();
        }
        let ids: Vec<String> = execs.list().iter().map(|exec| exec.id.clone()).collect();
        assert_eq!(ids.len(), EXECS_MAX);
        assert_eq!(ids[..2], ["exec-0", "exec-2"]);
    }

    #[test]
    fn one_more_is_refused_where_all_run() {
        let execs = Execs::default();
        for number in 0..EXECS_MAX {
            execs.add(exec(number, ExecState::Running { pid: 1 })).unwrap();
        }
        let refused = execs.add(exec(EXECS_MAX, ExecState::Created)).unwrap_err();
        assert!(matches!(refused, EngineError::Conflict { .. }), "{refused}");
    }
}
