//! The API from the caller's side.

use std::path::PathBuf;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::Problem;
use crate::http::{self, Reply, Unanswered};

/// Longest wait for the agent's answer: above any bound of its own.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// Why a command failed, and with which exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { code: 1, message: message.into(), hint: None }
    }

    /// With another exit code.
    pub fn code(mut self, code: u8) -> Failure {
        self.code = code;
        self
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(format!("{error:#}"))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        let code = match problem.status {
            400 | 405 | 413 | 415 | 422 => 2,
            401 | 403 => 5,
            404 => 4,
            409 => 6,
            503 => 7,
            504 => 124,
            _ => 1,
        };
        Failure { code, message: problem.detail, hint: problem.hint }
    }
}

/// An agent's API.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent at a socket.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Reads something.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, Bytes::new())
    }

    /// Reads a text.
    pub fn text(&self, path: &str) -> Result<String, Failure> {
        let answer = self.send(Method::GET, path, Bytes::new())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Makes something.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::new(e.to_string()))?;
        self.call(Method::PUT, path, body.into())
    }

    /// Tells the agent something.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::new(e.to_string()))?;
        self.call(Method::POST, path, body.into())
    }

    /// Changes something.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::new(e.to_string()))?;
        self.call(Method::PATCH, path, body.into())
    }

    /// Ends something.
    pub fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(Method::DELETE, path, Bytes::new()).map(|_| ())
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let answer = self.send(method, path, body)?;
        serde_json::from_slice(&answer).map_err(|e| {
            Failure::new(format!("the agent's answer is not understood: {e}; is it of another version?"))
        })
    }

    fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        block_on(async {
            tokio::time::timeout(ANSWER_BOUND, self.exchange(method, path, body))
                .await
                .unwrap_or_else(|_| Err(Failure::new("the agent does not answer").code(124)))
        })?
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        let unreachable = |e: &dyn std::fmt::Display| {
            Failure::new(format!("no agent at {}: {e}", self.socket.display()))
                .code(3)
                .hint("start it with `warren agent`, or name its socket with --socket")
        };
        let request = http::ask(&self.socket, method, path, body).await;
        let Reply { status, body } = request.map_err(|e| match &e {
            Unanswered::Refused(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::new("the agent's socket is for root alone").code(5)
            }
            Unanswered::Malformed(e) => Failure::new(e.to_string()).code(2),
            e => unreachable(e),
        })?;
        if status.is_success() {
            return Ok(body);
        }
        Err(serde_json::from_slice::<Problem>(&body).map_or_else(
            |_| Failure::new(format!("the agent answered {status}")).code(code_of(status)),
            Failure::from,
        ))
    }
}

/// Runs what a command asks of others, to its end.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|e| Failure::new(format!("cannot start: {e}")))?.block_on(work))
}

fn code_of(status: StatusCode) -> u8 {
    if status.is_client_error() { 2 } else { 1 }
}
