//! What the admin of `forebay dev` knows to begin with: the bucket, the volumes, the groups near and far and their members, tokens.
//!
//! Called by `dev.rs` at each start, while its admin does not run. Made is what is missing, and put right what moves from start
//! to start (ports); what a person changed meanwhile stays. Tokens are issued anew, so they are always good for a week.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::ca::TLS_NAME;
use super::keys;
use super::layout::{Layout, Secrecy, write_whole};
use super::node_config::{Bucket, Mode, STORE, Volume};
use super::plan::{FAR, NEAR, Plan};
use super::s3_server::ROLE;
use crate::admin::keys::{Wish, ensure_key, issue};
use crate::admin::registry::{
    Actor, Change, Guard, Listing, Record, RecordId, Registry, RegistryError, Versioned, looked,
};
use crate::admin::server::unix_now;
use crate::admin::sqlite::Sqlite;
use crate::resource::{self, Attachment, Group, Member, MemberState, WriteMode};
use crate::token::{Right, Role};

const TOKEN_SECONDS: u64 = 7 * 86_400;

/// What the rest of `dev` is told.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Opens every volume here; also in a file.
    pub token: String,
    /// May change everything in the admin; also in a file.
    pub operator_token: String,
}

/// Brings the admin's database in `layout` to `plan`, and issues tokens.
///
/// # Errors
/// If the database can't be read or written, or a person's change stands against it.
pub fn prepare(layout: &Layout, plan: &Plan, bucket: &Bucket, volumes: &[Volume]) -> anyhow::Result<Deployment> {
    let registry = Sqlite::open(&layout.admin().directory).context("the admin's database")?;
    let by = Actor { subject: "forebay dev".to_owned(), token: String::new(), at: unix_now() };
    ensure_key(&registry, &by)?;
    let made = Making { registry: &registry, by: &by };
    made.store(layout, bucket)?;
    let groups: Vec<&str> = [NEAR, FAR].into_iter().filter(|group| plan.members(group).next().is_some()).collect();
    for group in [NEAR, FAR] {
        made.group(plan, group)?;
    }
    for volume in volumes {
        made.volume(volume, &groups)?;
    }
    let right = |volume: &Volume| if volume.mode == Mode::ReadOnly { Right::Read } else { Right::ReadWrite };
    let opens = volumes.iter().map(|volume| (volume.name.clone(), right(volume))).collect();
    let wish = |subject: &str, role, group: Option<&str>, volumes| Wish {
        subject: subject.to_owned(),
        role,
        group: group.map(str::to_owned),
        volumes,
        ttl_seconds: TOKEN_SECONDS,
    };
    let issue = |path: PathBuf, wish: Wish| {
        let (_, token) = issue(&registry, &wish, &by)?;
        write_whole(&path, token.as_bytes(), Secrecy::Secret)?;
        anyhow::Ok(token)
    };
    for group in groups {
        let wish = wish("forebay dev proxies", Some(Role::Proxy), Some(group), BTreeMap::new());
        issue(layout.proxy_token(group), wish)?;
    }
    Ok(Deployment {
        token: issue(layout.token(), wish("forebay dev", None, None, opens))?,
        operator_token: issue(
            layout.operator_token(),
            wish("forebay dev operator", Some(Role::Operator), None, BTreeMap::new()),
        )?,
    })
}

/// Makes changes in one name.
struct Making<'a> {
    registry: &'a Sqlite,
    by: &'a Actor,
}

impl Making<'_> {
    fn find(&self, id: &RecordId) -> Result<Option<Versioned>, RegistryError> {
        looked(self.registry, |view| view.one(id))
    }

    fn apply(&self, change: &Change) -> Result<(), RegistryError> {
        self.registry.change(change, self.by).map(drop)
    }

    /// Makes `record`, or lays `lay` over the one that is there.
    fn ensure(&self, record: Record, lay: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let id = record.id();
        let change = match self.find(&id)? {
            None => Change::Create(record),
            Some(Versioned { record: kept, revision }) => {
                let mut wanted = kept.clone();
                lay(&mut wanted);
                if wanted == kept {
                    return Ok(());
                }
                Change::Replace(wanted, Guard::Seen(revision))
            }
        };
        self.apply(&change).with_context(|| format!("{id} of the admin"))
    }

    fn store(&self, layout: &Layout, bucket: &Bucket) -> anyhow::Result<()> {
        let credentials = match bucket.keys {
            Some(_) => format!("file:{}#{}", layout.s3_credentials().display(), keys::PROFILE),
            None => "usual".to_owned(),
        };
        let store = resource::Store {
            name: STORE.to_owned(),
            endpoint: bucket.endpoint.clone(),
            region: bucket.region.clone(),
            bucket: bucket.name.clone(),
            path_style: true,
            names: resource::KeyNames::Plain,
            conditional_put: true,
            single_writer: false,
            credentials: Some(credentials.clone()),
            // The built-in server's own.
            sts_endpoint: bucket.keys.as_ref().map(|_| bucket.endpoint.clone()),
            sts_role: bucket.keys.as_ref().map(|_| ROLE.to_owned()),
            sts_seconds: None,
            credentials_set: None,
        };
        self.ensure(Record::Store(store), |kept| {
            if let Record::Store(kept) = kept {
                kept.endpoint.clone_from(&bucket.endpoint);
                kept.region.clone_from(&bucket.region);
                kept.credentials = Some(credentials);
                if bucket.keys.is_some() {
                    kept.sts_endpoint = Some(bucket.endpoint.clone());
                    kept.sts_role = Some(ROLE.to_owned());
                }
            }
        })
    }

    /// A group and its members. Those of an earlier run with more proxies are away.
    fn group(&self, plan: &Plan, group: &str) -> anyhow::Result<()> {
        if self.find(&RecordId::Group(group.to_owned()))?.is_none() {
            if plan.members(group).next().is_none() {
                return Ok(());
            }
            let region = format!("this machine, {group}");
            let group = Group { name: group.to_owned(), provider: "forebay dev".to_owned(), region };
            self.apply(&Change::Create(Record::Group(group)))?;
        }
        let mut planned = Vec::new();
        for proxy in plan.members(group) {
            let address = proxy.member_address().to_string();
            let member = Member {
                group: group.to_owned(),
                name: proxy.name(),
                id: None,
                address: address.clone(),
                tls_name: Some(TLS_NAME.to_owned()),
                weight: std::num::NonZeroU32::MIN.saturating_add(99),
                state: MemberState::Up,
            };
            planned.push(member.name.clone());
            self.ensure(Record::Member(member), |kept| {
                if let Record::Member(kept) = kept {
                    kept.address = address;
                    kept.state = MemberState::Up;
                }
            })?;
        }
        for left in looked(self.registry, |view| view.list(&Listing::Members(group.to_owned())))? {
            if let Record::Member(member) = &left.record
                && !planned.contains(&member.name)
                && member.name.starts_with("proxy-")
            {
                self.leave(member)?;
            }
        }
        Ok(())
    }

    /// `up` → `draining` → `absent`, for there is no shorter way.
    fn leave(&self, member: &Member) -> anyhow::Result<()> {
        for state in [MemberState::Draining, MemberState::Absent] {
            let id = RecordId::Member { group: member.group.clone(), name: member.name.clone() };
            let Some(Versioned { record: Record::Member(kept), revision }) = self.find(&id)? else { return Ok(()) };
            if kept.state == MemberState::Absent || kept.state == state {
                continue;
            }
            let wanted = Record::Member(Member { state, ..kept });
            self.apply(&Change::Replace(wanted, Guard::Seen(revision)))?;
        }
        Ok(())
    }

    /// A volume, served by `groups`, at home in the first of them.
    fn volume(&self, volume: &Volume, groups: &[&str]) -> anyhow::Result<()> {
        let id = RecordId::Volume(volume.name.clone());
        if self.find(&id)?.is_none() {
            self.apply(&Change::Create(Record::Volume(volume_record(volume)?)))?;
        }
        let attachment = |group: &str| Attachment { volume: volume.name.clone(), group: group.to_owned() };
        for group in groups {
            self.apply(&Change::Create(Record::Attachment(attachment(group))))?;
        }
        let home = groups.first().map(|group| (*group).to_owned());
        if let (Mode::WriteBack, Some(Versioned { record: Record::Volume(kept), revision })) =
            (volume.mode, self.find(&id)?)
            && kept.home_group.is_none()
        {
            let wanted = resource::Volume { home_group: home, ..kept };
            self.apply(&Change::Replace(Record::Volume(wanted), Guard::Seen(revision)))?;
        }
        if !groups.contains(&FAR) {
            let id = RecordId::Attachment { volume: volume.name.clone(), group: FAR.to_owned() };
            if let Some(found) = self.find(&id)? {
                self.apply(&Change::Delete(id, Guard::Seen(found.revision)))?;
            }
        }
        Ok(())
    }
}

/// The record, with what it leaves unsaid as the admin's interface would fill it in.
fn volume_record(volume: &Volume) -> anyhow::Result<resource::Volume> {
    let write = match volume.mode {
        Mode::WriteBack => WriteMode::Back,
        Mode::WriteThrough | Mode::ReadOnly => WriteMode::Through,
    };
    let mut record: resource::Volume = serde_json::from_value(serde_json::json!({
        "name": volume.name,
        "store": STORE,
        "prefix": volume.prefix,
        "write": write,
        "read_only": volume.mode == Mode::ReadOnly,
    }))?;
    match record.check() {
        Ok(()) => Ok(record),
        Err(invalid) => bail!("volume {}: {invalid}", volume.name),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dev::demo_volumes;

    fn bucket(port: u16) -> Bucket {
        Bucket {
            endpoint: format!("http://127.0.0.1:{port}"),
            region: "us-east-1".to_owned(),
            name: "forebay-dev".to_owned(),
            keys: Some(("access".to_owned(), "secret".to_owned())),
        }
    }

    fn members(layout: &Layout, group: &str) -> Vec<Member> {
        let registry = Sqlite::open(&layout.admin().directory).unwrap();
        let listed = looked(&registry, |view| view.list(&Listing::Members(group.to_owned()))).unwrap();
        let member = |listed: Versioned| match listed.record {
            Record::Member(member) => member,
            other => panic!("{other:?} is no member"),
        };
        listed.into_iter().map(member).collect()
    }

    #[test]
    fn a_second_start_moves_ports_and_keeps_ids_and_what_a_person_changed() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let volumes = demo_volumes("");
        let plan = Plan::draw(&layout, 2, 1, 0).unwrap();
        prepare(&layout, &plan, &bucket(7400), &volumes).unwrap();
        let before = members(&layout, NEAR);
        assert_eq!((before.len(), members(&layout, FAR).len()), (2, 1));
        assert!(before[0].address.starts_with("127.0.0.2:"), "a client goes through the relay: {before:?}");
        {
            let registry = Sqlite::open(&layout.admin().directory).unwrap();
            let by = Actor { subject: "a person".to_owned(), token: String::new(), at: unix_now() };
            let making = Making { registry: &registry, by: &by };
            let id = RecordId::Volume("demo-through".to_owned());
            let found = making.find(&id).unwrap().unwrap();
            let Record::Volume(kept) = found.record else { panic!("it is a volume") };
            let changed = resource::Volume { bypass: resource::Bypass::Never, ..kept };
            making.apply(&Change::Replace(Record::Volume(changed), Guard::Seen(found.revision))).unwrap();
        }
        let smaller = Plan::draw(&layout, 1, 0, 0).unwrap();
        let deployment = prepare(&layout, &smaller, &bucket(7500), &volumes).unwrap();
        let after = members(&layout, NEAR);
        assert_eq!(after[0].id, before[0].id);
        assert_eq!(after[0].address, smaller.proxies[0].member_address().to_string());
        assert_eq!((after[0].state, after[1].state), (MemberState::Up, MemberState::Absent));
        assert_eq!(members(&layout, FAR)[0].state, MemberState::Absent);
        let registry = Sqlite::open(&layout.admin().directory).unwrap();
        let found = looked(&registry, |view| {
            let volume = |name: &str| view.one(&RecordId::Volume(name.to_owned()));
            Ok([volume("demo-back")?, volume("demo-through")?, view.one(&RecordId::Store(STORE.to_owned()))?])
        });
        let [back, through, store] = found.unwrap().map(|found| found.unwrap().record);
        let (Record::Volume(back), Record::Volume(through), Record::Store(store)) = (back, through, store) else {
            panic!("two volumes and a store")
        };
        assert_eq!((back.home_group.as_deref(), back.write), (Some(NEAR), WriteMode::Back));
        assert_eq!(through.bypass, resource::Bypass::Never);
        assert_eq!(store.endpoint, "http://127.0.0.1:7500");
        assert_eq!(std::fs::read_to_string(layout.token()).unwrap(), deployment.token);
    }
}
