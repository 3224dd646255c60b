//! What locks and claims do when Redis stops, forgets, refuses or moves.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redeliver::Service;
use redeliver::config::Config;
use redeliver::store::redis::{RedisSettings, RedisStore};
use redeliver::store::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, ClaimKind, Ending, Fence, Fingerprint, Guard,
    IdempotencyStore, Keeper, LockAnswer, LockAsk, LockStore, Locks, Loss, Owner, Renewed, Store,
    StoreError, StoreFault, StoreState,
};
use redeliver::testing::{check_all, idempotency_conformance, lock_conformance};
use support::redis::{self, Server, settings};
use tokio::runtime::Handle;
use tokio::time::sleep;

const DEADLINE: Duration = Duration::from_secs(1);
/// A deadline is kept, give or take what a busy machine takes.
const LATE_MAX: Duration = Duration::from_millis(500);

fn locks_of(store: RedisStore) -> Locks {
    let store = Arc::new(store);
    let keeper = Keeper::new(Handle::current(), store.clock());
    Locks::new(store, keeper, "test")
}

fn locks(server: &Server) -> Locks {
    locks_of(server.store())
}

async fn have(locks: &Locks, key: &str) -> Guard {
    locks.acquire(key).wait(Duration::from_secs(5)).await.expect("the lock")
}

fn claim_key(id: &str) -> ClaimKey {
    let fingerprint = Fingerprint::of(b"payload");
    ClaimKey { scope: "orders".into(), id: id.into(), fingerprint, generation: 0 }
}

async fn claim(store: &RedisStore, id: &str, owner: &Owner) -> ClaimAnswer {
    try_claim(store, id, owner).await.expect("an answer")
}

async fn try_claim(store: &RedisStore, id: &str, owner: &Owner) -> Result<ClaimAnswer, StoreError> {
    let (key, lease) = (claim_key(id), Duration::from_secs(30));
    let keep = Duration::from_secs(600);
    let ask = ClaimAsk {
        key: &key,
        owner,
        lease,
        keep,
        attempts: 0,
        holder: "test",
        force: false,
        waits: false,
        seen: Fence(0),
    };
    store.claim(&ask).await
}

/// Calls again and again until the store answers; panics if it does not within `limit`.
async fn back_within(locks: &Locks, limit: Duration) {
    let began = Instant::now();
    while locks.inspect("any").await.is_err() {
        assert!(began.elapsed() < limit, "not back within {limit:?}");
    }
}

#[tokio::test]
async fn r20_a_server_that_stands_still_costs_no_more_than_the_deadline() {
    let server = Server::start();
    let locks = locks(&server);
    have(&locks, "a").await.release().await.expect("an answer");
    server.signal("STOP");
    for _ in 0..3 {
        let asked = Instant::now();
        let error = locks.inspect("a").await.expect_err("it stands still");
        assert_eq!(error.fault, StoreFault::Down);
        assert!(asked.elapsed() < DEADLINE + LATE_MAX, "{:?}", asked.elapsed());
        assert!(matches!(locks.state(), StoreState::Down(_)));
    }
    server.signal("CONT");
    back_within(&locks, Duration::from_secs(5)).await;
    assert_eq!(locks.state(), StoreState::Up);
}

#[tokio::test]
async fn r20_a_server_that_is_gone_is_found_again() {
    let mut server = Server::start();
    let locks = locks(&server);
    have(&locks, "a").await.release().await.expect("an answer");
    server.kill();
    let asked = Instant::now();
    let error = locks.inspect("a").await.expect_err("it is gone");
    assert_eq!(error.fault, StoreFault::Down);
    assert!(asked.elapsed() < DEADLINE + LATE_MAX, "{:?}", asked.elapsed());
    server.restart();
    back_within(&locks, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_lock_is_lost_here_before_the_server_gives_it_away() {
    let server = Server::start();
    let locks = locks(&server);
    let lease = Duration::from_secs(2);
    let asked = Instant::now();
    let guard = locks.acquire("a").lease(lease).await.expect("the lock");
    server.signal("STOP");
    assert_eq!(guard.lost().await, Loss::Unreachable);
    assert!(asked.elapsed() < lease, "{:?}", asked.elapsed());
    assert!(guard.loss().is_some());
    server.signal("CONT");
}

#[tokio::test]
async fn r5_a_flush_is_told_to_the_holder_at_its_next_renewal() {
    let server = Server::start();
    let locks = locks(&server);
    let guard = locks.acquire("a").lease(Duration::from_secs(3)).await.expect("the lock");
    server.cli(&["flushall"]);
    let flushed = Instant::now();
    assert_eq!(guard.lost().await, Loss::NotOwner);
    assert!(flushed.elapsed() < Duration::from_millis(1500), "{:?}", flushed.elapsed());
}

#[actix::test]
async fn a_redis_that_is_not_there_yet_is_tried_for_startup_max_and_told() {
    let mut server = Server::start();
    let start = |startup_max: &str| {
        let url = server.url();
        let config = Config::from_toml(&format!(
            "[service]\nstartup_max = \"{startup_max}\"\n[stores.main]\nkind = \"redis\"\nurl = \"{url}\""
        ));
        Service::builder(config.expect("it is complete")).signals(false).start()
    };
    let (hasty, patient) = (start("1s"), start("2m"));
    server.kill();
    let error = hasty.await.err().expect("there is no Redis").to_string();
    for part in ["store `main`", "startup_max", "is Redis up?"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    let patient = tokio::task::spawn_local(patient);
    sleep(Duration::from_secs(1)).await;
    server.restart();
    let service = patient.await.expect("no panic").expect("Redis came up");
    service.stop().await;
}

#[tokio::test]
async fn fences_grow_over_a_flush_and_a_restart_that_forgets() {
    let mut server = Server::start();
    let locks = locks(&server);
    let first = have(&locks, "a").await.fence();
    server.cli(&["flushall"]);
    let second = have(&locks, "a").await.fence();
    server.restart();
    // As another process, which has seen nothing.
    let other = locks_of(server.store());
    let third = have(&other, "a").await.fence();
    assert!(first < second && second < third, "{first} {second} {third}");
}

#[tokio::test]
async fn fences_grow_over_the_promotion_of_a_stale_replica() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    let locks = locks_of(RedisStore::new(settings.clone()).expect("settings"));
    have(&locks, "a").await.release().await.expect("an answer");
    replica.signal("STOP");
    let mut last = Fence(0);
    for _ in 0..100 {
        let guard = have(&locks, "a").await;
        last = guard.fence();
        guard.release().await.expect("an answer");
    }
    drop(master);
    replica.signal("CONT");
    replica.cli(&["replicaof", "no", "one"]);
    settings.url = replica.url();
    let promoted = locks_of(RedisStore::new(settings).expect("settings"));
    let fence = have(&promoted, "a").await.fence();
    assert!(fence > last, "{fence} after {last}");
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let server = Server::start();
    let locks = locks(&server);
    for _ in 0..3 {
        let guard = have(&locks, "a").await;
        server.cli(&["script", "flush"]);
        guard.release().await.expect("an answer");
        assert_eq!(locks.inspect("a").await.expect("an answer"), None);
    }
}

#[tokio::test]
async fn killed_connections_are_opened_again() {
    let server = Server::start();
    let locks = locks(&server);
    for round in 0..5 {
        let guard = have(&locks, "a").await;
        let waiter = {
            let locks = locks.clone();
            tokio::spawn(async move { have(&locks, "a").await })
        };
        sleep(Duration::from_millis(100)).await;
        server.cli(&["client", "kill", "type", "normal"]);
        server.cli(&["client", "kill", "type", "pubsub"]);
        guard.release().await.expect("an answer");
        let released = Instant::now();
        waiter.await.expect("no panic").release().await.expect("an answer");
        assert!(released.elapsed() < Duration::from_secs(2), "round {round}");
    }
}

#[tokio::test]
async fn a_replica_is_told_from_a_master() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let store = replica.store();
    let warnings = store.check().await.expect("an answer");
    assert!(warnings.iter().any(|warning| warning.contains("replica")), "{warnings:?}");
    let mut settings = settings(&replica.url());
    settings.strict = true;
    let strict = RedisStore::new(settings).expect("settings");
    assert_eq!(strict.check().await.expect_err("strict").fault, StoreFault::Unsafe);
    let error = locks_of(store).acquire("a").await.expect_err("it takes no writes");
    assert!(
        error.to_string().contains("READONLY") || error.to_string().contains("read"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_server_says_so_and_holds_nothing() {
    let server = Server::start();
    let locks = locks(&server);
    server.cli(&["config", "set", "maxmemory", "1"]);
    let error = locks.acquire("a").await.expect_err("it is full");
    assert!(error.to_string().contains("memory"), "{error}");
    server.cli(&["config", "set", "maxmemory", "0"]);
    drop(have(&locks, "a").await);
}

#[tokio::test]
async fn on_a_full_server_what_is_held_is_renewed_and_ended() {
    let server = Server::start();
    let (store, owner, lease) = (server.store(), Owner::new(), Duration::from_secs(30));
    let lock = LockAsk {
        key: "a",
        owner: &owner,
        lease,
        holder: "test",
        fair: false,
        waits: false,
        seen: Fence(0),
    };
    for key in ["a", "b"] {
        let answer = store.acquire(&LockAsk { key, ..lock }).await.expect("an answer");
        assert!(matches!(answer, LockAnswer::Held(_)));
    }
    for id in ["a", "b"] {
        assert!(matches!(claim(&store, id, &owner).await, ClaimAnswer::Granted(_)));
    }
    server.cli(&["config", "set", "maxmemory", "1"]);
    let (key, keep) = (claim_key("a"), Duration::from_secs(600));
    assert_eq!(store.renew("a", &owner, lease).await.expect("an answer"), Renewed::Kept);
    assert_eq!(store.renew_claim(&key, &owner, lease).await.expect("an answer"), Renewed::Kept);
    assert!(store.release("a", &owner).await.expect("an answer"));
    assert!(store.end(&key, &owner, &Ending::Complete(None), keep).await.expect("an answer"));
    let (other, done) = (claim_key("b"), Ending::Complete(Some(b"receipt".as_slice())));
    let both = store.end_and_release(&other, &owner, &done, keep, "b", &owner).await;
    assert!(both.expect("an answer"));
    let error = store.acquire(&lock).await.expect_err("there is no room for more");
    assert_eq!(error.fault, StoreFault::Full);
}

#[tokio::test]
async fn a_dead_waiter_is_skipped_though_the_servers_clock_was_set_back() {
    let server = Server::start();
    let settings = settings(&server.url());
    let lock = format!("{}:lock:{{a}}", settings.prefix);
    // In an hour, as far as the clock goes now.
    let later = std::time::SystemTime::now() + Duration::from_secs(3600);
    let later = later.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    for set in [format!("{lock}:queue"), format!("{lock}:beats")] {
        assert_eq!(server.cli(&["zadd", &set, &later.to_string(), "dead.1"]), "1");
    }
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    let guard = locks.acquire("a").fair(true).wait(Duration::ZERO).await;
    drop(guard.expect("nobody alive is in front"));
}

#[tokio::test]
async fn settings_that_evict_are_said() {
    let server = Server::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let warnings = server.store().check().await.expect("an answer");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("allkeys-lru") && warnings[1].contains("appendonly"));
}

#[tokio::test]
async fn each_master_of_a_cluster_is_checked() {
    let nodes = redis::cluster();
    for setting in [["maxmemory", "100mb"], ["maxmemory-policy", "volatile-ttl"]] {
        nodes[2].cli(&["config", "set", setting[0], setting[1]]);
    }
    let store = RedisStore::new(settings(&redis::cluster_url(&nodes))).expect("settings");
    let warnings = store.check().await.expect("an answer");
    assert!(warnings.iter().any(|warning| warning.contains("volatile-ttl")), "{warnings:?}");
}

#[tokio::test]
async fn a_master_of_a_cluster_that_is_gone_is_found_again() {
    let mut nodes = redis::cluster();
    let store = RedisStore::new(settings(&redis::cluster_url(&nodes))).expect("settings");
    let locks = locks_of(store);
    let keys: Vec<_> = (0..20).map(|key| format!("key-{key}")).collect();
    for key in &keys {
        have(&locks, key).await.release().await.expect("an answer");
    }
    nodes[1].restart();
    let node = &nodes[1];
    redis::eventually("the cluster", || {
        node.cli(&["cluster", "info"]).contains("cluster_state:ok")
    });
    for key in &keys {
        let began = Instant::now();
        while locks.acquire(key).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "{key}");
        }
    }
}

#[tokio::test]
async fn r12_without_its_replica_a_lock_is_not_believed() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    settings.replicas_min = 1;
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    have(&locks, "a").await.release().await.expect("an answer");
    replica.signal("STOP");
    let error = locks.acquire("a").await.expect_err("no replica has it");
    assert!(error.to_string().contains("0 of 1"), "{error}");
    assert_eq!(locks.inspect("a").await.expect("an answer"), None, "taken back");
}

#[tokio::test]
async fn r12_without_its_replica_a_store_counts_as_down_until_a_probe_finds_it() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    settings.replicas_min = 1;
    let store = RedisStore::new(settings).expect("settings");
    let (key, owner) = ("7", Owner::new());
    assert!(matches!(claim(&store, key, &owner).await, ClaimAnswer::Granted(_)));
    store.probe().await.expect("all are there");
    assert_eq!(store.state(), StoreState::Up);
    replica.signal("STOP");
    let error = try_claim(&store, "8", &owner).await.expect_err("no replica has it");
    assert_eq!(store.state(), StoreState::Down(error.text.clone()));
    let error = store.probe().await.expect_err("it is still away");
    assert_eq!(error.fault, StoreFault::Unreplicated, "{error}");
    assert!(matches!(store.state(), StoreState::Down(_)), "what the master answers is not enough");
    replica.signal("CONT");
    let began = Instant::now();
    while store.probe().await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "it came back");
    }
    assert_eq!(store.state(), StoreState::Up);
}

#[tokio::test]
async fn a_caller_that_gives_up_early_costs_no_connection() {
    let server = Server::start();
    let mut settings = settings(&server.url());
    settings.deadline = Duration::from_millis(500);
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    have(&locks, "a").await.release().await.expect("an answer");
    let clients = |server: &Server| {
        let list = server.cli(&["client", "list", "type", "normal"]);
        let ours = list.lines().filter(|line| !line.contains("cmd=client"));
        ours.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let before = clients(&server);
    // Nobody asks anything for longer than the deadline.
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.signal("STOP");
    let asked = tokio::time::timeout(Duration::from_millis(20), locks.inspect("a")).await;
    assert!(asked.is_err(), "it stands still");
    server.signal("CONT");
    locks.inspect("a").await.expect("an answer");
    assert_eq!(clients(&server), before);
}

#[tokio::test]
async fn one_deadline_is_for_all_that_belongs_to_a_question() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    settings.replicas_min = 1;
    settings.deadline = Duration::from_secs(3);
    let (deadline, locks) =
        (settings.deadline, locks_of(RedisStore::new(settings).expect("it is")));
    have(&locks, "a").await.release().await.expect("an answer");
    replica.signal("STOP");
    let asked = Instant::now();
    let asking = locks.acquire("a").into_future();
    let (refused, ()) = tokio::join!(asking, async {
        // Its script is answered by then, and the replicas are waited for.
        sleep(Duration::from_millis(500)).await;
        master.signal("STOP");
    });
    let error = refused.expect_err("neither answers");
    // With a deadline for each step it would be two at the least.
    assert!(asked.elapsed() < deadline + deadline / 2, "{:?}: {error}", asked.elapsed());
    master.signal("CONT");
    replica.signal("CONT");
}

#[tokio::test]
async fn a_failover_by_sentinel_is_followed_and_fences_grow() {
    let ([mut master, _replica, _sentinel], url) = redis::behind_sentinel();
    let settings = settings(&url);
    let locks = locks_of(RedisStore::new(settings.clone()).expect("settings"));
    let before = have(&locks, "a").await;
    let fence = before.fence();
    before.release().await.expect("an answer");
    master.kill();
    back_within(&locks, Duration::from_secs(60)).await;
    let after = fence_of(&locks, "a").await;
    assert!(after > fence, "{after} after {fence}");
    // Nor is it what this process remembers: another one has seen none of them.
    let stranger = fence_of(&locks_of(RedisStore::new(settings).expect("settings")), "a").await;
    assert!(stranger > after, "{stranger} after {after}");
}

/// Of the lock once it can be had: a server that was just promoted may not know of its release.
async fn fence_of(locks: &Locks, key: &str) -> Fence {
    let began = Instant::now();
    loop {
        if let Ok(guard) = locks.acquire(key).wait(Duration::from_secs(5)).await {
            let fence = guard.fence();
            let _ = guard.release().await;
            return fence;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "the lock was not had again");
    }
}

/// Every call that fails while one of three masters is away says so, whatever its key.
#[tokio::test]
async fn a_master_that_is_away_is_blamed_on_no_key() {
    let mut nodes = redis::cluster();
    let mut settings = settings(&redis::cluster_url(&nodes));
    settings.deadline = Duration::from_millis(500);
    let store = RedisStore::new(settings).expect("settings");
    store.check().await.expect("all are there");
    nodes[1].kill();
    let began = Instant::now();
    let mut failed = 0;
    // Until after the others have noticed, which takes them two seconds.
    while began.elapsed() < Duration::from_secs(6) {
        let owner = Owner::new();
        let asks = (0..24).map(|number| {
            let (store, owner) = (&store, &owner);
            async move { try_claim(store, &format!("id-{number}"), owner).await }
        });
        for error in futures_util::future::join_all(asks).await.into_iter().filter_map(Result::err)
        {
            assert_eq!(error.fault, StoreFault::Down, "{error}");
            failed += 1;
        }
    }
    assert!(failed > 0, "a third of the keys cannot be had");
}

/// What a server refuses to everybody is blamed on no key, seen by a probe, and over when that is.
async fn refused(harm: &[&[&str]], heal: &[&str]) {
    let server = Server::start();
    let store = server.store();
    let owner = Owner::new();
    try_claim(&store, "a", &owner).await.expect("an answer");
    for command in harm {
        server.cli(command);
    }
    let began = Instant::now();
    let error = try_claim(&store, "b", &owner).await.expect_err("it is refused");
    assert_eq!(error.fault, StoreFault::Refused, "{error}");
    assert!(began.elapsed() < DEADLINE + LATE_MAX, "{:?}", began.elapsed());
    assert!(store.probe().await.is_err(), "a probe tries the same");
    assert!(matches!(store.state(), StoreState::Down(_)));
    server.cli(heal);
    let began = Instant::now();
    while store.probe().await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not come back");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.state(), StoreState::Up);
    try_claim(&store, "b", &owner).await.expect("an answer");
}

#[tokio::test]
async fn a_password_that_is_asked_for_from_now_on_is_blamed_on_no_key() {
    let harm: &[&[&str]] = &[
        &["config", "set", "requirepass", "secret"],
        &["-a", "secret", "client", "kill", "type", "normal"],
    ];
    refused(harm, &["-a", "secret", "config", "set", "requirepass", ""]).await;
}

#[tokio::test]
async fn a_script_that_may_not_be_called_is_blamed_on_no_key() {
    refused(&[&["acl", "setuser", "default", "-evalsha"]], &["acl", "setuser", "default", "+@all"])
        .await;
}

#[tokio::test]
async fn a_command_that_a_script_may_not_call_is_blamed_on_no_key() {
    refused(&[&["acl", "setuser", "default", "-set"]], &["acl", "setuser", "default", "+@all"])
        .await;
}

#[tokio::test]
async fn a_server_whose_scripts_cannot_be_called_is_found_at_the_start() {
    let server = Server::with(&["--rename-command", "EVALSHA", "HIDDEN"]);
    let error = server.store().check().await.expect_err("nothing could be claimed");
    assert_eq!(error.fault, StoreFault::Refused, "{error}");
    assert!(error.text.contains("EVALSHA"), "{error}");
}

#[tokio::test]
async fn a_sentinel_that_is_silent_keeps_nobody_from_asking_the_next() {
    let master = Server::start();
    let sentinel = redis::sentinel_of(&master);
    // It lets us connect, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent = silent.local_addr().expect("it is bound");
    let mut settings =
        settings(&format!("redis-sentinel://{silent},127.0.0.1:{}/mymaster", sentinel.port));
    settings.deadline = Duration::from_millis(400);
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    back_within(&locks, Duration::from_secs(30)).await;
    drop(have(&locks, "a").await);
}

#[tokio::test]
async fn r12_what_was_confirmed_outlives_a_failover_and_what_was_not_is_ended_all_the_same() {
    let master = Server::start();
    let replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    let (owner, keep) = (Owner::new(), Duration::from_secs(600));
    let store = RedisStore::new(settings.clone()).expect("settings");
    settings.replicas_min = 1;
    let sure = RedisStore::new(settings.clone()).expect("settings");
    assert!(matches!(claim(&sure, "a", &owner).await, ClaimAnswer::Granted(_)));
    let done = Ending::Complete(None);
    assert!(sure.end(&claim_key("a"), &owner, &done, keep).await.expect("an answer"));
    // Whatever comes before the next claim is with the replica when that is.
    assert!(matches!(claim(&sure, "b", &owner).await, ClaimAnswer::Granted(_)));
    // Promoted while the master goes on: it never hears of this one.
    replica.cli(&["replicaof", "no", "one"]);
    assert!(matches!(claim(&store, "c", &owner).await, ClaimAnswer::Granted(_)));
    drop(master);
    settings.url = replica.url();
    settings.replicas_min = 0;
    let promoted = RedisStore::new(settings).expect("settings");
    assert_eq!(claim(&promoted, "a", &Owner::new()).await, ClaimAnswer::Done(None));
    let running = claim(&promoted, "b", &Owner::new()).await;
    assert!(matches!(running, ClaimAnswer::Running { .. }), "{running:?}");
    assert_eq!(promoted.peek(&claim_key("c")).await.expect("an answer"), None);
    assert!(promoted.end(&claim_key("c"), &owner, &done, keep).await.expect("an answer"));
    assert_eq!(claim(&promoted, "c", &Owner::new()).await, ClaimAnswer::Done(None));
}

#[tokio::test]
async fn a_wrong_password_is_refused_at_once() {
    let server = Server::with(&["--requirepass", "right"]);
    let url = format!("redis://:wrong@127.0.0.1:{}", server.port);
    let locks = locks_of(RedisStore::new(settings(&url)).expect("settings"));
    let asked = Instant::now();
    let error = locks.inspect("a").await.expect_err("the password is wrong");
    assert_eq!(error.fault, StoreFault::Refused);
    assert!(asked.elapsed() < DEADLINE / 2, "{:?}", asked.elapsed());
    assert!(!error.text.contains("wrong@"), "{error}");
}

#[tokio::test]
async fn a_user_with_no_more_than_is_needed_keeps_the_contract() {
    let server = Server::start();
    let store_settings = settings("");
    let prefix = &store_settings.prefix;
    let (keys, channels) = (format!("~{prefix}:*"), format!("&{prefix}:*"));
    let mut user = vec!["acl", "setuser", "app", "on", ">secret", &keys, &channels];
    user.extend(
        "-@all +evalsha +eval +time +get +mget +set +setrange +del +pttl +pexpire +zadd +zrem +zrange +zrank \
         +zscore +zcard +zcount +publish +subscribe +info +ping +wait"
            .split_whitespace(),
    );
    assert_eq!(server.cli(&user), "OK");
    let mut settings = store_settings.clone();
    settings.url = format!("redis://app:secret@127.0.0.1:{}", server.port);
    let strict = RedisSettings { strict: true, ..settings.clone() };
    let store: Arc<dyn Store> = Arc::new(RedisStore::new(settings).expect("settings"));
    let warnings = Arc::new(AtomicU32::new(0));
    let counting = tracing::subscriber::set_default(Counting(warnings.clone()));
    assert_eq!(store.check().await.expect("an answer"), Vec::<String>::new());
    drop(counting);
    assert_eq!((store.state(), warnings.load(Ordering::SeqCst)), (StoreState::Up, 0));
    let refused = RedisStore::new(strict).expect("settings").check().await.expect_err("strict");
    assert_eq!(refused.fault, StoreFault::Unsafe, "it may not ask whether anything is saved");
    assert!(refused.text.contains("+config|get"), "{refused}");
    check_all(lock_conformance::SENTENCES, &store).await;
    check_all(idempotency_conformance::SENTENCES, &store).await;
}

#[tokio::test]
async fn tls_trusts_the_given_authority_and_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let [ca, cert, key] = ours.files(folder.path());
    let port = redis::free_port();
    let tls_port = port.to_string();
    let server = Server::with(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    let mut settings = settings(&format!("rediss://localhost:{port}"));
    settings.ca = Some(ours.ca.pem().into_bytes());
    let locks = locks_of(RedisStore::new(settings.clone()).expect("settings"));
    have(&locks, "a").await.release().await.expect("an answer");
    settings.ca = Some(theirs.ca.pem().into_bytes());
    let locks = locks_of(RedisStore::new(settings.clone()).expect("settings"));
    let error = locks.inspect("a").await.expect_err("another authority");
    assert!(error.text.to_lowercase().contains("certificate"), "{error}");
    settings.ca = Some(ours.ca.pem().into_bytes());
    let others_key = theirs.key.serialize_pem().into_bytes();
    settings.identity = Some((ours.server.pem().into_bytes(), others_key));
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    let error = locks.inspect("a").await.expect_err("the key of another certificate");
    assert!(error.text.contains("tls.cert and tls.key"), "{error}");
    drop(server);
}

/// A certificate authority and a server's certificate, made for one test.
struct Authority {
    ca: rcgen::Certificate,
    server: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new() -> Self {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let ca = params.self_signed(&ca_key).expect("a certificate");
        let issuer = rcgen::Issuer::new(params, ca_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let server = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters");
        let server = server.signed_by(&key, &issuer).expect("a certificate");
        Self { ca, server, key }
    }

    fn files(&self, folder: &std::path::Path) -> [String; 3] {
        let texts = [self.ca.pem(), self.server.pem(), self.key.serialize_pem()];
        let names = ["ca.pem", "server.pem", "server.key"];
        let mut written = names.map(|name| folder.join(name));
        for (path, text) in written.iter_mut().zip(texts) {
            std::fs::write(path, text).expect("a file");
        }
        written.map(|path| path.display().to_string())
    }
}

#[tokio::test]
async fn handing_over_between_live_holders_takes_milliseconds() {
    let server = Server::start();
    let settings = settings(&server.url());
    let locks = || locks_of(RedisStore::new(settings.clone()).expect("settings"));
    let (one, other) = (locks(), locks());
    let released: Arc<std::sync::Mutex<Option<Instant>>> = Arc::default();
    let mut taken = Vec::new();
    let mut guard = have(&one, "a").await;
    for round in 0..200 {
        let next = if round % 2 == 0 { &other } else { &one };
        let waiter = {
            let (locks, released) = (next.clone(), released.clone());
            tokio::spawn(async move {
                let guard = have(&locks, "a").await;
                let since = released.lock().expect("no panic").expect("it was released");
                (guard, since.elapsed())
            })
        };
        sleep(Duration::from_millis(5)).await;
        *released.lock().expect("no panic") = Some(Instant::now());
        guard.release().await.expect("an answer");
        let (next, took) = waiter.await.expect("no panic");
        guard = next;
        // The first two open the subscriptions.
        if round > 1 {
            taken.push(took);
        }
    }
    taken.sort();
    let median = taken[taken.len() / 2];
    let late = taken[taken.len() * 99 / 100];
    println!("handing over: median {median:?}, p99 {late:?}");
    // As promised, on a machine with nothing else to do.
    let full = std::env::var_os("REDELIVER_TEST_FULL").is_some();
    assert!(!full || late <= Duration::from_millis(3), "{late:?}");
    // A shared machine may have a bad moment; a poll would show in the median.
    assert!(median < Duration::from_millis(25), "{median:?}");
}

#[tokio::test]
async fn a_dead_store_is_warned_of_once_a_second() {
    let warnings = Arc::new(AtomicU32::new(0));
    let _counting = tracing::subscriber::set_default(Counting(warnings.clone()));
    // Of one alone, tracing remembers what the thread that logs first wants to hear: here another test's, which is nothing.
    let _second = tracing::Dispatch::new(Counting(Arc::default()));
    let mut server = Server::start();
    let mut settings = settings(&server.url());
    settings.deadline = Duration::from_millis(20);
    let locks = locks_of(RedisStore::new(settings).expect("settings"));
    back_within(&locks, Duration::from_secs(5)).await;
    server.kill();
    warnings.store(0, Ordering::SeqCst);
    let began = Instant::now();
    let mut failed = 0;
    while began.elapsed() < Duration::from_millis(2500) {
        let asking = (0..20).map(|_| locks.inspect("a"));
        let answers = futures_util::future::join_all(asking).await;
        failed += answers.iter().filter(|answer| answer.is_err()).count();
    }
    let said = warnings.load(Ordering::SeqCst);
    assert!(failed > 200, "{failed}");
    assert!((1..=3).contains(&said), "{said} warnings of {failed} failures");
}

/// Counts warnings.
struct Counting(Arc<AtomicU32>);

impl tracing::Subscriber for Counting {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("redeliver")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn r4_a_claim_whose_record_was_flushed_is_completed_all_the_same() {
    let server = Server::start();
    let (store, owner) = (server.store(), Owner::new());
    assert!(matches!(claim(&store, "a", &owner).await, ClaimAnswer::Granted(_)));
    server.cli(&["flushall"]);
    let (key, keep) = (claim_key("a"), Duration::from_secs(600));
    assert!(store.end(&key, &owner, &Ending::Complete(None), keep).await.expect("an answer"));
    assert_eq!(claim(&store, "a", &Owner::new()).await, ClaimAnswer::Done(None));
}

#[tokio::test]
async fn an_answer_that_was_lost_is_had_by_asking_again() {
    let server = Server::start();
    let (store, owner) = (server.store(), Owner::new());
    let ClaimAnswer::Granted(first) = claim(&store, "a", &owner).await else { panic!("not fresh") };
    // The connection dies after the server has done its part: the same question comes again.
    server.cli(&["client", "kill", "type", "normal"]);
    let again = claim(&store, "a", &owner).await;
    assert_eq!(again, ClaimAnswer::Granted(Claim { kind: ClaimKind::Fresh, ..first }));
}

#[tokio::test]
async fn r15_every_record_ends_by_itself() {
    let server = Server::start();
    let locks = locks(&server);
    let guard = have(&locks, "a").await;
    let waiter = locks.acquire("a").wait(Duration::from_millis(300)).await;
    waiter.expect_err("it is held");
    claim(&server.store(), "a", &Owner::new()).await;
    for key in server.cli(&["keys", "*"]).lines() {
        let lives: i64 = server.cli(&["pttl", key]).parse().expect("a number");
        assert!(lives > 0, "{key} lives for ever");
    }
    guard.release().await.expect("an answer");
}

#[tokio::test]
async fn a_hundred_thousand_keys_leave_nothing_in_the_process() {
    const NAME: &str = "a_hundred_thousand_keys_leave_nothing_in_the_process";
    const SERVER: &str = "REDELIVER_TEST_MANY_KEYS";
    if let Ok(url) = std::env::var(SERVER) {
        return use_many_keys(&url).await;
    }
    // In a process of its own: other tests would be weighed as well.
    let server = Server::start();
    let mut alone = std::process::Command::new(std::env::current_exe().expect("a path"));
    alone.args(["--exact", NAME, "--nocapture"]).env(SERVER, server.url());
    let status = redis::aside(move || alone.status().expect("it starts itself")).await;
    assert!(status.success());
}

async fn use_many_keys(url: &str) {
    let locks = locks_of(RedisStore::new(settings(url)).expect("settings"));
    let count = if std::env::var_os("REDELIVER_TEST_FULL").is_some() { 100_000 } else { 5_000 };
    // To keep the keys of the sample would take 40 MiB.
    let ending = "k".repeat(8 << 10);
    let mut last = Fence(0);
    let mut resident = 0;
    for key in 0..count + 500 {
        if key == 500 {
            // Buffers have grown to their size by now.
            resident = resident_bytes();
        }
        let guard = have(&locks, &format!("{key}-{ending}")).await;
        last = guard.fence().max(last);
        guard.release().await.expect("an answer");
    }
    assert_eq!(locks.leases(), 0);
    assert!(last > Fence(0));
    let grown = resident_bytes().saturating_sub(resident);
    assert!(grown < 16 << 20, "{count} keys left {grown} bytes");
}

/// What this process has in memory, as Linux counts it.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}
