//! Pushes and pulls are asked for: one at a time, of what is there, to where something can lie.

use crate::common::{Server, commit, server};
use crate::routes::code;
use tt_api::views::TemplatePhase;
use tt_model::{ErrorCode, Push, PushSpec, Remote, TemplateSource, TemplateSpec, Trouble};
use tt_store::tables::Change;

fn to(reference: &str) -> Remote {
    Remote { reference: reference.into(), plain_http: false, credentials: None }
}

fn push(template: &str, reference: &str) -> PushSpec {
    PushSpec { template: template.into(), to: to(reference) }
}

/// What the host does when it is done.
fn done(server: &Server, name: &str, change: impl Fn(&mut Push)) {
    let mut row = server.tables.template(name).unwrap().unwrap();
    row.value.push.as_mut().map(change).unwrap();
    commit(&server.tables, &Change::new().template(&row).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_push_at_a_time_is_asked_for_and_can_be_ended() {
    let server = server();
    let client = &server.client;
    let first = push("micro", "r.org/a:1");
    let view = client.push_template(&first).await.unwrap();
    let asked = Push { to: to("r.org/a:1"), digest: None, trouble: None, before: None };
    assert_eq!((view.phase, view.push), (TemplatePhase::Ready, Some(asked.clone())));
    assert_eq!(code(client.remove_template("micro").await), ErrorCode::InUse);
    // The same again is one, another one waits.
    assert_eq!(client.push_template(&first).await.unwrap().push, Some(asked));
    let second = push("micro", "r.org/b:1");
    assert_eq!(code(client.push_template(&second).await), ErrorCode::Busy);
    // What lies at one place is of use at the next.
    done(&server, "micro", |push| push.digest = Some("sha256:00".into()));
    let view = client.push_template(&second).await.unwrap();
    assert_eq!(view.push.unwrap().before.as_deref(), Some("r.org/a:1"));
    // One that failed can be asked for again.
    let trouble = Trouble { code: ErrorCode::Template, why: "no".into(), retry: false };
    done(&server, "micro", |push| push.trouble = Some(trouble.clone()));
    let view = client.push_template(&second).await.unwrap();
    assert_eq!(view.push.unwrap().before, None);
    for _ in 0..2 {
        assert_eq!(client.stop_push("micro").await.unwrap().push, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_pushed_or_pulled_is_refused() {
    let server = server();
    let client = &server.client;
    let digest = format!("r.org/a@sha256:{}", "0f".repeat(32));
    for (spec, refused) in [
        (push("none", "r.org/a:1"), ErrorCode::NotFound),
        (push("../x", "r.org/a:1"), ErrorCode::Invalid),
        (push("micro", "r.org/A:1"), ErrorCode::Invalid),
        (push("micro", &digest), ErrorCode::Invalid),
    ] {
        assert_eq!(code(client.push_template(&spec).await), refused, "{spec:?}");
    }
    assert_eq!(code(client.stop_push("none").await), ErrorCode::NotFound);
    let pull = |name: &str, from: Remote| {
        let source = TemplateSource::Pull(from);
        TemplateSpec { name: name.into(), source, memo: None }
    };
    let relative = Remote { credentials: Some("auth.json".into()), ..to("a") };
    for spec in [pull("x", to("A")), pull("../x", to("a")), pull("x", relative)] {
        assert_eq!(code(client.make_template(&spec).await), ErrorCode::Invalid, "{spec:?}");
    }
    let spec = pull("a.org/x", to("alpine"));
    for _ in 0..2 {
        assert_eq!(client.make_template(&spec).await.unwrap().phase, TemplatePhase::Building);
    }
    // What is not there yet can not be pushed.
    assert_eq!(code(client.push_template(&push("a.org/x", "r.org/a:1")).await), ErrorCode::State);
    assert_eq!(code(client.make_template(&pull("a.org/x", to("b"))).await), ErrorCode::Exists);
    // One that could not be pulled goes without a word about that.
    let mut row = server.tables.template("a.org/x").unwrap().unwrap();
    row.value.trouble = Some(Trouble { code: ErrorCode::Template, why: "no".into(), retry: false });
    commit(&server.tables, &Change::new().template(&row).unwrap());
    let going = client.remove_template("a.org/x").await.unwrap();
    assert_eq!((going.phase, going.trouble), (TemplatePhase::Removing, None));
}
