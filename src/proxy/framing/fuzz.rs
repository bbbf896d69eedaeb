//! What must hold of the guard, whatever a connection sends.
//!
//! Called by `ci/fuzz` and by the tests below. The reference is httparse, which is what hyper reads heads with: where the
//! guard lets a head pass, both must see the same end and the same length of the body, or one could hide a request from the
//! other.

use httparse::{EMPTY_HEADER, Request, Status};

use super::{HeadGuard, HeadLimits, State, Violation, instead_of};

/// Input: how many bytes arrive at once (1), then what a connection sends.
///
/// # Panics
/// If pieces get another verdict than the whole, the guard keeps more than a head, or hyper would read otherwise.
pub fn request_framing(data: &[u8]) {
    let _ = instead_of(data);
    let Some((piece_bytes, sent)) = data.split_first() else { return };
    let limits = HeadLimits { head_bytes_max: 1 << 10, headers_max: 8 };
    let at_once = HeadGuard::new(limits).see(sent);
    let mut guard = HeadGuard::new(limits);
    let in_pieces = sent.chunks(usize::from(*piece_bytes) + 1).try_for_each(|piece| {
        let seen = guard.see(piece);
        assert!(guard.partial_line.len() <= limits.head_bytes_max, "the guard keeps at most a head");
        seen
    });
    assert_eq!(at_once, in_pieces, "what arrives in pieces is the same request");
    let (heads, byte_by_byte) = heads(sent, limits);
    assert_eq!(at_once, byte_by_byte, "what arrives byte by byte is the same request");
    for head in heads {
        if !is_read_so_by_httparse(&sent[head.start..head.end], head.body_bytes) {
            // hyper refuses it, and the connection ends.
            break;
        }
    }
}

/// A head that the guard let pass.
struct Passed {
    start: usize,
    end: usize,
    body_bytes: u64,
}

/// The heads that pass, and the verdict.
fn heads(sent: &[u8], limits: HeadLimits) -> (Vec<Passed>, Result<(), Violation>) {
    let (mut guard, mut heads, mut start) = (HeadGuard::new(limits), Vec::new(), 0);
    for (at, byte) in sent.iter().enumerate() {
        let was_in_head = matches!(guard.state, State::Head(_));
        if let Err(violation) = guard.see(std::slice::from_ref(byte)) {
            return (heads, Err(violation));
        }
        match guard.state {
            State::Body { remaining_bytes } if was_in_head => {
                heads.push(Passed { start, end: at + 1, body_bytes: remaining_bytes });
            }
            State::Head(ref head) if head.bytes == 0 => {
                if was_in_head {
                    heads.push(Passed { start, end: at + 1, body_bytes: 0 });
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    (heads, Ok(()))
}

/// False if httparse refuses the head.
fn is_read_so_by_httparse(head: &[u8], body_bytes: u64) -> bool {
    let mut headers = [EMPTY_HEADER; 64];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Err(_) => return false,
        Ok(Status::Partial) => panic!("hyper waits for more of a head that the guard let pass"),
        Ok(Status::Complete(end)) => assert_eq!(end, head.len(), "hyper sees the head end elsewhere"),
    }
    let named = |name: &str| request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
    assert_eq!(named("transfer-encoding"), 0, "an encoding passed the guard");
    assert!(named("content-length") <= 1, "two lengths passed the guard");
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let text = length.map_or("0", |header| std::str::from_utf8(header.value).expect("digits passed the guard"));
    assert_eq!(text.trim().parse(), Ok(body_bytes), "hyper sees another length");
    true
}

/// Connections that send what clients send, and what smugglers do.
#[must_use]
pub fn request_framing_seeds() -> Vec<Vec<u8>> {
    let get = "GET /v1/ping HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nContent-Type: a\r\n\r\n";
    let put = "PUT /a HTTP/1.1\r\nhost: x\r\ncontent-LENGTH:  5 \r\n\r\na\nb\nc";
    let sent = [
        format!("\r\n{put}{get}{put}\r\n{get}"),
        "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\nHost: x\r\n\r\n".to_owned(),
        "PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "PUT / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: x\r\n A: b\r\n\r\n".to_owned(),
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n".to_owned(),
    ];
    sent.iter().map(|text| [&[6], text.as_bytes()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_reference_reads_the_heads_that_pass() {
        let sent = &request_framing_seeds()[0][1..];
        let (heads, verdict) = heads(sent, HeadLimits::default());
        assert_eq!((heads.len(), verdict), (4, Ok(())));
        assert!(heads.iter().all(|head| is_read_so_by_httparse(&sent[head.start..head.end], head.body_bytes)));
    }

    proptest! {
        #[test]
        fn changed_seeds_hold(seed in 0..6usize, at in any::<usize>(), bytes in prop::collection::vec(any::<u8>(), 0..6)) {
            let mut data = request_framing_seeds().swap_remove(seed);
            let at = at % data.len();
            data.splice(at..at, bytes);
            request_framing(&data);
        }

        #[test]
        fn lines_in_any_order_hold(lines in prop::collection::vec(0..12usize, 0..20)) {
            const LINES: [&str; 12] = [
                "GET / HTTP/1.1\r\n", "\r\n", "\n", "Host: x\r\n", "Content-Length: 7\r\n", "content-length:0\r\n", "\r",
                "Transfer-Encoding: chunked\r\n", " folded\r\n", "Content-Length : 2\r\n", "TE:\r\n", "x: y\n",
            ];
            let sent: String = lines.iter().map(|line| LINES[*line]).collect();
            request_framing(&[&[2], sent.as_bytes()].concat());
        }
    }
}
