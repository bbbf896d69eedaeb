//! The members of a volume's groups as one routing document describes them. Replaced as a whole when the routing changes.
//!
//! Built by `client`. A member that is the same in the next document keeps its connections, its circuit and what was probed.

use std::sync::Arc;

use super::member::{Member, Reach};
use super::plan::{GroupFacts, MemberFacts, Place, VolumeFacts};
use crate::follow::https::SetupError;
use crate::resource::MemberState;
use crate::routing::{Holders, Routing};

/// All of it.
pub struct Net {
    /// What it was built from.
    pub routing: Arc<Routing>,
    /// For planning.
    pub volume: VolumeFacts,
    /// For planning; positions as in `members`.
    pub groups: Vec<GroupFacts>,
    /// By group.
    pub members: Vec<Vec<Arc<Member>>>,
}

impl Net {
    /// The members of `routing`, as many as possible those of `last`.
    ///
    /// # Errors
    /// HTTPS can't be set up.
    pub fn new(routing: Arc<Routing>, last: Option<&Net>, reach: &Reach) -> Result<Net, SetupError> {
        let (mut groups, mut members) = (Vec::new(), Vec::new());
        for group in &routing.groups {
            let mut own = Vec::new();
            let mut facts = Vec::new();
            for routed in &group.members {
                let same = last.and_then(|last| {
                    let all = last.members.iter().flatten();
                    all.into_iter().find(|member| {
                        let old = &member.routed;
                        (&old.id, &old.address, &old.tls_name, &old.weight, &old.name)
                            == (&routed.id, &routed.address, &routed.tls_name, &routed.weight, &routed.name)
                    })
                });
                let member = match same {
                    Some(member) => Arc::clone(member),
                    None => Arc::new(Member::new(routed.clone(), reach.clone())?),
                };
                facts.push(MemberFacts { ranked: member.ranked, state: routed.state });
                own.push(member);
            }
            groups.push(GroupFacts { name: group.name.clone(), members: facts, holders: Holders::told(group) });
            members.push(own);
        }
        let home = routing.volume.home_group.as_ref();
        let home = home.and_then(|home| groups.iter().position(|group| group.name == *home));
        let volume = VolumeFacts { write: routing.volume.write, home };
        Ok(Net { routing, volume, groups, members })
    }

    /// A member by its place.
    pub fn member(&self, place: Place) -> &Arc<Member> {
        &self.members[place.0][place.1]
    }

    /// The position of the group called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.name == name)
    }

    /// Those of a group that are expected to answer: who is up, or leaves.
    pub fn expected(&self, group: usize) -> Vec<Arc<Member>> {
        let serves =
            |at: &usize| matches!(self.groups[group].members[*at].state, MemberState::Up | MemberState::Draining);
        (0..self.members[group].len()).filter(serves).map(|at| Arc::clone(&self.members[group][at])).collect()
    }
}
