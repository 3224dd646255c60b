//! TLS for `amqps`: which authorities are trusted, and which certificate we show.
//!
//! Files are read at every connect, so that renewed certificates are taken without a restart. Verification
//! is left out only where the configuration says `insecure = true` itself.

use std::fmt::Display;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::config::Tls;

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What upgrades a connection as `tls` says; the error tells the file and what is wrong with it.
pub(super) fn connector(tls: &Tls) -> Result<RustlsConnector, String> {
    let identity = identity(tls)?;
    let refused = |error: &dyn Display| refused(tls, error);
    if tls.insecure {
        return insecure(identity).map_err(|error| refused(&error));
    }
    let mut roots = match &tls.ca {
        Some(_) => RustlsConnectorConfig::default(),
        None => RustlsConnectorConfig::new_with_native_certs().map_err(|error| {
            format!("reading the system's certificate authorities: {error}; set tls.ca")
        })?,
    };
    if let Some(ca) = &tls.ca {
        roots.add_parsable_certificates(certificates("tls.ca", ca)?);
    }
    match identity {
        Some((chain, key)) => roots.connector_with_single_cert(chain, key),
        None => roots.connector_with_no_client_auth(),
    }
    .map_err(|error| refused(&error))
}

/// Each file was readable, so that what does not fit is two of them together.
fn refused(tls: &Tls, error: &dyn Display) -> String {
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => format!(
            "tls.cert `{}` and tls.key `{}` cannot be used together: {error}; give a certificate and its own key",
            cert.display(),
            key.display()
        ),
        _ => error.to_string(),
    }
}

fn identity(tls: &Tls) -> Result<Option<Identity>, String> {
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Ok(Some((certificates("tls.cert", cert)?, private_key(key)?))),
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err("tls.cert is set but tls.key is not; set both or neither".to_owned())
        }
        (None, Some(_)) => {
            Err("tls.key is set but tls.cert is not; set both or neither".to_owned())
        }
    }
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("reading {setting} `{shown}`: {error}"))?;
    let found: Vec<_> = CertificateDer::pem_reader_iter(BufReader::new(file))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{setting} `{shown}` is not PEM: {error}"))?;
    match found.is_empty() {
        true => Err(format!("{setting} `{shown}` holds no certificate; it must be PEM")),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| format!("reading tls.key `{}`: {error}; it must be PEM", path.display()))
}

fn insecure(identity: Option<Identity>) -> Result<RustlsConnector, Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(crypto::ring::default_provider()));
    let verifier = AnyServer(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match identity {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    };
    Ok(config.into())
}

/// Takes whoever answers for the server; that it holds the key of the certificate it shows is still checked.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_with_the_key_of_another_names_both_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (rcgen::KeyPair::generate(), rcgen::KeyPair::generate());
        let (ours, theirs) = (ours.expect("a key"), theirs.expect("a key"));
        let parameters = rcgen::CertificateParams::new(vec!["orders".into()]).expect("parameters");
        let own = parameters.self_signed(&ours).expect("a certificate");
        let written = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let cert = written("cert.pem", own.pem());
        for insecure in [false, true] {
            let with = |key: &rcgen::KeyPair| Tls {
                ca: Some(cert.clone()),
                cert: Some(cert.clone()),
                key: Some(written("key.pem", key.serialize_pem())),
                insecure,
            };
            assert!(connector(&with(&ours)).is_ok(), "they belong together");
            let error = connector(&with(&theirs)).map(drop).expect_err("they do not");
            for name in ["tls.cert `", "cert.pem", "tls.key `", "key.pem", "its own key"] {
                assert!(error.contains(name), "{error}");
            }
        }
    }
}
