//! Region footers: whose records a region says it holds, and whether that table is whole, missing or damaged.
//!
//! Called by `regions`, `names` and `verify`. Reclaim (`footer::read`) asks only for a good table; here a footer that
//! was never written (the region was open when the node stopped), one of an earlier opening, and a damaged one differ.
//! A footer is a help, not the truth: a damaged one costs nothing by itself.

use forebay_io::frame::{self, Chain, Frame, FrameKind, Reject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, IoError};

use super::super::footer::chain_of;
use super::super::record::Record;
use super::super::regions::Epoch;
use super::Inspector;
use super::window::{Remains, Window};

const SECTOR: u64 = SECTOR_BYTES as u64;

/// What a region's footer is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FooterState {
    /// There is none of this opening.
    None,
    /// It is whole.
    Whole {
        /// Records in it, superseded ones included.
        records: u64,
    },
    /// There was one.
    Damaged {
        /// Offset in the slab.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// It was whole once, and was not cut off while it was written.
        is_proven: bool,
    },
}

impl<D: Disk> Inspector<D> {
    /// Reads the footer that region `number` has of `epoch`, and shows its records as far as they can be read.
    ///
    /// # Errors
    /// What the device said.
    pub(super) async fn footer(
        &self,
        number: u32,
        epoch: Epoch,
        mut show: impl FnMut(&Record),
    ) -> Result<FooterState, IoError> {
        let region_at = self.region_at(number);
        let end = region_at + self.superblock.region_bytes;
        let trailer_at = end - SECTOR;
        let window = Window::until(self.slab.clone(), end);
        let Some(trailer) = window.sector_at(trailer_at).await? else { return Ok(FooterState::None) };
        let mut at = match self.frames_at(&trailer, region_at, trailer_at) {
            Some(at) => at,
            // Without its trailer a table is found by its first frame.
            None => match self.find_first(&window, epoch, region_at, trailer_at).await? {
                Some(at) => at,
                None => return Ok(FooterState::None),
            },
        };
        let (mut chain, mut records) = (chain_of(epoch), 0);
        while at < trailer_at {
            let Some(bytes) = window.frame_at(self.superblock.store_id, at).await? else { break };
            match frame::decode(self.superblock.store_id, &bytes) {
                // Of an earlier opening: this one's was not finished.
                Ok(found) if chain.accept(FrameKind::Footer, &found).is_err() => return Ok(FooterState::None),
                Ok(found) => {
                    let Some(shown) = show_all(&found, &mut show) else {
                        let what = "it holds bytes that are no record".into();
                        return Ok(FooterState::Damaged { offset: at, what, is_proven: true });
                    };
                    records += shown;
                    at += found.len_bytes() as u64;
                }
                Err(reject) => return self.judge(&window, chain, at, reject).await,
            }
        }
        // The trailer is written last.
        match frame::decode(self.superblock.store_id, &trailer) {
            Ok(found) if chain.accept(FrameKind::Footer, &found).is_ok() => Ok(FooterState::Whole { records }),
            Ok(_) => Ok(FooterState::None),
            Err(reject) => self.judge(&window, chain, trailer_at, reject).await,
        }
    }

    /// What lies at `at`, where the next frame of `chain` should be and none is.
    async fn judge(
        &self,
        window: &Window<D::File>,
        chain: Chain,
        at: u64,
        reject: Reject,
    ) -> Result<FooterState, IoError> {
        let remains = window.remains(self.superblock.store_id, at, chain, FrameKind::Footer).await?;
        let damaged = |is_proven| FooterState::Damaged { offset: at, what: reject.to_string(), is_proven };
        Ok(match remains {
            Remains::Nothing => FooterState::None,
            Remains::TornOrRotten => damaged(false),
            Remains::Rotten => damaged(true),
        })
    }

    /// Where the frames begin, by a good trailer.
    fn frames_at(&self, trailer: &[u8], region_at: u64, trailer_at: u64) -> Option<u64> {
        let trailer = frame::decode(self.superblock.store_id, trailer).ok()?;
        let frames_bytes = u64::from_le_bytes(*trailer.payload.first_chunk()?);
        let is_possible = frames_bytes.is_multiple_of(SECTOR) && frames_bytes <= trailer_at - region_at;
        (is_possible && trailer.head.kind == FrameKind::Footer).then(|| trailer_at - frames_bytes)
    }

    /// Where the first frame of this opening's table lies, searched backwards.
    async fn find_first(
        &self,
        window: &Window<D::File>,
        epoch: Epoch,
        region_at: u64,
        trailer_at: u64,
    ) -> Result<Option<u64>, IoError> {
        // No table is longer than this share of a region: a line is some 60 bytes, a record at least 512.
        let from = trailer_at - ((trailer_at - region_at) / 4).next_multiple_of(SECTOR).min(trailer_at - region_at);
        let mut at = from;
        while at < trailer_at {
            let Some(bytes) = window.frame_at(self.superblock.store_id, at).await? else { break };
            if let Ok(found) = frame::decode(self.superblock.store_id, &bytes)
                && chain_of(epoch).accept(FrameKind::Footer, &found).is_ok()
            {
                return Ok(Some(at));
            }
            at += SECTOR;
        }
        Ok(None)
    }
}

/// How many records the frame holds; `None` if one of them is none.
fn show_all(found: &Frame<'_>, show: &mut impl FnMut(&Record)) -> Option<u64> {
    let mut payload = found.payload;
    for _ in 0..found.head.record_count {
        show(&Record::decode(&mut payload).ok()?);
    }
    Some(u64::from(found.head.record_count))
}
