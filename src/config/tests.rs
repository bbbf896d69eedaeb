//! What a mistake in the configuration says: a table of changes to a good file and the line each one gets.
//!
//! Also: what is printed is a configuration again, and holds no secret.

#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;

use forebay_shard::config::SyncMode;

use crate::config::admin::Ownership;
use crate::config::checked::{Auth, Config};
use crate::config::machine::Machine;
use crate::config::parse;

const GOOD: &str = r#"
[node]
name = "one"
memory = "1GiB"
tls_certificate = "Cargo.toml"
tls_key = "Cargo.toml"

[[disk]]
path = "/data"
capacity = "8GiB"

[[store]]
name = "main"
endpoint = "https://s3.example.com"
bucket = "blocks"
credentials = { access_key = "AK", secret_key = "very-secret" }

[[volume]]
name = "demo-back"
store = "main"
prefix = "demo/"
write = "back"

[auth]
public_keys = [{ id = "k", key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }]
"#;

fn machine() -> Machine {
    fn free(_: &Path) -> io::Result<u64> {
        Ok(100 << 30)
    }
    Machine { cores: vec![0, 1], memory_bytes: 8 << 30, host_name: "host".to_owned(), disk_free: free }
}

fn check(text: &str) -> Result<Config, String> {
    let raw = parse(text).map_err(|error| error.to_string())?;
    Config::check(raw, &machine()).map_err(|error| error.to_string())
}

#[test]
fn the_good_file_is_good_and_its_shares_are_figures() {
    let config = check(GOOD).unwrap();
    assert_eq!((config.shards, config.cores.as_slice(), &*config.tls_name), (2, [0, 1].as_slice(), "one"));
    assert_eq!(config.dirty_bytes_max, 2 << 30);
    assert!(matches!(config.auth, Auth::Tokens(_)));
    let shard = config.shard(1);
    assert_eq!((shard.shard, shard.dirty_bytes_max, shard.volumes.len()), (1, 1 << 30, 1));
    let geometry = config.disks[0].shape.as_ref().unwrap().geometry;
    let slab = u64::from(geometry.region_count) * geometry.region_bytes;
    assert!(slab + geometry.journal_bytes <= 4 << 30 && shard.dirty_bytes_max <= slab / 2);
}

#[test]
fn several_disks_share_the_node_and_one_that_is_missing_is_no_mistake() {
    let two = GOOD.replace("[[disk]]", "[[disk]]\npath = \"/more\"\ncapacity = \"4GiB\"\nsync = false\n[[disk]]");
    let config = check(&two).unwrap();
    let capacities: Vec<u64> =
        config.disks.iter().map(|disk| disk.shape.as_ref().unwrap().capacity_bytes >> 30).collect();
    assert_eq!((capacities.as_slice(), config.dirty_bytes_max), (&[4, 8][..], 3 << 30));
    assert_eq!((config.sync(), config.disks[1].sync), (SyncMode::Never, SyncMode::Always));
    // Its mount point shows the file system below: too small for what it held.
    let missing = check(&two.replace("4GiB", "400GiB")).unwrap();
    assert!(missing.disks[0].shape.is_err() && missing.disks[1].shape.is_ok());
    assert_eq!(missing.dirty_bytes_max, 2 << 30);
}

#[test]
fn what_is_printed_is_a_configuration_without_secrets() {
    let config = check(GOOD).unwrap();
    let printed = toml::to_string(&config.effective).unwrap();
    assert!(!printed.contains("very-secret") && !format!("{config:?}").contains("very-secret"), "{printed}");
    let again = check(&printed).unwrap();
    assert_eq!(again.budget, config.budget);
    assert_eq!(toml::to_string(&again.effective).unwrap(), printed);
}

#[test]
fn a_mistake_gets_one_line_with_its_key_and_the_fix() {
    // What is replaced, by what, what the line says.
    let table = [
        ("memory = \"1GiB\"", "memory = \"1GiB\"\nmemroy = 1", "line 5: unknown field `memroy`"),
        ("memory = \"1GiB\"", "memory = \"lots\"", "line 4: \"lots\" is not a size"),
        ("memory = \"1GiB\"", "memory = \"64MiB\"", "node.memory: 64MiB is too little"),
        ("memory = \"1GiB\"", "memory = \"1TiB\"", "node.memory: this machine (or its cgroup) has 8GiB: set less"),
        ("name = \"one\"", "cores = [5]", "node.cores: this process may not use CPU 5: choose of 0, 1"),
        ("name = \"one\"", "cores = []", "node.cores: is empty"),
        ("name = \"one\"", "cores = [1, 1]", "node.cores: names a CPU twice"),
        ("name = \"one\"", "shards = 1", "node.shards: 1 shards for 2 executors: set 2 to 1024"),
        ("name = \"one\"", "listen = \"localhost\"", "line 3: invalid socket address syntax"),
        ("name = \"one\"", "shard_port_base = 65535", "node.shard_port_base: 65535 leaves no room for 2 ports"),
        ("name = \"one\"", "shard_port_base = 7399", "node.shard_port_base: ports 7399 to 7400 hold the port of"),
        ("name = \"one\"", "dirty_max = \"60%\"", "node.dirty_max: 60% is more than half of disk.capacity"),
        ("name = \"one\"", "drain_deadline = \"soon\"", "line 3: \"soon\" is not a duration such as \"30s\""),
        ("tls_key = \"Cargo.toml\"", "tls_key = \"no-such\"", "node.tls_key: no-such: No such file"),
        ("tls_key = \"Cargo.toml\"", "", "missing field `tls_key`"),
        ("[[disk]]", "[[disk]]\npath = \"/data\"\n[[disk]]", "disk.path: /data is named twice: give each [[disk]]"),
        ("name = \"one\"", "abandon_disks = [\"b\"]", "node.abandon_disks: \"b\" is no disk: write its 32 hexadecimal"),
        ("capacity = \"8GiB\"", "capacity = \"200GiB\"", "disk.capacity: 200GiB is more than the 102400MiB free at"),
        ("capacity = \"8GiB\"", "capacity = \"512MiB\"", "disk.capacity: 512MiB make 3 regions of 64MiB for each of 2"),
        ("capacity = \"8GiB\"", "region = \"16MiB\"", "disk.region: 16MiB is not a power of two between 8 × the"),
        ("capacity = \"8GiB\"", "region = \"100MiB\"", "disk.region: 100MiB is not a power of two"),
        ("capacity = \"8GiB\"", "region = \"5%\"", "disk.region: a share has no meaning here"),
        ("https://", "ftp://", "store.endpoint (store \"main\"): \"ftp://s3.example.com\" is no URL"),
        ("bucket = \"blocks\"", "bucket = \"a/b\"", "store.bucket (store \"main\"): \"a/b\" is no bucket name"),
        (", secret_key = \"very-secret\"", "", "access_key without secret_key: add it"),
        ("access_key = \"AK\"", "env = true, access_key = \"AK\"", "several kinds at once: keep"),
        ("name = \"demo-back\"", "name = \"Demo\"", "volume.name (volume \"Demo\"): write 1 to 63 of a-z, 0-9 and -"),
        ("store = \"main\"", "store = \"other\"", "no [[store]] is named \"other\": there is \"main\""),
        ("write = \"back\"", "write = \"sideways\"", "unknown variant `sideways`, expected `through` or `back`"),
        ("write = \"back\"", "block_size = \"32MiB\"", "block_size (volume \"demo-back\"): 32MiB is out of range"),
        ("[[volume]]", "[[volume]]\nname = \"a\"\nstore = \"main\"\nprefix = \"demo/\"\n[[volume]]", "same place"),
        ("id = \"k\", key = \"11", "id = \"k\", key = \"", "auth.public_keys (k): key: this is no Ed25519 public key"),
        ("public_keys", "anonymous = false #", "auth.public_keys: is empty: add the key"),
        ("[auth]", "[limits]\nfills = 0\n[auth]", "limits.fills: 0 is out of range: set 1 to 65536"),
        (
            "[auth]",
            "[limits]\nconnections_per_core = 9223372036854775807\n[auth]",
            "limits.connections_per_core: 9223372036854775807 is out of range",
        ),
        ("[auth]", "[limits]\nidle_timeout = \"1ms\"\n[auth]", "limits.idle_timeout: 1ms is too short"),
        ("[auth]", "[health]\nprobes_good = 0\n[auth]", "health.probes_good: 0 is out of range: set 1 to 1000000"),
        ("[auth]", "[health]\nerrors_offline = 3\n[auth]", "health.errors_offline: 3 is not more than errors_degraded"),
        ("[auth]", "[health]\nstalled = \"500ms\"\n[auth]", "health.stalled: 500ms is not longer than slow (1s)"),
        ("[auth]", "[health]\nprobe_every = \"2m\"\n[auth]", "health.probe_every_max: 1m is shorter than probe_every"),
        ("[auth]", "[health]\nslow_share = 3\n[auth]", "health.slow_share: write a share such as"),
        ("[auth]", "[health]\nwindow = \"1ms\"\n[auth]", "health.window: 1ms is out of range: set 10ms to 1d"),
        ("[auth]", "[log]\nlevel = \"a=b=c\"\n[auth]", "log.level: \"a=b=c\" is no level"),
    ];
    for (good, bad, says) in table {
        assert!(GOOD.contains(good), "the table is out of date: {good}");
        let error = check(&GOOD.replacen(good, bad, 1)).expect_err(bad);
        assert!(error.contains(says), "{bad}\n  says {error}\n  want {says}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

const FOLLOWING: &str = r#"
[node]
memory = "1GiB"
tls_certificate = "Cargo.toml"
tls_key = "Cargo.toml"

[[disk]]
path = "/data"
capacity = "8GiB"

[admin]
url = "https://admin.example.net:7300/"
group = "near"
member = "a"
token_file = "Cargo.toml"
directory = "/data/admin"
"#;

#[test]
fn a_node_that_follows_an_admin_has_no_stores_of_its_own() {
    let config = check(FOLLOWING).unwrap();
    let admin = config.admin.as_ref().unwrap();
    assert_eq!((admin.url.as_str(), admin.ownership), ("https://admin.example.net:7300", Ownership::Any));
    assert!(matches!(config.auth, Auth::AdminTokens) && config.volumes.is_empty());
    assert_eq!(config.block_bytes_max, 4 << 20);
    let printed = toml::to_string(&config.effective).unwrap();
    assert!(check(&printed).is_ok(), "{printed}");
    let store = "[[store]]\nname = \"main\"\nendpoint = \"https://s3.example.com\"\nbucket = \"blocks\"\n[admin]";
    let key = "[auth]\npublic_keys = [{ id = \"k\", key = \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\" }]\n[admin]";
    for (good, bad, says) in [
        ("[admin]", store, "store: comes from the admin: remove it here"),
        ("[admin]", "[[volume]]\nname = \"v\"\nstore = \"s\"\n[admin]", "volume: comes from the admin"),
        ("[admin]", key, "auth.public_keys: comes from the admin"),
        ("https://", "http://", "admin.url: \"http://admin.example.net:7300/\" is no admin: write https://HOST:PORT"),
        ("\"near\"", "\"Near\"", "admin.group: write 1 to 63 of a-z"),
        ("token_file = \"Cargo.toml\"", "token_file = \"no-such\"", "admin.token_file: no-such: No such file"),
        ("[admin]", "[admin]\nca = \"no-such\"", "admin.ca: no-such: No such file"),
        ("[admin]", "[admin]\nblock_size_max = \"32MiB\"", "admin.block_size_max: 32MiB is out of range"),
        ("[admin]", "[admin]\nrefresh = \"10m\"", "admin.refresh: is out of range: set 100ms to 60s"),
        ("[admin]", "[admin]\npublic_keys = [{ id = \"k\", key = \"x\" }]", "admin.public_keys (k): key: this is no"),
        ("[admin]", "[admin]\ncolour = 1", "unknown field `colour`"),
    ] {
        let error = check(&FOLLOWING.replacen(good, bad, 1)).expect_err(bad);
        assert!(error.contains(says) && error.lines().count() == 1, "{bad}\n  says {error}\n  want {says}");
    }
}

#[test]
fn anonymous_access_is_for_loopback_only() {
    let anonymous = GOOD.replace("[auth]", "[auth]\nanonymous = true");
    assert!(matches!(check(&anonymous).unwrap().auth, Auth::Anonymous));
    let open = anonymous.replace("name = \"one\"", "listen = \"0.0.0.0:7400\"");
    assert!(check(&open).unwrap_err().starts_with("auth.anonymous: is only allowed on a loopback address"));
}
