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
    pub(super) claims: Code,
    pub(super) ends: Code,
    pub(super) admits: Code,
    pub(super) finishes: Code,
    pub(super) acquires: Code,
    pub(super) releases: Code,
    pub(super) acquire_lone: Code,
    pub(super) release_lone: Code,
    pub(super) renew_claim: Code,
    pub(super) peek: Code,
    pub(super) renew_lock: Code,
    pub(super) leave: Code,
    pub(super) force: Code,
    pub(super) inspect: Code,
}

pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(Scripts::new);

/// Stands first in a script that a server which is full runs all the same.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";
const PRELUDE: &str = include_str!("scripts/prelude.lua");
const CLAIM_RECORD: &str = include_str!("scripts/claim_record.lua");
const CLAIM: &str = include_str!("scripts/claim.lua");
const END: &str = include_str!("scripts/end.lua");
const LOCK_CONSTANTS: &str = include_str!("scripts/lock_constants.lua");
const LOCK_RECORD: &str = include_str!("scripts/lock_record.lua");
const LOCK: &[&str] = &[LOCK_CONSTANTS, LOCK_RECORD];
const QUEUE: &str = include_str!("scripts/queue.lua");
const ACQUIRE: &str = include_str!("scripts/acquire.lua");
const RELEASE: &str = include_str!("scripts/release.lua");

impl Scripts {
    fn new() -> Self {
        let (admits, finishes) =
            (include_str!("scripts/admits.lua"), include_str!("scripts/finishes.lua"));
        let releases = include_str!("scripts/releases.lua");
        let release_lone = include_str!("scripts/release_lone.lua");
        Self {
            claims: code(&[CLAIM_RECORD, CLAIM, include_str!("scripts/claims.lua")]),
            ends: roomless(&[CLAIM_RECORD, END, include_str!("scripts/ends.lua")]),
            admits: code(&[&[CLAIM_RECORD, CLAIM], LOCK, &[QUEUE, ACQUIRE, admits]].concat()),
            finishes: roomless(&[&[CLAIM_RECORD, END], LOCK, &[QUEUE, RELEASE, finishes]].concat()),
            acquires: code(
                &[LOCK, &[QUEUE, ACQUIRE, include_str!("scripts/acquires.lua")]].concat(),
            ),
            releases: roomless(&[LOCK, &[QUEUE, RELEASE, releases]].concat()),
            acquire_lone: of_text(
                [LOCK_CONSTANTS, include_str!("scripts/acquire_lone.lua")].concat(),
            ),
            release_lone: of_text([ALLOW_OOM, LOCK_CONSTANTS, release_lone].concat()),
            renew_claim: roomless(&[CLAIM_RECORD, include_str!("scripts/renew_claim.lua")]),
            peek: code(&[CLAIM_RECORD, include_str!("scripts/peek.lua")]),
            renew_lock: roomless(&[LOCK, &[include_str!("scripts/renew_lock.lua")]].concat()),
            leave: roomless(&[LOCK, &[QUEUE, RELEASE, include_str!("scripts/leave.lua")]].concat()),
            force: roomless(&[LOCK, &[QUEUE, include_str!("scripts/force.lua")]].concat()),
            inspect: code(&[LOCK, &[QUEUE, include_str!("scripts/inspect.lua")]].concat()),
        }
    }
}

fn code(parts: &[&str]) -> Code {
    of_text(format!("{PRELUDE}\n{}\n", parts.join("\n")))
}

/// A script that a server which is full runs all the same: it adds next to nothing, and without it every handler that runs
/// would lose what it holds, and be run again when it is done.
fn roomless(parts: &[&str]) -> Code {
    of_text(format!("{ALLOW_OOM}{PRELUDE}\n{}\n", parts.join("\n")))
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
