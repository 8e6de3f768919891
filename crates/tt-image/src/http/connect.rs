//! A connection to a server: to one of its addresses where it may be asked, encrypted and with a certificate that the host
//! trusts where its URL says `https`. It sends nothing of a request.

use super::{fetch, fetch_error, place};
use crate::ImageError;
use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Addresses of a name that are tried one after the other.
const ADDRESSES_MAX: usize = 4;
/// Where distributions keep the certificates of the authorities that the host trusts.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A connection, whether it is encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects to an address of the server's to which `home` may lead; answers which one that is.
pub(super) async fn connect(
    uri: &Uri,
    home: Option<IpAddr>,
    tls: Option<Arc<ClientConfig>>,
) -> Result<(IpAddr, Box<dyn Stream>), ImageError> {
    let failed = |error: io::Error| fetch_error(uri, &error);
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let addresses = tokio::net::lookup_host((host.as_str(), port)).await.map_err(failed)?;
    let mut error = fetch(&uri.to_string(), "its name has no address", true);
    for address in addresses.take(ADDRESSES_MAX) {
        let peer = address.ip();
        if !home.is_none_or(|home| place::may_lead(home, peer)) {
            let problem = format!("it was led to {peer}, which is not of the open network");
            error = fetch(&uri.to_string(), &problem, false);
            continue;
        }
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(why) => {
                error = failed(why);
                continue;
            }
        };
        let Some(config) = tls.filter(|_| is_tls) else { return Ok((peer, Box::new(stream))) };
        let name = ServerName::try_from(host.clone()).map_err(|e| failed(io::Error::other(e)))?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        let stream = connected.map_err(|error| match is_distrusted(&error) {
            true => {
                fetch(&uri.to_string(), &format!("this host does not trust it: {error}"), false)
            }
            false => failed(error),
        })?;
        return Ok((peer, Box::new(stream)));
    }
    Err(error)
}

/// Whether it is the certificate, which no retry makes better.
fn is_distrusted(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// A client of TLS that trusts whom the host trusts: the first bundle that is there.
pub(super) fn trusting() -> Result<Arc<ClientConfig>, ImageError> {
    let refused = |problem: String| ImageError::Format { what: "https".into(), problem };
    let Some(bundle) = BUNDLES.iter().find(|bundle| Path::new(bundle).exists()) else {
        let problem = "the host trusts nobody: run `apt-get install ca-certificates`".to_owned();
        return Err(refused(problem));
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(bundle)
        .map_err(|error| refused(format!("{bundle} can not be read: {error}")))?;
    // One that can not be read is one that is not trusted.
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, Error};

    #[test]
    fn a_certificate_that_is_not_trusted_does_not_become_better() {
        let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        assert!(is_distrusted(&tls(Error::InvalidCertificate(CertificateError::UnknownIssuer))));
        assert!(!is_distrusted(&tls(Error::HandshakeNotComplete)));
        assert!(!is_distrusted(&io::ErrorKind::ConnectionReset.into()));
    }
}
