//! The regions of a slab as a small picture: one character each, rows of 64.
//!
//! Drawn under the table of regions and in the summary. In a slab of more than 1,024 regions a character stands for
//! several, and shows the one that matters most: a quarantined before a dirty one, a dirty before a clean one.

use std::io::{self, Write};

use forebay_io::superblock::Superblock;
use forebay_shard::store::inspect::regions::{RegionIs, RegionView};

const COLUMNS: usize = 64;
const CELLS_MAX: usize = 1024;

/// Draws the map with its legend.
///
/// # Errors
/// The output's.
pub fn draw(out: &mut dyn Write, superblock: &Superblock, regions: &[RegionView]) -> io::Result<()> {
    let per_cell = regions.len().div_ceil(CELLS_MAX).max(1);
    let cells: Vec<char> = regions
        .chunks(per_cell)
        .map(|several| {
            several.iter().map(|region| cell(superblock.region_bytes, region)).max_by_key(|cell| weight(*cell))
        })
        .map(|cell| cell.unwrap_or('.'))
        .collect();
    for (row, columns) in cells.chunks(COLUMNS).enumerate() {
        writeln!(out, "  {:>8}  {}", row * COLUMNS * per_cell, columns.iter().collect::<String>())?;
    }
    let each = if per_cell > 1 { format!(", {per_cell} regions a character") } else { String::new() };
    writeln!(
        out,
        "            . free   0–9 clean, tenths in use   d dirty   D more than half dirty   x quarantined{each}"
    )
}

fn cell(region_bytes: u64, region: &RegionView) -> char {
    match region.state {
        RegionIs::Quarantined => 'x',
        RegionIs::Free => '.',
        _ if region.dirty_bytes > region_bytes / 2 => 'D',
        _ if region.dirty_bytes > 0 => 'd',
        _ => {
            let tenths = (region.live_bytes.saturating_mul(10) / region_bytes.max(1)).min(9);
            char::from_digit(u32::try_from(tenths).expect("at most nine"), 10).expect("a digit")
        }
    }
}

fn weight(cell: char) -> u32 {
    match cell {
        'x' => 40,
        'D' => 30,
        'd' => 20,
        digit => digit.to_digit(10).map_or(0, |digit| digit + 1),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use forebay_shard::store::inspect::footers::FooterState;

    use super::*;

    fn superblock(region_count: u32) -> Superblock {
        Superblock {
            node_id: 1,
            store_id: 2,
            shard: 0,
            shard_count: 1,
            identity_key: [0; 16],
            region_bytes: 1000,
            region_count,
            journal_bytes: 65_536,
            created_unix_ms: 0,
        }
    }

    fn region(number: u32, state: RegionIs, live_bytes: u64, dirty_bytes: u64) -> RegionView {
        let (footer, stream) = (FooterState::None, None);
        RegionView { number, state, epoch: 1, stream, live: 1, live_bytes, dirty_bytes, fill_bytes: live_bytes, footer }
    }

    fn drawn(regions: &[RegionView]) -> String {
        let mut out = Vec::new();
        draw(&mut out, &superblock(regions.len() as u32), regions).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_kind_has_its_character() {
        let regions = [
            region(0, RegionIs::Free, 0, 0),
            region(1, RegionIs::Sealed, 950, 0),
            region(2, RegionIs::Unsealed, 40, 0),
            region(3, RegionIs::Sealed, 900, 100),
            region(4, RegionIs::Sealed, 900, 800),
            region(5, RegionIs::Quarantined, 900, 800),
        ];
        assert!(drawn(&regions).starts_with("         0  .90dDx\n"), "{}", drawn(&regions));
    }

    #[test]
    fn a_large_slab_shares_characters_and_hides_no_dirty_region() {
        let mut regions: Vec<_> = (0..4096).map(|number| region(number, RegionIs::Free, 0, 0)).collect();
        regions[4095] = region(4095, RegionIs::Sealed, 10, 10);
        let drawn = drawn(&regions);
        assert_eq!(drawn.matches('\n').count(), 17);
        assert!(drawn.contains("...d\n") && drawn.contains("4 regions a character"), "{drawn}");
    }
}
