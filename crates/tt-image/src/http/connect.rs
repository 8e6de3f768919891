//! A connection to a server: to one of its addresses where it may be asked, encrypted and with a certificate that the host
//! trusts where its URL says `https`. It sends nothing of a request.

use super::place::{self, Peer};
use super::{fetch, fetch_error};
use crate::ImageError;
use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
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

/// Connects to an address of the server's to which `home` may lead, within `patience`; answers which one that is.
pub(super) async fn connect(
    uri: &Uri,
    home: Option<Peer>,
    tls: Option<Arc<ClientConfig>>,
    patience: Duration,
) -> Result<(Peer, Box<dyn Stream>), ImageError> {
    let begin = Instant::now();
    let failed = |error: io::Error| fetch_error(uri, &error);
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let addresses = tokio::net::lookup_host((host.as_str(), port)).await.map_err(failed)?;
    let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
    let server = Server { uri, host: &host, tls: tls.filter(|_| is_tls) };
    server.first_of(&addresses, home, patience.saturating_sub(begin.elapsed())).await
}

/// Who is connected to.
struct Server<'a> {
    uri: &'a Uri,
    host: &'a str,
    tls: Option<Arc<ClientConfig>>,
}

impl Server<'_> {
    /// The first of the addresses that answers. Each has its share of what is left of the time, so that a silent one leaves
    /// enough for the others.
    async fn first_of(
        &self,
        addresses: &[SocketAddr],
        home: Option<Peer>,
        patience: Duration,
    ) -> Result<(Peer, Box<dyn Stream>), ImageError> {
        let begin = Instant::now();
        let url = self.uri.to_string();
        let mut error = fetch(&url, "its name has no address", true);
        for (number, address) in addresses.iter().enumerate() {
            let peer = Peer { address: *address, is_own: is_own(*address) };
            if !home.is_none_or(|home| place::may_lead(home, peer)) {
                let problem = format!(
                    "it was led to {address}, which is not of the open network, nor who leads there"
                );
                error = fetch(&url, &problem, false);
                continue;
            }
            let left = patience.saturating_sub(begin.elapsed());
            let share = left / u32::try_from(addresses.len() - number).unwrap_or(u32::MAX);
            error = match tokio::time::timeout(share, self.reach(*address)).await {
                Ok(Ok(stream)) => return Ok((peer, stream)),
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => fetch(&url, &format!("no answer of {address} within its time"), true),
            };
        }
        Err(error)
    }

    async fn reach(&self, address: SocketAddr) -> Result<Box<dyn Stream>, ImageError> {
        let failed = |error: io::Error| fetch_error(self.uri, &error);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        let Some(config) = self.tls.clone() else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.to_owned());
        let name = name.map_err(|e| failed(io::Error::other(e)))?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        let stream = connected.map_err(|error| match is_distrusted(&error) {
            true => {
                let problem = format!("this host does not trust it: {error}");
                fetch(&self.uri.to_string(), &problem, false)
            }
            false => failed(error),
        })?;
        Ok(Box::new(stream))
    }
}

/// Whether this host has the address: the kernel would send to it from itself. Connecting a socket of datagrams sends nothing.
fn is_own(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let from = match ip.is_ipv4() {
        true => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        false => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let to = match address {
        SocketAddr::V6(_) if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        to => to,
    };
    let from = from.and_then(|socket| socket.connect(to).and_then(|()| socket.local_addr()));
    from.is_ok_and(|from| from.ip() == ip)
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
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use rustls::{CertificateError, Error};
    use std::os::fd::OwnedFd;

    /// Nobody takes connections there, and there is no room for one that waits.
    fn silent() -> (Vec<OwnedFd>, SocketAddr) {
        use rustix::net::{
            AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, listen,
        };
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::STREAM;
            rustix::net::socket_with(AddressFamily::INET, kind, flags, None).unwrap()
        };
        let listener = socket();
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let waits = socket();
            let _ = connect(&waits, &address);
            held.push(waits);
        }
        (held, address)
    }

    #[test]
    fn a_silent_address_leaves_time_for_the_others() {
        let (_held, silent) = silent();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let answers = listener.local_addr().unwrap();
        let uri: Uri = "http://a.org/x".parse().unwrap();
        let server = Server { uri: &uri, host: "a.org", tls: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first_of = |addresses: &[SocketAddr], millis| {
            let patience = Duration::from_millis(millis);
            runtime
                .block_on(server.first_of(addresses, None, patience))
                .map(|(peer, _)| peer.address)
        };
        assert_eq!(first_of(&[silent, answers], 2000).unwrap(), answers);
        let error = first_of(&[silent, silent], 400).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("no answer of"), "{error}");
        let refused = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(first_of(&[refused, silent, answers], 3000).unwrap(), answers);
    }

    #[test]
    fn the_hosts_own_addresses_are_known_whatever_they_are() {
        let run = || {
            // SAFETY: only the network namespace of the test's own thread changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let ip = |args: &[&str]| {
                let done = std::process::Command::new("ip").args(args).status().unwrap();
                assert!(done.success(), "{args:?}");
            };
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", "93.184.216.34/32", "dev", "lo"]);
            let is = |text: &str| is_own(SocketAddr::new(text.parse().unwrap(), 80));
            for own in ["93.184.216.34", "127.0.0.1", "::1", "::ffff:93.184.216.34"] {
                assert!(is(own), "{own}");
            }
            for other in ["93.184.216.35", "10.0.0.1", "2606:4700::1111"] {
                assert!(!is(other), "{other}");
            }
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }

    #[test]
    fn a_certificate_that_is_not_trusted_does_not_become_better() {
        let tls = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        assert!(is_distrusted(&tls(Error::InvalidCertificate(CertificateError::UnknownIssuer))));
        assert!(!is_distrusted(&tls(Error::HandshakeNotComplete)));
        assert!(!is_distrusted(&io::ErrorKind::ConnectionReset.into()));
    }
}
