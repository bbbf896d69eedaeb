//! Memory of the ring's registered arena, as [`buffer`](crate::buffer) holds it. Made by `ring::file` and `ring` only;
//! it hides glommio's buffer types from everything else.
//! Its bytes go back to the arena when the last view is dropped, and only then does the arena's semaphore say so.

use std::rc::Rc;

use glommio::io::{DmaBuffer, ReadResult};

/// A buffer for a write. Shared only while the kernel has it.
pub(crate) struct RingWrite(DmaBuffer);

impl RingWrite {
    /// `len` zeroed bytes of this executor's arena, or of the heap if it is full: the caller has taken room.
    pub(super) fn zeroed(len: usize) -> RingWrite {
        let mut buffer = glommio::allocate_dma_buffer(len);
        buffer.as_bytes_mut().fill(0);
        RingWrite(buffer)
    }

    pub(super) fn copy_of(bytes: &[u8]) -> RingWrite {
        let mut buffer = glommio::allocate_dma_buffer(bytes.len());
        buffer.as_bytes_mut().copy_from_slice(bytes);
        RingWrite(buffer)
    }

    /// Handed to the kernel: from now on nobody writes to it.
    pub(super) fn seal(self) -> Rc<DmaBuffer> {
        Rc::new(self.0)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

/// What a read has filled.
pub(crate) struct RingRead(pub(super) ReadResult);

impl RingRead {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ring::ArenaConfig;

    /// Whether it lies in the registered arena, which glommio tells only in its debug output.
    fn in_arena(memory: &RingWrite) -> bool {
        format!("{:?}", memory.0).contains("Uring")
    }

    #[test]
    fn the_configured_arena_holds_what_it_promises() {
        for (arena, len) in [(1 << 20, 4096), (16 << 20, 1 << 20), (64 << 20, 4 << 20), (64 << 20, 64 << 10)] {
            let config = ArenaConfig { bytes: arena };
            let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound);
            builder.io_memory(config.io_memory_bytes()).make().unwrap().run(async {
                let mut held: Vec<RingWrite> = (0..arena / len).map(|_| RingWrite::zeroed(len)).collect();
                let outside = held.iter().filter(|memory| !in_arena(memory)).count();
                assert_eq!(outside, 0, "of {} buffers of {len} bytes", held.len());
                // The canary: without the semaphore it overflows, and into the heap.
                held.extend((0..=(4 << 20) / len).map(|_| RingWrite::zeroed(len)));
                assert!(!held.iter().all(in_arena), "nothing tells the arena from the heap any more");
            });
        }
    }
}
