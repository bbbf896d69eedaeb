//! The port through which the handler reaches blocks, on whichever core they are owned.
//!
//! Declared by the side that needs it (`handler`, `body`), implemented by `dispatch` for the real cores and by the tests
//! for plain maps. Every answer is one of `forebay_shard::outcome`.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use forebay_io::{Disk, DiskFile, Runtime};
use forebay_shard::key::{BlockKey, Generation};
use forebay_shard::origin::{Etag, Origin};
use forebay_shard::outcome::{Headed, Located, PinDone, Put, PutDone, Removed, UnpinDone};
use forebay_shard::read::ReadError;
use forebay_shard::stats::ShardStats;

use crate::proxy::dispatch::{AskHere, Dispatch, GotPinned, Here, Pinned, Routed};
use crate::proxy::report::CoreReport;

/// Blocks by key. Cheap to clone.
pub trait Blocks: Clone + 'static {
    /// A read-only slab, on this core's ring.
    type File: DiskFile;
    /// A pin; giving it up is dropping it (I7).
    type Pinned: 'static;

    /// Where the bytes of `key` are.
    fn get(&self, key: &BlockKey) -> impl Future<Output = Routed<GotPinned<Self::Pinned>>>;
    /// The slab that holds what was located.
    ///
    /// # Errors
    /// It could not be opened here.
    fn slab(&self, located: &Located) -> Result<Self::File, ReadError>;
    /// Length and ETag of `key`; never fills.
    fn head(&self, key: &BlockKey) -> impl Future<Output = Routed<Headed>>;
    /// Stores a block.
    fn put(&self, put: Put) -> impl Future<Output = Routed<PutDone>>;
    /// Deletes `key` here and at the origin.
    fn delete(&self, key: &BlockKey) -> impl Future<Output = Routed<Removed>>;
    /// Drops `key` here only.
    fn purge(&self, key: &BlockKey) -> impl Future<Output = Routed<Removed>>;
    /// Keeps `key` on its disk, fetching it if need be.
    fn pin(&self, key: &BlockKey) -> impl Future<Output = Routed<PinDone>>;
    /// Takes a pin back.
    fn unpin(&self, key: &BlockKey) -> impl Future<Output = Routed<UnpinDone>>;
    /// Answers another member from what is here alone.
    fn here(&self, ask: AskHere) -> impl Future<Output = Routed<Here<Self::Pinned>>>;
    /// Tells the owner that the bytes of `generation` on its disk are not what they should be; resolves when the next GET
    /// repairs it, or when the owner can't be told.
    fn report_rot(&self, key: &BlockKey, generation: Generation) -> impl Future<Output = ()>;
    /// Offers a block that was read whole and verified to the owner's memory tier; `body` is an allocation of its own.
    fn offer_memory(&self, key: &BlockKey, generation: Generation, body: Bytes, etag: Etag);
    /// What every core tells about itself; one that can't be asked is left out.
    fn reports(&self) -> impl Future<Output = Vec<CoreReport>>;
    /// Every shard's figures, in order of their numbers; one that can't be asked is left out.
    fn stats(&self) -> impl Future<Output = Vec<(u16, ShardStats)>>;
}

impl<D: Disk, O: Origin, R: Runtime> Blocks for Rc<Dispatch<D, O, R>> {
    type File = D::File;
    type Pinned = Pinned;

    async fn get(&self, key: &BlockKey) -> Routed<GotPinned<Pinned>> {
        Dispatch::get(self, key).await
    }

    fn slab(&self, located: &Located) -> Result<D::File, ReadError> {
        Dispatch::slab(self, located.shard, located.pin.disk).cloned()
    }

    async fn head(&self, key: &BlockKey) -> Routed<Headed> {
        Dispatch::head(self, key).await
    }

    async fn put(&self, put: Put) -> Routed<PutDone> {
        Dispatch::put(self, put).await
    }

    async fn delete(&self, key: &BlockKey) -> Routed<Removed> {
        Dispatch::delete(self, key).await
    }

    async fn purge(&self, key: &BlockKey) -> Routed<Removed> {
        Dispatch::purge(self, key).await
    }

    async fn pin(&self, key: &BlockKey) -> Routed<PinDone> {
        Dispatch::pin(self, key).await
    }

    async fn unpin(&self, key: &BlockKey) -> Routed<UnpinDone> {
        Dispatch::unpin(self, key).await
    }

    async fn here(&self, ask: AskHere) -> Routed<Here<Pinned>> {
        Dispatch::here(self, ask).await
    }

    async fn report_rot(&self, key: &BlockKey, generation: Generation) {
        // If the owner can't be told, it declines the GET that follows.
        let _ = Dispatch::report_rot(self, key, generation).await;
    }

    fn offer_memory(&self, key: &BlockKey, generation: Generation, body: Bytes, etag: Etag) {
        Dispatch::offer_memory(self, key, generation, body, etag);
    }

    async fn reports(&self) -> Vec<CoreReport> {
        Dispatch::reports(self).await
    }

    async fn stats(&self) -> Vec<(u16, ShardStats)> {
        Dispatch::stats(self).await
    }
}
