//! One read of one member; and, where hedging is on and that member takes long, of the next in rank too: who answers first counts.
//!
//! Called by `read`. `hedge` says when. Only a block that the second member holds is an answer: what it does not have, or has dirty, or had to fetch, leaves the
//! first member's answer to be waited for, so that "absent" is said by the same members as ever, and no store is asked twice. Who is not needed any
//! more is hung up on.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout};

use super::hedge::Class;
use super::member::locked;
use super::net::Net;
use super::plan::Place;
use super::read::{Ask, Heard, Opened, Via};
use super::{Hedging, Inner};

impl Inner {
    /// What the member at `places[at]` says, or the next one of its group that has the block.
    pub(super) async fn ask_in_rank(
        self: &Arc<Inner>,
        net: &Net,
        places: &[Place],
        at: usize,
        ask: &Ask,
        spread: u16,
        until: Instant,
    ) -> Heard {
        let first = self.ask_member(net, places[at], ask, spread, until);
        if self.settings.hedge == Hedging::Off || at > 0 {
            return first.await;
        }
        let class = Class::of(&ask.method, ask.range.as_ref());
        let began = Instant::now();
        let mut first = pin!(first);
        let delay = locked(&self.hedges).begin(class);
        let early = match delay {
            Some(delay) => timeout(delay, &mut first).await.ok(),
            None => Some((&mut first).await),
        };
        let heard = match early {
            Some(heard) => heard,
            None => match self.second(net, places, at) {
                Some(second) => self.race(first, self.ask_member(net, second, ask, 1, until)).await,
                None => first.await,
            },
        };
        if matches!(heard, Heard::Here(_) | Heard::Absent) {
            locked(&self.hedges).took(class, began.elapsed());
        }
        heard
    }

    /// The first answer that counts.
    async fn race(&self, mut first: impl Future<Output = Heard> + Unpin, second: impl Future<Output = Heard>) -> Heard {
        self.counters.hedged_reads.fetch_add(1, Ordering::Relaxed);
        let mut second = pin!(second);
        tokio::select! {
            biased;
            heard = &mut first => match heard {
                // It is no answer; the other may be one yet.
                Heard::Elsewhere(words) => self.won(second.await).unwrap_or(Heard::Elsewhere(words)),
                heard => heard,
            },
            heard = &mut second => match self.won(heard) {
                Some(heard) => heard,
                None => first.await,
            },
        }
    }

    /// The next of the same group, if it answers as far as is known and the budget allows it.
    fn second(&self, net: &Net, places: &[Place], at: usize) -> Option<Place> {
        let next = places.get(at + 1).filter(|next| next.0 == places[at].0)?;
        let may = !net.member(*next).is_passed_by() && locked(&self.hedges).spend();
        may.then_some(*next)
    }

    /// What a second member said, if it counts.
    fn won(&self, heard: Heard) -> Option<Heard> {
        let is_held = matches!(&heard, Heard::Here(opened) if opened.is_held_clean());
        if is_held {
            self.counters.hedges_won.fetch_add(1, Ordering::Relaxed);
        }
        is_held.then_some(heard)
    }
}

impl Opened {
    /// Whether a member had it, and as what the store has too.
    fn is_held_clean(&self) -> bool {
        matches!(&self.meta.via, Via::Member { cache_status, .. } if cache_status.contains("; hit")) && !self.is_dirty()
    }
}
