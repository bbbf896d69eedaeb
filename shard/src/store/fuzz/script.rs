//! What the properties in `fuzz` stand on: an input read as a script, the frames it writes, and a disk of bytes.
//!
//! A script writes frames with the product's own encoder, most of them honest (the next of their chain, sum right), some
//! damaged in one named way. So the fuzzer never has to guess a checksum, and a property knows which frames must be read.
//! The disk checks the contract of the port: nobody reads beyond the end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, ready};
use std::rc::Rc;

use forebay_io::frame::{self, Chain, FRAME_HEADER_BYTES, FrameHead, FrameKind, frame_bytes};
use forebay_io::{Disk, DiskFile, IoError, OpenMode, ReadBuf, WriteBuf};

use super::super::record::Record;

/// The store of every script.
pub const STORE_ID: u64 = 0x5EED;

/// Takes fields off the front of an input; zeros when it has run out.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next number of up to eight bytes.
    pub fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The next `bytes`, or as many as are left.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A frame that a script wrote.
pub struct Written {
    /// Its number in its chain, as it says.
    pub sequence: u64,
    /// How many records it says to hold.
    pub record_count: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// As it lies on disk.
    pub bytes: Vec<u8>,
    /// The next of its chain, whole, of the right kind and store.
    pub is_honest: bool,
}

impl Written {
    /// The records of its payload, up to its count or to the first that is none.
    pub fn records(&self) -> Vec<Record> {
        let mut rest = &self.payload[..];
        (0..self.record_count).map_while(|_| Record::decode(&mut rest).ok()).collect()
    }
}

/// The frame that the script says next, after `chain`. One byte says what is done to it, one how many records it claims,
/// two how long its payload is.
pub fn next_frame(input: &mut Input<'_>, chain: &mut Chain, kind: FrameKind) -> Written {
    let (choice, claimed) = (input.byte(), input.byte());
    let payload_bytes = input.number(2) as usize;
    let payload = input.take(payload_bytes).to_vec();
    let count = if choice & 1 != 0 { u32::from(claimed) } else { whole_records(&payload) };
    let synced_through = chain.sequence.saturating_sub(u64::from(choice >> 1 & 3));
    let honest = chain.head(kind, count, synced_through);
    let (mut head, mut store_id) = (honest, STORE_ID);
    let fault = choice >> 4;
    match fault {
        1 => head.previous_sum ^= 1,
        2 => head.sequence += 1,
        3 => head.sequence -= 1,
        4 => head.kind = if kind == FrameKind::Footer { FrameKind::Journal } else { FrameKind::Footer },
        5 => store_id ^= 1,
        _ => {}
    }
    let mut bytes = sealed(store_id, head, &payload);
    if fault == 6 {
        let at = usize::from(claimed) % (FRAME_HEADER_BYTES + payload.len());
        bytes[at] ^= 0x10;
    }
    // The next frame follows this one, or the one that it stands in place of.
    if choice & 8 == 0 || !(1..=6).contains(&fault) {
        let mut there = vec![0; frame_bytes(payload.len())];
        chain.push(frame::encode(STORE_ID, honest, &payload, &mut there));
    }
    Written { sequence: head.sequence, record_count: count, payload, bytes, is_honest: !(1..=6).contains(&fault) }
}

/// A frame as it lies on disk.
pub fn sealed(store_id: u64, head: FrameHead, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; frame_bytes(payload.len())];
    frame::encode(store_id, head, payload, &mut bytes);
    bytes
}

fn whole_records(mut payload: &[u8]) -> u32 {
    let mut count = 0;
    while !payload.is_empty() && Record::decode(&mut payload).is_ok() {
        count += 1;
    }
    count
}

/// The bytes that make [`next_frame`] write an honest frame of these records.
pub fn said(records: &[Record]) -> Vec<u8> {
    let mut payload = Vec::new();
    records.iter().for_each(|record| record.encode(&mut payload));
    let len = u16::try_from(payload.len()).expect("a seed is short");
    [vec![0, 0], len.to_le_bytes().to_vec(), payload].concat()
}

/// A disk in memory without faults; whatever is there can be written over by hand.
#[derive(Clone, Default)]
pub struct BytesDisk(Rc<RefCell<HashMap<String, BytesFile>>>);

/// A file of a [`BytesDisk`].
#[derive(Clone)]
pub struct BytesFile(Rc<RefCell<Vec<u8>>>);

impl BytesFile {
    /// A file that holds `bytes`.
    pub fn of(bytes: Vec<u8>) -> BytesFile {
        BytesFile(Rc::new(RefCell::new(bytes)))
    }

    /// Writes by hand.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl BytesDisk {
    /// Makes or replaces a file by hand.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.put_file(name, BytesFile::of(bytes));
    }

    /// Puts a file there that somebody goes on writing.
    pub fn put_file(&self, name: &str, file: BytesFile) {
        self.0.borrow_mut().insert(name.to_owned(), file);
    }
}

impl Disk for BytesDisk {
    type File = BytesFile;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<BytesFile, IoError> {
        if let OpenMode::Create(bytes) | OpenMode::Replace(bytes) = mode {
            self.put(name, vec![0; bytes as usize]);
        }
        self.0.borrow().get(name).cloned().ok_or_else(|| IoError::Missing { name: name.to_owned() })
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        WriteBuf::on_heap(len)
    }
}

impl DiskFile for BytesFile {
    fn len_bytes(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        let bytes = self.0.borrow();
        let end = at.checked_add(len as u64).filter(|end| *end <= bytes.len() as u64);
        assert!(end.is_some() && len > 0, "a read of {len} bytes at {at} of {}", bytes.len());
        Ok(ReadBuf::copy_of(&bytes[at as usize..at as usize + len]))
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        self.put(at, &buf);
        ready(Ok(()))
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        ready(Ok(()))
    }
}
