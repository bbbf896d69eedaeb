//! A store that misbehaves: a socket that answers each request by a given function. No S3 in it.
//!
//! Used by `faults`, `settling`, `pressure` and `signature`. Listens on a free port of loopback; stops, cuts its
//! connections and joins its threads when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One request: its head's lines and its body.
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What to do with the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next request may come.
    Keep,
    /// End it in good order.
    Close,
    /// Cut it: RST.
    Reset,
    /// Say nothing more until the other side leaves.
    Stall,
}

/// Answers a request (numbered over all connections) by raw bytes.
pub type Answer = dyn Fn(usize, &Request) -> (Vec<u8>, After) + Send + Sync;

/// The stop's own handle of a connection; emptied by a reset, which needs the last one.
type Slot = Arc<Mutex<Option<TcpStream>>>;

/// All connections ever accepted.
type Connections = Arc<Mutex<Vec<(Slot, JoinHandle<()>)>>>;

pub struct RawServer {
    pub endpoint: String,
    addr: std::net::SocketAddr,
    requests: Arc<AtomicUsize>,
    /// How many connections the other side left while we stalled.
    left: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    connections: Connections,
    accepting: Option<JoinHandle<()>>,
}

impl RawServer {
    pub fn start(answer: impl Fn(usize, &Request) -> (Vec<u8>, After) + Send + Sync + 'static) -> RawServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stopped = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(answer);
        let shared = (Arc::clone(&requests), Arc::clone(&left), Arc::clone(&stopped), Arc::clone(&connections));
        let accepting = std::thread::spawn(move || {
            let (requests, left, stopped, connections) = shared;
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                let (answer, requests, left) = (Arc::clone(&answer), Arc::clone(&requests), Arc::clone(&left));
                let slot: Slot = Arc::new(Mutex::new(Some(stream.try_clone().unwrap())));
                let own_slot = Arc::clone(&slot);
                let thread = std::thread::spawn(move || serve(stream, &own_slot, &*answer, &requests, &left));
                connections.lock().unwrap().push((slot, thread));
            }
        });
        let accepting = Some(accepting);
        RawServer { endpoint: format!("http://{addr}"), addr, requests, left, stopped, connections, accepting }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        let _ = self.accepting.take().map(JoinHandle::join);
        for (slot, thread) in self.connections.lock().unwrap().drain(..) {
            let _ = slot.lock().unwrap().take().map(|stream| stream.shutdown(Shutdown::Both));
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, slot: &Slot, answer: &Answer, requests: &AtomicUsize, left: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader) {
        let (bytes, after) = answer(requests.fetch_add(1, Ordering::SeqCst), &request);
        if stream.write_all(&bytes).is_err() {
            return;
        }
        match after {
            After::Keep => {}
            After::Close => return drop(stream.shutdown(Shutdown::Both)),
            After::Reset => {
                // Linger 0: close sends RST. The clones share the socket, so all of them must go.
                drop(slot.lock().unwrap().take());
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
            After::Stall => {
                let mut rest = Vec::new();
                let _ = reader.read_to_end(&mut rest);
                left.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let line = lines.next()?;
    let split = |line: String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let mut request = Request { line, headers: lines.map(split).collect(), body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// An answer with a body.
pub fn http(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {status}\r\n");
    let length = body.len().to_string();
    let has_length = headers.iter().any(|(name, _)| *name == "content-length");
    let length = (!has_length).then_some(("content-length", length.as_str()));
    for (name, value) in headers.iter().copied().chain(length) {
        answer += &format!("{name}: {value}\r\n");
    }
    let mut answer = (answer + "\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// An S3 error document.
pub fn error(status: &str, code: &str, message: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message><Resource>/r</Resource></Error>"
    );
    http(status, headers, body.as_bytes())
}
