//! Looks whether the server can do what is asked of it, and for settings of it that lose locks or claims.
//!
//! Owns what is said about them. Never changes anything on the server but for a probe of its own.

use std::collections::HashMap;
use std::time::Duration;

use ::redis::{Value, cmd};

use super::RedisStore;
use super::part::{Part, Said};
use crate::store::{ClaimAsk, ClaimKey, Ending, Fence, Fingerprint, LockAsk, Owner};
use crate::store::{StoreError, StoreFault};

const WHAT: &str = "check the server's settings";
/// The first with what the scripts call.
const VERSION_MIN: (u32, u32) = (7, 0);
/// Claimed and locked to see whether that works: no subscription is without a name, and no key has a NUL by chance.
const PROBE_ID: &str = "probe";
const PROBE_KEY: &str = "\0probe";
/// A probe is worth nothing afterwards.
const PROBE_LEASE: Duration = Duration::from_secs(1);

/// A warning for each; an error with all of them where the store is strict.
pub(super) async fn check(store: &RedisStore) -> Result<Vec<String>, StoreError> {
    let infos = infos(store.link.send(WHAT, &cmd("INFO")).await?);
    if let Some(version) = infos.iter().find_map(too_old) {
        let text = format!(
            "store `{}` is Redis {version}, and 7.0 is the least that has what it needs; update it",
            store.name
        );
        return Err(StoreError::new(StoreFault::Invalid, text));
    }
    match try_scripts(store).await {
        // It will not be any better later.
        Err(error) if error.fault == StoreFault::Refused || !error.is_outage() => {
            return Err(error);
        }
        // What is only so for now, a server that is full or became a replica, is found by each probe.
        Ok(()) | Err(_) => {}
    }
    let mut asks_save = cmd("CONFIG");
    asks_save.arg("GET").arg("save");
    // Not every user may ask, and a server is well that says so.
    let save = store.link.try_send(WHAT, &asks_save).await.ok();
    let is_unsaved = save.map(|save| is_unsaved(&save));
    let mut warnings = Vec::new();
    for info in &infos {
        warnings.extend(dangers(info, is_unsaved, store.replicas_min));
    }
    if store.strict {
        // What is not known is not warned of, but nothing that a strict store could rely on.
        warnings.extend(unknowns(&infos, is_unsaved));
    }
    warnings.dedup();
    if store.strict && !warnings.is_empty() {
        let text = format!(
            "store `{}` could lose locks or claims and is strict: {}; change the server or set \
             strict = false",
            store.name,
            warnings.join("; ")
        );
        return Err(StoreError::new(StoreFault::Unsafe, text));
    }
    Ok(warnings)
}

/// Asks for a claim and a lock, and gives both back: whoever may not, or cannot, is told before a message comes to harm.
pub(super) async fn try_scripts(store: &RedisStore) -> Result<(), StoreError> {
    let (keys, rounds, until) = (&store.keys, &store.rounds, store.link.until());
    let (owner, fingerprint) = (Owner::new(), Fingerprint::of(b""));
    let key = ClaimKey { scope: "".into(), id: PROBE_ID.into(), fingerprint, generation: 0 };
    let claim = ClaimAsk {
        key: &key,
        owner: &owner,
        lease: PROBE_LEASE,
        keep: PROBE_LEASE,
        attempts: 0,
        holder: "",
        force: false,
        waits: false,
        seen: Fence(0),
    };
    let lock = LockAsk {
        key: PROBE_KEY,
        owner: &owner,
        lease: PROBE_LEASE,
        holder: "",
        fair: false,
        waits: false,
        seen: Fence(0),
    };
    // Whether they are had is of no interest: another process may be trying the same.
    rounds.claims.ask(until, Part::claim(keys, &claim)).await?;
    rounds.acquires.ask(until, Part::acquire(keys, &lock)).await?;
    let keep = 1;
    let ending = Part::end(keys, (&key, &owner), &Ending::Release, keep, Said::Owner);
    rounds.ends.ask(until, ending).await?;
    rounds.releases.ask(until, Part::release(keys, PROBE_KEY, &owner)).await.map(drop)
}

/// Its version, where that is too old.
fn too_old(info: &HashMap<String, String>) -> Option<&str> {
    let version = info.get("redis_version")?;
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next()?, numbers.next().unwrap_or(0));
    (found < VERSION_MIN).then_some(version)
}

/// What each server says of itself; a cluster answers with one text for each of its masters.
fn infos(answer: Value) -> Vec<HashMap<String, String>> {
    match answer {
        Value::Map(nodes) => nodes.into_iter().flat_map(|(_, info)| infos(info)).collect(),
        Value::BulkString(bytes) => vec![fields(&String::from_utf8_lossy(&bytes))],
        Value::VerbatimString { text, .. } => vec![fields(&text)],
        Value::SimpleString(text) => vec![fields(&text)],
        _ => Vec::new(),
    }
}

fn fields(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// No snapshot is ever taken.
fn is_unsaved(save: &Value) -> bool {
    let last = match save {
        Value::Array(pair) => pair.last(),
        Value::Map(pairs) => pairs.first().map(|pair| &pair.1),
        _ => None,
    };
    matches!(last, Some(Value::BulkString(rule)) if rule.is_empty())
}

/// What cannot be found out and would have to be.
fn unknowns(infos: &[HashMap<String, String>], is_unsaved: Option<bool>) -> Vec<String> {
    let lacks = |name| infos.is_empty() || infos.iter().any(|info| !info.contains_key(name));
    let mut unknowns = Vec::new();
    if lacks("maxmemory") || lacks("maxmemory_policy") {
        unknowns.push("it does not say what it drops when memory is full; let INFO say it".into());
    }
    let is_in_memory = infos.iter().any(|info| info.get("aof_enabled").is_some_and(|it| it == "0"));
    if lacks("aof_enabled") || (is_in_memory && is_unsaved.is_none()) {
        unknowns.push(
            "it does not say whether it writes anything to disk; use appendonly yes, or allow the \
             user +config|get"
                .into(),
        );
    }
    unknowns
}

fn dangers(
    info: &HashMap<String, String>,
    is_unsaved: Option<bool>,
    replicas_min: u32,
) -> Vec<String> {
    let field = |name: &str| info.get(name).map_or("", String::as_str);
    let mut dangers = Vec::new();
    let policy = field("maxmemory_policy");
    if field("maxmemory") != "0" && policy != "noeviction" && !policy.is_empty() {
        dangers.push(format!(
            "maxmemory-policy is {policy}, which drops locks and claims when memory is full; use \
             noeviction"
        ));
    }
    if field("aof_enabled") == "0" && is_unsaved == Some(true) {
        dangers.push(
            "nothing is written to disk, so a restart of Redis forgets every lock and claim; use \
             appendonly yes"
                .into(),
        );
    }
    if field("role") == "slave" {
        dangers
            .push("it is a replica, which takes no writes; name the master or use Sentinel".into());
    }
    let replicas: u32 = field("connected_slaves").parse().unwrap_or(0);
    if replicas < replicas_min {
        dangers.push(format!(
            "{replicas} replicas are connected, and {replicas_min} must have each lock and claim; \
             start more or lower replicas_min"
        ));
    }
    dangers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(info: &str, is_unsaved: bool, replicas_min: u32, says: &[&str]) {
        let dangers = dangers(&fields(info), Some(is_unsaved), replicas_min);
        assert_eq!(dangers.len(), says.len(), "{dangers:?}");
        for (danger, says) in dangers.iter().zip(says) {
            assert!(danger.contains(says), "{danger} says nothing of {says}");
        }
    }

    const SAFE: &str = "role:master\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
                        aof_enabled:1\r\nconnected_slaves:1\r\n";

    #[test]
    fn a_server_that_loses_nothing_is_not_warned_of() {
        check(SAFE, true, 1, &[]);
    }

    #[test]
    fn a_server_before_seven_is_too_old() {
        let check = |version: &str, is_old: bool| {
            let info = fields(&format!("redis_version:{version}\r\n"));
            assert_eq!(too_old(&info), is_old.then_some(version));
        };
        check("6.2.14", true);
        check("5.0", true);
        check("7.0.0", false);
        check("10.1", false);
        check("unstable", false);
        assert_eq!(too_old(&fields(SAFE)), None, "who says nothing is tried");
    }

    #[test]
    fn what_evicts_is_said() {
        check(&SAFE.replace("maxmemory:0", "maxmemory:1000"), true, 0, &["noeviction"]);
    }

    #[test]
    fn what_forgets_at_a_restart_is_said() {
        check(&SAFE.replace("aof_enabled:1", "aof_enabled:0"), true, 0, &["appendonly"]);
    }

    #[test]
    fn what_cannot_be_found_out_is_said_of_a_strict_store() {
        let check = |info: &str, is_unsaved, count| {
            let said = unknowns(&[fields(info)], is_unsaved);
            assert_eq!(said.len(), count, "{said:?}");
        };
        let in_memory = SAFE.replace("aof_enabled:1", "aof_enabled:0");
        check(SAFE, None, 0);
        check(&in_memory, Some(false), 0);
        check(&in_memory, None, 1);
        check("role:master\r\n", Some(false), 2);
        assert_eq!(unknowns(&[], None).len(), 2, "an answer that cannot be read");
    }

    #[test]
    fn a_replica_is_said() {
        check(&SAFE.replace("master", "slave"), false, 0, &["replica"]);
    }

    #[test]
    fn too_few_replicas_are_said() {
        check(SAFE, false, 2, &["replicas_min"]);
    }
}
