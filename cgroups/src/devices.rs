//! Device rules on cgroup v2, where a small BPF program takes the place of the v1 devices controller.
//!
//! libcgroups applies none on v2 unless it is built with libbpf. The program decides as v1 does: for each
//! kind of access asked for, the last rule that matches holds. Building it is pure; see [`crate::sys`] for
//! loading it.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::{CgroupError, sys};

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// More would not fit into the reach of a jump with certainty, and nobody has as many.
const MOST_RULES: usize = 1024;

/// One rule, with `None` for "any".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// 1 for block, 2 for character devices.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Devices every container may use, as libcontainer allows them on v1: making any node (it cannot be
/// opened), null, zero, full, tty, random, urandom, console, ptmx and pseudo terminals.
const DEFAULTS: [(Option<i32>, Option<i32>, i32); 10] = [
    (None, None, MKNOD),
    (Some(1), Some(3), ALL),
    (Some(1), Some(5), ALL),
    (Some(1), Some(7), ALL),
    (Some(1), Some(8), ALL),
    (Some(1), Some(9), ALL),
    (Some(5), Some(0), ALL),
    (Some(5), Some(1), ALL),
    (Some(5), Some(2), ALL),
    (Some(136), None, ALL),
];

/// Makes the rules, and the defaults after them, hold for the cgroup at `dir` in place of earlier ones.
pub(crate) fn apply(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    let mut all = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    if all.len() > MOST_RULES {
        return Err(refuse("", "there are more than 1024 rules"));
    }
    all.push(Rule { allow: true, kind: Some(1), major: None, minor: None, access: MKNOD });
    let default = |(major, minor, access)| Rule { allow: true, kind: Some(2), major, minor, access };
    all.extend(DEFAULTS.map(default));
    let attached = sys::replace_device_filter(dir, &program(&all));
    attached.map_err(CgroupError::io("attach the device rules to", dir))
}

fn rule(given: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    let kind = match given.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(1),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(2),
        LinuxDeviceType::P => return Err(refuse("p", "pipes are not devices; use a, b or c")),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|number| *number >= 0)
            .map(Some)
            .ok_or_else(|| refuse(&number.to_string(), "it is not a device number")),
    };
    let access = match given.access() {
        None => ALL,
        Some(text) => text.chars().try_fold(0, |access, letter| match letter {
            'r' => Ok(access | READ),
            'w' => Ok(access | WRITE),
            'm' => Ok(access | MKNOD),
            _ => Err(refuse(text, "access is made of the letters r, w and m")),
        })?,
    };
    Ok(Rule {
        allow: given.allow(),
        kind,
        major: number(given.major())?,
        minor: number(given.minor())?,
        access,
    })
}

fn refuse(value: &str, reason: &str) -> CgroupError {
    CgroupError::Invalid { field: "devices".to_owned(), value: value.to_owned(), reason: reason.to_owned() }
}

/// The program, as the kernel's Documentation/bpf/instruction-set.rst encodes it.
///
/// r2 is the kind of device, r3 the access not yet decided, r4 major, r5 minor. Rules are asked last to
/// first. What no rule decides is allowed, as on v1.
fn program(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        insn(LOAD, 2, 1, 0, 0),
        insn(MOVE32, 3, 2, 0, 0),
        insn(SHIFT_RIGHT32, 3, 0, 0, 16),
        insn(AND32, 2, 0, 0, 0xffff),
        insn(LOAD, 4, 1, 4, 0),
        insn(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev().filter(|rule| rule.access != 0) {
        let decision = decide(*rule);
        let tests: Vec<(u8, i32)> = [(2, rule.kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| wanted.map(|wanted| (register, wanted)))
            .collect();
        for (done, (register, wanted)) in tests.iter().enumerate() {
            let over = tests.len() - done - 1 + decision.len();
            code.push(insn(JUMP_UNEQUAL, *register, 0, over as i16, *wanted));
        }
        code.extend(&decision);
        if tests.is_empty() && rule.access == ALL {
            // It decides everything; the verifier refuses what cannot be reached.
            return code;
        }
    }
    code.extend(answer(true));
    code
}

/// What follows when a rule is about the device: falls through where it does not decide.
fn decide(rule: Rule) -> Vec<u64> {
    let mut code = Vec::new();
    match (rule.allow, rule.access) {
        (_, ALL) => {}
        (true, access) => {
            code.push(insn(AND32, 3, 0, 0, ALL & !access));
            code.push(insn(JUMP_UNEQUAL, 3, 0, 2, 0));
        }
        (false, access) => {
            code.push(insn(JUMP_IF_SET, 3, 0, 1, access));
            code.push(insn(JUMP, 0, 0, 2, 0));
        }
    }
    code.extend(answer(rule.allow));
    code
}

fn answer(allow: bool) -> [u64; 2] {
    [insn(MOVE, 0, 0, 0, i32::from(allow)), insn(EXIT, 0, 0, 0, 0)]
}

const LOAD: u8 = 0x61;
const MOVE32: u8 = 0xbc;
const SHIFT_RIGHT32: u8 = 0x74;
const AND32: u8 = 0x54;
const MOVE: u8 = 0xb7;
const JUMP: u8 = 0x05;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_IF_SET: u8 = 0x45;
const EXIT: u8 = 0x95;

/// One instruction in the machine's byte order.
fn insn(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let mut bytes = [code, registers, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..8].copy_from_slice(&value.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}
