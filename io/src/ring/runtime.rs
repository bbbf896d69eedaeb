//! Time, tasks and randomness of a glommio executor: what a shard gets in a real server. One per executor; clones are
//! the same. Made by `proxy/node_core` beside the ring;
//! tasks run in the task queue that spawned them (I12).

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::runtime::{Nanos, Runtime};

/// The zero of [`Nanos`], the same on all cores of the process, so that what crosses them can be compared.
static ZERO: OnceLock<Instant> = OnceLock::new();

/// [`Runtime`] on the executor it is called on. Its numbers are for spreading and sampling, not for secrets.
#[derive(Clone)]
pub struct RingRuntime {
    rng: Rc<RefCell<SmallRng>>,
}

impl RingRuntime {
    /// A runtime whose random numbers follow from `seed`: give each executor its own.
    #[must_use]
    pub fn new(seed: u64) -> RingRuntime {
        RingRuntime { rng: Rc::new(RefCell::new(SmallRng::seed_from_u64(seed))) }
    }
}

impl Runtime for RingRuntime {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // In the task queue of the caller. Without detach the task would be cancelled here.
        glommio::spawn_local(task).detach();
    }

    fn now(&self) -> Nanos {
        let nanos = ZERO.get_or_init(Instant::now).elapsed().as_nanos();
        Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let timer = glommio::timer::Timer::new(duration);
        async move {
            timer.await;
        }
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        glommio::yield_if_needed()
    }

    fn random_u64(&self) -> u64 {
        self.rng.borrow_mut().random()
    }
}
