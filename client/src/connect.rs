//! Owns endpoints: their spelling, and the connection behind them.

use std::sync::OnceLock;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint as Transport};

use crate::client::ClientOptions;
use crate::error::ArchiveError;

const UNDERSTOOD: &str = "this client understands http://HOST:PORT, HOST:PORT and unix:/PATH";

/// How long a silent connection is trusted before it is probed. Without probes
/// a peer that lost its power keeps every call waiting for its deadline.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a probe may stay unanswered before the connection is given up.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes under way for one answer before the daemon waits for us: two frames.
/// HTTP/2's own 64 KiB cost a round trip each.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Bytes under way on the connection: several answers at once.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// One daemon, connected to on the first call and again whenever the connection
/// breaks.
#[derive(Debug)]
pub(crate) struct Connection {
    name: String,
    transport: Transport,
    // Made on first use: a channel spawns onto the runtime it is made in, and a
    // broker builds its parts before, or outside of, that runtime.
    channel: OnceLock<Channel>,
}

impl Connection {
    pub(crate) fn new(endpoint: &str, options: &ClientOptions) -> Result<Self, ArchiveError> {
        let name = endpoint.trim().to_owned();
        let transport = transport(&name)?
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self { name, transport, channel: OnceLock::new() })
    }

    /// The endpoint as it was written.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Must be called within a Tokio runtime.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.get_or_init(|| self.transport.connect_lazy()).clone()
    }
}

fn transport(endpoint: &str) -> Result<Transport, ArchiveError> {
    let refuse = |why: &str| {
        Err(ArchiveError::invalid(format!("endpoint '{endpoint}' {why}; {UNDERSTOOD}")))
    };
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') {
            return refuse("has no absolute path");
        }
        return Transport::from_shared(format!("unix:{path}")).or_else(|_| refuse("is no path"));
    }
    let authority = match endpoint.split_once("://") {
        None => endpoint,
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(_) => return refuse("has an unknown scheme"),
    };
    let Ok(transport) = Transport::from_shared(format!("http://{authority}")) else {
        return refuse("is no address");
    };
    let uri = transport.uri();
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() {
        return refuse("lacks a host or a port");
    }
    if uri.path() != "/" || uri.query().is_some() {
        return refuse("has a path");
    }
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_endpoint_is_understood() {
        for endpoint in [
            "http://127.0.0.1:9095",
            "http://127.0.0.1:9095/",
            "localhost:9095",
            "[::1]:9095",
            "unix:/run/tierd.sock",
            "unix:///run/tierd.sock",
            " tierd:9095 ",
        ] {
            let connection = Connection::new(endpoint, &ClientOptions::default()).unwrap();
            assert_eq!(connection.name(), endpoint.trim());
        }
    }

    #[test]
    fn a_mistyped_endpoint_is_refused_with_the_right_spellings() {
        for endpoint in [
            "",
            "localhost",
            ":9095",
            "https://tierd:9095",
            "htp://tierd:9095",
            "http://tierd:9095/v1",
            "tierd:port",
            "unix:",
            "unix:run/tierd.sock",
        ] {
            let error = Connection::new(endpoint, &ClientOptions::default()).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, ArchiveError::Invalid { .. }), "{text}");
            assert!(text.contains(UNDERSTOOD) && text.contains(&format!("'{endpoint}'")), "{text}");
        }
    }
}
