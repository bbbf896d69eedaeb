//! What a node still holds dirty of keys that are other members' now: counted until nothing is left, flushed first, and reported to the admin.
//!
//! `following` tells it of each routing that the whole node goes by; a thread of its own counts on all cores and reports. Until the admin has heard
//! "nothing", the others ask this node before they take a write, or say that there is no such block, of a key that it had before. Invariant: the
//! report is of a routing by which every core goes and before which no put or delete is under way any more, so it stays true.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use forebay_shard::key::BlockKey;
use tracing::{debug, info};

use super::drain::Control;
use crate::follow::FollowSettings;
use crate::follow::https::{Reporter, SetupError};
use crate::mailbox::Sender;
use crate::resource::Revision;

/// Between two counts while something is left.
const COUNT_PAUSE: Duration = Duration::from_millis(250);
/// How often what is left is told, unless it is none.
const TELL_PAUSE: Duration = Duration::from_secs(5);
/// Between two tries to report.
const AGAIN: Duration = Duration::from_secs(1);
/// For all cores to count.
const COUNT_BOUND: Duration = Duration::from_secs(30);

/// Tells which keys are other members'.
pub(super) type IsMoved = Arc<dyn Fn(&BlockKey) -> bool + Send + Sync>;

/// What is to be counted and reported.
pub(super) struct Goal {
    /// The revision that the node goes by.
    pub(super) followed: Revision,
    /// The member that the node is.
    pub(super) member: String,
    /// Whether the admin waits for a report.
    pub(super) awaited: bool,
    /// By that revision.
    pub(super) is_moved: IsMoved,
}

/// The thread.
struct Counting {
    cores: Vec<Sender<Control>>,
    reporter: Reporter,
    group: String,
    /// What was told last of the goal of now, and when.
    told: Option<(u64, Instant)>,
}

/// Starts the thread, which ends when nobody can give it a goal any more.
///
/// # Errors
/// HTTPS can't be set up, or there is no thread to be had.
pub(super) fn start(
    settings: &FollowSettings,
    group: &str,
    cores: &[Sender<Control>],
) -> Result<mpsc::Sender<Goal>, SetupError> {
    let reporter = Reporter::new(settings)?;
    let mut counting = Counting { cores: cores.to_vec(), reporter, group: group.to_owned(), told: None };
    let (goals, given) = mpsc::channel();
    let run = move || counting.run(&given);
    let thread = std::thread::Builder::new().name("forebay-standing".to_owned()).spawn(run);
    thread.map_err(|error| SetupError::Http(error.to_string()))?;
    Ok(goals)
}

impl Counting {
    fn run(&mut self, given: &mpsc::Receiver<Goal>) {
        let Ok(mut goal) = given.recv() else { return };
        loop {
            let wait = self.step(&goal);
            let next = match wait {
                Some(wait) => given.recv_timeout(wait),
                None => given.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            };
            match next {
                // Only the newest counts.
                Ok(next) => (goal, self.told) = (given.try_iter().last().unwrap_or(next), None),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Counts, and tells what is news; when to do so again, if there is need.
    fn step(&mut self, goal: &Goal) -> Option<Duration> {
        if !goal.awaited {
            return None;
        }
        let Some(count) = self.count(goal) else { return Some(AGAIN) };
        let is_news = self.told.is_none_or(|(told, at)| count != told && (count == 0 || at.elapsed() >= TELL_PAUSE));
        if is_news {
            let path = format!("/v1/groups/{}/members/{}/standing", self.group, goal.member);
            let body = format!("{{\"followed\":{},\"moved\":{count}}}", goal.followed);
            if let Err(error) = self.reporter.put(&path, body) {
                debug!(%error, "the admin can't be told what is left of other members' keys");
                return Some(AGAIN);
            }
            info!(revision = goal.followed, count, "dirty blocks of other members' keys");
            self.told = Some((count, Instant::now()));
        }
        (count > 0).then_some(COUNT_PAUSE)
    }

    /// On all cores; `None`: one of them did not answer.
    fn count(&self, goal: &Goal) -> Option<u64> {
        let (counted, counts) = mpsc::channel();
        for core in &self.cores {
            core.try_send(Control::Count(Arc::clone(&goal.is_moved), counted.clone())).ok()?;
        }
        drop(counted);
        let until = Instant::now() + COUNT_BOUND;
        let mut sum = 0;
        for _ in &self.cores {
            sum += counts.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
        }
        Some(sum)
    }
}
