//! As much of HTTP as it takes to tell a few lines: each connection is asked once, answered, and closed.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

use super::text;
use crate::control::Subject;

/// Bytes that a request may have.
const LONGEST: usize = 8192;
/// How long one who asks is waited for, to ask and to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before it is tried again to accept where there is no room for another descriptor.
const NO_ROOM: Duration = Duration::from_millis(250);

/// Answers whoever asks, one after the other.
pub(super) fn serve(listener: &TcpListener, subject: &Subject) {
    for client in listener.incoming() {
        match client {
            // Who is slow, or hangs up, is not answered.
            Ok(client) => drop(answer(client, subject)),
            Err(_) => std::thread::park_timeout(NO_ROOM),
        }
    }
}

fn answer(mut client: TcpStream, subject: &Subject) -> std::io::Result<()> {
    let Some(head) = head(&mut client)? else { return Ok(()) };
    let (status, body) = match request(&head) {
        Ok(()) => ("200 OK", text::of(subject)),
        Err(status) => (status, format!("{status}; the metrics are at /metrics\n")),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.set_write_timeout(Some(PATIENCE))?;
    client.write_all((head + &body).as_bytes())
}

/// The head of a request; `None` if it does not come in time, or is too long.
fn head(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && !head.windows(2).any(|end| end == b"\n\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > LONGEST {
            return Ok(None);
        }
        client.set_read_timeout(Some(left))?;
        let mut piece = [0; 1024];
        match client.read(&mut piece)? {
            0 => return Ok(None),
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    Ok(Some(head))
}

/// Whether it asks for the metrics; the status that says what is wrong if it does not.
fn request(head: &[u8]) -> Result<(), &'static str> {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).map_err(|_| "400 Bad Request")?.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(path), Some(version)) if version.starts_with("HTTP/1.") => {
            let path = path.split('?').next().unwrap_or_default();
            if path == "/metrics" { Ok(()) } else { Err("404 Not Found") }
        }
        (Some(_), Some(_), Some(version)) if version.starts_with("HTTP/") => Err("405 Method Not Allowed"),
        _ => Err("400 Bad Request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_asked_for_in_one_way() {
        for (head, answer) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], Ok(())),
            (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", Ok(())),
            (b"GET / HTTP/1.1\r\n\r\n", Err("404 Not Found")),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Err("405 Method Not Allowed")),
            (b"hello\n\n", Err("400 Bad Request")),
            (b"\xff\xfe x y\n\n", Err("400 Bad Request")),
        ] {
            assert_eq!(request(head), answer, "{}", String::from_utf8_lossy(head));
        }
    }
}
