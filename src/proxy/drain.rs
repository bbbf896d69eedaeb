//! Orderly leave: from the first signal to exit 0, and what `/readyz` says meanwhile.
//!
//! Called by `boot` on the main thread. The steps are the node's, not a core's: requests hop between cores, so no core may
//! close its shards before every core has finished its requests. Each step has a bound; what is dirty after the last one
//! is flushed after the next start (I3: it was acknowledged on disk). A second signal ends the process at once.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{info, warn};

use forebay_shard::config::VolumeConfig;
use forebay_shard::key::BlockKey;

use crate::mailbox::Sender;
use crate::proxy::handler::{Readiness, Stage};
use crate::proxy::served::Served;
use crate::routing::GroupRouting;

/// How long shards may take to commit what is pending and write their checkpoints, beyond the drain's deadline.
const CLOSE_BOUND: Duration = Duration::from_secs(20);

/// What the main thread tells a core. Each is answered on its channel when done.
pub enum Control {
    /// Stop accepting; answer when no connection is open.
    Drain(mpsc::Sender<()>),
    /// Flush what is dirty, for at most this long.
    Flush(Duration, mpsc::Sender<()>),
    /// Let the shards know these volumes.
    Know(Arc<[VolumeConfig]>, mpsc::Sender<()>),
    /// Serve this.
    Serve(Arc<Served>, mpsc::Sender<()>),
    /// Answer when every put and delete that was let in by now has ended.
    Quiet(mpsc::Sender<()>),
    /// Count the dirty records that are chosen, and flush them first.
    Count(Arc<dyn Fn(&BlockKey) -> bool + Send + Sync>, mpsc::Sender<u64>),
    /// Close the shards and end.
    Close(mpsc::Sender<()>),
}

/// What the main thread waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The first SIGTERM or SIGINT.
    Signal,
    /// The admin says something new.
    News(Arc<GroupRouting>),
    /// A core's executor ended by itself: a bug, or its ring failed.
    CoreEnded(usize),
}

/// Sends the first signal to `events`; a second one exits at once with status 1.
///
/// # Errors
/// The handlers can't be installed.
pub fn listen_to_signals(events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).context("listening to signals")?;
    let listen = move || {
        let mut is_first = true;
        for _ in signals.forever() {
            if !is_first {
                warn!("a second signal: ending at once");
                std::process::exit(1);
            }
            is_first = false;
            // The main thread may be gone already.
            let _ = events.send(Event::Signal);
        }
    };
    std::thread::Builder::new().name("forebay-signals".to_owned()).spawn(listen).context("a thread for signals")?;
    Ok(())
}

/// Leaves in order: requests, dirty blocks, checkpoints. `deadline` bounds the first two together.
pub fn drain(cores: &[Sender<Control>], readiness: &Readiness, deadline: Duration) {
    let until = Instant::now() + deadline;
    readiness.set(Stage::Draining);
    info!("draining: no new connections");
    if !step(cores, until, Control::Drain) {
        warn!("requests were still running at the drain's deadline: they are cut off");
    }
    let left = until.saturating_duration_since(Instant::now());
    if !step(cores, until + CLOSE_BOUND, |done| Control::Flush(left, done)) {
        warn!("the flush of dirty blocks did not end; they are flushed after the next start");
    }
    if !step(cores, Instant::now() + CLOSE_BOUND, Control::Close) {
        warn!("a shard could not be closed in time; the next start recovers it");
    }
}

/// Tells every core and waits for all of them, until `until` at the latest. Whether all were done.
pub(super) fn step(cores: &[Sender<Control>], until: Instant, control: impl Fn(mpsc::Sender<()>) -> Control) -> bool {
    let (done, dones) = mpsc::channel();
    let mut all_told = true;
    for core in cores {
        // The box of a core that is gone refuses; then it is not waited for.
        if core.try_send(control(done.clone())).is_err() {
            warn!("a core can't be told anything");
            all_told = false;
        }
    }
    drop(done);
    loop {
        match dones.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return all_told,
            Err(mpsc::RecvTimeoutError::Timeout) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Receiver, mailbox};

    /// Answers every control; notes the order over all cores.
    fn core(mut controls: Receiver<Control>, notes: mpsc::Sender<&'static str>) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            while let Some(control) = futures::executor::block_on(controls.recv()) {
                let (name, done) = match control {
                    Control::Drain(done) => ("drain", done),
                    Control::Flush(_, done) => ("flush", done),
                    Control::Know(_, done) | Control::Serve(_, done) | Control::Quiet(done) => ("news", done),
                    Control::Count(..) => continue,
                    Control::Close(done) => ("close", done),
                };
                notes.send(name).expect("the test listens");
                done.send(()).expect("the drain listens");
            }
        })
    }

    #[test]
    fn no_core_closes_before_every_core_has_drained() {
        let (notes, noted) = mpsc::channel();
        let (senders, threads): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (sender, receiver) = mailbox(1);
                (sender, core(receiver, notes.clone()))
            })
            .unzip();
        let readiness = Readiness::default();
        readiness.set(Stage::Ready);
        drain(&senders, &readiness, Duration::from_secs(30));
        assert_eq!(readiness.stage(), Stage::Draining);
        drop((senders, notes));
        let order: Vec<_> = noted.iter().collect();
        assert_eq!(order, [["drain"; 3], ["flush"; 3], ["close"; 3]].concat());
        threads.into_iter().for_each(|thread| thread.join().expect("a core failed"));
    }

    #[test]
    fn a_core_that_does_not_answer_is_not_waited_for_for_ever() {
        let (sender, mut receiver) = mailbox(4);
        let began = Instant::now();
        assert!(!step(&[sender], began + Duration::from_millis(50), Control::Drain));
        assert!(began.elapsed() < Duration::from_secs(30));
        drop(futures::executor::block_on(receiver.recv()));
    }
}
