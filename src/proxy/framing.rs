//! Guards how HTTP/1.1 requests are told apart: sees the plaintext before hyper does and refuses what two servers
//! could read differently (request smuggling).
//!
//! hyper takes a bare line feed for a line's end, lets Transfer-Encoding override Content-Length, and takes two equal
//! lengths for one; each is allowed by some RFC, and each lets a request hide from a proxy in front of us. Since a body here
//! always comes with one Content-Length, the rule is simple: a head of CRLF lines, then exactly that many bytes.
//! Called by `stream` on each read of an HTTP/1.1 connection; a [`Violation`] ends the connection with its answer.

use memchr::memchr;

use crate::problem::{Problem, TYPE_PREFIX};

#[cfg(any(test, fuzzing))]
pub mod fuzz;

/// The largest head, in bytes and in lines.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Request line, header lines and the empty line together.
    pub head_bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
}

impl Default for HeadLimits {
    /// A key of 1,024 bytes is 3 KiB when every byte is percent-encoded; tokens are below 1 KiB.
    fn default() -> Self {
        HeadLimits { head_bytes_max: 16 << 10, headers_max: 64 }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A line that ends without a carriage return, or has one inside.
    BareLineEnd,
    /// A header line that continues the one before.
    FoldedHeader,
    /// More than one Content-Length.
    TwoLengths,
    /// A Content-Length that is no decimal number.
    BadLength,
    /// Both Transfer-Encoding and Content-Length.
    LengthAndEncoding,
    /// Transfer-Encoding alone: a body without a length known beforehand.
    NoLength,
    /// More head than [`HeadLimits`] allow.
    HeadTooLarge,
}

impl Violation {
    /// What the client is told, and the explanation.
    #[must_use]
    pub fn problem(self) -> (Problem, &'static str) {
        match self {
            Violation::BareLineEnd => (Problem::BadFraming, "a line of the request's head does not end with CRLF"),
            Violation::FoldedHeader => (Problem::BadFraming, "a header is folded over several lines"),
            Violation::TwoLengths => (Problem::BadFraming, "the request has more than one Content-Length"),
            Violation::BadLength => (Problem::BadFraming, "the Content-Length is not a decimal number"),
            Violation::LengthAndEncoding => {
                (Problem::BadFraming, "the request has both Content-Length and Transfer-Encoding")
            }
            Violation::NoLength => (Problem::LengthRequired, "a body must come with a Content-Length, not chunked"),
            Violation::HeadTooLarge => (Problem::HeadTooLarge, "send fewer or shorter headers"),
        }
    }
}

/// A whole answer with problem details (RFC 9457), written outside hyper; the connection ends with it.
pub(super) fn problem_response(problem: Problem, detail: &str) -> String {
    let status = problem.status();
    let body = serde_json::json!({
        "type": format!("{TYPE_PREFIX}{}", problem.slug()),
        "title": problem.title(),
        "status": status.as_u16(),
        "detail": detail,
    })
    .to_string();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The problem to send in place of `head`, if that is hyper's own refusal of a request that it could not parse: a bare 4xx.
/// Whatever the service answers carries a request id or does not end the connection.
pub(super) fn instead_of(head: &[u8]) -> Option<Problem> {
    const BARE_BYTES_MAX: usize = 160;
    if !head.starts_with(b"HTTP/1.1 4") || head.len() > BARE_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(head).ok()?;
    let is_bare = text.ends_with("\r\n\r\n")
        && text.contains("\r\nconnection: close\r\n")
        && text.contains("\r\ncontent-length: 0\r\n")
        && !text.contains("x-request-id");
    let status = text.get(9..12)?;
    is_bare.then_some(if status == "431" { Problem::HeadTooLarge } else { Problem::BadFraming })
}

/// Follows one connection's requests.
pub(super) struct HeadGuard {
    limits: HeadLimits,
    state: State,
    /// The beginning of a line whose end has not arrived.
    partial_line: Vec<u8>,
}

enum State {
    Head(Head),
    Body { remaining_bytes: u64 },
}

/// What the lines of one head said so far.
#[derive(Default)]
struct Head {
    bytes: usize,
    lines: usize,
    length: Option<u64>,
    encoded: bool,
}

impl HeadGuard {
    pub(super) fn new(limits: HeadLimits) -> HeadGuard {
        HeadGuard { limits, state: State::Head(Head::default()), partial_line: Vec::new() }
    }

    /// Sees the next plaintext of the connection.
    ///
    /// # Errors
    /// The first [`Violation`]; the connection must not be read any further.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Body { remaining_bytes } => {
                    let here = bytes.len().min(usize::try_from(*remaining_bytes).unwrap_or(usize::MAX));
                    *remaining_bytes -= here as u64;
                    bytes = &bytes[here..];
                    if *remaining_bytes == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Head(head) => {
                    let line_bytes = memchr(b'\n', bytes).map(|at| at + 1);
                    let here = line_bytes.unwrap_or(bytes.len());
                    head.bytes += here;
                    if head.bytes > self.limits.head_bytes_max {
                        return Err(Violation::HeadTooLarge);
                    }
                    let ended = if line_bytes.is_none() {
                        self.partial_line.extend_from_slice(&bytes[..here]);
                        None
                    } else if self.partial_line.is_empty() {
                        head.line(&bytes[..here], self.limits)?
                    } else {
                        self.partial_line.extend_from_slice(&bytes[..here]);
                        let ended = head.line(&self.partial_line, self.limits)?;
                        self.partial_line = Vec::new();
                        ended
                    };
                    bytes = &bytes[here..];
                    if let Some(body_bytes) = ended {
                        self.state = match body_bytes {
                            0 => State::Head(Head::default()),
                            remaining_bytes => State::Body { remaining_bytes },
                        };
                    }
                }
            }
        }
        Ok(())
    }
}

impl Head {
    /// Takes one whole line with its end. The body's length when the line ended the head.
    fn line(&mut self, line: &[u8], limits: HeadLimits) -> Result<Option<u64>, Violation> {
        let Some(text) = line.strip_suffix(b"\r\n") else { return Err(Violation::BareLineEnd) };
        if memchr(b'\r', text).is_some() {
            return Err(Violation::BareLineEnd);
        }
        if text.is_empty() {
            // RFC 9112 §2.2: an empty line before a request line is to be ignored.
            return if self.lines == 0 { Ok(None) } else { self.end().map(Some) };
        }
        self.lines += 1;
        if self.lines == 1 {
            return Ok(None);
        }
        if self.lines > limits.headers_max + 1 {
            return Err(Violation::HeadTooLarge);
        }
        if text[0] == b' ' || text[0] == b'\t' {
            return Err(Violation::FoldedHeader);
        }
        match text[0] {
            b'c' | b'C' => {
                if let Some(value) = header_value(text, b"content-length") {
                    let length = parse_length(value).ok_or(Violation::BadLength)?;
                    if self.length.replace(length).is_some() {
                        return Err(Violation::TwoLengths);
                    }
                }
            }
            b't' | b'T' => self.encoded |= header_value(text, b"transfer-encoding").is_some(),
            _ => {}
        }
        Ok(None)
    }

    fn end(&self) -> Result<u64, Violation> {
        match (self.encoded, self.length) {
            (true, Some(_)) => Err(Violation::LengthAndEncoding),
            (true, None) => Err(Violation::NoLength),
            (false, length) => Ok(length.unwrap_or(0)),
        }
    }
}

/// The value of the header `name` if this line is one. White space before the colon is the name's (and hyper refuses it),
/// but a look-alike must not pass for another header here either.
fn header_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    line[..colon].trim_ascii().eq_ignore_ascii_case(name).then(|| line[colon + 1..].trim_ascii())
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(input: &str) -> Result<(), Violation> {
        HeadGuard::new(HeadLimits::default()).see(input.as_bytes())
    }

    /// Byte by byte must give the same verdict as all at once.
    fn seen(input: &str) -> Result<(), Violation> {
        let at_once = whole(input);
        let mut guard = HeadGuard::new(HeadLimits::default());
        let split = input.as_bytes().iter().try_for_each(|byte| guard.see(std::slice::from_ref(byte)));
        assert_eq!(at_once, split, "{input:?}");
        at_once
    }

    #[test]
    fn ordinary_requests_pass_also_pipelined() {
        let get = "GET /a HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nContent-Type: a\r\n\r\n";
        let put = "PUT /a HTTP/1.1\r\nhost: x\r\ncontent-LENGTH:  5 \r\n\r\na\nb\nc";
        assert_eq!(seen(get), Ok(()));
        assert_eq!(seen(&format!("\r\n{put}{get}{put}\r\n{get}")), Ok(()));
    }

    #[test]
    fn smuggling_shapes_are_refused() {
        for (request, violation) in [
            ("GET / HTTP/1.1\nHost: x\n\n", Violation::BareLineEnd),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", Violation::BareLineEnd),
            ("GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", Violation::BareLineEnd),
            ("GET / HTTP/1.1\r\nHost: x\r\n A: b\r\n\r\n", Violation::FoldedHeader),
            ("PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Violation::TwoLengths),
            ("PUT / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", Violation::TwoLengths),
            ("PUT / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", Violation::BadLength),
            ("PUT / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", Violation::BadLength),
            ("PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", Violation::BadLength),
            ("PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::LengthAndEncoding),
            (
                "PUT / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n",
                Violation::LengthAndEncoding,
            ),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::NoLength),
        ] {
            assert_eq!(seen(request), Err(violation), "{request:?}");
        }
    }

    #[test]
    fn a_request_hidden_behind_a_body_is_seen() {
        let hidden = "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\nHost: x\r\n\r\n";
        assert_eq!(seen(hidden), Err(Violation::BareLineEnd));
        let inside = "PUT / HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET / HTTP/1.1\nHost: x\r\n";
        assert_eq!(seen(inside), Ok(()));
    }

    #[test]
    fn only_bare_refusals_are_replaced() {
        let bare = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(instead_of(bare.as_bytes()), Some(Problem::BadFraming));
        assert_eq!(instead_of(bare.replace("400", "431").as_bytes()), Some(Problem::HeadTooLarge));
        assert_eq!(instead_of(bare.replace("date", "x-request-id").as_bytes()), None);
        assert_eq!(instead_of(bare.replace("connection: close", "a: b").as_bytes()), None);
        assert_eq!(instead_of(bare.replace("400", "200").as_bytes()), None);
        let response = problem_response(Problem::BadFraming, "why");
        assert!(
            response.starts_with("HTTP/1.1 400 Bad Request\r\n")
                && response.contains("urn:forebay:problem:bad-framing")
        );
    }

    #[test]
    fn a_header_flood_is_refused() {
        let many: String = (0..70).map(|n| format!("h{n}: x\r\n")).collect();
        assert_eq!(seen(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Err(Violation::HeadTooLarge));
        let long = "x".repeat(17 << 10);
        assert_eq!(whole(&format!("GET /{long}")), Err(Violation::HeadTooLarge));
        assert_eq!(whole(&format!("GET / HTTP/1.1\r\na: {long}\r\n\r\n")), Err(Violation::HeadTooLarge));
    }
}
