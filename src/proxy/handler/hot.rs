//! Leases: a block that is too much of this core's reads is given to be read from several members for a while.
//!
//! Called by `read` for each GET of a client. `lease` counts and decides; here stands what a lease is never given for: a block that the store does not
//! have yet, a question of another member, a node whose group has nobody else to read from. What clients say of their spread is believed up
//! to the number of members that there are.

use forebay_shard::key::BlockKey;
use http::request::Parts;
use http::{HeaderValue, Response};

use super::Handler;
use super::group::is_peer;
use crate::lease::Lease;
use crate::placement::KeyHash;
use crate::proxy::blocks::Blocks;
use crate::proxy::body::ResponseBody;
use crate::proxy::respond::{FOREBAY_LEASE, FOREBAY_SPREAD};

impl<B: Blocks> Handler<B> {
    /// Counts a read, and says whether its answer is to carry a lease if the block is clean.
    pub(super) fn heat_of(&self, parts: &Parts, key: &BlockKey) -> Option<Lease> {
        let members = self.served.borrow().all.lease_members;
        if members < 2 || is_peer(parts) {
            return None;
        }
        let said = parts.headers.get(FOREBAY_SPREAD).and_then(|value| value.to_str().ok()?.parse::<u16>().ok());
        let spread = said.unwrap_or(1).clamp(1, members);
        let hash = KeyHash::of(&key.volume, &key.key);
        let lease = self.heat.borrow_mut().read(hash, spread, self.started.elapsed())?;
        Some(Lease { members: lease.members.min(members), ..lease })
    }

    pub(super) fn leased(
        &self,
        mut answer: Response<ResponseBody<B>>,
        lease: Option<Lease>,
    ) -> Response<ResponseBody<B>> {
        if let Some(lease) = lease {
            let value = HeaderValue::from_str(&lease.to_string()).expect("words and digits are visible ASCII");
            answer.headers_mut().insert(FOREBAY_LEASE, value);
            self.metrics.leased();
        }
        answer
    }
}
