//! As much HTTP/1.1 as asking an agent takes: one request on a connection that ends with it.

use std::io::{self, Read, Write};

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header's lines, in lower case.
    pub head: Vec<String>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// Whether the header says so, in lower case.
    pub fn says(&self, line: &str) -> bool {
        self.head.iter().any(|l| l == line)
    }
}

/// Sends one request and reads the answer to its end. `kind` is the body's content type.
pub fn ask(
    mut on: impl Read + Write,
    method: &str,
    path: &str,
    kind: &str,
    body: &[u8],
) -> io::Result<Answer> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: warren\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    on.write_all(head.as_bytes())?;
    // Who refuses a body need not read it.
    let _ = on.write_all(body);
    let mut bytes = Vec::new();
    match on.read_to_end(&mut bytes) {
        // A refused body that is not read ends in a reset, after the answer.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !bytes.is_empty() => {}
        read => drop(read?),
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.lines().skip(1).map(str::to_lowercase).collect(), body: body.to_owned() })
}
