//! Where Redis is, and how a connection to it is opened.
//!
//! Owns the three flavours of an address. Never retries and never shows a password: an error of
//! the client names hosts only.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionInfo, IntoConnectionInfo,
    Pipeline, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};

use super::RedisSettings;
use super::sentinels::Sentinels;
use crate::store::{StoreError, StoreFault};

/// Requests that may be on their way to the connection's task at once.
const REQUESTS_MAX: usize = 1024;

pub(super) enum Address {
    Server(Box<Client>),
    /// Asked anew for each connection: after a failover they name another master.
    Sentinel(Box<Sentinels>),
    Cluster {
        client: Box<ClusterClient>,
        nodes: Vec<Client>,
    },
}

/// An open connection; its clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) fn send<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    /// Sends commands together to where `key` lives; their answers in order.
    pub(super) async fn send_all(
        &mut self,
        key: &[u8],
        pipeline: &Pipeline,
    ) -> RedisResult<Vec<Value>> {
        match self {
            Self::Server(connection) => {
                connection.req_packed_commands(pipeline, 0, pipeline.len()).await
            }
            Self::Cluster(connection) => {
                let master = Route::with_key(key, SlotAddr::Master);
                let route = SingleNodeRoutingInfo::SpecificNode(master);
                connection.route_pipeline(pipeline.clone(), 0, pipeline.len(), route).await
            }
        }
    }
}

impl Address {
    /// # Errors
    /// [`StoreFault::Invalid`] with what is wrong and how it is written.
    pub(super) fn parse(settings: &RedisSettings) -> Result<Self, StoreError> {
        let parts = Parts::of(&settings.url).ok_or_else(|| {
            invalid(
                settings,
                "the address is none of redis://HOST:6379, redis-sentinel://HOST:26379/MASTER \
                 and redis-cluster://HOST:6379 (rediss for TLS)",
            )
        })?;
        let address = match parts.flavour {
            Flavour::Server => parts.server(settings),
            Flavour::Sentinel => parts.sentinel(settings),
            Flavour::Cluster => parts.cluster(settings),
        };
        address.map_err(|error| invalid(settings, &error.to_string()))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Opens a connection; the deadline is the caller's.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        // No limits of the client's own: its default of 500 ms would undercut ours.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(REQUESTS_MAX);
        match self {
            Self::Server(client) => {
                let open = client.get_multiplexed_async_connection_with_config(&config);
                Ok(Connection::Server(open.await?))
            }
            Self::Sentinel(sentinels) => {
                let master = sentinels.master().await?;
                let open = master.get_multiplexed_async_connection_with_config(&config);
                Ok(Connection::Server(open.await?))
            }
            Self::Cluster { client, .. } => {
                Ok(Connection::Cluster(client.get_async_connection().await?))
            }
        }
    }

    /// Opens a connection that is only listened to. In a cluster any node does: what is published
    /// on one is heard on all.
    pub(super) async fn listen(&self, attempt: usize) -> RedisResult<PubSub> {
        match self {
            Self::Server(client) => client.get_async_pubsub().await,
            Self::Sentinel(sentinels) => sentinels.master().await?.get_async_pubsub().await,
            Self::Cluster { nodes, .. } => nodes[attempt % nodes.len()].get_async_pubsub().await,
        }
    }
}

fn invalid(settings: &RedisSettings, what: &str) -> StoreError {
    let name = &settings.name;
    StoreError::new(StoreFault::Invalid, format!("cannot use store `{name}`: {what}"))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flavour {
    Server,
    Sentinel,
    Cluster,
}

/// An address taken apart: the client's own parser knows one host only.
struct Parts<'a> {
    flavour: Flavour,
    tls: bool,
    user: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (tls, flavour) = match scheme {
            "redis" => (false, Flavour::Server),
            "rediss" => (true, Flavour::Server),
            "redis-sentinel" => (false, Flavour::Sentinel),
            "rediss-sentinel" => (true, Flavour::Sentinel),
            "redis-cluster" => (false, Flavour::Cluster),
            "rediss-cluster" => (true, Flavour::Cluster),
            _ => return None,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let hosts: Vec<&str> = hosts.split(',').filter(|host| !host.is_empty()).collect();
        let is_one = flavour != Flavour::Server || hosts.len() == 1;
        (is_one && !hosts.is_empty()).then_some(Self { flavour, tls, user, hosts, path })
    }

    /// One of the hosts as the client's own kind of address.
    fn node(&self, host: &str, path: &str, insecure: bool) -> RedisResult<ConnectionInfo> {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let at = if self.user.is_empty() { "" } else { "@" };
        let trust = if self.tls && insecure { "#insecure" } else { "" };
        let url = format!("{scheme}://{}{at}{host}/{path}{trust}", self.user);
        let info = url.into_connection_info()?;
        Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    }

    fn client(&self, info: ConnectionInfo, settings: &RedisSettings) -> RedisResult<Client> {
        match (self.tls, certificates(settings)) {
            (true, Some(certificates)) => Client::build_with_tls(info, certificates),
            _ => Client::open(info),
        }
    }

    fn server(&self, settings: &RedisSettings) -> RedisResult<Address> {
        let info = self.node(self.hosts[0], self.path, settings.insecure)?;
        Ok(Address::Server(Box::new(self.client(info, settings)?)))
    }

    fn sentinel(&self, settings: &RedisSettings) -> RedisResult<Address> {
        let (master, database) = self.path.split_once('/').unwrap_or((self.path, "0"));
        let mut nodes = Vec::new();
        for host in &self.hosts {
            let host = if host.contains(':') { (*host).into() } else { format!("{host}:26379") };
            nodes.push(self.node(&host, "", settings.insecure)?.addr().clone());
        }
        let mode = if settings.insecure { TlsMode::Insecure } else { TlsMode::Secure };
        let sentinels = Sentinels {
            nodes,
            master: master.to_owned(),
            info: self.node(self.hosts[0], database, settings.insecure)?,
            tls: self.tls.then_some(mode),
            certificates: certificates(settings),
        };
        Ok(Address::Sentinel(Box::new(sentinels.checked()?)))
    }

    fn cluster(&self, settings: &RedisSettings) -> RedisResult<Address> {
        let (mut infos, mut nodes) = (Vec::new(), Vec::new());
        for host in &self.hosts {
            let info = self.node(host, "", settings.insecure)?;
            nodes.push(self.client(info.clone(), settings)?);
            infos.push(info);
        }
        let mut builder = ClusterClientBuilder::new(infos)
            .retries(4)
            .min_retry_wait(10)
            .max_retry_wait(100)
            .connection_timeout(settings.deadline)
            .response_timeout(settings.deadline)
            .overall_response_timeout(Some(settings.deadline + Duration::from_secs(1)));
        if let Some(certificates) = certificates(settings).filter(|_| self.tls) {
            builder = builder.certs(certificates);
        }
        Ok(Address::Cluster { client: Box::new(builder.build()?), nodes })
    }
}

fn certificates(settings: &RedisSettings) -> Option<TlsCertificates> {
    if settings.ca.is_none() && settings.identity.is_none() {
        return None;
    }
    let client_tls = settings
        .identity
        .clone()
        .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Some(TlsCertificates { client_tls, root_cert: settings.ca.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, flavour: Flavour, hosts: &[&str], path: &str) {
        let parts = Parts::of(url).expect("an address");
        assert_eq!((parts.flavour, &parts.hosts[..], parts.path), (flavour, hosts, path), "{url}");
        assert!(Address::parse(&RedisSettings::new("main", url)).is_ok(), "{url}");
    }

    #[test]
    fn a_server_is_an_address() {
        check("redis://127.0.0.1:6379/2", Flavour::Server, &["127.0.0.1:6379"], "2");
        check("rediss://app:p%40ss@cache", Flavour::Server, &["cache"], "");
    }

    #[test]
    fn sentinels_are_a_list_and_a_master() {
        check("redis-sentinel://a:1,b/mymaster", Flavour::Sentinel, &["a:1", "b"], "mymaster");
        check("redis-sentinel://u:p@a,b/m/3", Flavour::Sentinel, &["a", "b"], "m/3");
    }

    #[test]
    fn a_cluster_is_a_list() {
        check("redis-cluster://a:1,b:2,c:3", Flavour::Cluster, &["a:1", "b:2", "c:3"], "");
    }

    #[test]
    fn anything_else_is_refused_without_showing_it() {
        for url in
            ["http://u:hunter2@a", "redis://a,hunter2", "hunter2", "redis-sentinel://hunter2"]
        {
            let error = Address::parse(&RedisSettings::new("main", url)).err().expect(url);
            assert_eq!(error.fault, StoreFault::Invalid);
            assert!(!error.text.contains("hunter2"), "{error}");
        }
    }
}
