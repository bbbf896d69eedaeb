//! Tries the model: what is synced survives every cut, what is not may be dropped, torn or survive out of order, and one seed
//! does the same each time. `run` needs no mount; `run_mounted` tries the same through the kernel.
//!
//! Run first by `ci/powercut`, because a cut that drops nothing would find nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::media::{Media, SECTOR_BYTES};
use super::mount::Mounted;

const SEEDS: u64 = 400;
const LEN: usize = 8 * SECTOR_BYTES;

/// What a file holds after a cut, seen over many seeds.
#[derive(Default)]
struct Seen {
    whole: u64,
    dropped: u64,
    torn: u64,
    out_of_order: u64,
    size_lost: u64,
    name_lost: u64,
}

/// Panics if the model does not do what the campaign relies on.
pub fn run() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let (mut media, mut again) = (scene(), scene());
        let report = media.cut(seed);
        assert_eq!(again.cut(seed), report, "one seed, one outcome");
        assert!(media.names().eq(again.names()), "one seed, one outcome");
        judge(&media, &again, &mut seen);
        // What survived is durable: the next cut finds nothing to take.
        let names: Vec<String> = media.names().map(|(name, _)| name.to_owned()).collect();
        media.cut(seed + 1);
        assert!(media.names().map(|(name, _)| name).eq(names.iter().map(String::as_str)), "a cut is final");
        assert!(same(&media, &again), "a cut is final");
    }
    let Seen { whole, dropped, torn, out_of_order, size_lost, name_lost } = seen;
    for (what, count) in [
        ("survived whole", whole),
        ("was dropped", dropped),
        ("was torn", torn),
        ("survived out of order", out_of_order),
        ("lost its size", size_lost),
        ("lost its name", name_lost),
    ] {
        assert!(count > 0, "in {SEEDS} cuts no unsynced change {what}");
    }
    sync_means_what_was_written_before_it_began();
}

/// Panics if what is seen through the kernel differs: bytes kept in its cache, say, would survive every cut.
///
/// # Errors
/// The file system fails otherwise than by a cut.
pub fn run_mounted(mounted: &Mounted, directory: &Path) -> std::io::Result<()> {
    const CUTS: u64 = 40;
    let path = directory.join("file");
    let mut dropped = 0;
    for seed in 0..CUTS {
        let file = File::create(&path)?;
        file.write_all_at(&[1; LEN], 0)?;
        file.sync_data()?;
        File::open(directory)?.sync_all()?;
        file.write_all_at(&[2; LEN], 0)?;
        assert_eq!(fs::read(&path)?, [2; LEN], "before the cut, what was written last is read");
        mounted.cut(seed);
        assert!(file.read_at(&mut [0; LEN], 0).is_err(), "handles of before the cut are dead");
        let bytes = fs::read(&path)?;
        assert_eq!(bytes.len(), LEN, "synced");
        dropped += u64::from(sectors(&bytes, 2) == 0);
    }
    assert!(dropped > 0 && dropped < CUTS, "{dropped} of {CUTS} unsynced writes were dropped");
    Ok(())
}

/// A file with synced bytes of 1 and unsynced ones of 2 and 3 over them, a file that grew unsynced, and one without a
/// durable name.
fn scene() -> Media {
    let mut media = Media::default();
    let file = media.create("synced");
    let grown = media.create("grown");
    media.resize(file, 4 * LEN).unwrap();
    media.write(file, 0, &[1; 4 * LEN]).unwrap();
    media.write(grown, 0, &[1; LEN]).unwrap();
    for file in [file, grown] {
        let point = media.sync_begins(file).unwrap();
        media.sync_ends(point);
    }
    media.sync_names();
    media.write(file, LEN, &[2; LEN]).unwrap();
    media.write(file, 2 * LEN, &[3; LEN]).unwrap();
    media.resize(grown, 2 * LEN).unwrap();
    media.write(grown, LEN, &[4; LEN]).unwrap();
    media.create("new");
    media
}

fn judge(media: &Media, again: &Media, seen: &mut Seen) {
    assert!(same(media, again), "one seed, one outcome");
    let file = media.lookup("synced").expect("its name was synced");
    let bytes = media.read(file, 0, 4 * LEN).unwrap();
    assert!(bytes.len() == 4 * LEN && bytes[..LEN].iter().chain(&bytes[3 * LEN..]).all(|byte| *byte == 1), "synced");
    let survived: Vec<usize> =
        [(LEN, 2), (2 * LEN, 3)].iter().map(|(at, value)| sectors(&bytes[*at..at + LEN], *value)).collect();
    for count in &survived {
        match *count {
            0 => seen.dropped += 1,
            8 => seen.whole += 1,
            _ => seen.torn += 1,
        }
    }
    seen.out_of_order += u64::from(survived == [0, 8]);
    let grown = media.lookup("grown").expect("its name was synced");
    let bytes = media.read(grown, 0, 4 * LEN).unwrap();
    assert!(bytes.len() >= LEN && bytes[..LEN].iter().all(|byte| *byte == 1), "synced");
    seen.size_lost += u64::from(bytes.len() == LEN);
    seen.name_lost += u64::from(media.lookup("new").is_none());
}

/// How many sectors have the new value; each has it or the old one as a whole.
fn sectors(bytes: &[u8], new: u8) -> usize {
    let sectors = bytes.chunks(SECTOR_BYTES);
    sectors
        .filter(|sector| {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]) && [1, new].contains(&sector[0]),
                "a sector is never torn"
            );
            sector[0] == new
        })
        .count()
}

fn same(a: &Media, b: &Media) -> bool {
    a.names().eq(b.names())
        && a.names().all(|(_, file)| a.read(file, 0, usize::MAX / 2) == b.read(file, 0, usize::MAX / 2))
}

fn sync_means_what_was_written_before_it_began() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let mut media = Media::default();
        let file = media.create("file");
        media.sync_names();
        media.write(file, 0, &[1; LEN]).unwrap();
        let point = media.sync_begins(file).unwrap();
        media.write(file, 0, &[2; LEN]).unwrap();
        media.sync_ends(point);
        media.cut(seed);
        let bytes = media.read(file, 0, LEN).unwrap();
        assert!(bytes.len() == LEN && bytes.iter().all(|byte| *byte > 0), "synced");
        lost += u64::from(bytes.iter().all(|byte| *byte == 1));
    }
    assert!(lost > 0 && lost < SEEDS, "what came after the sync began is not durable");
}
