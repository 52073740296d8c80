//! Owns the rule that what is committed tiles the log: from the log start on,
//! every offset is in exactly one archive or one declared gap.
//!
//! Below the log start nothing is promised: an archive may reach there, and what
//! lay between two such archives may be gone. Two may still not overlap, since
//! then nobody could say what was served.

use crate::record::OffsetRange;

/// How the rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Two tiles share offsets.
    Overlap(OffsetRange, OffsetRange),
    /// Offsets are in no tile.
    Hole(OffsetRange),
}

/// Checks `tiles`, which ascend by first offset, among themselves.
pub(super) fn check(tiles: &[OffsetRange], log_start: i64) -> Result<(), Broken> {
    for two in tiles.windows(2) {
        if two[1].base() <= two[0].last() {
            return Err(Broken::Overlap(two[0], two[1]));
        }
        if let Some(hole) = OffsetRange::new(two[0].end().max(log_start), two[1].base() - 1) {
            return Err(Broken::Hole(hole));
        }
    }
    Ok(())
}

/// Checks all `tiles` of a partition and returns the end of what they tile, which
/// is the log start where they end before it.
pub(super) fn end(tiles: &[OffsetRange], log_start: i64) -> Result<i64, Broken> {
    check(tiles, log_start)?;
    let (Some(first), Some(last)) = (tiles.first(), tiles.last()) else { return Ok(log_start) };
    if let Some(hole) = OffsetRange::new(log_start, first.base() - 1) {
        return Err(Broken::Hole(hole));
    }
    // Gaps below the log start are dropped, also those right before it.
    Ok(last.end().max(log_start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: i64, last: i64) -> OffsetRange {
        OffsetRange::new(base, last).unwrap()
    }

    #[test]
    fn tiles_that_touch_tile() {
        assert_eq!(end(&[], 7), Ok(7));
        assert_eq!(end(&[range(0, 4), range(5, 5), range(6, 9)], 0), Ok(10));
        assert_eq!(end(&[range(3, 9)], 5), Ok(10));
        assert_eq!(end(&[range(3, 9)], 10), Ok(10));
    }

    #[test]
    fn a_hole_is_named_from_the_log_start_on() {
        assert_eq!(end(&[range(0, 4), range(7, 9)], 0), Err(Broken::Hole(range(5, 6))));
        assert_eq!(end(&[range(0, 4), range(7, 9)], 6), Err(Broken::Hole(range(6, 6))));
        assert_eq!(end(&[range(0, 4), range(7, 9)], 7), Ok(10));
        assert_eq!(end(&[range(2, 4)], 0), Err(Broken::Hole(range(0, 1))));
        assert_eq!(end(&[range(2, 4)], 8), Ok(8));
    }

    #[test]
    fn an_overlap_is_refused_even_below_the_log_start() {
        let (a, b) = (range(0, 4), range(4, 9));
        assert_eq!(end(&[a, b], 0), Err(Broken::Overlap(a, b)));
        assert_eq!(end(&[a, b], 8), Err(Broken::Overlap(a, b)));
    }
}
