//! The scripts, put together from their parts.
//!
//! Owns which part goes into which script, and how one is called.

use std::sync::LazyLock;

use ::redis::{Cmd, Script, cmd};

/// A script and the hash that it is called by.
pub(super) struct Code {
    pub(super) text: String,
    pub(super) hash: String,
}

/// All of them.
pub(super) struct Scripts {
    pub(super) claim: Code,
    pub(super) renew_claim: Code,
    pub(super) end: Code,
    pub(super) peek: Code,
    pub(super) acquire: Code,
    pub(super) renew_lock: Code,
    pub(super) release: Code,
    pub(super) leave: Code,
    pub(super) force: Code,
    pub(super) inspect: Code,
    pub(super) admit: Code,
    pub(super) finish: Code,
}

pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(Scripts::new);

const PRELUDE: &str = include_str!("scripts/prelude.lua");
const CLAIM: &str = include_str!("scripts/claim.lua");
const END: &str = include_str!("scripts/end.lua");
const QUEUE: &str = include_str!("scripts/queue.lua");
const ACQUIRE: &str = include_str!("scripts/acquire.lua");
const RELEASE: &str = include_str!("scripts/release.lua");

/// ARGV of a claim: owner, lease, keep, fingerprint, generation, attempts, holder, force, seen, waits.
const CALL_CLAIM: &str = "claim(KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], \
    tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8] == '1', tonumber(ARGV[9]), \
    ARGV[10] == '1')";
pub(super) const CLAIM_ARGS: usize = 10;

/// ARGV of an end: owner, ending, keep, fingerprint, generation, attempts, due in, copied, whether
/// there is a text, text, channels.
const CALL_END: &str = "finish(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], \
    ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1' and ARGV[10] or nil, ARGV[11])";
pub(super) const END_ARGS: usize = 11;

/// ARGV of a lock: owner, lease, holder, fair, waits, seen; `k` and `a` are what stands before.
fn call_acquire(k: usize, a: usize) -> String {
    format!(
        "acquire(KEYS[{}], KEYS[{}], KEYS[{}], ARGV[{}], tonumber(ARGV[{}]), ARGV[{}], \
         ARGV[{}] == '1', ARGV[{}] == '1', tonumber(ARGV[{}]))",
        k + 1,
        k + 2,
        k + 3,
        a + 1,
        a + 2,
        a + 3,
        a + 4,
        a + 5,
        a + 6
    )
}

/// ARGV of a release: owner, channels.
fn call_release(k: usize, a: usize) -> String {
    format!(
        "release(KEYS[{}], KEYS[{}], KEYS[{}], ARGV[{}], ARGV[{}])",
        k + 1,
        k + 2,
        k + 3,
        a + 1,
        a + 2
    )
}

impl Scripts {
    fn new() -> Self {
        let admit = format!(
            "local claimed = {CALL_CLAIM}\n\
             if claimed[1] ~= 'fresh' and claimed[1] ~= 'taken' then return {{claimed, false}} end\n\
             return {{claimed, {}}}",
            call_acquire(1, CLAIM_ARGS)
        );
        let finish = format!("local ours = {CALL_END}\n{}\nreturn ours", call_release(1, END_ARGS));
        Self {
            claim: code(&[CLAIM, &format!("return {CALL_CLAIM}")]),
            renew_claim: roomless(&[include_str!("scripts/renew_claim.lua")]),
            end: roomless(&[END, &format!("return {CALL_END}")]),
            peek: code(&[include_str!("scripts/peek.lua")]),
            acquire: code(&[QUEUE, ACQUIRE, &format!("return {}", call_acquire(0, 0))]),
            renew_lock: roomless(&[include_str!("scripts/renew_lock.lua")]),
            release: roomless(&[QUEUE, RELEASE, &format!("return {}", call_release(0, 0))]),
            leave: roomless(&[QUEUE, RELEASE, include_str!("scripts/leave.lua")]),
            force: roomless(&[QUEUE, include_str!("scripts/force.lua")]),
            inspect: code(&[QUEUE, include_str!("scripts/inspect.lua")]),
            admit: code(&[CLAIM, QUEUE, ACQUIRE, &admit]),
            finish: roomless(&[END, QUEUE, RELEASE, &finish]),
        }
    }
}

fn code(parts: &[&str]) -> Code {
    of_text(format!("{PRELUDE}\n{}\n", parts.join("\n")))
}

/// A script that a server which is full runs all the same: it adds next to nothing, and without it every handler that runs
/// would lose what it holds, and be run again when it is done.
fn roomless(parts: &[&str]) -> Code {
    of_text(format!("#!lua flags=allow-oom\n{PRELUDE}\n{}\n", parts.join("\n")))
}

fn of_text(text: String) -> Code {
    let hash = Script::new(&text).get_hash().to_owned();
    Code { text, hash }
}

/// Begins the call of a script with this many keys; keys and arguments are added by the caller.
pub(super) fn call(code: &Code, keys: usize) -> Cmd {
    let mut command = Cmd::with_capacity(20, 512);
    command.arg("EVALSHA").arg(&code.hash).arg(keys);
    command
}

/// The same call with the script itself, for a server that does not know its hash.
pub(super) fn with_text(command: &Cmd, code: &Code) -> Cmd {
    let mut whole = cmd("EVAL");
    whole.arg(&code.text);
    for argument in command.args_iter().skip(2) {
        if let ::redis::Arg::Simple(bytes) = argument {
            whole.arg(bytes);
        }
    }
    whole
}
