//! What one core tells about itself, and where it is asked for it.
//!
//! `boot` puts each core's parts here once; a scrape runs [`this_core`] on every core (through `dispatch`) and adds the
//! answers up. Nothing is shared between cores: each has its own, because each is one thread (I12).

use std::cell::RefCell;
use std::rc::Rc;

use crate::proxy::connections::{ConnectionCounts, Connections};
use crate::proxy::metrics::{CoreMetrics, Snapshot};

thread_local! {
    static SOURCES: RefCell<Option<Sources>> = const { RefCell::new(None) };
}

struct Sources {
    core: usize,
    metrics: Rc<CoreMetrics>,
    connections: Rc<Connections>,
}

/// What one core tells about itself. Plain `Send` data.
#[derive(Debug, Clone, Default)]
pub struct CoreReport {
    /// The core, counted from 0.
    pub core: usize,
    /// Requests it answered.
    pub requests: Snapshot,
    /// Its connections.
    pub connections: ConnectionCounts,
    /// Messages of other cores that wait for it.
    pub queue_depth: u64,
}

/// Names this core's counters; called once on each core, before it serves.
pub fn publish(core: usize, metrics: Rc<CoreMetrics>, connections: Rc<Connections>) {
    SOURCES.with(|sources| *sources.borrow_mut() = Some(Sources { core, metrics, connections }));
}

/// This core's report, but for its queue, which the asker sees; empty before [`publish`].
#[must_use]
pub fn this_core() -> CoreReport {
    SOURCES.with(|sources| match &*sources.borrow() {
        Some(Sources { core, metrics, connections }) => {
            CoreReport { core: *core, requests: metrics.snapshot(), connections: connections.counts(), queue_depth: 0 }
        }
        None => CoreReport::default(),
    })
}
