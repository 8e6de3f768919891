//! Clauses about watches.

use std::thread;

use super::{Clause, THREADS, done, existing, now, put, take};
use crate::{Batch, Change, Kv, Result, Revision, StoreError, Txn, WATCH_QUEUE, Watch};

/// Commits after which a log that forgets nothing is held to break its bound.
const COMPACTED_AFTER: usize = 20_000;

pub(super) const CLAUSES: &[(&str, Clause)] = &[
    ("a watch gives every commit in order", a_watch_gives_every_commit_in_order),
    ("a watch from the past gives the same", a_watch_from_the_past_gives_the_same),
    ("a watch gives only its prefix", a_watch_gives_only_its_prefix),
    ("what changes nothing is not heard", what_changes_nothing_is_not_heard),
    ("a watch joins past and present without a gap", a_watch_joins_past_and_present_without_a_gap),
    ("a page and a watch make a mirror", a_page_and_a_watch_make_a_mirror),
    ("a dropped watch disturbs nobody", a_dropped_watch_disturbs_nobody),
    ("a reader that lags is let go", a_reader_that_lags_is_let_go),
    ("the future cannot be watched", the_future_cannot_be_watched),
    ("a compacted revision is refused", a_compacted_revision_is_refused),
];

fn batch(revision: Revision, changes: &[(&str, Option<&str>)]) -> Batch {
    let change = |(key, value): &(&str, Option<&str>)| Change {
        key: (*key).to_owned(),
        value: value.map(|value| value.as_bytes().to_vec()),
        revision,
    };
    Batch { revision, changes: changes.iter().map(change).collect() }
}

/// Some commits of every kind, and what a watch on everything has to give for them.
fn some_commits(kv: &dyn Kv) -> Result<Vec<Batch>> {
    Ok(vec![
        batch(put(kv, "a/1", "one")?, &[("a/1", Some("one"))]),
        batch(
            done(kv, &Txn::new().put("b", "").put("a/2", "two").delete("a/1"))?,
            &[("b", Some("")), ("a/2", Some("two")), ("a/1", None)],
        ),
        batch(put(kv, "b", "again")?, &[("b", Some("again"))]),
        batch(done(kv, &Txn::new().delete("b").delete("no"))?, &[("b", None)]),
    ])
}

fn a_watch_gives_every_commit_in_order(kv: &dyn Kv) -> Result<()> {
    put(kv, "before", "x")?;
    let watch = kv.watch("", now(kv)?)?;
    let expected = some_commits(kv)?;
    assert_eq!(take(watch, expected.len()).1, expected);
    Ok(())
}

fn a_watch_from_the_past_gives_the_same(kv: &dyn Kv) -> Result<()> {
    let start = now(kv)?;
    let expected = some_commits(kv)?;
    assert_eq!(take(kv.watch("", start)?, expected.len()).1, expected);
    let (seen, rest) = expected.split_at(2);
    assert_eq!(take(kv.watch("", seen[1].revision)?, rest.len()).1, rest);
    Ok(())
}

fn a_watch_gives_only_its_prefix(kv: &dyn Kv) -> Result<()> {
    let start = now(kv)?;
    let live = kv.watch("a/", start)?;
    let first = done(kv, &Txn::new().put("a", "x").put("a/1", "x").put("a0", "x").put("ab", "x"))?;
    put(kv, "ab", "y")?;
    let last = done(kv, &Txn::new().delete("ab").delete("a/1"))?;
    let expected = [batch(first, &[("a/1", Some("x"))]), batch(last, &[("a/1", None)])];
    assert_eq!(take(live, 2).1, expected);
    assert_eq!(take(kv.watch("a/", start)?, 2).1, expected);
    Ok(())
}

fn what_changes_nothing_is_not_heard(kv: &dyn Kv) -> Result<()> {
    let watch = kv.watch("", now(kv)?)?;
    for txn in [
        Txn::new(),
        Txn::new().delete("no"),
        Txn::new().present("no").put("k", "x"),
        Txn::new().put("", "x"),
    ] {
        // Conflicts and refusals are part of what must not be heard.
        let _ = kv.commit(&txn);
    }
    let revision = put(kv, "end", "x")?;
    assert_eq!(take(watch, 1).1, [batch(revision, &[("end", Some("x"))])]);
    Ok(())
}

/// Watches opened from the start while threads commit: each sees every commit once, in order.
fn a_watch_joins_past_and_present_without_a_gap(kv: &dyn Kv) -> Result<()> {
    const EACH: usize = 40;
    let start = now(kv)?;
    let watches: Result<Vec<Watch>> = thread::scope(|scope| {
        let writer = |thread: usize| {
            move || (0..EACH).try_for_each(|i| put(kv, &format!("{thread}/{i}"), "x").map(drop))
        };
        let writers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(writer(thread))).collect();
        let watches = (0..THREADS).map(|_| kv.watch("", start)).collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|_| panic!("a writer panicked")))?;
        watches
    });
    for watch in watches? {
        let (_, batches) = take(watch, THREADS * EACH);
        assert!(
            batches.is_sorted_by(|a, b| a.revision < b.revision),
            "every commit once and in order"
        );
        for batch in &batches {
            let change = &batch.changes[0];
            assert_eq!(
                existing(kv, &change.key)?.mod_revision,
                batch.revision,
                "the revision that was answered"
            );
        }
    }
    Ok(())
}

/// A reader that reads a page, and follows from its revision, holds what the store holds.
fn a_page_and_a_watch_make_a_mirror(kv: &dyn Kv) -> Result<()> {
    const COMMITS: usize = 150;
    let write = || {
        (0..COMMITS).try_for_each(|i| {
            let key = format!("m/{}", i % 7);
            let txn = if i % 5 == 4 {
                Txn::new().delete(key)
            } else {
                Txn::new().put(key, i.to_string())
            };
            done(kv, &txn).map(drop)
        })
    };
    thread::scope(|scope| {
        let writer = scope.spawn(write);
        let page = kv.range("m/", None, 100)?;
        let mut watch = kv.watch("m/", page.revision)?;
        writer.join().unwrap_or_else(|_| panic!("the writer panicked"))?;
        put(kv, "m/end", "x")?;
        let mut mirror: std::collections::BTreeMap<_, _> =
            page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        while !mirror.contains_key("m/end") {
            let (again, batches) = take(watch, 1);
            watch = again;
            for change in batches.into_iter().flat_map(|batch| batch.changes) {
                match change.value {
                    Some(value) => mirror.insert(change.key, value),
                    None => mirror.remove(&change.key),
                };
            }
        }
        let stored = kv.range("m/", None, 100)?.entries;
        assert_eq!(mirror, stored.into_iter().map(|entry| (entry.key, entry.value)).collect());
        Ok(())
    })
}

fn a_dropped_watch_disturbs_nobody(kv: &dyn Kv) -> Result<()> {
    let start = now(kv)?;
    let kept = kv.watch("", start)?;
    for _ in 0..2 * crate::WATCHES_MAX {
        drop(kv.watch("", start)?);
    }
    let expected = some_commits(kv)?;
    assert_eq!(take(kept, expected.len()).1, expected);
    Ok(())
}

fn a_reader_that_lags_is_let_go(kv: &dyn Kv) -> Result<()> {
    let start = now(kv)?;
    let lagging = kv.watch("lag/", start)?;
    let patient = kv.watch("other/", start)?;
    let mut revisions = Vec::new();
    for i in 0..WATCH_QUEUE + WATCH_QUEUE / 4 {
        revisions.push(put(kv, "lag/k", &i.to_string())?);
    }
    let (_, queued) = take(lagging, usize::MAX);
    assert!(queued.len() >= WATCH_QUEUE, "{} commits were queued", queued.len());
    assert!(
        queued.iter().map(|batch| batch.revision).eq(revisions[..queued.len()].iter().copied()),
        "without a gap"
    );

    let revision = put(kv, "other/k", "x")?;
    assert_eq!(
        take(patient, 1).1,
        [batch(revision, &[("other/k", Some("x"))])],
        "others are not touched"
    );
    Ok(())
}

fn the_future_cannot_be_watched(kv: &dyn Kv) -> Result<()> {
    let current = put(kv, "k", "x")?;
    for after in [Revision(current.0 + 1_000_000), Revision(u64::MAX)] {
        assert!(
            matches!(kv.watch("", after), Err(StoreError::Ahead { after: said, .. }) if said == after)
        );
    }
    Ok(())
}

fn a_compacted_revision_is_refused(kv: &dyn Kv) -> Result<()> {
    put(kv, "kept", "from the beginning")?;
    let start = now(kv)?;
    let mut revisions = Vec::new();
    let first = loop {
        assert!(revisions.len() < COMPACTED_AFTER, "the log is bounded");
        for _ in 0..100 {
            revisions.push(put(kv, "k", &revisions.len().to_string())?);
        }
        match kv.watch("", start) {
            Err(StoreError::Compacted { first }) => break first,
            other => drop(other?),
        }
    };
    assert!(first > start, "revision {first} is still there, and {start} was asked for");
    assert!(matches!(kv.watch("nothing/", Revision(0)), Err(StoreError::Compacted { .. })));

    let expected: Vec<_> =
        revisions.iter().copied().filter(|revision| *revision >= first).collect();
    let (_, batches) = take(kv.watch("", Revision(first.0 - 1))?, expected.len());
    assert!(
        batches.iter().map(|batch| batch.revision).eq(expected),
        "the log is whole from its first revision"
    );
    assert_eq!(existing(kv, "kept")?.value, b"from the beginning", "only the log forgets");
    Ok(())
}
