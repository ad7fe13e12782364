//! What a shim does on request.

use rustix::process::{Pid, Signal, kill_process};
use shoal_model::fault::chain;

use super::clients::{Client, Role, Target};
use super::procs::Proc;
use super::server::{Exec, Server, wall_clock};
use crate::caps;
use crate::cgroup::{CgroupError, DevicePolicy};
use crate::plan::{ExecPlan, ProcessPlan, TtySize};
use crate::process::spawn::{self, Wanted};
use crate::process::{During, Entry, set_size};
use crate::protocol::{
    Envelope, Failure, FailureKind, FrameError, FrameKind, PROTOCOL_VERSION, Phase, Reply, Request,
    VersionOnly, parse_json,
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
            Request::Start => self.start(),
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
            Request::Exec(plan) => self.exec(client, *plan),
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

    fn start(&mut self) -> Result<Reply, Failure> {
        if self.phase != Phase::Created {
            return Err(conflict("the container has been started already"));
        }
        let devices = match &self.plan.unikernel {
            Some(_) => DevicePolicy::Tender,
            None if self.plan.privileged => DevicePolicy::Everything,
            None => DevicePolicy::Standard,
        };
        self.cgroup.create(&self.plan.limits, devices).map_err(kernel("make the cgroup"))?;
        let spawned = match &self.plan.unikernel {
            Some(unikernel) => {
                let config = self.dir.join(crate::unikernel::CONFIG_FILE);
                spawn::tender(&unikernel.tender, &config, &self.plan.process, &self.cgroup)
            }
            None => spawn::container(&self.plan, &self.dir, &self.cgroup),
        };
        let spawned = spawned.inspect_err(|_| {
            // Ignored because: the failure of the start says more, and deletion tries again.
            let _ = self.cgroup.kill_and_remove();
        })?;
        let (pid, at) = (spawned.pid, wall_clock());
        self.main = Some(Proc::new(spawned));
        self.phase = Phase::Running;
        self.started_at = Some(at);
        Ok(Reply::Started { pid, at })
    }

    fn running(&self) -> Result<(), Failure> {
        match self.phase {
            Phase::Running => Ok(()),
            Phase::Paused => {
                Err(conflict("the container is paused, unpause the container before exec"))
            }
            Phase::Created | Phase::Exited => Err(conflict("the container is not running")),
        }
    }

    fn exec(&mut self, client: &mut Client, plan: ExecPlan) -> Result<Reply, Failure> {
        self.running()?;
        if self.plan.unikernel.is_some() {
            return Err(conflict("a unikernel runs no further processes"));
        }
        let running = self.execs.values().filter(|e| matches!(e, Exec::Running(_))).count();
        if running >= EXECS_MAX {
            return Err(conflict("too many execs run in the container"));
        }
        if self.execs.contains_key(&plan.id) {
            return Err(conflict("the exec has been started already"));
        }
        let process = self.complete(&plan);
        let container = self.container().ok_or_else(|| conflict("the container has ended"))?;
        let entry = Entry {
            container,
            process: &process,
            seccomp: self.plan.seccomp,
            filtered: !self.plan.privileged,
        };
        let wanted = Wanted { stdin: process.open_stdin, output: plan.attach_output };
        let spawned = spawn::exec(&entry, wanted, &self.cgroup)?;
        let (pid, at) = (spawned.pid, wall_clock());
        self.execs.insert(plan.id.clone(), Exec::Running(Box::new(Proc::new(spawned))));
        client.role = Role::Stream {
            target: Target::Exec(plan.id),
            stdin: process.open_stdin,
            stdout: plan.attach_output,
            stderr: plan.attach_output,
        };
        Ok(Reply::Started { pid, at })
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
        let pid = self.main.as_ref().map_or(0, |proc| proc.pid);
        let signal = number(signal)?;
        if all && pid != 0 {
            self.cgroup.signal(signal).map_err(kernel("signal every process"))?;
        }
        send(pid, signal)?;
        // A frozen process does not even die before it is let go.
        if signal == Signal::KILL {
            self.kill_main();
        }
        Ok(Reply::Done)
    }

    fn signal_exec(&mut self, id: &str, signal: i32) -> Result<Reply, Failure> {
        let signal = number(signal)?;
        let pid = self.proc(&Target::Exec(id.to_owned())).map(|proc| proc.pid);
        send(pid.ok_or_else(|| no_exec(id))?, signal)?;
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
            Phase::Running => {}
            Phase::Paused => return Err(conflict("the container is already paused")),
            Phase::Created | Phase::Exited => {
                return Err(conflict("the container is not running"));
            }
        }
        if let Err(error) = self.cgroup.freeze(true) {
            // Ignored because: the failure of the pause is what counts.
            let _ = self.cgroup.freeze(false);
            return Err(kernel("freeze the processes")(error));
        }
        self.phase = Phase::Paused;
        Ok(Reply::Done)
    }

    fn resume(&mut self) -> Result<Reply, Failure> {
        if self.phase != Phase::Paused {
            return Err(conflict("the container is not paused"));
        }
        self.cgroup.freeze(false).map_err(kernel("thaw the processes"))?;
        self.phase = Phase::Running;
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

fn number(signal: i32) -> Result<Signal, Failure> {
    let refuse = || Failure::new(FailureKind::Invalid, format!("invalid signal: {signal}"));
    Signal::from_named_raw(signal).ok_or_else(refuse)
}

fn send(pid: u32, signal: Signal) -> Result<(), Failure> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or_else(|| conflict("the process has ended"))?;
    kill_process(pid, signal).during(format!("send signal {}", signal.as_raw()))
}
