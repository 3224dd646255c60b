//! What several test binaries share. Each uses a part of it.
#![allow(dead_code, reason = "a test binary uses a part of what is here")]

pub(crate) mod rabbitmq;
