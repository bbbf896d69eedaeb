//! The flags of stores, volumes, groups and members: each set one is a field of the record's JSON.
//!
//! Used by create and update alike. Nothing is checked here but shapes: the admin says what is valid, in one place. `none` unsets a setting
//! that may be absent.

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::units::{Size, Time};

/// Flags that set fields of a record.
pub trait Patch {
    /// The fields that are set.
    ///
    /// # Errors
    /// A flag's value has the wrong shape.
    fn patch(&self) -> anyhow::Result<Map<String, Value>>;
}

/// Settings of a store.
#[derive(Debug, Args, Serialize)]
pub struct StoreFlags {
    /// The service's URL.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The region requests are signed for.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// The bucket.
    #[arg(long, value_name = "NAME")]
    bucket: Option<String>,
    /// `true`: endpoint/bucket/key; `false`: bucket.endpoint/key.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    path_style: Option<bool>,
    /// plain, or portable for stores over a file tree.
    #[arg(long, value_name = "FORM")]
    names: Option<String>,
    /// A PUT with If-None-Match or If-Match is atomic there.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    conditional_put: Option<bool>,
    /// Nobody but one proxy ever writes there.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    single_writer: Option<bool>,
    /// Where a proxy finds the credentials: usual, env, profile:NAME or file:PATH#PROFILE. Never the secret itself.
    #[arg(long, value_name = "REFERENCE")]
    credentials: Option<String>,
    /// The STS that gives clients session credentials, or none.
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<String>,
    /// The role that is assumed there, or none.
    #[arg(long, value_name = "ARN")]
    sts_role: Option<String>,
    /// How long session credentials last.
    #[arg(long, value_name = "SECONDS")]
    sts_seconds: Option<u32>,
}

/// Settings of a volume.
#[derive(Debug, Args, Serialize)]
pub struct VolumeFlags {
    /// The store's name.
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Put before each key in the bucket.
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// blocks or objects.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// The largest block, such as 4MiB.
    #[arg(long, value_name = "SIZE")]
    #[serde(skip)]
    block_size: Option<Size>,
    /// through or back.
    #[arg(long, value_name = "MODE")]
    write: Option<String>,
    /// disk, peer or origin.
    #[arg(long, value_name = "LEVEL")]
    durability: Option<String>,
    /// Puts and deletes are refused.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    read_only: Option<bool>,
    /// How old a hit may be before it is compared with the store, such as 30s; none: the volume is immutable.
    #[arg(long, value_name = "DURATION")]
    #[serde(skip)]
    revalidate: Option<String>,
    /// One of the groups attached, or none.
    #[arg(long, value_name = "NAME")]
    #[serde(skip)]
    home_group: Option<String>,
    /// never, reads or always.
    #[arg(long, value_name = "WHEN")]
    bypass: Option<String>,
    /// How many slices of each S3 object go through proxies, or none for all.
    #[arg(long, value_name = "N")]
    #[serde(skip)]
    max_proxied: Option<String>,
}

/// Settings of a group.
#[derive(Debug, Args, Serialize)]
pub struct GroupFlags {
    /// Who runs the machines.
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Where they stand.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

/// Settings of a member.
#[derive(Debug, Args, Serialize)]
pub struct MemberFlags {
    /// host:port of its shared listener.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// The name its certificate is verified against.
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Its share of the keys, relative to the others'.
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// joining, up, draining or absent.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// What placement knows it by; drawn unless given.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

fn set_fields(flags: &impl Serialize) -> anyhow::Result<Map<String, Value>> {
    match serde_json::to_value(flags)? {
        Value::Object(fields) => Ok(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        _ => Ok(Map::new()),
    }
}

impl Patch for StoreFlags {
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        let mut fields = set_fields(self)?;
        for name in ["sts_endpoint", "sts_role"] {
            if let Some(value) = fields.get_mut(name).filter(|value| *value == "none") {
                *value = Value::Null;
            }
        }
        Ok(fields)
    }
}

impl Patch for GroupFlags {
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        set_fields(self)
    }
}

impl Patch for MemberFlags {
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        set_fields(self)
    }
}

impl Patch for VolumeFlags {
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        let mut fields = set_fields(self)?;
        match self.block_size {
            Some(Size::Bytes(bytes)) => drop(fields.insert("block_size".to_owned(), bytes.into())),
            Some(Size::Percent(_)) => anyhow::bail!("--block-size: write a size such as 4MiB"),
            None => (),
        }
        let mut set = |field: &str, text: &Option<String>, value: &dyn Fn(&str) -> anyhow::Result<Value>| {
            if let Some(text) = text {
                let value = if text == "none" { Value::Null } else { value(text)? };
                fields.insert(field.to_owned(), value);
            }
            anyhow::Ok(())
        };
        set("home_group", &self.home_group, &|text| Ok(text.into()))?;
        set("max_proxied", &self.max_proxied, &|text| {
            let count: u32 = text.parse().map_err(|_| anyhow::anyhow!("--max-proxied: write a number or none"))?;
            Ok(count.into())
        })?;
        set("revalidate_seconds", &self.revalidate, &|text| {
            let time: Time = text.parse().map_err(|error| anyhow::anyhow!("--revalidate: {error}"))?;
            anyhow::ensure!(time.0.as_secs() >= 1, "--revalidate: write at least 1s, or none");
            Ok(time.0.as_secs().into())
        })?;
        Ok(fields)
    }
}
