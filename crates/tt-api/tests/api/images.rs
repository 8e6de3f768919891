//! Kept images: listed, used, removed.

use crate::common::{Server, commit, server};
use crate::routes::code;
use tt_api::ClientError;
use tt_model::{EnvSpec, ErrorCode, VmId, VmSpec};
use tt_store::tables::Change;

fn env(vm: VmSpec) -> EnvSpec {
    EnvSpec { vms: vec![vm], ..EnvSpec::default() }
}

/// The image that a Vm left.
async fn kept(server: &Server) -> VmId {
    let vm = VmSpec { keep_image: true, disk_size: Some(20), ..VmSpec::new("micro") };
    let view = server.client.create_env("old", "k", &env(vm)).await.unwrap();
    server.client.destroy_env("old").await.unwrap();
    server.erase("old");
    view.vms[0].vm.id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_image_is_listed_used_and_removed() {
    let server = server();
    let client = &server.client;
    assert!(client.images().await.unwrap().images.is_empty());
    let id = kept(&server).await;
    let images = client.images().await.unwrap().images;
    assert_eq!((images.len(), images[0].id), (1, id));
    assert_eq!((images[0].name.as_str(), images[0].disk_size), ("old/micro", 20));

    let vm = VmSpec { image: Some(id), name: Some("db".into()), ..VmSpec::new("micro") };
    let new = client.create_env("new", "k", &env(vm.clone())).await.unwrap();
    let made = &new.vms[0].vm;
    assert_eq!((made.base.as_ref(), made.resource.disk_size), (Some(&images[0].runtime_image), 20));
    let web = VmSpec { name: Some("web".into()), ..vm.clone() };
    let added = client.add_vm("new", "web", &web).await;
    assert_eq!(added.unwrap().vms[0].vm.base.as_ref(), made.base.as_ref());
    let plain = VmSpec { image: None, ..vm.clone() };
    assert_eq!(code(client.add_vm("new", "plain", &plain).await), ErrorCode::Exists);
    let small = VmSpec { disk_size: Some(19), name: None, ..vm.clone() };
    assert_eq!(code(client.add_vm("new", "small", &small).await), ErrorCode::Invalid);

    let revision = server.tables.revision().unwrap();
    let error = client.remove_image(id).await.unwrap_err();
    let ClientError::Problem(problem) = error else { panic!("{error}") };
    assert_eq!((problem.code, problem.status), (ErrorCode::InUse, 409));
    assert!(problem.detail.contains("new/db, new/web"), "{}", problem.detail);
    assert_eq!(code(client.remove_template("micro").await), ErrorCode::InUse);
    assert_eq!(server.tables.revision().unwrap(), revision);

    client.destroy_env("new").await.unwrap();
    server.erase("new");
    let error = client.remove_template("micro").await.unwrap_err();
    assert!(error.to_string().contains(&format!("image {id}")), "{error}");
    assert!(!client.remove_image(id).await.unwrap().is_wanted);
    let revision = server.tables.revision().unwrap();
    assert!(!client.remove_image(id).await.unwrap().is_wanted);
    assert_eq!(server.tables.revision().unwrap(), revision);
    assert_eq!(code(client.create_env("new", "k", &env(vm)).await), ErrorCode::State);
    let row = server.tables.image(id).unwrap().unwrap();
    commit(&server.tables, &Change::new().remove_image(&row));
    assert_eq!(code(client.remove_image(id).await), ErrorCode::NotFound);
    client.remove_template("micro").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_below_another_one_stays() {
    let server = server();
    let client = &server.client;
    let id = kept(&server).await;
    let vm = VmSpec { image: Some(id), keep_image: true, ..VmSpec::new("micro") };
    let upper = client.create_env("new", "k", &env(vm)).await.unwrap().vms[0].vm.id;
    client.destroy_env("new").await.unwrap();
    server.erase("new");
    let error = client.remove_image(id).await.unwrap_err();
    assert!(error.to_string().contains(&format!("image {upper}")), "{error}");
    client.remove_image(upper).await.unwrap();
}

/// Whatever comes first, no Vm is planned on an image that goes.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_used_or_removed_but_not_both() {
    for _ in 0..20 {
        let server = server();
        let id = kept(&server).await;
        let vm = VmSpec { image: Some(id), ..VmSpec::new("micro") };
        let (client, other) = (server.client.clone(), server.client.clone());
        let create =
            tokio::spawn(async move { client.create_env("new", "k", &env(vm)).await.is_ok() });
        let remove = tokio::spawn(async move { other.remove_image(id).await.is_ok() });
        assert_ne!(create.await.unwrap(), remove.await.unwrap());
    }
}
