//! Seccomp profiles as the program the kernel runs, compiled once per profile.
//!
//! Compiling a node's default profile takes milliseconds, more than everything else a start or an exec
//! does. It is done when the bundle is made, by the library and in the order that libcontainer follows, and
//! the program lies in the bundle beside the profile it was made from.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek},
    sync::{Arc, Mutex, PoisonError},
};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

/// Profiles whose programs are kept: a node has its default, with and without a few capabilities, and some
/// of its own.
const KEPT: usize = 16;

/// How the library lays out a program: as a tree over the calls' numbers. The kernel runs a program once for
/// every call there is when it is loaded; with a list that takes longer than the rest of an exec's confinement.
const TREE: u32 = 2;

/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
/// The most that the kernel takes (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;

type Kept = VecDeque<(LinuxSeccomp, Arc<[u8]>)>;
/// The newest last.
static PROGRAMS: Mutex<Kept> = Mutex::new(VecDeque::new());

/// The program of a profile: instructions as the kernel takes them (`struct sock_filter`, in this
/// machine's byte order). `None` of one that notifies a listener, which is more than a program. Blocks.
pub(crate) fn program(profile: &LinuxSeccomp) -> Result<Option<Arc<[u8]>>, String> {
    if notifies(profile) {
        return Ok(None);
    }
    // Held while compiling: many containers started at once wait for one program, and the library's
    // knowledge of the kernel is not made for several threads.
    let mut kept = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = kept.iter().position(|(known, _)| known == profile)
        && let Some(entry) = kept.remove(at)
    {
        let program = Arc::clone(&entry.1);
        kept.push_back(entry);
        return Ok(Some(program));
    }
    let program: Arc<[u8]> = compile(profile, TREE)?.into();
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back((profile.clone(), Arc::clone(&program)));
    Ok(Some(program))
}

/// Whether a listener is to be asked about some calls.
pub(crate) fn notifies(profile: &LinuxSeccomp) -> bool {
    let rules = profile.syscalls().iter().flatten().map(LinuxSyscall::action);
    rules.chain([profile.default_action()]).any(|action| action == LinuxSeccompAction::ScmpActNotify)
}

fn compile(profile: &LinuxSeccomp, shape: u32) -> Result<Vec<u8>, String> {
    let failed = |error: SeccompError| format!("seccomp: {error}");
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(failed)?;
    filter.set_ctl_optimize(shape).map_err(failed)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch)).map_err(failed)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action != default {
            add_rule(&mut filter, action, rule).map_err(failed)?;
        }
    }
    let program = export(&filter).map_err(|error| format!("seccomp: the program: {error}"))?;
    match program.len() / INSTRUCTION {
        ..=MOST_INSTRUCTIONS => Ok(program),
        count => Err(format!(
            "seccomp: the program has {count} instructions, and the kernel takes {MOST_INSTRUCTIONS}; name \
             fewer calls and architectures"
        )),
    }
}

/// The library writes to a file; an export to memory is younger than the library of some hosts.
fn export(filter: &ScmpFilterContext) -> std::io::Result<Vec<u8>> {
    let mut file = File::from(rustix::fs::memfd_create("podhold-seccomp", rustix::fs::MemfdFlags::CLOEXEC)?);
    filter.export_bpf(&file).map_err(std::io::Error::other)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn add_rule(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<(), SeccompError> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let comparisons: Vec<ScmpArgCompare> = arguments.iter().map(comparison).collect();
    let repeated = (1..arguments.len())
        .any(|at| arguments[..at].iter().any(|earlier| earlier.index() == arguments[at].index()));
    for name in rule.names() {
        // A call this library does not know cannot be named to the kernel either.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        if repeated {
            // The library compares an argument once per rule: each comparison is a rule of its own.
            for one in &comparisons {
                filter.add_rule_conditional(action, call, &[*one])?;
            }
        } else {
            filter.add_rule_conditional(action, call, &comparisons)?;
        }
    }
    Ok(())
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        // OCI (config-linux, seccomp): `value` is the mask and `valueTwo` what must remain.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
    };
    ScmpArgCompare::new(u32::try_from(argument.index()).unwrap_or(u32::MAX), operator, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.map_or(Ok(libc::EPERM), i32::try_from);
    let errno = errno.map_err(|_| "seccomp: errnoRet is no error number".to_owned())?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => {
            let number =
                u16::try_from(errno).map_err(|_| "seccomp: errnoRet of SCMP_ACT_TRACE is too large")?;
            ScmpAction::Trace(number)
        }
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSeccompArgBuilder;

    use super::*;

    fn profile(names: &[&str]) -> LinuxSeccomp {
        let mut rule = LinuxSyscall::default();
        rule.set_names(names.iter().map(ToString::to_string).collect());
        rule.set_action(LinuxSeccompAction::ScmpActErrno);
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
        profile.set_syscalls(Some(vec![rule]));
        profile
    }

    /// Runs a program as the kernel does (`struct seccomp_data`: number, architecture, instruction pointer,
    /// arguments). The instructions are those the library makes: loads, comparisons, masks, returns.
    fn decide(program: &[u8], number: u32, arch: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&number.to_ne_bytes());
        data.extend_from_slice(&arch.to_ne_bytes());
        data.extend_from_slice(&[0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (instructions, rest) = program.as_chunks::<8>();
        assert!(rest.is_empty());
        let (mut at, mut a) = (0, 0u32);
        loop {
            let [c0, c1, jt, jf, k @ ..] = instructions[at];
            let (code, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes(k));
            at += 1;
            let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match code {
                // ld [k], and A k, ret k
                0x20 => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                0x54 => a &= k,
                0x06 => return k,
                // ja, jeq, jgt, jge, jset
                0x05 => at += k as usize,
                0x15 => jump(a == k),
                0x25 => jump(a > k),
                0x35 => jump(a >= k),
                0x45 => jump(a & k != 0),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rule(names: &[&str], action: LinuxSeccompAction, arguments: &[LinuxSeccompArg]) -> LinuxSyscall {
        let mut rule = LinuxSyscall::default();
        rule.set_names(names.iter().map(ToString::to_string).collect());
        rule.set_action(action);
        rule.set_args((!arguments.is_empty()).then(|| arguments.to_vec()));
        rule
    }

    /// The shape of a default profile, with every kind of comparison.
    fn varied() -> LinuxSeccomp {
        use LinuxSeccompOperator as Op;
        let allow = LinuxSeccompAction::ScmpActAllow;
        let argument = |index: usize, op, value: u64, second: Option<u64>| {
            let built = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
            second.into_iter().fold(built, |built, second| built.value_two(second)).build().unwrap()
        };
        // Calls of all ages, by the library's own table.
        let names: Vec<String> = (0..460)
            .filter(|number| number % 3 != 0)
            .filter_map(|number| ScmpSyscall::from(number).get_name().ok())
            .filter(|name| {
                !["clone", "socket", "personality", "ioctl", "prctl", "fcntl"].contains(&name.as_str())
            })
            .collect();
        let mut refused = rule(&["mount", "umount2"], LinuxSeccompAction::ScmpActErrno, &[]);
        refused.set_errno_ret(Some(1));
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
        profile.set_default_errno_ret(Some(38));
        profile.set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]));
        profile.set_syscalls(Some(vec![
            rule(&["clone"], allow, &[argument(0, Op::ScmpCmpMaskedEq, 0x7e02_0000, Some(0))]),
            rule(&["socket"], allow, &[argument(0, Op::ScmpCmpNe, 40, None)]),
            rule(&["personality"], allow, &[argument(0, Op::ScmpCmpEq, 0, None)]),
            rule(&["personality"], allow, &[argument(0, Op::ScmpCmpEq, 0xffff_ffff, None)]),
            rule(
                &["ioctl"],
                allow,
                &[argument(1, Op::ScmpCmpGe, 0x5400, None), argument(1, Op::ScmpCmpLe, 0x54ff, None)],
            ),
            rule(
                &["prctl"],
                allow,
                &[argument(0, Op::ScmpCmpLt, 10, None), argument(1, Op::ScmpCmpGt, 1 << 33, None)],
            ),
            rule(&names.iter().map(String::as_str).collect::<Vec<_>>(), allow, &[]),
            refused,
        ]));
        profile
    }

    #[test]
    fn a_tree_decides_every_call_as_a_list_does() {
        const LIST: u32 = 1;
        let profile = varied();
        let (tree, list) = (compile(&profile, TREE).unwrap(), compile(&profile, LIST).unwrap());
        assert_ne!(tree, list);
        let interesting = [
            0,
            1,
            2,
            9,
            10,
            11,
            39,
            40,
            41,
            0x5400,
            0x5401,
            0x54ff,
            0x5500,
            0x7e02_0000,
            0x0200_0000,
            0x11,
            0xffff_ffff,
            1 << 32,
            (1 << 33) + 1,
            (1 << 32) + 40,
            u64::MAX,
        ];
        // x86-64, i386 and one that is not in the profile; see linux/audit.h.
        for arch in [0xc000_003e, 0x4000_0003, 0xc000_00b7] {
            for number in (0..1200).chain(0x4000_0000..0x4000_0300).chain([u32::MAX]) {
                for first in interesting {
                    for second in [0, 0x5401, u64::MAX] {
                        let arguments = [first, second, 0, 0, 0, 0];
                        let of = |program| decide(program, number, arch, arguments);
                        assert_eq!(of(&tree), of(&list), "call {number} of {arch:#x}, {arguments:?}");
                    }
                }
            }
        }
        // Some that are known: read, mount, clone with and without a namespace, a call of no kernel.
        let of = |number, first| decide(&tree, number, 0xc000_003e, [first, 0, 0, 0, 0, 0]);
        let (allow, errno) = (0x7fff_0000, 0x0005_0000);
        assert_eq!(
            [of(1, 0), of(165, 0), of(56, 0x11), of(56, 0x0200_0000), of(1100, 0)],
            [allow, errno + 1, allow, errno + 38, errno + 38]
        );
    }

    #[test]
    fn a_profile_is_compiled_once_and_few_are_kept() {
        let first = program(&profile(&["mkdir"])).unwrap().unwrap();
        assert!(!first.is_empty() && first.len().is_multiple_of(8));
        let again = program(&profile(&["mkdir"])).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let other = program(&profile(&["mkdir", "no-such-call"])).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&first, &other) && *first == *other, "what is not a call makes no difference");
        for number in 0..2 * KEPT {
            program(&profile(&[&"x".repeat(number)])).unwrap();
        }
        assert!(PROGRAMS.lock().unwrap().len() <= KEPT);
    }

    #[test]
    fn a_profile_that_notifies_has_no_program() {
        let mut notifying = profile(&["mkdir"]);
        let mut rules = notifying.syscalls().clone().unwrap();
        rules[0].set_action(LinuxSeccompAction::ScmpActNotify);
        notifying.set_syscalls(Some(rules));
        assert_eq!(program(&notifying), Ok(None));
    }
}
