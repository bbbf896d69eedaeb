//! Reads responses off a connection's records: the head is decrypted and parsed, the body is counted by record headers,
//! and of a sampled response every byte is decrypted and compared.
//!
//! `load` owns one `ResponseReader` per connection and feeds it what the socket gave, in one buffer shared by all
//! connections: whole records are opened in place, bodies that are only counted are never copied.

use anyhow::{Context, Result, bail, ensure};

use crate::wire::{self, HEADER_BYTES, Kind, OVERHEAD_BYTES, Opener};

/// Headers of a response we are willing to look at.
const HEADERS_MAX: usize = 64;
/// The longest head we wait for.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What the reader knows about the bytes that were asked for.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// The length a good response must have.
    pub body_bytes: u64,
    /// Its bytes, if this response is to be verified.
    pub sample: Option<&'a [u8]>,
}

/// A response that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complete {
    pub status: u16,
    pub body_bytes: u64,
}

/// What we keep of the words that come with a failure.
const COMPLAINT_BYTES_MAX: usize = 300;

enum State {
    /// No request is under way.
    Idle,
    /// Gathering the head.
    Head,
    /// `left` bytes of the body are still to come.
    Body { status: u16, total: u64, left: u64 },
}

/// Reads the responses of one connection.
pub struct ResponseReader {
    opener: Opener,
    state: State,
    /// The beginning of a record: of its header, or of a record that must be whole to be opened.
    partial: Vec<u8>,
    /// Bytes still to come of a record that is only counted.
    skip_bytes: usize,
    /// The decrypted head so far.
    head: Vec<u8>,
    /// The beginning of the last body that came with no success.
    complaint: String,
}

impl ResponseReader {
    /// A reader for a connection that has just shaken hands.
    pub fn new(opener: Opener) -> Self {
        Self {
            opener,
            state: State::Idle,
            partial: Vec::new(),
            skip_bytes: 0,
            head: Vec::new(),
            complaint: String::new(),
        }
    }

    /// What the server said with the last response that was no success, as far as it stood beside the head.
    pub fn complaint(&self) -> &str {
        &self.complaint
    }

    /// Says that a request has been sent.
    pub fn begin(&mut self) {
        assert!(matches!(self.state, State::Idle), "one request at a time per connection");
        self.state = State::Head;
    }

    /// Takes bytes from the socket; returns the response once its last byte is among them.
    ///
    /// # Errors
    /// Anything that is not a well-formed response of known length, or differs from the sample.
    pub fn feed(&mut self, mut bytes: &mut [u8], expected: Expected<'_>) -> Result<Option<Complete>> {
        let mut complete = None;
        while !bytes.is_empty() {
            if self.skip_bytes > 0 {
                let skipped = self.skip_bytes.min(bytes.len());
                bytes = &mut bytes[skipped..];
                self.skip_bytes -= skipped;
                if self.skip_bytes == 0 {
                    complete = self.ended()?.or(complete);
                }
                continue;
            }
            let Some(header) = self.header(bytes) else {
                self.partial.extend_from_slice(bytes);
                break;
            };
            let record_bytes = HEADER_BYTES + wire::body_bytes(header)?;
            if self.only_counts(expected) {
                self.count(record_bytes)?;
                self.skip_bytes = record_bytes - self.partial.len();
                self.partial.clear();
                continue;
            }
            let missing = record_bytes - self.partial.len();
            if bytes.len() < missing {
                self.partial.extend_from_slice(bytes);
                break;
            }
            let (record, rest) = bytes.split_at_mut(missing);
            bytes = rest;
            self.take_record(record, expected)?;
            complete = self.ended()?.or(complete);
        }
        Ok(complete)
    }

    /// Decrypts a record that lies whole in `record`, or begins in `partial` and ends in it.
    fn take_record(&mut self, record: &mut [u8], expected: Expected<'_>) -> Result<()> {
        if self.partial.is_empty() {
            return self.take(record, expected);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(record);
        let taken = self.take(&mut whole, expected);
        whole.clear();
        self.partial = whole;
        taken
    }

    /// The header of the next record, from what was kept and what has come.
    fn header(&self, bytes: &[u8]) -> Option<[u8; HEADER_BYTES]> {
        let mut header = [0; HEADER_BYTES];
        for (slot, byte) in header.iter_mut().zip(self.partial.iter().chain(bytes)) {
            *slot = *byte;
        }
        (self.partial.len() + bytes.len() >= HEADER_BYTES).then_some(header)
    }

    /// Whether the next record is counted without being opened.
    fn only_counts(&self, expected: Expected<'_>) -> bool {
        matches!(self.state, State::Body { .. }) && expected.sample.is_none()
    }

    /// Counts a record of a body by its length alone.
    fn count(&mut self, record_bytes: usize) -> Result<()> {
        let plain_bytes = record_bytes.checked_sub(HEADER_BYTES + OVERHEAD_BYTES).context("a record without a tag")?;
        self.opener.skip();
        self.shorten(plain_bytes as u64)
    }

    /// Opens a whole record and takes its bytes as head or body.
    fn take(&mut self, record: &mut [u8], expected: Expected<'_>) -> Result<()> {
        let (kind, plain) = self.opener.open(record)?;
        match kind {
            Kind::Ticket => Ok(()),
            Kind::Close => bail!("the server closed the connection"),
            Kind::Data => match self.state {
                State::Idle => bail!("{} bytes that nobody asked for", plain.len()),
                State::Head => self.take_head(plain, expected),
                State::Body { status, total, left } => {
                    verify(plain, total - left, status, expected.sample)?;
                    self.shorten(plain.len() as u64)
                }
            },
        }
    }

    fn take_head(&mut self, plain: &[u8], expected: Expected<'_>) -> Result<()> {
        self.head.extend_from_slice(plain);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head_bytes) = parsed.parse(&self.head)? else {
            ensure!(self.head.len() < HEAD_BYTES_MAX, "a response head of more than {HEAD_BYTES_MAX} bytes");
            return Ok(());
        };
        let status = parsed.code.context("a response without status")?;
        let total = body_length(status, parsed.headers)?;
        if matches!(status, 200 | 206) {
            ensure!(
                total == expected.body_bytes,
                "{} bytes expected, Content-Length says {total}",
                expected.body_bytes
            );
        }
        let body = &self.head[head_bytes..];
        verify(body, 0, status, expected.sample)?;
        if !matches!(status, 200 | 206) {
            self.complaint = String::from_utf8_lossy(&body[..body.len().min(COMPLAINT_BYTES_MAX)]).into_owned();
        }
        let began_bytes = body.len() as u64;
        self.head.clear();
        self.state = State::Body { status, total, left: total };
        self.shorten(began_bytes)
    }

    fn shorten(&mut self, by: u64) -> Result<()> {
        let State::Body { left, .. } = &mut self.state else { bail!("a body before its head") };
        *left = left.checked_sub(by).context("the response is longer than its Content-Length")?;
        Ok(())
    }

    /// Ends the response if its last byte has come.
    fn ended(&mut self) -> Result<Option<Complete>> {
        let State::Body { status, total, left: 0 } = self.state else { return Ok(None) };
        self.state = State::Idle;
        Ok(Some(Complete { status, body_bytes: total }))
    }
}

/// The length of the body, from the head alone.
fn body_length(status: u16, headers: &[httparse::Header<'_>]) -> Result<u64> {
    let mut length = None;
    for header in headers {
        ensure!(
            !header.name.eq_ignore_ascii_case("transfer-encoding"),
            "the server sends {}: this generator needs a Content-Length (turn chunked responses off)",
            String::from_utf8_lossy(header.value)
        );
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value)?.trim().parse::<u64>().context("Content-Length")?;
            ensure!(length.replace(value).is_none_or(|before| before == value), "two different Content-Lengths");
        }
    }
    match status {
        100..200 => bail!("an interim response ({status})"),
        204 | 304 => Ok(0),
        _ => length.context("a response without Content-Length"),
    }
}

/// Compares a piece of a good response with what it must be.
fn verify(piece: &[u8], offset: u64, status: u16, sample: Option<&[u8]>) -> Result<()> {
    let (Some(sample), 200 | 206) = (sample, status) else { return Ok(()) };
    let start = usize::try_from(offset)?;
    let wanted = sample.get(start..start + piece.len()).context("the response is longer than its Content-Length")?;
    if piece != wanted {
        let at = piece.iter().zip(wanted).take_while(|(got, want)| got == want).count();
        bail!("WRONG BYTES: the body differs from what was written, first at offset {}", start + at);
    }
    Ok(())
}
