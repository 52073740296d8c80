use std::net::SocketAddr;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::listen::ListenAddress;

fn site() -> (Site, Arc<ManualClock>) {
    let clock = ManualClock::at(0);
    let as_clock = || -> Arc<dyn Clock> { Arc::<ManualClock>::clone(&clock) };
    let health = Health::new(as_clock());
    (Site { health, metrics: Metrics::new(as_clock()).unwrap() }, clock)
}

async fn get(site: &Site, path: &str) -> (u16, String) {
    let answer = site.answer(&Method::GET, path);
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn probes_follow_the_phases_of_a_daemon() {
    let (site, _) = site();
    for (step, live, ready, started) in
        [("starting", 200, 503, 503), ("serving", 200, 200, 200), ("draining", 200, 503, 200)]
    {
        match step {
            "serving" => site.health.serves(),
            "draining" => site.health.drains(),
            _ => {}
        }
        assert_eq!(get(&site, "/livez").await.0, live, "{step}");
        assert_eq!(get(&site, "/readyz").await, (ready, format!("{step}\n")));
        assert_eq!(get(&site, "/startupz").await, (started, format!("{step}\n")));
    }
}

#[tokio::test]
async fn a_stuck_loop_fails_liveness_alone_and_is_named() {
    let (site, clock) = site();
    site.health.serves();
    let scan = site.health.watch("scan", Duration::from_secs(30));
    clock.advance(Duration::from_secs(31));
    let (status, body) = get(&site, "/livez").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("scan made no progress for 31 s"), "{body}");
    assert_eq!(get(&site, "/readyz").await.0, 200);
    scan.touch();
    assert_eq!(get(&site, "/livez").await.0, 200);
}

#[tokio::test]
async fn what_is_not_here_or_not_a_question_is_refused_with_one_line() {
    let (site, _) = site();
    for path in ["/", "/healthz", "/metrics/", "/livez/x", ""] {
        let (status, body) = get(&site, path).await;
        assert_eq!(status, 404, "{path}");
        assert!(body.ends_with("/metrics\n") && body.lines().count() == 1, "{body}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let answer = site.answer(&method, "/metrics");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers()[ALLOW], "GET, HEAD");
    }
}

#[tokio::test]
async fn metrics_come_in_the_text_format() {
    let (site, _) = site();
    let answer = site.answer(&Method::GET, "/metrics");
    assert!(answer.headers()[CONTENT_TYPE].to_str().unwrap().contains("version=0.0.4"));
    assert!(get(&site, "/metrics").await.1.contains("tierd_build_info{version="));
}

/// What the server writes to one connection that sends `request`.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is cut with bytes unread may end in a reset.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn served() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let bound = "127.0.0.1:0".parse::<ListenAddress>().unwrap().bind().await.unwrap();
    let Bound::Tcp(_, address) = &bound else { panic!("not TCP") };
    let (address, stop) = (*address, CancellationToken::new());
    let server = tokio::spawn(serve(bound, site().0, stop.clone()));
    (address, stop, server)
}

#[tokio::test]
async fn a_head_request_gets_the_head_alone() {
    let (address, stop, server) = served().await;
    let answer = raw(address, "HEAD /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("content-length: 5\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    stop.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn nonsense_and_endless_heads_end_their_connection_only() {
    let (address, stop, server) = served().await;
    let answer = raw(address, "\0\0\0\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let endless = format!("GET /livez HTTP/1.1\r\nx: {}", "y".repeat(2 * HEAD_BYTES_MAX));
    let answer = raw(address, &endless).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = raw(address, "GET /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nlive\n"), "{answer}");
    stop.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_connections_that_are_kept_open() {
    let (address, stop, server) = served().await;
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let mut some = [0; 8];
    kept.read_exact(&mut some).await.unwrap();
    stop.cancel();
    server.await.unwrap();
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"live\n"));
}
