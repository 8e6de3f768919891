//! Publishing: the moment is kept in the commit that asks for the template, and stays as long as it is needed.

use crate::common::{Server, commit, server};
use crate::routes::code;
use tt_api::views::TemplatePhase;
use tt_model::template::Origin;
use tt_model::{ErrorCode, SnapshotSpec, TemplateSource, TemplateSpec, Trouble, VmId};
use tt_store::tables::{Change, TemplateRecord};

fn of_vm(name: &str, vm: &str, snapshot: Option<&str>) -> TemplateSpec {
    let snapshot = snapshot.map(str::to_owned);
    let source = TemplateSource::Publish { vm: vm.into(), snapshot };
    TemplateSpec { name: name.into(), source, memo: None }
}

fn record(server: &Server, name: &str) -> TemplateRecord {
    server.tables.template(name).unwrap().unwrap().value
}

/// What the host does when it is done.
fn done(server: &Server, name: &str, change: impl Fn(&mut TemplateRecord)) {
    let mut row = server.tables.template(name).unwrap().unwrap();
    row.value.origin = None;
    change(&mut row.value);
    commit(&server.tables, &Change::new().template(&row).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_kept_for_a_template_and_asked_for_once() {
    let server = server();
    let client = &server.client;
    server.ready_env("shop", 2).await;
    server.later();
    let request = of_vm("a.org/x", "shop/micro-1", None);
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
    let planned = record(&server, "a.org/x").origin.unwrap();
    let Origin::Snapshot { snapshot, is_temporary: true, template, .. } = &planned else {
        panic!("{planned:?}");
    };
    assert_eq!(template, "micro");
    let env = client.env("shop").await.unwrap();
    assert!(env.vms[0].vm.snapshots.contains_key(snapshot) && env.vms[1].vm.snapshots.is_empty());
    // Again while it is under way is the same; no second moment is kept.
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
    assert_eq!(client.env("shop").await.unwrap().vms, env.vms);
    server.take("shop", snapshot, None);
    server.later();
    let vm = Some("micro-1");
    assert_eq!(code(client.remove_snapshot("shop", vm, snapshot).await), ErrorCode::InUse);
    assert_eq!(code(client.remove_template("micro").await), ErrorCode::InUse);
    // One that failed is planned anew.
    let trouble = Trouble { code: ErrorCode::Template, why: "no".into(), retry: false };
    done(&server, "a.org/x", |record| record.trouble = Some(trouble.clone()));
    client.remove_snapshot("shop", vm, snapshot).await.unwrap();
    assert_eq!(client.make_template(&request).await.unwrap().phase, TemplatePhase::Building);
    assert!(record(&server, "a.org/x").origin.is_some());
    // What is there is not made again from another moment under its name.
    let made = record(&server, "micro").template;
    done(&server, "a.org/x", |record| record.template = made.clone());
    server.later();
    assert_eq!(code(client.make_template(&request).await), ErrorCode::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_stays_while_it_is_published() {
    let server = server();
    let client = &server.client;
    server.ready_env("shop", 1).await;
    server.later();
    let spec = SnapshotSpec { name: "s".into(), life_time: None, with_memory: false };
    client.create_snapshot("shop", None, &spec).await.unwrap();
    let request = of_vm("a.org/x", "shop/micro", Some("s"));
    assert_eq!(code(client.make_template(&request).await), ErrorCode::State);
    server.take("shop", "s", None);
    client.make_template(&request).await.unwrap();
    assert_eq!(code(client.remove_snapshot("shop", None, "s").await), ErrorCode::InUse);
    done(&server, "a.org/x", |record| record.template = Some(Default::default()));
    client.remove_snapshot("shop", None, "s").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_wishes_to_publish_change_nothing() {
    let server = server();
    server.ready_env("shop", 1).await;
    server.later();
    let revision = server.tables.revision().unwrap();
    let image = TemplateSource::PublishImage { image: VmId(4711) };
    for (request, wanted) in [
        (of_vm("x", "shop", None), ErrorCode::Invalid),
        (of_vm("x", "shop/..", None), ErrorCode::Invalid),
        (of_vm("x", "shop/micro", Some("../s")), ErrorCode::Invalid),
        (of_vm("x", "shop/other", None), ErrorCode::NotFound),
        (of_vm("x", "other/micro", None), ErrorCode::NotFound),
        (of_vm("x", "shop/micro", Some("none")), ErrorCode::NotFound),
        (of_vm("micro", "shop/micro", None), ErrorCode::Exists),
        (TemplateSpec { name: "x".into(), source: image, memo: None }, ErrorCode::NotFound),
    ] {
        assert_eq!(code(server.client.make_template(&request).await), wanted, "{request:?}");
    }
    assert_eq!(server.tables.revision().unwrap(), revision);
}
