//! Of a build that is tried again and again, what its log has not said before: most of it is the same
//! each time, and why it is tried again stands between its lines once.

use std::collections::HashSet;

/// What a driver has said in the tries of one build so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    earlier: HashSet<Vec<u8>>,
    now: HashSet<Vec<u8>>,
    /// How much of it is kept, in bytes.
    kept: usize,
}

impl Heard {
    /// How much of it is kept at most, in bytes: more is said as often as it comes.
    const MOST: usize = 64 << 10;

    /// The next try begins.
    pub(super) fn begin(&mut self) {
        self.earlier.extend(self.now.drain());
    }

    /// Whether no earlier try has said this.
    pub(super) fn is_new(&mut self, piece: &[u8]) -> bool {
        if self.earlier.contains(piece) {
            return false;
        }
        if self.kept + piece.len() <= Self::MOST && self.now.insert(piece.to_owned()) {
            self.kept += piece.len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_not_kept_whole() {
        let mut heard = Heard::default();
        for piece in [vec![0; Heard::MOST], vec![1]] {
            heard.begin();
            assert!(heard.is_new(&piece));
        }
        heard.begin();
        assert!(!heard.is_new(&vec![0; Heard::MOST]));
        assert!(heard.is_new(&[1]));
    }
}
