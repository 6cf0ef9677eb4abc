//! Signals by CRI number and by name. Pure.

use podhold_proto::cri;

use crate::error::{Error, Result};

const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// First and last real-time signal as the C library numbers them for programs.
const REAL_TIME: (i32, i32) = (34, 64);

/// The signal that asks a container to end: the request's, else the image's, else SIGTERM.
pub fn stop_signal(config: &cri::ContainerConfig, image: Option<&str>) -> Result<i32> {
    let asked = cri::Signal::try_from(config.stop_signal).map_err(|_| {
        Error::invalid("stop_signal", format!("{} is not a signal of the CRI", config.stop_signal))
    })?;
    if asked != cri::Signal::RuntimeDefault {
        return parse(asked.as_str_name().trim_start_matches("SIGNAL_")).ok_or_else(|| {
            Error::invalid("stop_signal", format!("{} is not a signal of Linux", asked.as_str_name()))
        });
    }
    match image.filter(|name| !name.is_empty()) {
        None => Ok(libc::SIGTERM),
        Some(name) => parse(name)
            .ok_or_else(|| Error::invalid("image StopSignal", format!("{name:?} is not a signal of Linux"))),
    }
}

/// A signal as the CRI names it, for the status.
pub fn to_cri(signal: i32) -> cri::Signal {
    let name = NAMES.iter().find(|(_, number)| *number == signal).map(|(name, _)| (*name).to_owned());
    let name = name.unwrap_or_else(|| match signal - REAL_TIME.0 {
        0 => "RTMIN".to_owned(),
        n if n <= 15 => format!("RTMINPLUS{n}"),
        _ if signal == REAL_TIME.1 => "RTMAX".to_owned(),
        _ => format!("RTMAXMINUS{}", REAL_TIME.1 - signal),
    });
    cri::Signal::from_str_name(&format!("SIGNAL_SIG{name}")).unwrap_or(cri::Signal::RuntimeDefault)
}

/// A signal by name (`SIGTERM`, `TERM`, `RTMIN+3`) or number.
fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |rest: &str| {
        let digits =
            rest.trim_start_matches("PLUS").trim_start_matches("MINUS").trim_start_matches(['+', '-']);
        if digits.is_empty() { Some(0) } else { digits.parse::<i32>().ok() }
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => REAL_TIME.0 + offset(rest)?,
        (_, Some(rest)) => REAL_TIME.1 - offset(rest)?,
        _ => return None,
    };
    (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_signal_has_many_names() {
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNOSUCH", "RTMIN+99", "-9"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_cri_signal_is_a_signal_and_comes_back() {
        for number in 1..=65 {
            let asked = cri::Signal::try_from(number).unwrap();
            let config = cri::ContainerConfig { stop_signal: number, ..Default::default() };
            let signal = stop_signal(&config, None).unwrap();
            let twin = matches!(asked, cri::Signal::Sigcld | cri::Signal::Sigiot | cri::Signal::Sigpoll);
            assert!(twin || to_cri(signal) == asked, "{asked:?} {signal} {:?}", to_cri(signal));
        }
    }

    #[test]
    fn the_request_wins_over_the_image_and_term_is_the_default() {
        let config = cri::ContainerConfig::default();
        assert_eq!(stop_signal(&config, Some("SIGQUIT")).unwrap(), 3);
        assert_eq!(stop_signal(&config, None).unwrap(), 15);
        assert!(stop_signal(&config, Some("SIGBOGUS")).is_err());
    }
}
