//! Clauses about keys and commits. They read single keys only.

use std::thread;

use super::{Clause, THREADS, done, existing, now, put};
use crate::{
    KEY_BYTES_MAX, Kv, Outcome, Result, Revision, StoreError, TXN_BYTES_MAX, TXN_OPS_MAX, Txn,
    VALUE_BYTES_MAX,
};

pub(super) const CLAUSES: &[(&str, Clause)] = &[
    ("a put key is read as it was put", a_put_key_is_read_as_it_was_put),
    ("any bytes are a value", any_bytes_are_a_value),
    ("a key counts its puts until it is deleted", a_key_counts_its_puts_until_it_is_deleted),
    ("a commit is one revision", a_commit_is_one_revision),
    ("nothing changed, no revision", nothing_changed_no_revision),
    ("guards decide", guards_decide),
    ("guards see the store before the writes", guards_see_the_store_before_the_writes),
    ("a conflict changes nothing", a_conflict_changes_nothing),
    ("a counter loses no increment", a_counter_loses_no_increment),
    ("malformed keys are refused", malformed_keys_are_refused),
    ("bounds are refused and change nothing", bounds_are_refused_and_change_nothing),
    ("the largest transaction is carried out", the_largest_transaction_is_carried_out),
];

fn a_put_key_is_read_as_it_was_put(kv: &dyn Kv) -> Result<()> {
    assert_eq!(kv.get("env/shop")?, None);
    let before = now(kv)?;
    let revision = put(kv, "env/shop", "open")?;
    assert!(revision > before, "a commit makes a revision");
    let entry = existing(kv, "env/shop")?;
    assert_eq!((entry.key.as_str(), entry.value.as_slice()), ("env/shop", &b"open"[..]));
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (revision, revision, 1));
    assert_eq!(kv.get("env/sho")?, None);
    assert_eq!(kv.get("env/shop/")?, None);
    Ok(())
}

fn any_bytes_are_a_value(kv: &dyn Kv) -> Result<()> {
    let every: Vec<u8> = (0..=255).collect();
    for value in [vec![], vec![0], vec![0xff; 3], every, vec![7; VALUE_BYTES_MAX]] {
        done(kv, &Txn::new().put("k", value.clone()))?;
        assert_eq!(existing(kv, "k")?.value, value);
    }
    Ok(())
}

fn a_key_counts_its_puts_until_it_is_deleted(kv: &dyn Kv) -> Result<()> {
    let created = put(kv, "k", "1")?;
    put(kv, "k", "1")?;
    let modified = put(kv, "k", "3")?;
    let entry = existing(kv, "k")?;
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (created, modified, 3));

    let deleted = done(kv, &Txn::new().delete("k"))?;
    assert!(deleted > modified, "a delete is a commit");
    assert_eq!(kv.get("k")?, None);

    let again = put(kv, "k", "1")?;
    let entry = existing(kv, "k")?;
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (again, again, 1));
    Ok(())
}

fn a_commit_is_one_revision(kv: &dyn Kv) -> Result<()> {
    put(kv, "gone", "x")?;
    let revision = done(kv, &Txn::new().put("a", "1").delete("gone").put("b", "2"))?;
    for key in ["a", "b"] {
        assert_eq!(existing(kv, key)?.mod_revision, revision);
    }
    assert_eq!(kv.get("gone")?, None);
    assert_eq!(now(kv)?, revision);
    Ok(())
}

fn nothing_changed_no_revision(kv: &dyn Kv) -> Result<()> {
    let revision = put(kv, "k", "1")?;
    for txn in [
        Txn::new(),
        Txn::new().present("k"),
        Txn::new().absent("other"),
        Txn::new().delete("other"),
    ] {
        assert_eq!(done(kv, &txn)?, revision, "{txn:?}");
    }
    Ok(())
}

fn guards_decide(kv: &dyn Kv) -> Result<()> {
    let old = put(kv, "k", "1")?;
    let current = put(kv, "k", "2")?;
    let unborn = Revision(current.0 + 1000);
    let held =
        [Txn::new().present("k"), Txn::new().absent("no"), Txn::new().revision("k", current)];
    for txn in held {
        assert!(matches!(kv.commit(&txn.clone().put("held", ""))?, Outcome::Done(_)), "{txn:?}");
    }
    let broken = [
        (Txn::new().absent("k"), "k"),
        (Txn::new().present("no"), "no"),
        (Txn::new().revision("k", old), "k"),
        (Txn::new().revision("k", unborn), "k"),
        (Txn::new().revision("k", Revision(u64::MAX)), "k"),
        (Txn::new().revision("no", current), "no"),
        (Txn::new().revision("no", Revision(0)), "no"),
        (Txn::new().present("k").revision("k", current).absent("k").present("no"), "k"),
    ];
    for (txn, key) in broken {
        let outcome = kv.commit(&txn.clone().put("broken", ""))?;
        assert_eq!(outcome, Outcome::Conflict { key: key.to_owned() }, "{txn:?}");
    }
    assert_eq!(kv.get("broken")?, None);
    Ok(())
}

fn guards_see_the_store_before_the_writes(kv: &dyn Kv) -> Result<()> {
    done(kv, &Txn::new().absent("k").put("k", "1"))?;
    done(kv, &Txn::new().present("k").delete("k"))?;
    assert_eq!(kv.get("k")?, None);
    Ok(())
}

fn a_conflict_changes_nothing(kv: &dyn Kv) -> Result<()> {
    put(kv, "kept", "1")?;
    let before = existing(kv, "kept")?;
    let outcome = kv.commit(&Txn::new().put("new", "x").delete("kept").present("no"))?;
    assert!(matches!(outcome, Outcome::Conflict { .. }));
    assert_eq!(existing(kv, "kept")?, before);
    assert_eq!(kv.get("new")?, None);
    assert_eq!(now(kv)?, before.mod_revision);
    Ok(())
}

fn a_counter_loses_no_increment(kv: &dyn Kv) -> Result<()> {
    const EACH: usize = 25;
    put(kv, "counter", "0")?;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| (0..EACH).try_for_each(|_| increment(kv))))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| panic!("a thread panicked")))
    })?;
    let entry = existing(kv, "counter")?;
    assert_eq!(entry.value, (THREADS * EACH).to_string().into_bytes());
    assert_eq!(entry.version, (THREADS * EACH + 1) as u64, "a conflict is no put");
    Ok(())
}

fn increment(kv: &dyn Kv) -> Result<()> {
    loop {
        let entry = existing(kv, "counter")?;
        let count: u64 =
            String::from_utf8_lossy(&entry.value).parse().unwrap_or_else(|_| panic!("{entry:?}"));
        let next = (count + 1).to_string();
        if let Outcome::Done(_) =
            kv.commit(&Txn::new().revision("counter", entry.mod_revision).put("counter", next))?
        {
            return Ok(());
        }
    }
}

fn malformed_keys_are_refused(kv: &dyn Kv) -> Result<()> {
    let longest = "k".repeat(KEY_BYTES_MAX);
    put(kv, &longest, "x")?;
    assert_eq!(existing(kv, &longest)?.key, longest);

    let before = now(kv)?;
    for key in [
        "",
        "a b",
        "a\tb",
        "a\n",
        "a\0b",
        "\u{7f}",
        "schl\u{fc}ssel",
        &"k".repeat(KEY_BYTES_MAX + 1),
    ] {
        let txns = [
            Txn::new().put("good", "x").put(key, "x"),
            Txn::new().put("good", "x").delete(key),
            Txn::new().put("good", "x").absent(key),
            Txn::new().put("good", "x").present(key),
        ];
        for txn in txns {
            assert!(matches!(kv.commit(&txn), Err(StoreError::CheckKey { .. })), "{key:?}");
        }
        assert!(matches!(kv.get(key), Err(StoreError::CheckKey { .. })), "{key:?}");
    }
    assert_eq!(kv.get("good")?, None);
    assert_eq!(now(kv)?, before);
    Ok(())
}

fn bounds_are_refused_and_change_nothing(kv: &dyn Kv) -> Result<()> {
    let before = now(kv)?;
    let good = || Txn::new().put("good", "x");

    let large = good().put("k", vec![0; VALUE_BYTES_MAX + 1]);
    assert!(
        matches!(kv.commit(&large), Err(StoreError::CheckValue { len, .. }) if len == VALUE_BYTES_MAX + 1)
    );

    let ops = (0..TXN_OPS_MAX).fold(good(), |txn, i| txn.absent(format!("k{i}")));
    assert!(matches!(kv.commit(&ops), Err(StoreError::CheckOps { ops }) if ops == TXN_OPS_MAX + 1));

    let whole = TXN_BYTES_MAX / VALUE_BYTES_MAX;
    let bytes =
        (0..whole).fold(good(), |txn, i| txn.put(format!("k{i}"), vec![0; VALUE_BYTES_MAX]));
    assert!(matches!(kv.commit(&bytes), Err(StoreError::CheckBytes { .. })));

    for twice in [good().put("good", "y"), good().delete("good")] {
        assert!(
            matches!(kv.commit(&twice), Err(StoreError::CheckDuplicate { key }) if key == "good")
        );
    }
    assert_eq!(kv.get("good")?, None);
    assert_eq!(now(kv)?, before);
    Ok(())
}

fn the_largest_transaction_is_carried_out(kv: &dyn Kv) -> Result<()> {
    let all = (0..TXN_OPS_MAX).fold(Txn::new(), |txn, i| txn.put(format!("k{i}"), i.to_string()));
    let revision = done(kv, &all)?;
    for i in [0, 1, TXN_OPS_MAX - 1] {
        let entry = existing(kv, &format!("k{i}"))?;
        assert_eq!((entry.value, entry.mod_revision), (i.to_string().into_bytes(), revision));
    }
    let next = put(kv, "k0", "x")?;
    assert!(next > revision, "revisions are apart however large a commit is");
    Ok(())
}
