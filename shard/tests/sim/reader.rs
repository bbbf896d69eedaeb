//! Reads as the proxy does them: pieces through a read-only handle of its own, verified, rot reported and repaired within
//! the request, whole blocks offered to the memory tier; ranges, and requests whose client goes away.
//!
//! Used by `client` and `run`. Everything that is read must be one of the versions of its key (I8).

use bytes::Bytes;
use forebay_io::sim::{SimDisk, SimFile};
use forebay_io::units::PIECE_BYTES;
use forebay_io::{Disk, OpenMode};
use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Etag, OriginError};
use forebay_shard::outcome::{FillStream, Got, Located};
use forebay_shard::read::{BlockReader, ReadError};
use futures::StreamExt;
use futures::future::{Either, select};

use super::history;
use super::machine::{SLAB, SimShard};
use super::model::{State, States};
use super::plan::DiskMode;
use super::universe::Universe;

/// What a read tells.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// The key is in one of these states.
    Shows(States),
    /// Reported as lost.
    Lost,
    /// Declined or failed.
    Nothing,
}

impl Answer {
    fn one(state: State) -> Answer {
        Answer::Shows(States::one(state))
    }

    pub fn words(self) -> &'static str {
        match self {
            Answer::Shows(states) if states == States::one(None) => "read: absent",
            Answer::Shows(_) => "read: a block (version bits, read id)",
            Answer::Lost => "read: lost",
            Answer::Nothing => "read: declined or failed",
        }
    }
}

/// Reads through one handle of the slab of each disk.
pub struct Reader {
    shard: SimShard,
    /// By the disks' numbers; `None`: it is away.
    disks: Vec<Option<(SimDisk, SimFile)>>,
    mode: DiskMode,
}

/// How often one request meets rot before it gives up.
const TRIES: usize = 4;

impl Reader {
    /// Opens the slabs of the disks that are here.
    pub async fn new(shard: SimShard, disks: Vec<Option<SimDisk>>, mode: DiskMode) -> Reader {
        let mut opened = Vec::with_capacity(disks.len());
        for disk in disks {
            opened.push(match disk {
                Some(disk) => {
                    let slab = disk.open(SLAB, OpenMode::Read).await.expect("the slab is there");
                    Some((disk, slab))
                }
                None => None,
            });
        }
        Reader { shard, disks: opened, mode }
    }

    fn disk(&self, number: u16) -> &(SimDisk, SimFile) {
        self.disks[usize::from(number)].as_ref().expect("nothing is located on a disk that is not here")
    }

    fn block_reader(&self, located: Located) -> BlockReader<SimFile> {
        BlockReader::new(self.disk(located.pin.disk).1.clone(), located)
    }

    /// Pinned bytes are those of their record, unless the disk itself rots.
    fn meets_rot(&self, index: usize) {
        if self.mode != DiskMode::Lying {
            history::violation(index, "I1, I7: a reader met other bytes than those it has pinned");
        }
    }

    /// A whole GET.
    pub async fn read(&self, universe: &Universe, index: usize) -> Answer {
        let key = universe.key(index);
        for _ in 0..TRIES {
            match self.shard.get(key).await {
                Got::Memory(hit) => return whole(universe, index, &hit.body, Some(&hit.etag)),
                Got::Disk(located) => {
                    let (generation, pin, etag) = (located.generation, located.pin, located.etag.clone());
                    let read = self.read_located(located).await;
                    self.shard.unpin(pin);
                    match read {
                        Ok(body) => {
                            let answer = whole(universe, index, &body, etag.as_ref());
                            let etag = etag.unwrap_or_else(|| Etag::Digest(digest_of(universe, index, &body)));
                            self.shard.offer_memory(key, generation, body, etag);
                            return answer;
                        }
                        Err(ReadError::Rot { .. }) => {
                            self.meets_rot(index);
                            self.shard.report_rot(key, generation).await;
                        }
                        // As the proxy does: the request goes on with what the owner says next.
                        Err(ReadError::Disk(_)) => self.shard.report_rot(key, generation).await,
                    }
                }
                Got::Fill(stream) => {
                    let (len_bytes, etag) = (stream.len_bytes, stream.etag.clone());
                    return match collect(index, stream, usize::MAX).await {
                        Err(_) => Answer::Nothing,
                        Ok(body) if body.len() as u64 == len_bytes => whole(universe, index, &body, Some(&etag)),
                        Ok(_) => history::violation(index, "I8: a short body with a good end"),
                    };
                }
                other => return bodiless(&other),
            }
        }
        Answer::Nothing
    }

    /// A GET of a range: of a block on disk one piece is read, of a fill the beginning is taken.
    pub async fn read_range(&self, universe: &Universe, index: usize, at: u64) -> Answer {
        let (len_bytes, at, bytes) = match self.shard.get(universe.key(index)).await {
            Got::Memory(hit) => {
                let at = (at % (hit.body.len() as u64 + 1)) as usize;
                (hit.body.len() as u64, at, hit.body.slice(at..))
            }
            Got::Disk(located) => {
                let (pin, len_bytes) = (located.pin, u64::from(located.len_bytes));
                let reader = self.block_reader(located);
                let piece = (at % reader.piece_count() as u64) as usize;
                let read = reader.piece(piece).await;
                self.shard.unpin(pin);
                match read {
                    Ok(bytes) => (len_bytes, piece * PIECE_BYTES, Bytes::copy_from_slice(&bytes)),
                    Err(ReadError::Rot { .. }) => {
                        self.meets_rot(index);
                        return Answer::Nothing;
                    }
                    Err(ReadError::Disk(_)) => return Answer::Nothing,
                }
            }
            Got::Fill(stream) => {
                let len_bytes = stream.len_bytes;
                match collect(index, stream, (at % 20_000) as usize).await {
                    // What has come before the end of a fill is not verified yet.
                    Ok(bytes) if bytes.len() as u64 == len_bytes => (len_bytes, 0, bytes),
                    Ok(_) | Err(_) => return Answer::Nothing,
                }
            }
            other => return bodiless(&other),
        };
        let states = universe.versions_with(index, len_bytes, at, &bytes);
        let states = states.fold(States::default(), |states, state| states.with(States::one(state)));
        if states == States::default() {
            history::violation(index, "I8: a range of bytes that nobody ever put under this key");
        }
        Answer::Shows(states)
    }

    /// A GET whose client goes away after `patience`, or as soon as it has an answer.
    pub async fn give_up(&self, key: &BlockKey, patience: impl Future<Output = ()>) {
        // What `get` pins is the reader's to unpin, so only the wait for the answer is given up.
        match select(Box::pin(self.shard.get(key)), Box::pin(patience)).await {
            Either::Left((Got::Disk(located), _)) => self.shard.unpin(located.pin),
            Either::Left(_) | Either::Right(_) => {}
        }
    }

    /// A slow reader: between two looks at a block that it found on disk others take the block into memory, and the disk rots
    /// under it. What is dirty and in memory must be written again.
    pub async fn outlast_rot(&self, universe: &Universe, index: usize) {
        let key = universe.key(index);
        let located = match self.shard.get(key).await {
            Got::Disk(located) => located,
            _ => return,
        };
        let (generation, pin, offset, len_bytes) =
            (located.generation, located.pin, located.offset, u64::from(located.len_bytes));
        if let Ok(body) = self.read_located(located.clone()).await
            && len_bytes > 0
        {
            let etag = located.etag.clone().unwrap_or_else(|| Etag::Digest(digest_of(universe, index, &body)));
            self.shard.offer_memory(key, generation, body, etag);
            self.disk(pin.disk).0.flip_bit(SLAB, offset + generation.0 % len_bytes, (generation.0 % 8) as u8);
            if let Err(ReadError::Rot { .. }) = self.read_located(located).await {
                self.meets_rot(index);
                self.shard.report_rot(key, generation).await;
            }
        }
        self.shard.unpin(pin);
    }

    async fn read_located(&self, located: Located) -> Result<Bytes, ReadError> {
        let reader = self.block_reader(located);
        let mut body = Vec::with_capacity(reader.located().len_bytes as usize);
        for index in 0..reader.piece_count() {
            body.extend_from_slice(&reader.piece(index).await?);
        }
        Ok(body.into())
    }
}

fn bodiless(got: &Got) -> Answer {
    match got {
        Got::Absent => Answer::one(None),
        Got::Lost => Answer::Lost,
        Got::Declined(_) | Got::Failed(_) => Answer::Nothing,
        Got::Memory(_) | Got::Disk(_) | Got::Fill(_) => unreachable!("these have bodies"),
    }
}

fn whole(universe: &Universe, index: usize, body: &[u8], etag: Option<&Etag>) -> Answer {
    match universe.recognise(index, body) {
        Err(words) => history::violation(index, &format!("I8: wrong bytes: {words}")),
        Ok(version) if etag.is_some_and(|etag| universe.recognise_etag(index, etag) != Some(version)) => {
            history::violation(index, "I8: an ETag of other bytes")
        }
        Ok(version) => Answer::one(Some(version)),
    }
}

fn digest_of(universe: &Universe, index: usize, body: &[u8]) -> forebay_io::checksum::Digest {
    let version = universe.recognise(index, body).expect("it was recognised before");
    universe.version(index, version).digest
}

/// The body, or as much of it as has come when `enough` bytes are there.
async fn collect(index: usize, mut stream: FillStream, enough: usize) -> Result<Bytes, OriginError> {
    let mut body = Vec::new();
    while let Some(frame) = stream.frames.next().await {
        if frame.is_err() && !body.is_empty() && body.len() as u64 == stream.len_bytes {
            // With its last byte an HTTP body ends well, whatever comes after.
            history::violation(index, "I8: all of a body was sent, and then it failed");
        }
        body.extend_from_slice(&frame?);
        if body.len() >= enough {
            break;
        }
    }
    Ok(body.into())
}
