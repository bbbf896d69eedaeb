//! What only the ring can do: refuse a file system without direct I/O, and serve sockets. One executor per test, on
//! loopback, against clients that are plain threads. What ring and simulator
//! share is in `contract.rs`.

#![allow(clippy::unwrap_used)]

use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use forebay_io::IoError;
use forebay_io::ring::{ArenaConfig, Listener, RingDisk, Socket};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const ARENA: ArenaConfig = ArenaConfig { bytes: 1 << 20 };

fn run<T>(body: impl Future<Output = T>) -> T {
    let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound);
    builder.io_memory(ARENA.io_memory_bytes()).make().unwrap().run(body)
}

async fn write_all(socket: &mut Socket, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let sent = poll_fn(|cx| socket.poll_write_vectored(cx, slices)).await?;
        assert!(sent > 0, "a write that is not empty writes");
        IoSlice::advance_slices(&mut slices, sent);
    }
    Ok(())
}

async fn read_to_end(socket: &mut Socket) -> Vec<u8> {
    let (mut all, mut part) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match poll_fn(|cx| socket.poll_read(cx, &mut part)).await.unwrap() {
            0 => return all,
            got => all.extend_from_slice(&part[..got]),
        }
    }
}

#[test]
fn a_file_system_in_memory_is_refused() {
    let shm = Path::new("/dev/shm");
    // Some containers have none; the contract then rests on the statfs magic alone.
    let is_tmpfs =
        std::fs::read_to_string("/proc/mounts").unwrap().lines().any(|line| line.starts_with("tmpfs /dev/shm "));
    if !is_tmpfs {
        eprintln!("skipped: /dev/shm is no tmpfs here");
        return;
    }
    let error = run(RingDisk::open(shm, ARENA)).err().unwrap();
    assert!(matches!(error, IoError::NoDirectIo { .. }), "{error:?}");
    assert!(!shm.join(".forebay-probe").exists(), "it was refused before anything was written");
}

#[test]
fn a_missing_directory_is_told() {
    let error = run(RingDisk::open(Path::new("/nowhere/at/all"), ARENA)).err().unwrap();
    assert!(matches!(&error, IoError::Missing { name } if name == "/nowhere/at/all"), "{error:?}");
}

#[test]
fn a_directory_opens_amid_signals() {
    // While a signal is pending the kernel makes no worker for the ring, and several attempts later it cancels what the
    // worker was for. A signal that is ignored would not be pending.
    signal_hook::flag::register(signal_hook::consts::SIGURG, Arc::default()).unwrap();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for _ in 0..20 {
        let (begins, has_begun) = mpsc::channel();
        let path = dir.path().to_owned();
        let opening = thread::spawn(move || {
            run(async {
                begins.send(()).unwrap();
                RingDisk::open(&path, ARENA).await.map(drop)
            })
        });
        has_begun.recv().unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(60) && !opening.is_finished() {
            pthread_kill(opening.as_pthread_t(), Signal::SIGURG).unwrap();
        }
        opening.join().unwrap().unwrap();
    }
}

#[test]
fn vectored_writes_arrive_whole_and_in_order() {
    // Far more than any send buffer, in slices of all sizes, some empty: sendmsg fills up and the ring must wake us.
    let parts: Vec<Vec<u8>> = (0..400u32).map(|n| vec![(n % 251) as u8; (n as usize * 977) % 200_000]).collect();
    let want: Vec<u8> = parts.concat();
    let total = want.len();
    run(async move {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"go").unwrap();
            let (mut all, mut part) = (Vec::with_capacity(total), vec![0; 10_000]);
            loop {
                match stream.read(&mut part).unwrap() {
                    0 => return (all, stream.local_addr().unwrap()),
                    got => all.extend_from_slice(&part[..got]),
                }
            }
        });
        let mut socket = listener.accept().await.unwrap();
        let peer = socket.peer_addr().unwrap();
        let mut go = [0; 2];
        assert_eq!(poll_fn(|cx| socket.poll_read(cx, &mut go)).await.unwrap(), 2);
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        write_all(&mut socket, &slices).await.unwrap();
        assert_eq!(poll_fn(|cx| socket.poll_write_vectored(cx, &[IoSlice::new(b"")])).await.unwrap(), 0);
        poll_fn(|cx| socket.poll_close(cx)).await.unwrap();
        assert!(read_to_end(&mut socket).await.is_empty(), "the client closes when it has all");
        let (got, client_address) = client.join().unwrap();
        assert!(got == want, "{} of {total} bytes", got.len());
        assert_eq!(peer, client_address);
    });
}

#[test]
fn two_sockets_of_one_executor_echo() {
    run(async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let address = listener.local_addr().unwrap();
        let server = glommio::spawn_local(async move {
            let mut socket = listener.accept().await.unwrap();
            let all = read_to_end(&mut socket).await;
            write_all(&mut socket, &[b"<", &all, b">"]).await.unwrap();
        });
        let mut socket = Socket::connect(address).await.unwrap();
        assert_eq!(socket.peer_addr().unwrap(), address);
        write_all(&mut socket, &[b"fore", b"bay"]).await.unwrap();
        poll_fn(|cx| socket.poll_close(cx)).await.unwrap();
        assert_eq!(read_to_end(&mut socket).await, b"<forebay>");
        server.await;
    });
}

#[test]
fn a_gone_peer_is_an_error_not_a_signal() {
    run(async {
        let listener = Listener::bind(LOOPBACK).unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || drop(TcpStream::connect(address).unwrap()));
        let mut socket = listener.accept().await.unwrap();
        client.join().unwrap();
        let block = vec![0; 64 << 10];
        let error = loop {
            // The first write may still be taken; the reset that answers it fails a later one.
            if let Err(error) = write_all(&mut socket, &[&block]).await {
                break error;
            }
            glommio::timer::sleep(Duration::from_millis(1)).await;
        };
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error:?}");
    });
}

#[test]
fn executors_share_a_port_and_a_taken_one_is_told() {
    run(async {
        let first = Listener::bind(LOOPBACK).unwrap();
        let address = first.local_addr().unwrap();
        let second = Listener::bind(address).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        let plain = std::net::TcpListener::bind(LOOPBACK).unwrap();
        let error = Listener::bind(plain.local_addr().unwrap()).err().unwrap();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::AddrInUse, Some(98)));
    });
}
