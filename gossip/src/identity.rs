//! Who this host is: its certificate, its key, and the region's CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::id::{HostId, Region};

/// The DNS name in every host certificate: rustls wants a name to check, and the host's own is in
/// the `warren://` URI, read after the handshake.
pub const SERVER_NAME: &str = "warren.internal";

/// A host certificate with its key and the region's CA, checked against each other.
#[derive(Debug)]
pub struct Identity {
    /// The host's name.
    pub host: HostId,
    /// The region it belongs to.
    pub region: Region,
    /// When the certificate expires, in seconds since 1970.
    pub expires: i64,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Why an identity cannot be used: which file it is, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or unreadable, or has no PEM block of the kind needed.
    #[error(
        "{path} cannot be read: {error}; it must hold a {expected} in PEM form, as `warren region issue` writes it"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What went wrong.
        error: String,
    },
    /// The CA file holds something that is no CA certificate.
    #[error(
        "{path} is not a usable CA certificate: {error}; give the ca.pem that `warren region init` wrote"
    )]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// The certificate's time is over.
    #[error("{path} has expired; issue a new certificate with `warren region issue`")]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// The certificate's time has not come.
    #[error("{path} is not valid yet; check this machine's clock")]
    NotYetValid {
        /// The file.
        path: PathBuf,
    },
    /// Another CA has signed the certificate, or nobody.
    #[error(
        "{path} is not signed by the CA in {ca}; issue it with that region's CA, or give the CA that issued it"
    )]
    OtherCa {
        /// The file.
        path: PathBuf,
        /// The CA's file.
        ca: PathBuf,
    },
    /// The certificate cannot be used for another reason.
    #[error("{path} is not a usable host certificate: {error}; issue it with `warren region issue`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        error: String,
    },
    /// The key is another certificate's.
    #[error(
        "the key in {path} does not belong to the certificate in {cert}; give the two files that were issued together"
    )]
    OtherKey {
        /// The key's file.
        path: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// The certificate names no host.
    #[error(
        "{path} has no warren name (a URI `warren://<region>/<host>` and the DNS name {SERVER_NAME}); issue it with `warren region issue`"
    )]
    Nameless {
        /// The file.
        path: PathBuf,
    },
}

impl Identity {
    /// Reads and checks the three PEM files.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let roots = Arc::new(read_roots(ca)?);
        let chain = read_certificates(cert, "certificate")?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, "private key", error))?;
        let nameless = || IdentityError::Nameless { path: cert.into() };
        check_signed(&roots, &chain, ca, cert)?;
        CertifiedKey::from_der(chain.clone(), private.clone_key(), &provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    IdentityError::OtherKey { path: key.into(), cert: cert.into() }
                }
                error => unreadable(key, "private key", error),
            },
        )?;
        let leaf = chain.first().ok_or_else(nameless)?;
        let (region, host) = name_in(leaf).ok_or_else(nameless)?;
        let expires =
            X509Certificate::from_der(leaf).map_err(|_| nameless())?.1.validity().not_after.timestamp();
        Ok(Self { host, region, expires, roots, chain, key: private })
    }
}

/// The region and host a certificate names, if it is one of ours.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Option<(Region, HostId)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let (region, host) = uri.strip_prefix("warren://")?.split_once('/')?;
            Some((region.parse().ok()?, host.parse().ok()?))
        }
        _ => None,
    })
}

/// The one cryptography provider; never the process-wide default, which another crate may have set.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_roots(ca: &Path) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca, "CA certificate")? {
        roots
            .add(certificate)
            .map_err(|error| IdentityError::Ca { path: ca.into(), error: error.to_string() })?;
    }
    Ok(roots)
}

fn read_certificates(
    path: &Path,
    expected: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, expected, error))?;
    if certificates.is_empty() {
        return Err(unreadable(path, expected, "it has no PEM block CERTIFICATE"));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, expected: &'static str, error: impl ToString) -> IdentityError {
    IdentityError::Unreadable { path: path.into(), expected, error: error.to_string() }
}

/// Asks the verifier that the peers will ask, so that what passes here passes there.
fn check_signed(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
    ca: &Path,
    cert: &Path,
) -> Result<(), IdentityError> {
    let path = cert.to_path_buf();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|error| IdentityError::Ca { path: ca.into(), error: error.to_string() })?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(IdentityError::Nameless { path });
    };
    let name = ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name");
    match verifier.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(error)) => Err(match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                IdentityError::Expired { path }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                IdentityError::NotYetValid { path }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                IdentityError::OtherCa { path, ca: ca.into() }
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                IdentityError::Nameless { path }
            }
            error => IdentityError::Unusable { path, error: error.to_string() },
        }),
        Err(error) => Err(IdentityError::Unusable { path, error: error.to_string() }),
    }
}
