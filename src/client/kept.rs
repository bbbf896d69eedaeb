//! What was made for going to the store, kept for the next who needs it, as long as it is right.
//!
//! Used by `client` for one `Bypass`. Made outside of the lock, for that takes a while; meanwhile the routing may change and session credentials be renewed.
//!
//! Invariants: what is taken out was made for the place that is asked for, and has not ended; what was begun before [`Kept::forget`] is not kept after it.

use std::sync::Arc;
use std::time::SystemTime;

/// One thing, or none.
pub(super) struct Kept<P, T> {
    epoch: u64,
    held: Option<Held<P, T>>,
}

struct Held<P, T> {
    place: P,
    ends: Option<SystemTime>,
    thing: Arc<T>,
}

impl<P, T> Default for Kept<P, T> {
    fn default() -> Kept<P, T> {
        Kept { epoch: 0, held: None }
    }
}

impl<P: PartialEq, T> Kept<P, T> {
    /// What there is for `place` at `now`; else what [`Kept::keep`] takes, once it is made.
    pub(super) fn find(&self, place: &P, now: SystemTime) -> Result<Arc<T>, u64> {
        let held = self.held.as_ref().filter(|held| held.place == *place && held.ends.is_none_or(|ends| now < ends));
        held.map(|held| Arc::clone(&held.thing)).ok_or(self.epoch)
    }

    /// Keeps what was begun in `epoch`, unless everything was forgotten since.
    pub(super) fn keep(&mut self, epoch: u64, place: P, ends: Option<SystemTime>, thing: &Arc<T>) {
        if epoch == self.epoch {
            self.held = Some(Held { place, ends, thing: Arc::clone(thing) });
        }
    }

    /// Whoever comes next makes another.
    pub(super) fn forget(&mut self) {
        self.epoch += 1;
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_begun_for_another_place_or_before_a_renewal_is_not_used() {
        let (mut kept, now) = (Kept::<&str, u32>::default(), SystemTime::now());
        let ends = now + Duration::from_secs(8);
        let Err(begun) = kept.find(&"v/", now) else { panic!("nothing was kept") };
        kept.keep(begun, "v/", Some(ends), &Arc::new(1));
        assert_eq!(kept.find(&"v/", now).map(|thing| *thing), Ok(1));
        assert!(kept.find(&"w/", now).is_err(), "the volume moved");
        assert!(kept.find(&"v/", ends).is_err(), "the session ended");
        // Renewed while somebody was still making one of the old keys.
        kept.forget();
        kept.keep(begun, "v/", Some(ends), &Arc::new(1));
        let Err(begun) = kept.find(&"v/", now) else { panic!("the old keys would be used until they end") };
        kept.keep(begun, "v/", None, &Arc::new(2));
        assert_eq!(kept.find(&"v/", ends).map(|thing| *thing), Ok(2));
    }
}
