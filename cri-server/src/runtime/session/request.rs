//! Exec, Attach and PortForward as they are asked for: what is checked before a URL is given out.

use podhold_proto::cri;

use super::{AttachRequest, ExecRequest, Streams};
use crate::{
    error::{Error, Result},
    runtime::Runtime,
};

/// Most ports of one request.
const MOST_PORTS: usize = 256;
/// Most bytes of a command's words and of the pointers to them: what the kernel takes with the usual limits
/// (execve(2)).
const LONGEST_COMMAND: usize = 2 << 20;

impl Runtime {
    /// What an Exec asks for, once it is known that it can be done.
    pub fn check_exec(&self, request: cri::ExecRequest) -> Result<ExecRequest> {
        let container = self.known_container(&request.container_id)?;
        check_command(&request.cmd)?;
        let streams = Streams {
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        check_streams(streams)?;
        self.live_container(&container, "commands run in running ones only")?;
        Ok(ExecRequest { container: container.record.id.to_string(), command: request.cmd, streams })
    }

    /// What an Attach asks for, once it is known that it can be done.
    pub fn check_attach(&self, request: cri::AttachRequest) -> Result<AttachRequest> {
        let container = self.known_container(&request.container_id)?;
        let streams = Streams {
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        check_streams(streams)?;
        let has = container.record.config.tty;
        if has != request.tty {
            let (is, mend) = if has { ("a", "true") } else { ("no", "false") };
            let id = &container.record.id;
            return Err(Error::invalid(
                "tty",
                format!("container {id} has {is} terminal; set tty to {mend}"),
            ));
        }
        if request.stdin && !container.record.config.stdin {
            let id = &container.record.id;
            let reason = format!("container {id} was created without stdin; attach without it");
            return Err(Error::invalid("stdin", reason));
        }
        self.live_container(&container, "only running ones can be attached to")?;
        Ok(AttachRequest { container: container.record.id.to_string(), streams })
    }

    /// The pod and the ports a PortForward asks for, once it is known that it can be done.
    pub fn check_port_forward(&self, request: cri::PortForwardRequest) -> Result<(String, Vec<u16>)> {
        let pod = self.known_pod(&request.pod_sandbox_id)?;
        if request.port.len() > MOST_PORTS {
            return Err(Error::invalid("port", format!("names more than {MOST_PORTS} ports")));
        }
        let port = |(index, port): (usize, &i32)| {
            u16::try_from(*port).ok().filter(|port| *port != 0).ok_or_else(|| {
                Error::invalid(format!("port[{index}]"), format!("{port} is not a port; give 1 to 65535"))
            })
        };
        let ports = request.port.iter().enumerate().map(port).collect::<Result<Vec<u16>>>()?;
        if !pod.phase.is_up() {
            let (id, phase) = (&pod.record.id, pod.phase.name());
            return Err(Error::Precondition(format!("pod {id} is {phase}; only a ready one has ports")));
        }
        Ok((pod.record.id.to_string(), ports))
    }
}

/// What a command may not be.
pub(in crate::runtime) fn check_command(command: &[String]) -> Result<()> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "is empty; name a program"));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Error::invalid("cmd", "a word of it holds a NUL byte"));
    }
    if command.iter().map(|word| word.len() + 1 + size_of::<usize>()).sum::<usize>() > LONGEST_COMMAND {
        return Err(Error::invalid(
            "cmd",
            format!("is longer than the {LONGEST_COMMAND} bytes of a command"),
        ));
    }
    Ok(())
}

fn check_streams(streams: Streams) -> Result<()> {
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Error::invalid("stdin, stdout, stderr", "none is set; join at least one stream"));
    }
    if streams.tty && streams.stderr {
        return Err(Error::invalid("stderr", "a terminal does not tell it from stdout; set tty or stderr"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_contradict_each_other_are_refused() {
        let streams = |tty, stdin, stdout, stderr| Streams { tty, stdin, stdout, stderr };
        for good in [
            streams(false, true, true, true),
            streams(false, false, false, true),
            streams(true, true, true, false),
            streams(true, false, true, false),
        ] {
            assert!(check_streams(good).is_ok(), "{good:?}");
        }
        for bad in [streams(false, false, false, false), streams(true, true, true, true)] {
            assert!(check_streams(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_that_no_kernel_takes_is_refused() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(check_command(&words(&["sh", ""])).is_ok());
        let long = "x".repeat(LONGEST_COMMAND);
        let many = vec!["x"; LONGEST_COMMAND / 8];
        for bad in [&[][..], &many, &[""], &["", "x"], &["sh", "a\0b"], &["sh", &long]] {
            assert!(check_command(&words(bad)).is_err());
        }
    }
}
