//! Brokers and stores: kinds, addresses, and what belongs to which kind.

use super::super::{BrokerKind, StoreKind, Tls, Url};
use super::{Check, amqp};

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    for (name, broker) in &config.brokers {
        let table = format!("brokers.{name}");
        tls(check, &table, broker.tls.as_ref());
        if !check.kind_known(&table) {
            missing_kind(check, &table, "\"memory\", \"rabbitmq\" or \"kafka\"");
            continue;
        }
        let url = broker.url.as_ref();
        match broker.kind {
            BrokerKind::Memory => foreign(
                check,
                &table,
                "memory",
                &[
                    "url",
                    "url_file",
                    "password",
                    "password_file",
                    "tls",
                    "replication_min",
                    "in_sync_min",
                    "properties",
                ],
            ),
            BrokerKind::Rabbitmq => {
                address(check, &table, url, &["amqp", "amqps"], "amqp://HOST:5672/%2f");
                encrypted(check, &table, url, broker.tls.as_ref());
                let of_scheme = url.filter(|url| matches!(url.scheme(), Some("amqp" | "amqps")));
                for text in of_scheme.map(|url| amqp::problems(url.expose())).unwrap_or_default() {
                    check.say(&table, written(check, &table), &["kind"], text);
                }
                let keys = &["replication_min", "in_sync_min", "properties"];
                foreign(check, &table, "rabbitmq", keys);
            }
            BrokerKind::Kafka => {
                bootstrap(check, &table, url);
                foreign(check, &table, "kafka", &["password", "password_file"]);
            }
        }
    }
    stores(check);
}

const REDIS_SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];

fn stores(check: &mut Check<'_>) {
    let config = check.config;
    for (name, store) in &config.stores {
        let table = format!("stores.{name}");
        tls(check, &table, store.tls.as_ref());
        check.not_zero(&table, "deadline", store.deadline);
        prefix(check, &table, &store.prefix);
        if !check.kind_known(&table) {
            missing_kind(check, &table, "\"memory\" or \"redis\"");
            continue;
        }
        match store.kind {
            StoreKind::Memory => foreign(
                check,
                &table,
                "memory",
                &["url", "url_file", "password", "password_file", "tls", "replicas_min", "prefix"],
            ),
            StoreKind::Redis => {
                let url = store.url.as_ref();
                address(check, &table, url, &REDIS_SCHEMES, "redis://HOST:6379");
                encrypted(check, &table, url, store.tls.as_ref());
            }
        }
    }
}

/// Braces would put all keys of a cluster into one slot, and patterns would open more to a user than was meant.
fn prefix(check: &mut Check<'_>, table: &str, prefix: &str) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(is_plain) {
        let text = format!(
            "is {prefix:?}; use 1 to {PREFIX_BYTES_MAX} of letters, digits and - . _ : in it"
        );
        check.say(table, "prefix", &[], text);
    }
}

/// It stands in every key.
const PREFIX_BYTES_MAX: usize = 64;

/// A file must name the kind: one that is forgotten must not become a memory broker that loses everything.
fn missing_kind(check: &mut Check<'_>, table: &str, kinds: &str) {
    check.say(table, "kind", &[], format!("is missing; add kind = {kinds}"));
}

fn tls(check: &mut Check<'_>, table: &str, tls: Option<&Tls>) {
    let Some(tls) = tls else { return };
    if tls.cert.is_some() != tls.key.is_some() {
        let table = format!("{table}.tls");
        let (has, lacks) = if tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        check.say(
            &table,
            has,
            &[lacks],
            format!("is given without {lacks}; they only serve together"),
        );
    }
}

/// What says how to encrypt is not read where the url says not to.
fn encrypted(check: &mut Check<'_>, table: &str, url: Option<&Url>, tls: Option<&Tls>) {
    let plain = url.and_then(Url::scheme).and_then(|scheme| match scheme {
        "amqp" => Some(("amqp", "amqps")),
        "redis" => Some(("redis", "rediss")),
        "redis-sentinel" => Some(("redis-sentinel", "rediss-sentinel")),
        "redis-cluster" => Some(("redis-cluster", "rediss-cluster")),
        _ => None,
    });
    if let (Some((plain, encrypted)), Some(_)) = (plain, tls) {
        let url = written(check, table);
        let text = format!(
            "is given, but the url begins with {plain}://; write {encrypted}://, or remove tls"
        );
        check.say(table, "tls", &[url], text);
    }
}

fn foreign(check: &mut Check<'_>, table: &str, kind: &str, keys: &[&str]) {
    for key in keys {
        if check.given(table, key) {
            check.say(
                table,
                key,
                &["kind"],
                format!("means nothing for kind = {kind:?}; remove it"),
            );
        }
    }
}

fn address(check: &mut Check<'_>, table: &str, url: Option<&Url>, schemes: &[&str], example: &str) {
    let Some(url) = url else {
        return missing(check, table, example);
    };
    if !url.scheme().is_some_and(|scheme| schemes.contains(&scheme)) {
        let text =
            format!("does not begin with {}; write it like \"{example}\"", schemes.map_join());
        check.say(table, written(check, table), &["kind"], text);
    }
}

fn bootstrap(check: &mut Check<'_>, table: &str, url: Option<&Url>) {
    let Some(url) = url else {
        return missing(check, table, "HOST:9092,HOST:9092");
    };
    let is_address = |server: &str| {
        let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        port.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    };
    if url.expose().contains("://") || !url.expose().split(',').map(str::trim).all(is_address) {
        let text = "is no list of servers; write it like \"HOST:9092,HOST:9092\", users and passwords under properties";
        check.say(table, written(check, table), &["kind"], text);
    }
}

fn missing(check: &mut Check<'_>, table: &str, example: &str) {
    // A `url_file` that could not be read was complained about when it was read.
    if !check.given(table, "url") && !check.given(table, "url_file") {
        check.say(table, "url", &[], format!("is missing; add url = \"{example}\", or url_file"));
    }
}

/// Which of the two keys the url came from.
fn written(check: &Check<'_>, table: &str) -> &'static str {
    if check.given(table, "url_file") { "url_file" } else { "url" }
}

trait MapJoin {
    fn map_join(&self) -> String;
}

impl MapJoin for &[&str] {
    fn map_join(&self) -> String {
        self.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ")
    }
}
