//! Whether GitHub sent it: the HMAC-SHA256 of the body under a secret that only both know.

use std::env;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The webhook's secret. Never shown.
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    /// The variable `WEBHOOK_SECRET`.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let secret = env::var("WEBHOOK_SECRET").unwrap_or_default();
        if secret.is_empty() {
            // An empty one would let everybody in.
            return Err("set WEBHOOK_SECRET to the secret of the webhook at GitHub".to_owned());
        }
        let mac = Hmac::new_from_slice(secret.as_bytes());
        Ok(Self(mac.expect("an HMAC takes a key of any length")))
    }

    /// Whether `signature`, as it stands in `X-Hub-Signature-256`, is that of `body`.
    pub(crate) fn signed(&self, body: &[u8], signature: Option<&str>) -> bool {
        let given = signature.and_then(|text| text.strip_prefix("sha256="));
        let Some(given) = given.and_then(bytes_of) else { return false };
        // Compares in constant time: how long it takes tells nothing about the right signature.
        self.0.clone().chain_update(body).verify_slice(&given).is_ok()
    }
}

/// The bytes that 64 hexadecimal digits stand for.
fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, place) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[place..place + 2], 16).ok()?;
    }
    Some(bytes)
}
