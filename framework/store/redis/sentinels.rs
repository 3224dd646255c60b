//! Asks Sentinels which server is the master.
//!
//! Owns who is asked: all of them at once, so that one which is silent keeps nobody waiting. Keeps no connection to any, because
//! one that was half open would be silent as well.

use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, TlsCertificates,
    TlsMode,
};
use futures_util::future::select_ok;

pub(super) struct Sentinels {
    /// Where they are.
    pub(super) nodes: Vec<ConnectionAddr>,
    /// What they call the master.
    pub(super) master: String,
    /// Database, user and password at the master.
    pub(super) info: ConnectionInfo,
    pub(super) tls: Option<TlsMode>,
    pub(super) certificates: Option<TlsCertificates>,
}

impl Sentinels {
    /// Looks whether it can be used, without asking anybody.
    pub(super) fn checked(self) -> RedisResult<Self> {
        if self.master.is_empty() {
            let what = "the master's name is missing after the hosts";
            return Err(RedisError::from((ErrorKind::InvalidClientConfig, what)));
        }
        for node in &self.nodes {
            self.client(node)?;
        }
        Ok(self)
    }

    /// The first server that a Sentinel names and that says of itself that it is the master; the deadline is the caller's.
    pub(super) async fn master(&self) -> RedisResult<Client> {
        let asked = self.nodes.iter().map(|node| {
            Box::pin(async move {
                let mut client = self.client(node)?;
                client.async_get_client().await
            })
        });
        select_ok(asked).await.map(|(master, _)| master)
    }

    /// One Sentinel.
    fn client(&self, node: &ConnectionAddr) -> RedisResult<SentinelClient> {
        let redis = self.info.redis_settings();
        let only = [node.clone()];
        let mut builder =
            SentinelClientBuilder::new(only, &self.master, SentinelServerType::Master)?
                .set_client_to_redis_db(redis.db())
                .set_client_to_redis_tcp_settings(self.info.tcp_settings().clone());
        if let Some(user) = redis.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = redis.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(mode) = self.tls {
            builder =
                builder.set_client_to_redis_tls_mode(mode).set_client_to_sentinel_tls_mode(mode);
            if let Some(certificates) = &self.certificates {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        builder.build()
    }
}
