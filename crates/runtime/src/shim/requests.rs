//! What a shim does on request.

use shoal_model::fault::chain;

use super::clients::{Client, Role, Target};
use super::launches::Pending;
use super::procs::Proc;
use super::server::{Exec, Server};
use crate::caps;
use crate::cgroup::{CgroupError, DevicePolicy};
use crate::container_plan::{ExecPlan, ProcessPlan, TtySize};
use crate::process::spawn::{self, Wanted};
use crate::process::sys::SIGNAL_MAX;
use crate::process::{During, Entry, set_size};
use crate::protocol::{
    Envelope, Failure, FailureKind, FrameError, FrameKind, PROTOCOL_VERSION, ProcessPhase, Reply,
    Request, VersionOnly, parse_json,
};

/// Execs that run at once in one container; a health check every second that takes 30 s needs 30.
const EXECS_MAX: usize = 256;

/// The answer to what is no frame or no message.
pub(super) fn refusal(error: &FrameError) -> Reply {
    Reply::Failed(Failure::new(FailureKind::Invalid, format!("read the request: {error}")))
}

fn conflict(text: &str) -> Failure {
    Failure::new(FailureKind::Conflict, text)
}

fn kernel(action: &'static str) -> impl FnOnce(CgroupError) -> Failure {
    move |e| Failure { kind: FailureKind::Internal, chain: vec![action.to_owned(), chain(&e)] }
}

impl Server {
    /// Answers one frame of `client`.
    pub(super) fn answer(&mut self, client: &mut Client, kind: FrameKind, payload: &[u8]) {
        if client.closing {
            return;
        }
        match kind {
            FrameKind::Stdin => self.feed(client, payload),
            FrameKind::Json => match parse(payload) {
                Ok(request) => self.act(client, request),
                Err(reply) => client.finish(reply),
            },
            FrameKind::Stdout | FrameKind::Stderr => {
                let error = FrameError::UnknownKind { number: kind.number() };
                client.finish(refusal(&error));
            }
        }
    }

    fn feed(&mut self, client: &Client, bytes: &[u8]) {
        let Role::Stream { target, stdin: true, .. } = &client.role else { return };
        let once = *target != Target::Main || self.plan.stdin_once;
        if let Some(proc) = self.proc(target) {
            if !bytes.is_empty() {
                proc.feed(bytes);
            } else if once {
                proc.end_stdin();
            }
        }
    }

    fn act(&mut self, client: &mut Client, request: Request) {
        let result = match request {
            Request::Start => match self.start(client.id) {
                Ok(()) => {
                    client.awaits_launch = true;
                    return;
                }
                Err(failure) => Err(failure),
            },
            Request::State => Ok(Reply::State(Box::new(self.state()))),
            Request::Wait => return self.wait_for_main(client),
            Request::Signal { signal, all } => self.signal(signal, all),
            Request::Attach { stdin, stdout, stderr } => {
                if self.exit().is_some() {
                    Err(conflict("the container has ended"))
                } else {
                    client.role = Role::Stream { target: Target::Main, stdin, stdout, stderr };
                    Ok(Reply::Done)
                }
            }
            Request::Exec(plan) => match self.exec(client.id, &plan) {
                Ok(()) => {
                    client.awaits_launch = true;
                    return;
                }
                Err(failure) => Err(failure),
            },
            Request::ExecWait { exec } => return self.wait_for_exec(client, exec),
            Request::ExecSignal { exec, signal } => self.signal_exec(&exec, signal),
            Request::Resize { exec, size } => self.resize(exec, size),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Shutdown => {
                self.shutting_down = true;
                self.kill_main();
                Ok(Reply::Done)
            }
        };
        client.reply(result.unwrap_or_else(Reply::Failed));
    }

    fn wait_for_main(&self, client: &mut Client) {
        match self.exit() {
            Some(status) => client.finish(Reply::Exited(status)),
            None => client.role = Role::Waiting(Target::Main),
        }
    }

    fn wait_for_exec(&self, client: &mut Client, id: String) {
        match self.execs.get(&id) {
            Some(Exec::Ended(status)) => client.finish(Reply::Exited(*status)),
            Some(Exec::Running(_)) => client.role = Role::Waiting(Target::Exec(id)),
            None => client.finish(Reply::Failed(no_exec(&id))),
        }
    }

    /// Begins to make the container; the client is answered when its program runs.
    fn start(&mut self, client: u64) -> Result<(), Failure> {
        if self.phase != ProcessPhase::Created || self.is_pending(&Target::Main) {
            return Err(conflict("the container has been started already"));
        }
        let devices = match &self.plan.unikernel {
            Some(_) => DevicePolicy::Tender,
            None if self.plan.privileged => DevicePolicy::Everything,
            None => DevicePolicy::Standard,
        };
        self.cgroup.create(&self.plan.limits, devices).map_err(kernel("make the cgroup"))?;
        // A group that an earlier end could not remove has counted before.
        let oom_kills = self.cgroup.oom_kills();
        let launch = match &self.plan.unikernel {
            Some(unikernel) => {
                let config = self.dir.join(crate::unikernel::CONFIG_FILE);
                spawn::tender(&unikernel.tender, &config, &self.plan.process, &self.cgroup)
            }
            None => spawn::container(&self.plan, &self.dir, &self.cgroup),
        };
        let launch = launch.inspect_err(|_| {
            // Ignored because: the failure of the start says more, and deletion tries again.
            let _ = self.cgroup.kill_and_remove();
        })?;
        self.launches.push(Pending::main(launch, client, oom_kills));
        Ok(())
    }

    fn running(&self) -> Result<(), Failure> {
        match self.phase {
            ProcessPhase::Running => Ok(()),
            ProcessPhase::Paused => {
                Err(conflict("the container is paused, unpause the container before exec"))
            }
            ProcessPhase::Created | ProcessPhase::Exited => {
                Err(conflict("the container is not running"))
            }
        }
    }

    fn exec(&mut self, client: u64, plan: &ExecPlan) -> Result<(), Failure> {
        self.running()?;
        if self.plan.unikernel.is_some() {
            return Err(conflict("a unikernel runs no further processes"));
        }
        let running = self.execs.values().filter(|e| matches!(e, Exec::Running(_))).count();
        if running + self.launches.len() >= EXECS_MAX {
            return Err(conflict("too many execs run in the container"));
        }
        let target = Target::Exec(plan.id.clone());
        if self.execs.contains_key(&plan.id) || self.is_pending(&target) {
            return Err(conflict("the exec has been started already"));
        }
        let process = self.complete(plan);
        let container = self.container().ok_or_else(|| conflict("the container has ended"))?;
        let entry = Entry {
            container,
            process: &process,
            seccomp: self.plan.seccomp,
            filtered: !self.plan.privileged,
        };
        let wanted = Wanted { stdin: process.open_stdin, output: plan.attach_output };
        let oom_kills = self.cgroup.oom_kills();
        let launch = spawn::exec(&entry, wanted, &self.cgroup)?;
        let flows = (process.open_stdin, plan.attach_output);
        self.launches.push(Pending::exec(&plan.id, launch, client, flows, oom_kills));
        Ok(())
    }

    /// What an exec does not say is the container's.
    fn complete(&self, plan: &ExecPlan) -> ProcessPlan {
        let (mut process, own) = (plan.process.clone(), &self.plan.process);
        if process.capabilities.is_empty() {
            process.capabilities.clone_from(&own.capabilities);
        }
        if plan.privileged {
            process.capabilities = caps::ALL.map(str::to_owned).to_vec();
        }
        if process.env.is_empty() {
            process.env.clone_from(&own.env);
        }
        if process.cwd.is_empty() {
            process.cwd.clone_from(&own.cwd);
        }
        if process.user.is_empty() {
            process.user.clone_from(&own.user);
            process.groups.clone_from(&own.groups);
        }
        process.rlimits.clone_from(&own.rlimits);
        process.oom_score_adj = own.oom_score_adj;
        process.no_new_privileges |= own.no_new_privileges;
        process
    }

    fn signal(&mut self, signal: i32, all: bool) -> Result<Reply, Failure> {
        check_signal(signal)?;
        if all && self.main.is_some() {
            self.cgroup.signal(signal).map_err(kernel("signal every process"))?;
        }
        send(self.main.as_mut(), signal)?;
        // A frozen process does not even die before it is let go.
        if signal == libc::SIGKILL {
            self.kill_main();
        }
        Ok(Reply::Done)
    }

    fn signal_exec(&mut self, id: &str, signal: i32) -> Result<Reply, Failure> {
        check_signal(signal)?;
        let proc = self.proc(&Target::Exec(id.to_owned()));
        send(Some(proc.ok_or_else(|| no_exec(id))?), signal)?;
        Ok(Reply::Done)
    }

    fn resize(&mut self, exec: Option<String>, size: TtySize) -> Result<Reply, Failure> {
        let target = match exec {
            Some(id) if !self.execs.contains_key(&id) => return Err(no_exec(&id)),
            Some(id) => Target::Exec(id),
            None => Target::Main,
        };
        let proc = self.proc(&target).ok_or_else(|| conflict("the process does not run"))?;
        let terminal = proc.terminal().ok_or_else(|| conflict("the process has no terminal"))?;
        set_size(terminal, size).during("set the size of the terminal")?;
        Ok(Reply::Done)
    }

    fn pause(&mut self) -> Result<Reply, Failure> {
        match self.phase {
            ProcessPhase::Running => {}
            ProcessPhase::Paused => return Err(conflict("the container is already paused")),
            ProcessPhase::Created | ProcessPhase::Exited => {
                return Err(conflict("the container is not running"));
            }
        }
        if let Err(error) = self.cgroup.freeze(true) {
            // Ignored because: the failure of the pause is what counts.
            let _ = self.cgroup.freeze(false);
            return Err(kernel("freeze the processes")(error));
        }
        self.phase = ProcessPhase::Paused;
        Ok(Reply::Done)
    }

    fn resume(&mut self) -> Result<Reply, Failure> {
        if self.phase != ProcessPhase::Paused {
            return Err(conflict("the container is not paused"));
        }
        self.cgroup.freeze(false).map_err(kernel("thaw the processes"))?;
        self.phase = ProcessPhase::Running;
        Ok(Reply::Done)
    }
}

fn parse(payload: &[u8]) -> Result<Request, Reply> {
    let version: VersionOnly = parse_json(payload).map_err(|e| refusal(&e))?;
    if version.version != PROTOCOL_VERSION {
        return Err(Reply::WrongVersion);
    }
    let envelope: Envelope<Request> = parse_json(payload).map_err(|e| refusal(&e))?;
    Ok(envelope.body)
}

fn no_exec(id: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("no such exec instance: {id}"))
}

/// Every number that the kernel knows, named or not: systemd stops at SIGRTMIN+3.
fn check_signal(signal: i32) -> Result<(), Failure> {
    if (1..=SIGNAL_MAX).contains(&signal) {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Invalid, format!("invalid signal: {signal}")))
}

fn send(proc: Option<&mut Proc>, signal: i32) -> Result<(), Failure> {
    let ended = || conflict("the process has ended");
    match proc.ok_or_else(ended)?.signal(signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(ended()),
        sent => sent.during(format!("send signal {signal}")),
    }
}
