//! The bounds of the contract, checked before a store touches anything. Pure; every store calls
//! these first.

use std::collections::HashSet;
use std::ops::Bound;

use crate::{
    KEY_BYTES_MAX, PAGE_ENTRIES_MAX, Range, Result, Revision, StoreError, TXN_BYTES_MAX,
    TXN_OPS_MAX, Txn, VALUE_BYTES_MAX, Write,
};

/// Sorts after every key: DEL, the first character beyond the printable ones.
const AFTER_ALL: char = '\u{7f}';
/// How much of a malformed key an error repeats.
const KEY_SHOWN_CHARS: usize = 64;

/// Refuses what cannot be a key.
pub(crate) fn key(key: &str) -> Result<()> {
    if key.is_empty() { Err(malformed(key)) } else { prefix(key) }
}

/// Refuses what no key can begin with.
pub(crate) fn prefix(prefix: &str) -> Result<()> {
    if prefix.len() <= KEY_BYTES_MAX && prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(malformed(prefix))
    }
}

/// Refuses a transaction that breaks a bound.
pub(crate) fn txn(txn: &Txn) -> Result<()> {
    let ops = txn.guards.len() + txn.writes.len();
    if ops > TXN_OPS_MAX {
        return Err(StoreError::CheckOps { ops });
    }
    for guard in &txn.guards {
        key(guard.key())?;
    }
    let mut bytes = 0;
    let mut seen = HashSet::with_capacity(txn.writes.len());
    for write in &txn.writes {
        key(write.key())?;
        if !seen.insert(write.key()) {
            return Err(StoreError::CheckDuplicate { key: write.key().to_owned() });
        }
        bytes += write.key().len();
        if let Write::Put(key, value) = write {
            if value.len() > VALUE_BYTES_MAX {
                return Err(StoreError::CheckValue { key: key.clone(), len: value.len() });
            }
            bytes += value.len();
        }
    }
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::CheckBytes { len: bytes });
    }
    Ok(())
}

/// A range as one interval of keys, upside down never: its end is excluded.
#[derive(Debug)]
pub(crate) struct Interval {
    pub(crate) start: Bound<String>,
    pub(crate) end: String,
}

/// The interval that a range asks for, or the reason it is refused.
pub(crate) fn interval(range: &Range) -> Result<Interval> {
    prefix(&range.prefix)?;
    if !(1..=PAGE_ENTRIES_MAX).contains(&range.limit) {
        return Err(StoreError::CheckLimit { limit: range.limit });
    }
    let end = end(&range.prefix);
    let start = match &range.from {
        Bound::Unbounded => Bound::Included(range.prefix.clone()),
        Bound::Included(from) | Bound::Excluded(from) => {
            prefix(from)?;
            if *from < range.prefix {
                Bound::Included(range.prefix.clone())
            } else if *from > end {
                Bound::Included(end.clone())
            } else {
                range.from.clone()
            }
        }
    };
    Ok(Interval { start, end })
}

/// The least text that sorts after every key under `prefix`.
pub(crate) fn end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    end.push(AFTER_ALL);
    end
}

/// Refuses to watch from a revision that the log, which holds `first` to `current`, cannot follow.
pub(crate) fn follows(after: Revision, first: Revision, current: Revision) -> Result<()> {
    if after > current {
        Err(StoreError::Ahead { after, current })
    } else if after.0 + 1 < first.0 {
        Err(StoreError::Compacted { first })
    } else {
        Ok(())
    }
}

fn malformed(key: &str) -> StoreError {
    StoreError::CheckKey { key: key.chars().take(KEY_SHOWN_CHARS).collect(), len: key.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_printable_ascii() {
        for good in ["a", "env/shop", "!~", &"k".repeat(KEY_BYTES_MAX)] {
            assert!(key(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "a b", "a\n", "a\0", "é", "\u{7f}", &"k".repeat(KEY_BYTES_MAX + 1)] {
            assert!(matches!(key(bad), Err(StoreError::CheckKey { .. })), "{bad:?}");
        }
    }

    #[test]
    fn an_error_shows_the_beginning_of_a_long_key() {
        let text = malformed(&"k".repeat(10_000)).to_string();
        assert!(text.contains("10000 bytes") && text.len() < 300, "{text}");
    }

    #[test]
    fn every_key_under_a_prefix_sorts_before_its_end() {
        assert!("a/~~~" < end("a/").as_str());
        assert!(end("a/").as_str() < "a0");
    }

    #[test]
    fn a_log_can_be_followed_from_the_revision_before_its_first() {
        let (first, current) = (Revision(5), Revision(9));
        assert!(follows(Revision(4), first, current).is_ok());
        assert!(follows(current, first, current).is_ok());
        assert!(matches!(
            follows(Revision(3), first, current),
            Err(StoreError::Compacted { first: Revision(5) })
        ));
        assert!(matches!(follows(Revision(10), first, current), Err(StoreError::Ahead { .. })));
        assert!(follows(Revision(0), Revision(1), Revision(0)).is_ok());
    }
}
