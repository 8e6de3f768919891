//! How much of its past a store keeps for watches. A value; the stores act on it.

/// What a store keeps of its log: no more than both bounds allow, and always its last commit.
///
/// The log is what a watch from the past reads, so these bound its memory too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most revisions.
    pub revisions: u64,
    /// Most bytes of keys and values.
    pub bytes: u64,
}

impl Default for Retention {
    /// 10,000 revisions, about a day of a busy host, and 64 MiB.
    fn default() -> Self {
        Self { revisions: 10_000, bytes: 64 << 20 }
    }
}

impl Retention {
    /// Whether a log of this size has to shrink.
    pub(crate) fn exceeded_by(self, revisions: u64, bytes: u64) -> bool {
        revisions > 1 && (revisions > self.revisions || bytes > self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_commit_is_kept_whatever_its_size() {
        let small = Retention { revisions: 0, bytes: 0 };
        assert!(!small.exceeded_by(1, 1000));
        assert!(small.exceeded_by(2, 0));
        assert!(!Retention { revisions: 2, bytes: 10 }.exceeded_by(2, 10));
    }
}
