//! One request to whoever serves HTTP on a Unix socket: this host's agent, a container engine.

use std::io;
use std::path::Path;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// An answer, whatever it says.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody listens there, or not to this user.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// The connection ended.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
    /// The request cannot be sent.
    #[error("{0}")]
    Malformed(#[from] hyper::http::Error),
}

/// Sends a request with a JSON body and reads the answer.
///
/// # Errors
/// See [`Unanswered`]. Nothing here bounds how long it takes.
pub async fn ask(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Reply, Unanswered> {
    let response = open(socket, method, path, body).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Reply { status, body })
}

/// Sends a request with a JSON body; what is answered may go on for ever.
///
/// # Errors
/// See [`Unanswered`]. Nothing here bounds how long it takes.
pub async fn open(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, Unanswered> {
    let stream = UnixStream::connect(socket).await.map_err(Unanswered::Refused)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "warren")
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    Ok(sender.send_request(request).await?)
}

/// A path segment with everything escaped that is not plain.
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
