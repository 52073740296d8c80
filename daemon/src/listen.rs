//! Owns the addresses to listen on: TCP and Unix sockets.
//!
//! Does not own what is served on them. There is no TLS yet, so data is served on
//! loopback only: whoever reaches a routable port would read every topic. Probes
//! and metrics tell no data and take no commands; a kubelet and a Prometheus
//! reach them at the Pod's address, so they may be served there when asked for.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Wait after a failed accept, as when the process is out of file handles: it fails
/// again at once until some are given back.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may reach what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Processes of this host, or of this Pod.
    Loopback,
    /// Whoever has a route.
    Anyone,
}

/// Where to listen: `IP:PORT`, or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix socket, made with mode 0600.
    Unix(PathBuf),
}

/// A text that is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address to listen on: {why}; give {wanted}")]
pub struct ListenAddressError {
    text: String,
    why: String,
    wanted: &'static str,
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    /// An address that only loopback reaches.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, Reach::Loopback)
    }
}

impl ListenAddress {
    /// Reads an address that `reach` allows.
    ///
    /// # Errors
    /// When it is none, or could be reached by more than `reach`.
    pub fn parse(text: &str, reach: Reach) -> Result<Self, ListenAddressError> {
        let wanted = match reach {
            Reach::Loopback => "IP:PORT on loopback, as 127.0.0.1:9095, or unix:/PATH",
            Reach::Anyone => "IP:PORT, as 127.0.0.1:9096 or 0.0.0.0:9096, or unix:/PATH",
        };
        let refuse = |why: String| Err(ListenAddressError { text: text.to_owned(), why, wanted });
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                refuse("the path of the socket is not absolute".to_owned())
            };
        }
        let numeric = text.replace("localhost:", "127.0.0.1:");
        match SocketAddr::from_str(&numeric) {
            Ok(address) if reach == Reach::Anyone || address.ip().is_loopback() => {
                Ok(Self::Tcp(address))
            }
            Ok(_) => refuse("it is not a loopback address, and there is no TLS yet".to_owned()),
            Err(error) => refuse(error.to_string()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listener that holds its address.
#[derive(Debug)]
pub enum Bound {
    /// On TCP, with the port that was given.
    Tcp(TcpListener, SocketAddr),
    /// On a Unix socket, whose file is removed with it.
    Unix(UnixListener, SocketFile),
}

/// A socket file, removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing to do about a failure: the next start removes a dead socket.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {source}; is another tierd running? choose another with --listen or --http"
)]
pub struct ListenError {
    /// The address.
    pub address: String,
    /// What the system says.
    pub source: std::io::Error,
}

impl ListenAddress {
    /// Binds the address.
    ///
    /// # Errors
    /// When the system refuses, or a living process holds the Unix socket.
    pub async fn bind(&self) -> Result<Bound, ListenError> {
        let bound = match self {
            Self::Tcp(address) => bind_tcp(*address).await,
            Self::Unix(path) => bind_unix(path).await,
        };
        bound.map_err(|source| ListenError { address: self.to_string(), source })
    }
}

async fn bind_tcp(address: SocketAddr) -> std::io::Result<Bound> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(Bound::Tcp(listener, address))
}

async fn bind_unix(path: &Path) -> std::io::Result<Bound> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if let Ok(found) = std::fs::symlink_metadata(path) {
        let alive = UnixStream::connect(path).await.is_ok();
        if alive || !found.file_type().is_socket() {
            return Err(std::io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Bound::Unix(listener, SocketFile(path.to_owned())))
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(_, address) => write!(f, "{address}"),
            Self::Unix(_, file) => write!(f, "unix:{}", file.0.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_absolute_sockets_are_addresses() {
        for good in ["127.0.0.1:9095", "localhost:0", "[::1]:9095", "unix:/run/tierd.sock"] {
            assert!(good.parse::<ListenAddress>().is_ok(), "{good}");
        }
    }

    #[test]
    fn what_could_be_reached_from_outside_is_refused_with_the_reason() {
        for bad in ["0.0.0.0:9095", "192.0.2.1:9095", "9095", "unix:tierd.sock", ""] {
            let error = bad.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:9095"), "{error}");
        }
    }

    #[test]
    fn probes_and_metrics_may_be_served_to_the_outside_when_asked_for() {
        for good in ["0.0.0.0:9096", "[::]:9096", "192.0.2.1:9096", "127.0.0.1:0", "unix:/s"] {
            assert!(ListenAddress::parse(good, Reach::Anyone).is_ok(), "{good}");
        }
        for bad in ["9096", "unix:s", "example.com:9096"] {
            let error = ListenAddress::parse(bad, Reach::Anyone).unwrap_err().to_string();
            assert!(error.contains("0.0.0.0:9096"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = ListenAddress::Unix(folder.path().join("tierd.sock"));
        let first = address.bind().await.unwrap();
        assert!(address.bind().await.is_err(), "a living socket was taken");
        let Bound::Unix(listener, file) = first else { panic!("not a Unix socket") };
        std::mem::forget(file);
        drop(listener);
        address.bind().await.unwrap();
    }
}
