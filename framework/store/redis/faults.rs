//! What an error that Redis answered says, and of what.
//!
//! Owns the short list of errors that are of the one key that was asked for. Every other one is of the server: whatever was
//! asked, and whoever asked, is not to blame for it. Pure.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::StoreFault;

/// What is to be done about an error.
#[derive(Debug, PartialEq)]
pub(super) enum Meaning {
    /// Ask again with the script's text.
    ScriptUnknown,
    /// Ask again; over a new connection where this one is of no more use.
    Later { reconnect: bool },
    /// Asking again is of no use now.
    Refusal { fault: StoreFault, advice: &'static str, reconnect: bool },
}

const CREDENTIALS: &str = "check its user and password";
const PERMISSIONS: &str = "allow the user what docs/locks.md lists";
const COMMANDS: &str = "EVALSHA, EVAL and what docs/locks.md lists must go by their own names";
const MEMORY: &str = "give it more memory";
const FOREIGN: &str = "look who else writes keys of this prefix";
/// Of an error that nobody foresaw.
const SERVER: &str = "look at the server's log, and whether it is Redis 7.0 or later";

pub(super) fn meaning(error: &RedisError) -> Meaning {
    use ServerErrorKind::{
        Ask, BusyLoading, ClusterDown, MasterDown, Moved, NoPerm, NoScript, ReadOnly, TryAgain,
    };
    let refusal = |fault, advice, reconnect| Meaning::Refusal { fault, advice, reconnect };
    let detail = error.detail().unwrap_or_default();
    let says = |words: &str| detail.contains(words);
    match (error.kind(), error.code()) {
        (ErrorKind::Server(NoScript), _) => Meaning::ScriptUnknown,
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            refusal(StoreFault::Refused, CREDENTIALS, true)
        }
        // What is too long for somebody without a name; Redis hangs up.
        _ if says("unauthenticated") => refusal(StoreFault::Refused, CREDENTIALS, true),
        (ErrorKind::Server(NoPerm), _) => refusal(StoreFault::Refused, PERMISSIONS, false),
        (_, Some("OOM")) => refusal(StoreFault::Full, MEMORY, false),
        (_, Some("WRONGTYPE")) => refusal(StoreFault::Other, FOREIGN, false),
        // The script's own words, and not those of a command that it called: it could not read what it found.
        _ if detail.starts_with("user_script:") => refusal(StoreFault::Other, FOREIGN, false),
        _ if says("can't run this command") || says("can't access") || says("ACL failure") => {
            refusal(StoreFault::Refused, PERMISSIONS, false)
        }
        _ if says("unknown command") || says("Unknown Redis command") => {
            refusal(StoreFault::Refused, COMMANDS, false)
        }
        // Perhaps another one is the master now.
        (ErrorKind::Server(BusyLoading | ReadOnly | MasterDown), _)
        | (ErrorKind::Io | ErrorKind::Parse, _) => Meaning::Later { reconnect: true },
        (
            ErrorKind::Server(Moved | Ask | TryAgain | ClusterDown)
            | ErrorKind::ClusterConnectionNotFound,
            _,
        )
        | (_, Some("BUSY" | "MISCONF" | "NOREPLICAS")) => Meaning::Later { reconnect: false },
        _ => refusal(StoreFault::Down, SERVER, says("Protocol error")),
    }
}

#[cfg(test)]
mod tests {
    use ::redis::{Value, parse_redis_value};

    use super::*;

    fn of(line: &str) -> Meaning {
        let answer = parse_redis_value(format!("-{line}\r\n").as_bytes());
        meaning(&answer.and_then(Value::extract_error).expect_err("it is an error"))
    }

    fn check(line: &str, fault: StoreFault) {
        let Meaning::Refusal { fault: found, .. } = of(line) else {
            panic!("{line}: {:?}", of(line))
        };
        assert_eq!(found, fault, "{line}");
    }

    #[test]
    fn a_record_that_is_not_ours_is_of_its_key_alone() {
        check(
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 52, on @user_script:1.",
            StoreFault::Other,
        );
        check(
            "ERR user_script:2: bad argument #2 to 'unpack' (data string too short) script: 37, on @user_script:2.",
            StoreFault::Other,
        );
    }

    #[test]
    fn what_nobody_foresaw_is_of_the_server() {
        check("ERR syntax error script: 53, on @user_script:1.", StoreFault::Down);
        check("ERR something new", StoreFault::Down);
        check("EXECABORT Transaction discarded", StoreFault::Down);
        check("CROSSSLOT Keys in request don't hash to the same slot", StoreFault::Down);
        check("WHATEVER nobody knows", StoreFault::Down);
    }

    #[test]
    fn a_cluster_that_moves_its_slots_is_asked_again() {
        for line in [
            "MOVED 1 127.0.0.1:7001",
            "ASK 1 127.0.0.1:7001",
            "TRYAGAIN later",
            "CLUSTERDOWN The cluster is down",
        ] {
            assert_eq!(of(line), Meaning::Later { reconnect: false }, "{line}");
        }
        for line in ["MASTERDOWN Link is down", "READONLY a replica", "LOADING a dump"] {
            assert_eq!(of(line), Meaning::Later { reconnect: true }, "{line}");
        }
    }

    #[test]
    fn who_may_not_ask_is_refused() {
        for line in [
            "NOAUTH Authentication required.",
            "ERR Protocol error: unauthenticated multibulk length",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "ERR The user executing the script can't run this command or subcommand script: 52, on @user_script:1.",
            "ERR unknown command 'EVALSHA', with args beginning with: 'aa'",
        ] {
            check(line, StoreFault::Refused);
        }
    }

    #[test]
    fn a_server_that_is_full_says_so() {
        check("OOM command not allowed when used memory > 'maxmemory'.", StoreFault::Full);
    }
}
