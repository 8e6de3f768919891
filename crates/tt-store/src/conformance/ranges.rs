//! Clauses about reading windows of keys.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{Clause, at, done, keys, now, put};
use crate::{
    KEY_BYTES_MAX, Kv, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Range, Result, StoreError, Txn,
    VALUE_BYTES_MAX,
};

pub(super) const CLAUSES: &[(&str, Clause)] = &[
    ("a prefix is text and not a path", a_prefix_is_text_and_not_a_path),
    ("keys come in byte order", keys_come_in_byte_order),
    ("pages cover a range once", pages_cover_a_range_once),
    ("a window begins anywhere", a_window_begins_anywhere),
    ("a page says its revision", a_page_says_its_revision),
    ("a page is one moment", a_page_is_one_moment),
    ("a page is bounded in bytes", a_page_is_bounded_in_bytes),
    ("malformed ranges are refused", malformed_ranges_are_refused),
];

fn put_all(kv: &dyn Kv, keys: &[&str]) -> Result<()> {
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.put(*key, *key));
    done(kv, &txn).map(drop)
}

fn a_prefix_is_text_and_not_a_path(kv: &dyn Kv) -> Result<()> {
    put_all(kv, &["a", "a!", "a/", "a/1", "a/~", "a0", "ab", "b"])?;
    let cases: [(&str, &[&str]); 6] = [
        ("", &["a", "a!", "a/", "a/1", "a/~", "a0", "ab", "b"]),
        ("a", &["a", "a!", "a/", "a/1", "a/~", "a0", "ab"]),
        ("a/", &["a/", "a/1", "a/~"]),
        ("a/~", &["a/~"]),
        ("ab/", &[]),
        ("~", &[]),
    ];
    for (prefix, expected) in cases {
        let page = kv.range(prefix, None, 100)?;
        assert_eq!(keys(&page.entries), expected, "{prefix:?}");
        assert!(!page.more, "{prefix:?}");
    }
    Ok(())
}

fn keys_come_in_byte_order(kv: &dyn Kv) -> Result<()> {
    let mut sorted = vec!["!", "-", "/", "0", "10", "9", "A", "Z", "_", "a", "a/", "aa", "z", "~"];
    for key in sorted.iter().rev() {
        put(kv, key, "x")?;
    }
    sorted.sort_unstable();
    assert_eq!(keys(&kv.range("", None, 100)?.entries), sorted);
    Ok(())
}

fn pages_cover_a_range_once(kv: &dyn Kv) -> Result<()> {
    let txn = (0..25)
        .fold(Txn::new().put("q", "x"), |txn, i| txn.put(format!("p/{i:02}"), i.to_string()));
    done(kv, &txn)?;
    for limit in [1, 2, 5, 24, 25, 26, PAGE_ENTRIES_MAX] {
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = kv.range("p/", after.as_deref(), limit)?;
            assert!(page.entries.len() == limit || !page.more, "only the last page is short");
            seen.extend(page.entries.iter().map(|entry| entry.value.clone()));
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more {
                break;
            }
        }
        let expected: Vec<_> = (0..25).map(|i| i.to_string().into_bytes()).collect();
        assert_eq!(seen, expected, "pages of {limit}");
    }
    Ok(())
}

fn a_window_begins_anywhere(kv: &dyn Kv) -> Result<()> {
    put_all(kv, &["a", "p/1", "p/3", "p/5", "z"])?;
    let after = |key: &str| Bound::Excluded(key.to_owned());
    let cases: [(Bound<String>, usize, &[&str], bool); 12] = [
        (Bound::Unbounded, 2, &["p/1", "p/3"], true),
        (at("p/1"), 9, &["p/1", "p/3", "p/5"], false),
        (at("p/2"), 1, &["p/3"], true),
        (at("p/3"), 1, &["p/3"], true),
        (at("p/5"), 1, &["p/5"], false),
        (after("p/3"), 9, &["p/5"], false),
        (after("p/4"), 9, &["p/5"], false),
        (after("p/5"), 9, &[], false),
        (at("p/6"), 9, &[], false),
        (at(""), 9, &["p/1", "p/3", "p/5"], false),
        (after("a"), 9, &["p/1", "p/3", "p/5"], false),
        (at("z"), 9, &[], false),
    ];
    for (from, limit, expected, more) in cases {
        let range = Range { prefix: "p/".to_owned(), from, limit };
        let page = kv.scan(&range)?;
        assert_eq!((keys(&page.entries).as_slice(), page.more), (expected, more), "{range:?}");
    }
    Ok(())
}

fn a_page_says_its_revision(kv: &dyn Kv) -> Result<()> {
    assert_eq!(kv.range("", None, 1)?.revision, now(kv)?);
    let revision = put(kv, "a", "1")?;
    assert_eq!(kv.range("nothing/", None, 1)?.revision, revision);
    let page = kv.range("", None, 10)?;
    assert_eq!((page.revision, page.entries[0].mod_revision), (revision, revision));
    Ok(())
}

/// Two keys that only ever change together are never seen apart, nor newer than the page says it
/// is.
fn a_page_is_one_moment(kv: &dyn Kv) -> Result<()> {
    const COMMITS: usize = 200;
    put_all(kv, &["pair/1", "pair/2"])?;
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let wrote = (0..COMMITS).try_for_each(|i| {
                done(kv, &Txn::new().put("pair/1", i.to_string()).put("pair/2", i.to_string()))
                    .map(drop)
            });
            written.store(true, Ordering::Release);
            wrote
        });
        while !written.load(Ordering::Acquire) {
            let page = kv.range("pair/", None, 10)?;
            let [first, second] = page.entries.as_slice() else {
                panic!("a pair is {:?}", page.entries)
            };
            assert_eq!(first.mod_revision, second.mod_revision);
            assert!(first.mod_revision <= page.revision, "{page:?}");
        }
        writer.join().unwrap_or_else(|_| panic!("the writer panicked"))
    })
}

fn a_page_is_bounded_in_bytes(kv: &dyn Kv) -> Result<()> {
    const EACH: usize = 8;
    let count = PAGE_BYTES_MAX / VALUE_BYTES_MAX + EACH;
    for first in (0..count).step_by(EACH) {
        let txn = (first..first + EACH)
            .fold(Txn::new(), |txn, i| txn.put(format!("large/{i:03}"), vec![0; VALUE_BYTES_MAX]));
        done(kv, &txn)?;
    }
    let page = kv.range("large/", None, PAGE_ENTRIES_MAX)?;
    assert!(page.more && page.entries.len() < count, "{} of {count}", page.entries.len());
    let last = page.entries.last().map(|entry| entry.key.as_str());
    let rest = kv.range("large/", last, PAGE_ENTRIES_MAX)?;
    assert_eq!((page.entries.len() + rest.entries.len(), rest.more), (count, false));
    Ok(())
}

fn malformed_ranges_are_refused(kv: &dyn Kv) -> Result<()> {
    for limit in [0, PAGE_ENTRIES_MAX + 1, usize::MAX] {
        assert!(
            matches!(kv.range("", None, limit), Err(StoreError::CheckLimit { limit: said }) if said == limit)
        );
    }
    for text in ["a b", "\u{e9}", "a\n", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert!(matches!(kv.range(text, None, 1), Err(StoreError::CheckKey { .. })), "{text:?}");
        assert!(
            matches!(kv.range("", Some(text), 1), Err(StoreError::CheckKey { .. })),
            "{text:?}"
        );
        assert!(matches!(kv.watch(text, now(kv)?), Err(StoreError::CheckKey { .. })), "{text:?}");
    }
    Ok(())
}
