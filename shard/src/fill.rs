//! Fills: one fetch per cold key, streamed to everyone who asks while it runs, then published.
//!
//! Begun by `get` on a miss. I5: the table holds at most one joinable fill per key, and all its waiters get its one
//! outcome. I6: a put, delete or purge clears the validity of the key's fills and detaches them from the table, when it
//! begins and again when it ends; in between none gets a validity. I8: the last 16 KiB are held back until length and
//! digest agree. Bounded by `fills_max` and `fill_bytes_max`; beyond them a miss is declined before anything is asked.

use std::rc::Rc;

use bytes::Bytes;
use forebay_io::checksum::Digester;
use forebay_io::{Disk, Runtime};
use futures::StreamExt;
use futures::channel::oneshot;

use self::stream::Fill;
pub use self::stream::HELD_BACK_BYTES;
use self::table::{Admitted, Joined};
pub(crate) use self::table::{ChangeGuard, FillTable};
use crate::canary::{self, Canary};
use crate::key::{BlockKey, Generation, Identity};
use crate::memory::contiguous;
use crate::origin::{Etag, Fetched, Origin, OriginError, OriginErrorKind};
use crate::outcome::{DeclinedReason, Got};
use crate::shard::Shard;
use crate::store::{Appended, Commit, NewBlock, NewKind};

mod stream;
mod table;

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Joins the key's fill or begins one.
    pub(crate) async fn fill(&self, key: &BlockKey, identity: Identity) -> Got {
        let fills = &self.inner.fills;
        let answer = match fills.join(identity).filter(|_| !canary::is(Canary::FillNotShared)) {
            Some(Joined::Streaming(stream)) => {
                self.inner.counters.collapsed.one();
                return Got::Fill(stream);
            }
            Some(Joined::Asking(answer)) => {
                self.inner.counters.collapsed.one();
                answer
            }
            Some(Joined::Crowded) => return Got::Declined(self.decline(DeclinedReason::FillsFull)),
            None => match self.begin_fill(key, identity) {
                Ok(answer) => answer,
                Err(reason) => return Got::Declined(self.decline(reason)),
            },
        };
        let got = answer.await.unwrap_or_else(|_| Got::Declined(self.decline(DeclinedReason::Stopping)));
        if matches!(got, Got::Absent) {
            self.inner.counters.absent.one();
        }
        got
    }

    fn begin_fill(&self, key: &BlockKey, identity: Identity) -> Result<oneshot::Receiver<Got>, DeclinedReason> {
        if self.inner.stopping.get() {
            return Err(DeclinedReason::Stopping);
        }
        let Some(volume) = self.volume(key) else {
            let (sender, receiver) = oneshot::channel();
            let error = OriginError::new(OriginErrorKind::NoBucket, "this node does not serve the volume");
            drop(sender.send(Got::Failed(error)));
            return Ok(receiver);
        };
        // The length is unknown until the headers are there: the largest block is reserved, the rest given back then.
        let block_bytes_max = volume.block_bytes_max;
        let admitted = self.inner.fills.admit(u64::from(block_bytes_max)).ok_or(DeclinedReason::FillsFull)?;
        self.inner.counters.misses.one();
        let (fill, answer) = self.inner.fills.begin(identity);
        let work = FillWork {
            key: key.clone(),
            identity,
            // Drawn before the fetch: the store refuses to publish it over anything newer, which guards I6 once more.
            generation: self.inner.disks.next_generation(),
            block_bytes_max,
            fill,
            admitted,
        };
        self.spawn(self.clone().run_fill(work));
        Ok(answer)
    }

    async fn run_fill(self, mut work: FillWork) {
        let outcome = match self.inner.origin.fetch(&work.key).await {
            Ok(Some(fetched)) if fetched.len_bytes > u64::from(work.block_bytes_max) => {
                let detail =
                    format!("{} bytes, the volume's blocks have at most {}", fetched.len_bytes, work.block_bytes_max);
                Err(OriginError::new(OriginErrorKind::TooLarge, detail))
            }
            Ok(Some(fetched)) => {
                work.admitted.reservation.shrink_to(fetched.len_bytes);
                if work.fill.begin_streaming(fetched.len_bytes, &fetched.etag) {
                    self.stream(&work, fetched).await
                } else {
                    Ok(Ended::Abandoned)
                }
            }
            Ok(None) => {
                work.fill.answer_all(|| Got::Absent);
                Ok(Ended::Absent)
            }
            Err(error) => Err(error),
        };
        let counters = &self.inner.counters;
        match outcome {
            Ok(Ended::Complete(etag)) => self.publish(&work, etag).await,
            Ok(Ended::Abandoned) => counters.fills_abandoned.one(),
            Ok(Ended::Absent) => {}
            Err(error) => {
                counters.fills_failed.one();
                tracing::warn!(volume = %work.key.volume, key = %work.key.key, %error, "a fill failed");
                work.fill.fail(&error);
            }
        }
        self.inner.fills.end(work.identity, &work.fill);
    }

    /// Takes the body frame by frame. Dropping it cancels the GET.
    async fn stream(&self, work: &FillWork, mut fetched: Fetched) -> Result<Ended, OriginError> {
        let corrupt = |detail: &str| Err(OriginError::new(OriginErrorKind::Corrupt, detail));
        let mut digester = Digester::default();
        while let Some(frame) = fetched.body.next().await {
            let frame = frame?;
            digester.update(&frame);
            self.inner.counters.bytes_fetched.add(frame.len() as u64);
            if !work.fill.accept(frame) {
                return corrupt("the body is longer than its headers said");
            }
            if work.fill.is_abandoned() {
                return Ok(Ended::Abandoned);
            }
        }
        if work.fill.received_bytes() != fetched.len_bytes {
            return corrupt("the body is shorter than its headers said");
        }
        if let Etag::Digest(digest) = &fetched.etag
            && digester.finish() != *digest
        {
            return corrupt("the body does not match its digest");
        }
        work.fill.release_rest();
        Ok(Ended::Complete(fetched.etag))
    }

    /// Memory tier first, so that the next GET hits, then disk. The fill stays in the table meanwhile: where the tier
    /// does not take the block, a GET still joins the complete fill.
    async fn publish(&self, work: &FillWork, etag: Etag) {
        if !work.fill.validity.holds() && !canary::is(Canary::StaleFillInMemory) {
            self.inner.counters.fills_invalidated.one();
            return;
        }
        let (frames, len_bytes) = work.fill.whole();
        let frames = if self.inner.memory.borrow().admits(len_bytes as u64) {
            // One copy serves memory and disk, and lets go of the network's buffers.
            let body = contiguous(&frames, len_bytes);
            let mut memory = self.inner.memory.borrow_mut();
            memory.insert(work.identity, work.generation, body.clone(), etag.clone());
            vec![body]
        } else {
            frames
        };
        let block = NewBlock {
            key: work.key.clone(),
            identity: work.identity,
            generation: work.generation,
            frames,
            len_bytes: u32::try_from(len_bytes).expect("a block's length was compared with its volume's maximum"),
            etag,
            kind: NewKind::Fetched { validity: work.fill.validity.clone() },
        };
        self.append_clean(block).await;
    }

    /// Appends a block that the origin has; that it can't be kept is no error of anybody's request.
    pub(crate) async fn append_clean(&self, block: NewBlock) {
        let counters = &self.inner.counters;
        let Some(disk) = self.inner.disks.of(block.identity).filter(|disk| disk.admits()) else {
            counters.not_admitted.one();
            return;
        };
        match disk.store.append(block).await {
            Ok(Appended::Published) => counters.fills_published.one(),
            Ok(Appended::Invalidated) => counters.fills_invalidated.one(),
            // The store counts them.
            Ok(Appended::Declined) => {}
            Err(error) => {
                counters.appends_failed.one();
                tracing::debug!(%error, "a clean block was not kept on disk");
            }
        }
    }

    /// Keeps a block that a synchronous store has just given to the origin: in memory at once, on disk in the
    /// background while the fill budget has room. Called under the key's lock, after its change has ended.
    pub(crate) fn keep_clean(&self, key: &BlockKey, identity: Identity, frames: Vec<Bytes>, etag: Etag) {
        let len_bytes: usize = frames.iter().map(Bytes::len).sum();
        let generation = self.inner.disks.next_generation();
        self.remember(identity, generation, &frames, etag.clone());
        if !self.admits_to_disk(identity) {
            self.inner.counters.not_admitted.one();
            return;
        }
        let Some(reservation) = self.inner.fills.budget().reserve(len_bytes as u64) else {
            self.inner.counters.appends_failed.one();
            return;
        };
        let validity = self.inner.fills.validity(identity);
        let block = NewBlock {
            key: key.clone(),
            identity,
            generation,
            frames,
            len_bytes: u32::try_from(len_bytes).expect("a block's length is a u32"),
            etag,
            kind: NewKind::Clean { validity: validity.clone(), commit: Commit::Lazy },
        };
        let shard = self.clone();
        self.spawn(async move {
            shard.append_clean(block).await;
            shard.inner.fills.end_validity(identity, &validity);
            drop(reservation);
        });
    }
}

struct FillWork {
    key: BlockKey,
    identity: Identity,
    generation: Generation,
    block_bytes_max: u32,
    fill: Rc<Fill>,
    admitted: Admitted,
}

enum Ended {
    Complete(Etag),
    Absent,
    Abandoned,
}
